"""All similarities at once, kept for the backward pass: few operations, for batches whose similarities fit a cache.

Rows arrive scaled so that E_ab = 2^(x_a · y_b): exp2 is several times faster than exp. `inverse` holds the factors
log2(e) / tau of the rows where every anchor has its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .products import product

LN2 = math.log(2)
# 2^±86 is 1e±26: sums over any batch, and their reciprocals times a scaled loss's weights, stay inside float32
LARGEST_EXPONENT = 86.0


def log_sum_negatives(z: Tensor, ids: Tensor, inverse: Tensor | None) -> Tensor:
    """(N, D), (N,), (N,) or None -> (N,)."""
    same = ids[:, None] == ids[None, :]
    if inverse is None and needs_no_shift(z, z):
        return _OneTower.apply(z, same)
    return _log_sum(z @ z.T, same, inverse)


def log_sum_between(
    x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, x_inverse: Tensor | None, y_inverse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(R, D), (C, D), (R,), (C,), (R,) or None, (C,) or None -> (R,), (C,)."""
    same = x_ids[:, None] == y_ids[None, :]
    if x_inverse is None and needs_no_shift(x, y):
        return _TwoTowers.apply(x, y, same)
    sim = x @ y.T
    return _log_sum(sim, same, x_inverse), _log_sum(sim.T, same.T, y_inverse)


def needs_no_shift(x: Tensor, y: Tensor) -> bool:
    """Whether every |x_a · y_b| is small enough for exp2 in float32. False off the CPU, where asking would wait."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not len(x) or not len(y):
        return False
    with torch.no_grad():
        longest = float(torch.linalg.vector_norm(x, dim=1).max())
        return longest * (longest if y is x else float(torch.linalg.vector_norm(y, dim=1).max())) <= LARGEST_EXPONENT


def _log_sum(sim: Tensor, same: Tensor, inverse: Tensor | None) -> Tensor:
    """The formula as it is written: a compiler fuses it, and it holds at any temperature."""
    logits = sim if inverse is None else sim * inverse[:, None]
    top = logits.detach().masked_fill(same, -math.inf).amax(dim=1, keepdim=True).clamp(min=-1e30)
    total = (logits - top).masked_fill(same, -math.inf).exp2().sum(dim=1)
    return (total.log2() + top[:, 0]) * LN2


def _per_sum(weight: Tensor, total: Tensor) -> Tensor:
    """d s_ab / d lse_a is E_ab times this: ln 2 w_a exp(-lse_a); finite where there is nothing to sum."""
    return weight * LN2 / total.clamp(min=torch.finfo(total.dtype).tiny)


class _OneTower(torch.autograd.Function):
    """E is symmetric, so M = E (c_a + c_b) gives anchors' and candidates' part of the gradient in one product."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, same: Tensor) -> Tensor:
        z = z.contiguous()
        e = product(z, z).exp2_().masked_fill_(same, 0)
        total = e.sum(dim=1)
        ctx.save_for_backward(z, e, total)
        return total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        z, e, total = ctx.saved_tensors
        c = _per_sum(weight, total)
        return product((c[:, None] + c).mul_(e), z.T), None


class _TwoTowers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x.contiguous(), y.contiguous()
        e = product(x, y).exp2_().masked_fill_(same, 0)
        rows, columns = e.sum(dim=1), e.sum(dim=0)
        ctx.save_for_backward(x, y, e, rows, columns)
        return rows.log(), columns.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, row_weight: Tensor, column_weight: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y, e, rows, columns = ctx.saved_tensors
        m = (_per_sum(row_weight, rows)[:, None] + _per_sum(column_weight, columns)).mul_(e)
        need_x, need_y = ctx.needs_input_grad[:2]
        return product(m, y.T) if need_x else None, product(x.T, m.T).T if need_y else None, None
