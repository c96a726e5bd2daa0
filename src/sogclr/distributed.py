"""Anchors of this rank against candidates of all ranks. Nothing else in the package knows of ranks.

Embeddings are gathered once. Each rank computes the log-sums of its own anchors and gathers those of the others, so all
go on with the same numbers and compute the same loss. The weights dL/d lse that come back are then the same everywhere
too, and each rank forms the whole gradient of its own rows, as anchors and as candidates, without a collective.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import kernels
from .errors import BadInput


def world_size() -> int:
    """Ranks in the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(z: Tensor) -> Tensor:
    """(B, ...) on each rank -> (B x ranks, ...) in rank order on all; this rank's own rows carry gradient.

    Raises:
        BadInput: the ranks hold batches of different sizes.
    """
    if world_size() == 1:
        return z
    everything = _all_gather(z)
    if not z.requires_grad:
        return everything
    parts = list(everything.chunk(world_size()))
    parts[dist.get_rank()] = z
    return torch.cat(parts)


def _all_gather(z: Tensor) -> Tensor:
    local = z.detach().contiguous()
    out = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13
    collective(out, local)
    return out


def log_sum_negatives(z0: Tensor, z1: Tensor, index: Tensor, temperature: float | Tensor) -> Tensor:
    """One tower: log of the sum over N(a) of exp(s_ab / tau), for the anchors of all ranks, over all ranks' rows.

    Args:
        z0, z1: (B, D) this rank's unit rows.  index: (B,) their ids.  temperature: a number, () or (B,), one a sample.

    Returns:
        (2, B x ranks), the same on every rank; the gradient of z0, z1 and the temperature is that of this rank's rows,
        and complete, if every rank goes on to the same loss.
    """
    z, ids = torch.cat([z0, z1]), index.repeat(2)
    if isinstance(temperature, Tensor) and temperature.ndim == 1:
        temperature = temperature.repeat(2)
    if world_size() == 1:
        return kernels.log_sum_negatives(z, ids, temperature).view(2, -1)
    every = _one_each(temperature, len(z))
    log_sum, _ = _LogSums.apply(z, None, ids, None, temperature if every is None else every, None)
    return log_sum.view(world_size(), 2, -1).transpose(0, 1).reshape(2, -1)


def log_sum_between(
    x: Tensor, y: Tensor, index: Tensor, temperature: float | Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Two towers: log-sums of all ranks' rows of x over all ranks' y of other ids, and of y over x.

    Args:
        x, y: (B, D) this rank's unit rows.  index: (B,).  temperature: a number, (), or (B,) for x and (B,) for y.

    Returns:
        Twice (B x ranks,); gradients as in `log_sum_negatives`.
    """
    if world_size() == 1:
        return kernels.log_sum_between(x, y, index, index, temperature)
    if isinstance(temperature, tuple):
        return _LogSums.apply(x, y, index, index, *temperature)
    every = _one_each(temperature, len(x))
    each = temperature if every is None else every
    return _LogSums.apply(x, y, index, index, each, each)


def _one_each(temperature: float | Tensor, count: int) -> Tensor | None:
    return temperature.expand(count) if isinstance(temperature, Tensor) else None


class _LogSums(torch.autograd.Function):
    """Log-sums of all ranks' rows from strips: this rank's rows against everybody's. Without y: y is x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        x_ids: Tensor,
        y_ids: Tensor | None,
        x_temperature: float | Tensor,
        y_temperature: float | Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.sides = [_Side(x, x_ids, x_temperature)]
        if y is not None:
            assert y_ids is not None
            assert y_temperature is not None
            ctx.sides.append(_Side(y, y_ids, y_temperature))
        ctx.set_materialize_grads(True)
        for side, other in zip(ctx.sides, reversed(ctx.sides), strict=True):
            log_sum = kernels.log_sum_rows(side.z, other.all_z, side.ids, other.all_ids, side.temperature)
            side.all_lse = _all_gather(log_sum)
        return ctx.sides[0].all_lse, ctx.sides[-1].all_lse.clone() if y is not None else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, x_weight: Tensor, y_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        weights = [x_weight] if y_weight is None or len(ctx.sides) == 1 else [x_weight, y_weight]
        grads = []
        for k, side in enumerate(ctx.sides):
            other, other_weight = ctx.sides[-1 - k], weights[-1 - k]
            each = isinstance(side.temperature, Tensor)
            d_z, d_temperature = kernels.gradient_of_rows(
                side.z,
                other.all_z,
                side.ids,
                other.all_ids,
                (side.temperature, other.all_temperature) if each else side.temperature,
                (side.all_lse[side.mine], other.all_lse),
                (weights[k][side.mine], other_weight),
            )
            grads.append((d_z.to(side.z.dtype), d_temperature if each else None))
        (d_x, d_x_temperature), (d_y, d_y_temperature) = grads[0], grads[1] if len(grads) == 2 else (None, None)
        return d_x, d_y, None, None, d_x_temperature, d_y_temperature


class _Side:
    """One tower's rows here and everywhere, in rank order."""

    all_lse: Tensor

    def __init__(self, z: Tensor, ids: Tensor, temperature: float | Tensor) -> None:
        self.z, self.ids = z.detach(), ids
        self.all_z, self.all_ids = _all_gather(z), _all_gather(ids)
        self.temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
        self.all_temperature = _all_gather(temperature) if isinstance(temperature, Tensor) else temperature
        start = dist.get_rank() * len(z)
        self.mine = slice(start, start + len(z))


def check_equal_batches(size: int, device: torch.device) -> None:
    """Every rank must hold as many rows: gathering unequal batches would hang or mix up rows. CPU only: it waits."""
    if world_size() == 1 or device.type != "cpu":
        return
    sizes = torch.zeros(world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = size
    dist.all_reduce(sizes)
    if bool((sizes != size).any()):
        raise BadInput(
            f"the ranks hold batches of {sizes.tolist()} samples; give each the same (drop the last, smaller batch)"
        )


def scale_gradient(loss: Tensor, factor: int) -> Tensor:
    """The same value with `factor` times the gradient.

    Each rank computes the loss of the whole batch and the gradient of its own rows; DistributedDataParallel then
    averages over the ranks, where a sum is wanted.
    """
    return loss if factor == 1 else loss * factor - loss.detach() * (factor - 1)
