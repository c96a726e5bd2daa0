"""From embeddings as an encoder gives them to similarities and log-sums: one step of autograd, for small batches.

At B = 64 what a loss costs is the number of its operations and not their arithmetic. So scaling to norm one, the
similarities, the positives' and the log-sums of both kinds of anchors are one function with its gradient in closed form.
With rows z = norm · u, weights w = dL/d lse and E as in `kernels`:  dL/dU = M U,  M_ab = E_ab (c_a + c_b) + dL/ds_ab at
positives,  c = w exp(-lse) / tau,  and  dL/dz = (dL/du - u (u · dL/du)) / norm.
Unit rows bound the exponents by 1/tau, so nothing has to be asked of the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import choice
from .dense import LARGEST_EXPONENT, LN2
from .products import product, times

LOG2_E = 1 / LN2


def fits(z: Tensor, candidates: int, temperature: object) -> bool:
    """Whether the dense kernel is the choice for rows z, (B, D), its exponents need no shift, and nothing is compiled.

    Args:
        candidates: how many rows and columns of similarities there are.
        temperature: only a number will do.
    """
    return (
        isinstance(temperature, float)
        and LOG2_E / temperature <= LARGEST_EXPONENT
        and not torch.compiler.is_compiling()
        and choice.is_dense(z, candidates, candidates)
    )


def one_tower(
    z0: Tensor, z1: Tensor, ids: Tensor | None, log_count: float | Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of B samples, each anchor against both views of the others.

    Args:
        z0, z1: (B, D) floating, of any length.  ids: (B,), or None where all are different.
        log_count: a number or (B,), log of how many negatives an anchor has.

    Returns:
        s_pos (B,); log ĝ (2, B), which is lse - log_count; unit rows (2, B, D). float32, or float64 for float64 rows; all differentiable.
    """
    return _Direct.apply(z0, z1, ids, log_count, LOG2_E / temperature, _OneTower)


def two_towers(
    x: Tensor, y: Tensor, ids: Tensor | None, log_count: float | Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """B pairs, each x against the y of the others and each y against their x. Args and results as of `one_tower`."""
    return _Direct.apply(x, y, ids, log_count, LOG2_E / temperature, _TwoTowers)


class _OneTower:
    """Similarities of all 2B rows: E is symmetric, and gives anchors' and candidates' part in one product."""

    @staticmethod
    def similarities(z: Tensor) -> tuple[Tensor, Tensor]:
        sim = product(z, z)
        return sim, sim.diagonal(z.shape[0] // 2).clone()

    @staticmethod
    def mask(e: Tensor, ids: Tensor | None) -> None:
        by_view = e.view(2, e.shape[0] // 2, 2, e.shape[0] // 2)
        if ids is None:
            by_view.diagonal(dim1=1, dim2=3).zero_()
        else:
            by_view.masked_fill_((ids[:, None] == ids)[:, None, :], 0)

    @staticmethod
    def totals(e: Tensor) -> Tensor:
        return e.sum(dim=1).view(2, -1)

    @staticmethod
    def gradient(z: Tensor, e: Tensor, c: Tensor, d_pos: Tensor) -> Tensor:
        c, n = c.flatten(), z.shape[0]
        m = (c[:, None] + c).mul_(e)
        # (i, B + i) and (B + i, i), which the mask has left 0
        m.as_strided((2, n // 2), (n // 2 * (n - 1), n + 1), n // 2).copy_(d_pos)
        return times(m, z)


class _TwoTowers:
    """Similarities of the B rows x with the B rows y."""

    @staticmethod
    def similarities(z: Tensor) -> tuple[Tensor, Tensor]:
        x, y = z.chunk(2)
        sim = product(x, y)
        return sim, sim.diagonal().clone()

    @staticmethod
    def mask(e: Tensor, ids: Tensor | None) -> None:
        if ids is None:
            e.fill_diagonal_(0)
        else:
            e.masked_fill_(ids[:, None] == ids, 0)

    @staticmethod
    def totals(e: Tensor) -> Tensor:
        return torch.stack((e.sum(dim=1), e.sum(dim=0)))

    @staticmethod
    def gradient(z: Tensor, e: Tensor, c: Tensor, d_pos: Tensor) -> Tensor:
        (x, y), (of_rows, of_columns) = z.chunk(2), c.unbind()
        m = (of_rows.unsqueeze(1) + of_columns).mul_(e)
        m.diagonal().copy_(d_pos)
        return torch.cat((times(m, y), times(m.T, x)))


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, ids: Tensor | None, log_count: float | Tensor, factor: float, towers: Any
    ) -> tuple[Tensor, ...]:
        z = torch.cat((x, y))
        z = z if z.dtype == torch.float64 else z.float()
        norm = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_(min=1e-12)
        z = z / norm
        sim, s_pos = towers.similarities(z)
        e = sim.mul_(factor).exp2_()
        towers.mask(e, ids)
        total = towers.totals(e)
        ctx.save_for_backward(z, norm, e, total)
        ctx.factor, ctx.towers, ctx.dtypes, ctx.some_empty = factor, towers, (x.dtype, y.dtype), ids is not None
        ctx.set_materialize_grads(False)
        return s_pos, total.log().sub_(log_count), z.view(2, -1, z.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_pos: Tensor | None, d_lse: Tensor | None, d_z: Tensor | None) -> tuple[Tensor | None, ...]:
        z, norm, e, total = ctx.saved_tensors
        if d_lse is None:
            d_lse = torch.zeros_like(total)
        if ctx.some_empty:  # finite where there is nothing to sum
            total = total.clamp(min=torch.finfo(total.dtype).tiny)
        c = (d_lse * (ctx.factor * LN2)).div_(total)
        d = ctx.towers.gradient(z, e, c, total.new_zeros(()) if d_pos is None else d_pos)
        if d_z is not None:
            d = d + d_z.reshape(z.shape)
        along = torch.linalg.vecdot(z, d).unsqueeze(1)
        d_x, d_y = torch.addcmul(d, z, along, value=-1).div_(norm).chunk(2)
        if ctx.dtypes != (z.dtype, z.dtype):
            d_x, d_y = d_x.to(ctx.dtypes[0]), d_y.to(ctx.dtypes[1])
        return d_x, d_y, None, None, None, None
