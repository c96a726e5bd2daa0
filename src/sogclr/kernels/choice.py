"""Which kernel computes the log-sums: by device, size and width, or the one that the user names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import BadInput

Kernel = Literal["dense", "tiled", "triton"]

# similarities up to which all of them are kept: measured, beyond it making them twice is as fast or faster
DENSE = {"cpu": 1024 * 1024, "cuda": 2048 * 2048}  # on a GPU launches, not bytes, are what a small batch costs
# wider rows do not fit a program's registers and shared memory: strips of large matrix products do better
WIDEST_TRITON, WIDEST_TRITON_FLOAT32 = 256, 128

_TRITON = find_spec("triton") is not None
_named: Kernel | None = None


@contextmanager
def use(kernel: Kernel) -> Iterator[None]:
    """Compute every log-sum inside the block by `kernel`: `dense`, `tiled` or `triton`."""
    global _named
    before, _named = _named, known(kernel)
    try:
        yield
    finally:
        _named = before


def known(kernel: Kernel) -> Kernel:
    """Return a kernel that exists and can run here.

    Raises:
        BadInput: there is none of that name, or it needs a package that is not installed.
    """
    if kernel not in (kernels := get_args(Kernel)):
        raise BadInput(f"kernel must be one of {', '.join(kernels)} and was {kernel!r}")
    if kernel == "triton" and not _TRITON:
        raise BadInput("the triton kernel was asked for and triton is not installed; install it, or use 'tiled'")
    return kernel


def choose(x: Tensor, y: Tensor, kernel: Kernel | None = None) -> Kernel:
    """Return the kernel for rows x, (R, D), and candidates y, (C, D): `kernel`, or that of `use`, or the fastest."""
    named = _named if kernel is None else known(kernel)
    if len(x) * len(y) == 0:
        return "tiled"  # an empty queue: no tiles, no special case, whatever is named
    if named is not None:
        return named
    if len(x) * len(y) <= DENSE.get(x.device.type, DENSE["cpu"]):
        return "dense"
    return "triton" if _fits_triton(x) else "tiled"


def _fits_triton(x: Tensor) -> bool:
    """Return whether the Triton kernel is there for rows of this device, type and width, and the fastest."""
    if x.device.type != "cuda" or torch.version.hip is not None or not _TRITON or x.dtype == torch.float64:
        return False
    exact = x.dtype == torch.float32 and not tf32()
    return x.shape[1] <= (WIDEST_TRITON_FLOAT32 if exact else WIDEST_TRITON)


def tf32() -> bool:
    """Return whether float32 products may be TF32. From torch 2.9 on the old switch raises once the new one was set."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)


def can_sync(z: Tensor) -> bool:
    """Return whether sizes may depend on values: on the CPU, where nothing waits, and outside of `torch.compile`."""
    return z.device.type == "cpu" and not torch.compiler.is_compiling()
