"""Similarities tile by tile, made once for the log-sums and once more for the gradient; never more than a tile is held.

One tower needs only the tiles on and above the diagonal: N^2 D multiply-adds for the two passes, N^2 D for the gradient,
two thirds of what autograd spends on the formula. Tiles of one strip are worked on in a fixed order, so results repeat
bit for bit. On the CPU a tile that holds no two rows of one id is not masked at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .dense import needs_no_shift

TILE = 512  # rows and columns; 1 MiB of float32, which with the tile of weights stays in a core's second-level cache
TILE_ELSEWHERE = 4096  # on a GPU large products matter more than caches
LOWEST = -1e30  # below any logit, and finite: differences with it are never NaN


class _Side:
    """One side of the tiles: rows, their ids, 1 / tau, and what is summed up for them."""

    def __init__(self, z: Tensor, ids: Tensor, inverse: Tensor | None) -> None:
        self.z = z if z.dtype == torch.float64 else z.float()
        self.ids, self.inverse = ids, inverse if inverse is None else inverse.to(self.z.dtype)
        self.tile = TILE if z.device.type == "cpu" else TILE_ELSEWHERE

    def parts(self) -> list[slice]:
        return [slice(k, min(k + self.tile, len(self.z))) for k in range(0, len(self.z), self.tile)]


class _Tiles:
    """Walks over the tiles and fills one buffer after the other with similarities."""

    def __init__(self, x: _Side, y: _Side) -> None:
        self.x, self.y = x, y
        self.one_tower = x is y
        size = min(x.tile, len(x.z)) * min(y.tile, len(y.z))
        self.buffers = [torch.empty(0)] * 3
        self.size = size

    def buffer(self, which: int, rows: int, columns: int) -> Tensor:
        if not self.buffers[which].numel():
            self.buffers[which] = self.x.z.new_empty(self.size)
        return self.buffers[which][: rows * columns].view(rows, columns)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
        """Each (rows, columns, similarities, where ids are equal or None)."""
        columns = self.y.parts()
        for k, i in enumerate(self.x.parts()):
            shared = self.shared(i, columns)
            for n in range(k if self.one_tower else 0, len(columns)):
                j = columns[n]
                tile = self.buffer(0, i.stop - i.start, j.stop - j.start)
                torch.mm(self.x.z[i], self.y.z[j].T, out=tile)
                yield i, j, tile, self.x.ids[i, None] == self.y.ids[None, j] if shared[n] else None

    def shared(self, i: slice, columns: list[slice]) -> list[bool]:
        """For each tile of strip i whether it has an id on both sides; elsewhere than on the CPU, always."""
        if self.x.z.device.type != "cpu":
            return [True] * len(columns)
        if not hasattr(self, "x_group"):
            both = torch.cat([self.x.ids, self.y.ids])
            values, group = both.unique(return_inverse=True)
            self.x_group, self.y_group = group.split([len(self.x.ids), len(self.y.ids)])
            self.in_strip = torch.zeros(len(values), dtype=torch.bool)
        self.in_strip[self.x_group[i]] = True
        shared = self.in_strip[self.y_group]
        self.in_strip[self.x_group[i]] = False
        return [bool(shared[j].any()) for j in columns]

    def mirrored(self, i: slice, j: slice) -> bool:
        """Whether the tile also stands for its mirror image, or for the columns of the other tower."""
        return not (self.one_tower and i == j)


def _sides(
    x: Tensor,
    y: Tensor | None,
    x_ids: Tensor,
    y_ids: Tensor | None,
    x_inverse: Tensor | None,
    y_inverse: Tensor | None,
) -> tuple[_Side, _Side]:
    rows = _Side(x, x_ids, x_inverse)
    if y is None:
        return rows, rows
    assert y_ids is not None
    return rows, _Side(y, y_ids, y_inverse)


def log_sums(
    x: Tensor,
    y: Tensor | None,
    x_ids: Tensor,
    y_ids: Tensor | None,
    x_inverse: Tensor | None,
    y_inverse: Tensor | None,
    columns: bool,
) -> tuple[Tensor, Tensor]:
    """See `operators.log_sums`."""
    a, b = _sides(x, y, x_ids, y_ids, x_inverse, y_inverse)
    sums = _PlainSums if x_inverse is None and needs_no_shift(a.z, b.z) else _ShiftedSums
    tiles = _Tiles(a, b)
    row_sums = sums(tiles, a)
    column_sums = row_sums if a is b else sums(tiles, b)
    for i, j, sim, same in tiles:
        row_sums.prepare(sim, same)
        row_sums.add(i, sim, same, 1)
        if columns and tiles.mirrored(i, j):
            column_sums.add(j, sim, same, 0)
    return row_sums.log(), column_sums.log() if columns and a is not b else a.z.new_empty(0)


class _PlainSums:
    """Sums of exp(s); the tile itself becomes its exponential."""

    def __init__(self, tiles: _Tiles, side: _Side) -> None:
        self.total = side.z.new_zeros(len(side.z))

    def prepare(self, sim: Tensor, same: Tensor | None) -> None:
        sim.exp_()
        if same is not None:
            sim.masked_fill_(same, 0)

    def add(self, part: slice, sim: Tensor, same: Tensor | None, dim: int) -> None:
        self.total[part] += sim.sum(dim=dim)

    def log(self) -> Tensor:
        return self.total.log_()


class _ShiftedSums:
    """Sums of exp(s / tau - largest so far), rescaled whenever a larger logit comes."""

    def __init__(self, tiles: _Tiles, side: _Side) -> None:
        self.tiles, self.inverse = tiles, side.inverse
        self.total = side.z.new_zeros(len(side.z))
        self.top = torch.full_like(self.total, LOWEST)

    def prepare(self, sim: Tensor, same: Tensor | None) -> None:
        pass

    def add(self, part: slice, sim: Tensor, same: Tensor | None, dim: int) -> None:
        logits = self.tiles.buffer(1, *sim.shape)
        if self.inverse is None:
            logits.copy_(sim)
        else:
            torch.mul(sim, self.inverse[part].unsqueeze(dim), out=logits)
        if same is not None:
            logits.masked_fill_(same, -math.inf)
        top = torch.maximum(self.top[part], logits.amax(dim=dim))
        fresh = logits.sub_(top.unsqueeze(dim)).exp_().sum(dim=dim)
        self.total[part] = self.total[part] * torch.exp(self.top[part] - top) + fresh
        self.top[part] = top

    def log(self) -> Tensor:
        return self.total.log_().add_(self.top)


def log_sums_gradient(
    x: Tensor,
    y: Tensor | None,
    x_ids: Tensor,
    y_ids: Tensor | None,
    x_inverse: Tensor | None,
    y_inverse: Tensor | None,
    x_lse: Tensor,
    y_lse: Tensor | None,
    x_weight: Tensor,
    y_weight: Tensor | None,
    needs_y: bool,
    needs_inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `operators.log_sums_gradient`."""
    a, b = _sides(x, y, x_ids, y_ids, x_inverse, y_inverse)
    tiles = _Tiles(a, b)
    anchors = [_Anchors(a, x_lse, x_weight, needs_inverse)]
    anchors.append(anchors[0] if a is b else _Anchors(b, y_lse, y_weight, needs_inverse))
    form = _plain_weights if x_inverse is None and needs_no_shift(a.z, b.z) else _shifted_weights
    d_a = torch.zeros_like(a.z)
    d_b = d_a if a is b else torch.zeros_like(b.z) if needs_y else None
    for i, j, sim, same in tiles:
        m = form(tiles, i, j, sim, same, *anchors)
        d_a[i].addmm_(m, b.z[j])
        if d_b is not None and tiles.mirrored(i, j):
            d_b[j].addmm_(m.T, a.z[i])
    return (
        d_a.to(x.dtype),
        d_b.to(y.dtype) if d_b is not None and y is not None else x.new_empty(0),
        anchors[0].d_inverse if needs_inverse else a.z.new_empty(0),
        anchors[1].d_inverse if needs_inverse and y_lse is not None else a.z.new_empty(0),
    )


