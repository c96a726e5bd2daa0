"""Log-sums of this rank's anchors over candidates of all ranks.

Embeddings are gathered once. Each rank computes the log-sums of its own anchors and gathers those of the others, so all
go on with the same numbers and compute the same loss. The weights dL/d lse that come back are then the same everywhere
too, and each rank forms the whole gradient of its own rows, as anchors and as candidates, without a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import kernels
from ..distributed import world_size
from .once import once_differentiable

_sizes: list[int] | None = None  # how many rows each rank holds; None: all as many


@contextmanager
def uneven_batch(sizes: list[int] | None) -> Iterator[None]:
    """Take rank k to hold `sizes[k]` rows of the batch inside the block; None: all as many.

    Gradients of what is computed inside know afterwards too.
    """
    global _sizes
    before, _sizes = _sizes, sizes
    try:
        yield
    finally:
        _sizes = before


def gather(z: Tensor) -> Tensor:
    """Return the rows of all ranks in rank order, (G, ...), from (B, ...) on each; this rank's own carry gradient."""
    if world_size() == 1:
        return z
    everything = all_gather(z, _sizes)
    if not z.requires_grad:
        return everything
    own = _own(len(everything), _sizes)
    return torch.cat([everything[: own.start], z, everything[own.stop :]])


def all_gather(z: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Return what `gather` does, without gradient. All send as many rows as the rank that has most."""
    local = z.detach()
    most = len(local) if sizes is None else max(sizes)
    if len(local) < most:
        local = torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])
    out = local.new_empty(world_size() * most, *local.shape[1:])
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13
    collective(out, local.contiguous())
    if sizes is None or min(sizes) == most:
        return out
    return torch.cat([part[:size] for part, size in zip(torch.split(out, most), sizes, strict=True)])


def _own(count: int, sizes: list[int] | None) -> slice:
    """Return this rank's rows among those of all."""
    rank = dist.get_rank()
    if sizes is None:
        return slice(rank * count // world_size(), (rank + 1) * count // world_size())
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def log_sum_negatives(views: Sequence[Tensor], index: Tensor, temperature: float | Tensor) -> Tensor:
    """Return log of the sum over N(a) of exp(s_ab / tau_a) of V views, each rank computing that of its own anchors.

    Args:
        views: V of (G, D), unit rows of all ranks, gathered.
        index: (G,) their ids.
        temperature: a number, () or (G,), one a sample, the same on all ranks.

    Returns:
        (V, G), the same on all ranks. If all go on to the same loss, the gradient of this rank's rows is complete, that
        of the other rows is zero, and that of the temperature is complete.
    """
    count = len(views)
    z, ids = torch.cat(list(views)), index.repeat(count)
    if isinstance(temperature, Tensor) and temperature.ndim == 1:
        temperature = temperature.repeat(count)
    if world_size() == 1:
        return kernels.log_sum_negatives(z, ids, temperature).view(count, -1)
    return _strips(z, None, ids, None, _one_each(temperature, len(z)), None, count)[0].view(count, -1)


def log_sum_between(
    x: Tensor, y: Tensor, index: Tensor, temperature: float | Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the log-sums of the rows of x over y of other ids, and of y over x, each rank computing its own.

    Args:
        x: (G, D) unit rows of all ranks, gathered.
        y: (G, D), the same of the other things.
        index: (G,) ids, or (G, 2), a pair's image and text: b counts for a where both are others.
        temperature: a number, (), or two of (G,).

    Returns:
        Twice (G,); gradients as in `log_sum_negatives`.
    """
    if world_size() == 1:
        return kernels.log_sum_between(x, y, index, index, temperature)
    each = temperature if isinstance(temperature, tuple) else (_one_each(temperature, len(x)),) * 2
    of_x, of_y = _strips(x, y, index, index, *each, 1)
    assert of_y is not None
    return of_x, of_y


def log_sum_keys(
    x: Tensor, keys: Tensor, x_ids: Tensor, key_ids: Tensor, temperature: float | Tensor, views: int = 1
) -> Tensor:
    """Return the log-sums of the rows of x over keys of other ids, a queue that all ranks hold alike.

    Each rank computes those of its own rows.

    Args:
        x: (views x G, D) unit rows of all ranks, gathered.
        keys: (K, D), without gradient.
        x_ids: (views x G,) or (views x G, kinds).
        key_ids: (K,) or (K, kinds).
        temperature: a number, () or (views x G,).
        views: how many views' rows x holds, one after the other.

    Returns:
        (views x G,); gradients as in `log_sum_negatives`.
    """
    if world_size() == 1:
        return kernels.log_sum_rows(x, keys, x_ids, key_ids, temperature)
    return _strips(x, keys, x_ids, key_ids, _one_each(temperature, len(x)), None, views)[0]


def _one_each(temperature: float | Tensor, count: int) -> float | Tensor:
    return temperature.expand(count) if isinstance(temperature, Tensor) else temperature


def _strips(*arguments: object) -> tuple[Tensor, Tensor | None]:
    apply: Callable[..., tuple[Tensor, Tensor | None]] = _Strips.apply
    return apply(*arguments)


class _Strips(torch.autograd.Function):
    """This rank's rows against everybody's. Without y: y is x. Without y's temperature: y are no anchors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        x_ids: Tensor,
        y_ids: Tensor | None,
        x_temperature: float | Tensor,
        y_temperature: float | Tensor | None,
        views: int,
    ) -> tuple[Tensor, Tensor | None]:
        sides = [_Side(x, x_ids, x_temperature, views)]
        if y is not None and y_ids is not None:
            sides.append(_Side(y, y_ids, y_temperature, views))
        for side, other in zip(sides, reversed(sides), strict=True):
            if side.temperature is not None:
                own = (side.own(t) for t in (side.z, side.ids, side.temperature))
                z, ids, temperature = own
                side.lse = side.everyone(kernels.log_sum_rows(z, other.z, ids, other.ids, temperature))
        ctx.sides = sides
        ctx.save_for_backward(*(t for t in (x, y, x_temperature, y_temperature) if isinstance(t, Tensor)))
        # copies: an output that its own graph node holds on to would never be freed
        first, second = sides[0].lse, sides[-1].lse
        assert first is not None
        return first.clone(), second.clone() if len(sides) == 2 and second is not None else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
        d_x, d_x_temperature = ctx.sides[0].gradient(ctx.sides[-1], weights[0], weights[len(ctx.sides) - 1])
        d_y, d_y_temperature = None, None
        if len(ctx.sides) == 2 and ctx.sides[1].lse is not None:
            d_y, d_y_temperature = ctx.sides[1].gradient(ctx.sides[0], weights[1], weights[0])
        return d_x, d_y, None, None, d_x_temperature, d_y_temperature, None


class _Side:
    """One side's rows of all ranks, (views x G, ...); `own` takes this rank's, `everyone` puts all together."""

    lse: Tensor | None = None

    def __init__(self, z: Tensor, ids: Tensor, temperature: float | Tensor | None, views: int) -> None:
        self.z, self.ids, self.views = z.detach(), ids, views
        self.temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
        self.sizes = _sizes
        self.rows = _own(len(z) // views, _sizes)

    def own(self, values: Any) -> Any:
        """Return this rank's rows of a tensor; a number as it is."""
        if not isinstance(values, Tensor):
            return values
        return self.by_view(values)[:, self.rows].flatten(0, 1)

    def by_view(self, values: Tensor) -> Tensor:
        """Return (rows, ...) as (views, rows of a view, ...)."""
        return values.view(self.views, len(values) // self.views, *values.shape[1:])

    def everyone(self, own: Tensor) -> Tensor:
        """Return the values of all ranks' rows from this rank's."""
        return all_gather(own.view(self.views, -1).T, self.sizes).T.reshape(-1)

    def gradient(self, other: _Side, weight: Tensor, other_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of all rows and, gathered, of the temperatures where each has one.

        That of other ranks' rows stays zero: they have it.
        """
        temperature: Any = self.temperature
        each = isinstance(temperature, Tensor)
        if each:
            theirs = other.temperature if other.lse is not None else torch.ones(len(other.z), device=other.z.device)
            temperature = (self.own(self.temperature), theirs)
        own_d, own_d_temperature = kernels.gradient_of_rows(
            self.own(self.z),
            other.z,
            self.own(self.ids),
            other.ids,
            temperature,
            (self.own(self.lse), other.lse),
            (self.own(weight), other_weight if other.lse is not None else None),
        )
        d = torch.zeros_like(self.z)
        self.by_view(d)[:, self.rows] = self.by_view(own_d)
        return d, self.everyone(own_d_temperature).to(temperature[0].dtype) if each else None


def scale_gradient(loss: Tensor, factor: float) -> Tensor:
    """Return the same value with `factor` times the gradient.

    Each rank computes the loss of the whole batch and the gradient of its own rows; DistributedDataParallel then
    averages over the ranks, where a sum is wanted.
    """
    return loss if factor == 1 else loss * factor - loss.detach() * (factor - 1)
