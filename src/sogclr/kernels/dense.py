"""All similarities at once, kept for the backward pass: few operations, for batches whose similarities fit a cache.

E_ab = 2^(s_ab log2(e) / tau): exp2 is several times faster than exp. `inverse` is the factor log2(e) / tau.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .choice import can_sync
from .once import once_differentiable

LN2 = math.log(2)
# 2^±86 is 1e±26: sums over any batch, and their reciprocals times a scaled loss's weights, stay inside float32
LARGEST_EXPONENT = 86.0


def log_sum_negatives(z: Tensor, ids: Tensor, inverse: Tensor | float) -> Tensor:
    """Return the log-sums of one set of rows over the rows of other ids.

    Args:
        z: (N, D) float32 or float64.
        ids: (N,) or (N, kinds).
        inverse: log2(e) / tau, what s_ab is multiplied by: a number, () or (N,).

    Returns:
        (N,).
    """
    same = same_ids(ids, ids)
    if isinstance(inverse, float) and can_sync(z) and z.numel() > 0:
        with torch.no_grad():
            sim = (z @ z.T).mul_(inverse)
        if fits_exp2(sim):
            of_one: Callable[..., Tensor] = _OneSet.apply
            return of_one(z, sim, same, inverse)
    return _log_sum(z @ z.T, same, inverse)


def log_sum_between(
    x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, x_inverse: Tensor | float, y_inverse: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return the log-sums of the rows x over y of other ids, and of the rows y over x.

    Args:
        x: (R, D) float32 or float64.
        y: (C, D).
        x_ids: (R,) or (R, kinds).
        y_ids: (C,) or (C, kinds).
        x_inverse: log2(e) / tau, what s_ab is multiplied by: a number, () or (R,).
        y_inverse: the same of y, a number, () or (C,).

    Returns:
        (R,) and (C,).
    """
    same = same_ids(x_ids, y_ids)
    if isinstance(x_inverse, float) and can_sync(x) and x.numel() > 0:
        with torch.no_grad():
            sim = (x @ y.T).mul_(x_inverse)
        if fits_exp2(sim):
            of_two: Callable[..., tuple[Tensor, Tensor]] = _TwoSets.apply
            return of_two(x, y, sim, same, x_inverse)
    sim = x @ y.T
    return _log_sum(sim, same, x_inverse), _log_sum(sim.T, same.T, y_inverse)


def at_least_float32(z: Tensor) -> Tensor:
    """Return half precisions as float32; float32 and float64 stay."""
    return z if z.dtype == torch.float64 else z.float()


def same_ids(x_ids: Tensor, y_ids: Tensor) -> Tensor:
    """Return where a row of x and one of y share an id, of any kind: (R, C), from (R,) and (C,) or (·, kinds) ids."""
    if x_ids.ndim == 1:
        return x_ids[:, None] == y_ids[None, :]
    same = x_ids[:, None, 0] == y_ids[None, :, 0]
    for kind in range(1, x_ids.shape[1]):
        same |= x_ids[:, None, kind] == y_ids[None, :, kind]
    return same


def fits_exp2(sim: Tensor) -> bool:
    """Return whether 2^sim and its sums stay inside float32; waits for the device."""
    low, high = sim.aminmax()
    return float(low) >= -LARGEST_EXPONENT and float(high) <= LARGEST_EXPONENT


def needs_no_shift(x: Tensor, y: Tensor) -> bool:
    """Return whether every |x_a · y_b| fits exp2 in float32; False off the CPU, where asking would wait."""
    if not (can_sync(x) and x.numel() > 0 and y.numel() > 0):
        return False
    with torch.no_grad():
        longest = float(torch.linalg.vector_norm(x, dim=1).max())
        return longest * (longest if y is x else float(torch.linalg.vector_norm(y, dim=1).max())) <= LARGEST_EXPONENT


def _log_sum(sim: Tensor, same: Tensor, inverse: Tensor | float) -> Tensor:
    """Return the log-sums by the formula as it is written: a compiler fuses it, and it holds at any temperature."""
    logits = sim * (inverse[:, None] if isinstance(inverse, Tensor) and inverse.ndim else inverse)
    top = logits.detach().masked_fill(same, -math.inf).amax(dim=1, keepdim=True).clamp(min=-1e30)
    total = (logits - top).masked_fill(same, -math.inf).exp2().sum(dim=1)
    return (total.log2() + top[:, 0]) * LN2


def _per_sum(weight: Tensor, total: Tensor, factor: float) -> Tensor:
    """Return  w_a exp(-lse_a) / tau,  which times E_ab is dL/ds_ab; finite where there is nothing to sum."""
    return (weight * (factor * LN2)).div_(total.clamp(min=torch.finfo(total.dtype).tiny))


class _OneSet(torch.autograd.Function):
    """E is symmetric, so M = E (c_a + c_b) gives anchors' and candidates' part of the gradient in one product.

    `sim` becomes E in place.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, sim: Tensor, same: Tensor, factor: float) -> Tensor:
        e = sim.exp2_().masked_fill_(same, 0)
        total = e.sum(dim=1)
        ctx.save_for_backward(z, e, total)
        ctx.factor = factor
        return total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        z, e, total = ctx.saved_tensors
        c = _per_sum(weight, total, ctx.factor)
        return (c[:, None] + c).mul_(e) @ z, None, None, None


class _TwoSets(torch.autograd.Function):
    """As `_OneSet`, with one product for each set of rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, sim: Tensor, same: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        e = sim.exp2_().masked_fill_(same, 0)
        rows, columns = e.sum(dim=1), e.sum(dim=0)
        ctx.save_for_backward(x, y, e, rows, columns)
        ctx.factor = factor
        return rows.log(), columns.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, row_weight: Tensor, column_weight: Tensor) -> tuple[Tensor | None, ...]:
        x, y, e, rows, columns = ctx.saved_tensors
        c_rows, c_columns = _per_sum(row_weight, rows, ctx.factor), _per_sum(column_weight, columns, ctx.factor)
        m = (c_rows[:, None] + c_columns).mul_(e)
        d_x = m @ y if ctx.needs_input_grad[0] else None
        d_y = m.T @ x if ctx.needs_input_grad[1] else None
        return d_x, d_y, None, None, None