class _Anchors:
    """Log-sums and weights of one side's anchors; none (`lse is None`) where a side holds candidates only."""

    def __init__(self, side: _Side, lse: Tensor | None, weight: Tensor | None, needs_inverse: bool) -> None:
        self.lse, self.inverse, self.needs_inverse = lse, side.inverse, needs_inverse
        if lse is None or weight is None:
            self.scale = self.weight = side.z.new_zeros(len(side.z))
            return
        self.weight = weight.to(side.z.dtype)
        # c_a = w_a exp(-lse_a); 0 where lse is -inf: nothing was summed
        self.scale = torch.where(torch.isneginf(lse), 0.0, self.weight * torch.exp(-lse))
        self.d_inverse = torch.zeros_like(self.weight)


def _plain_weights(
    tiles: _Tiles, i: slice, j: slice, sim: Tensor, same: Tensor | None, rows: _Anchors, columns: _Anchors
) -> Tensor:
    """M = E (c_a + c_b)."""
    e = sim.exp_()
    if same is not None:
        e.masked_fill_(same, 0)
    m = tiles.buffer(1, *e.shape)
    return torch.add(rows.scale[i, None], columns.scale[None, j], out=m).mul_(e)


def _shifted_weights(
    tiles: _Tiles, i: slice, j: slice, sim: Tensor, same: Tensor | None, rows: _Anchors, columns: _Anchors
) -> Tensor:
    """M = w_a p_ab / tau_a + w_b p_ba / tau_b  with  p_ab = exp(s_ab / tau_a - lse_a)."""
    m = _probabilities(tiles.buffer(1, *sim.shape), i, sim, same, rows, 1)
    if not tiles.mirrored(i, j):
        return m.add_(m.T.clone())
    if columns.lse is not None:
        m += _probabilities(tiles.buffer(2, *sim.shape), j, sim, same, columns, 0)
    return m


def _probabilities(out: Tensor, part: slice, sim: Tensor, same: Tensor | None, anchors: _Anchors, dim: int) -> Tensor:
    """w_a p_ab / tau_a for the anchors along `dim` 1 (rows) or 0 (columns); adds to the gradient of their 1 / tau."""
    assert anchors.lse is not None
    scale = anchors.weight[part]
    if anchors.inverse is None:
        torch.sub(sim, anchors.lse[part].unsqueeze(dim), out=out)
    else:
        torch.mul(sim, anchors.inverse[part].unsqueeze(dim), out=out).sub_(anchors.lse[part].unsqueeze(dim))
    out.exp_()
    if same is not None:
        out.masked_fill_(same, 0)
    if anchors.inverse is not None and anchors.needs_inverse:
        anchors.d_inverse[part] += (out * sim).sum(dim=dim) * scale
        scale = scale * anchors.inverse[part]
    elif anchors.inverse is not None:
        scale = scale * anchors.inverse[part]
    return out.mul_(scale.unsqueeze(dim))
