"""Matrix products of float32 tiles on the CPU, by the faster of the two libraries that PyTorch carries.

`torch.mm` calls MKL, which leaves half of the vector units of some processors unused; oneDNN, which PyTorch uses for
convolutions and compiled linear layers, does not. Both compute in float32. docs/results/losses.md has the measurement.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

SMALLEST = 192 * 192 * 192  # multiply-adds from which oneDNN's longer way in pays


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: (R, D), (C, D) -> (R, C). b must be contiguous or the transpose of what is (else oneDNN is very slow)."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and a.numel() * len(b) >= SMALLEST and has_onednn():
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return a @ b.T


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b: (R, K), (K, C) -> (R, C); b must be contiguous."""
    if a.numel() * b.shape[1] < SMALLEST:
        return a @ b  # a transpose less each way
    return product(a, b.T)


@functools.cache
def has_onednn() -> bool:
    """Whether this PyTorch has oneDNN's linear operator, and it computes what it should."""
    if not torch.backends.mkldnn.is_available():
        return False
    a, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""), a @ b.T)
    except (AttributeError, RuntimeError, TypeError):
        return False
