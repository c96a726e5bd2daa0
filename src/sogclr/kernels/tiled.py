"""Similarities tile by tile, made once for the log-sums and once more for the gradient; never more than a tile is held.

One set of rows needs only the tiles on and above the diagonal: N^2 D multiply-adds for the two passes, N^2 D for the
gradient, two thirds of what autograd spends on the formula. Tiles of one strip are worked on in a fixed order, so
results repeat bit for bit. On the CPU a tile that holds no two rows of one id is not masked at all. Similarities are in units of
bits, E = 2^s, as in `dense`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .dense import LN2, at_least_float32, needs_no_shift, same_ids

TILE = 512  # rows and columns; 1 MiB of float32, which with the tile of weights stays in a core's second-level cache
TILE_ELSEWHERE = 4096  # on a GPU large products matter more than caches
LOWEST = -1e30  # below any logit, and finite: differences with it are never NaN


class _Side:
    """One side of the tiles: rows, their ids, 1 / tau, and what is summed up for them."""

    def __init__(self, z: Tensor, ids: Tensor, inverse: Tensor | None) -> None:
        self.z = at_least_float32(z).contiguous()
        self.ids, self.inverse = ids, inverse if inverse is None else inverse.to(self.z.dtype)
        self.tile = TILE if z.device.type == "cpu" else TILE_ELSEWHERE

    def kinds(self) -> list[Tensor]:
        """Return the ids of each kind, (rows,)."""
        return [self.ids] if self.ids.ndim == 1 else list(self.ids.unbind(dim=1))

    def parts(self) -> list[slice]:
        """Return the strips of rows, a tile high each."""
        return [slice(k, min(k + self.tile, len(self.z))) for k in range(0, len(self.z), self.tile)]


class _Kind:
    """One kind of ids as numbers from 0 on, which float32 and float64 hold exactly up to 2^24 and 2^53."""

    def __init__(self, x_ids: Tensor, y_ids: Tensor | None) -> None:
        ids = x_ids if y_ids is None else torch.cat([x_ids, y_ids])
        values, group = torch.unique(ids, return_inverse=True)
        self.x = group[: len(x_ids)]
        self.y = self.x if y_ids is None else group[len(x_ids) :]
        self.in_strip = torch.zeros(len(values), dtype=torch.bool)

    def shared(self, i: slice) -> Tensor:
        """Return which rows of y have an id that is in strip i of x: (C,) bool."""
        self.in_strip[self.x[i]] = True
        shared = self.in_strip[self.y]
        self.in_strip[self.x[i]] = False
        return shared

    def different(self, i: slice, j: slice, out: Tensor) -> Tensor:
        """Write 1 where the ids of strips i and j differ, else 0, to `out`, and return it."""
        rows, columns = self.x[i].to(out.dtype), self.y[j].to(out.dtype)
        return torch.sub(rows[:, None], columns, out=out).abs_().clamp_(max=1)


class _Tiles:
    """Walks over the tiles. Two buffers are used again and again; a tile of similarities comes fresh."""

    def __init__(self, x: _Side, y: _Side) -> None:
        self.x, self.y = x, y
        self.one_tower = x is y
        self.size = min(x.tile, len(x.z)) * min(y.tile, len(y.z))
        self.buffers: dict[int, Tensor] = {}
        self.on_cpu = x.z.device.type == "cpu"
        if self.on_cpu:
            of_y = [None] * len(x.kinds()) if self.one_tower else y.kinds()
            self.kinds = [_Kind(*ids) for ids in zip(x.kinds(), of_y, strict=True)]

    def buffer(self, which: int, like: Tensor) -> Tensor:
        """Return buffer 0 or 1 in the shape of a tile; what it held is lost."""
        if which not in self.buffers:
            self.buffers[which] = self.x.z.new_empty(self.size)
        return self.buffers[which][: like.numel()].view(like.shape)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, bool]]:
        """Yield each tile: (rows, columns, similarities, whether some ids are equal)."""
        columns = self.y.parts()
        for k, i in enumerate(self.x.parts()):
            shared = self.shared(i, columns)
            for n in range(k if self.one_tower else 0, len(columns)):
                yield i, columns[n], self.x.z[i] @ self.y.z[columns[n]].T, shared[n]

    def shared(self, i: slice, columns: list[slice]) -> list[bool]:
        """Return for each tile of strip i whether it has an id on both sides; elsewhere than on the CPU, always."""
        if not self.on_cpu:
            return [True] * len(columns)
        shared = torch.stack([kind.shared(i) for kind in self.kinds]).any(dim=0)
        return [bool(shared[j].any()) for j in columns]

    def same(self, i: slice, j: slice) -> Tensor:
        """Return where ids are equal: (rows, columns) bool."""
        return same_ids(self.x.ids[i], self.y.ids[j])

    def zero_same(self, values: Tensor, i: slice, j: slice) -> None:
        """Set finite values to 0 where ids are equal: by arithmetic, three times as fast as by a mask on the CPU."""
        if not self.on_cpu or any(len(kind.in_strip) > 2**24 for kind in self.kinds):
            values.masked_fill_(self.same(i, j), 0)
            return
        for kind in self.kinds:
            values.mul_(kind.different(i, j, self.buffer(1, values)))

    def mirrored(self, i: slice, j: slice) -> bool:
        """Return whether the tile also stands for its mirror image, or for y's rows as anchors."""
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
    """Return the log-sums; see `operators.log_sums` for the arguments."""
    a, b = _sides(x, y, x_ids, y_ids, x_inverse, y_inverse)
    sums = _PlainSums if x_inverse is None and needs_no_shift(a.z, b.z) else _ShiftedSums
    tiles = _Tiles(a, b)
    row_sums = sums(tiles, a)
    column_sums = row_sums if a is b else sums(tiles, b)
    for i, j, sim, same in tiles:
        row_sums.prepare(i, j, sim, same)
        row_sums.add(i, sim, 1)
        if columns and tiles.mirrored(i, j):
            column_sums.add(j, sim, 0)
    return row_sums.log(), column_sums.log() if columns and a is not b else a.z.new_empty(0)


class _PlainSums:
    """Sums of 2^s; the tile itself becomes its exponential."""

    def __init__(self, tiles: _Tiles, side: _Side) -> None:
        self.tiles, self.total = tiles, side.z.new_zeros(len(side.z))

    def prepare(self, i: slice, j: slice, sim: Tensor, same: bool) -> None:
        """Make a tile of similarities that of their exponentials."""
        sim.exp2_()
        if same:
            self.tiles.zero_same(sim, i, j)

    def add(self, part: slice, e: Tensor, dim: int) -> None:
        """Add a tile's sums along `dim` to those of the anchors `part`."""
        self.total[part] += e.sum(dim=dim)

    def log(self) -> Tensor:
        """Return the log-sums, (rows,)."""
        return self.total.log_()


class _ShiftedSums:
    """Sums of 2^(logit - largest so far), rescaled whenever a larger logit comes."""

    def __init__(self, tiles: _Tiles, side: _Side) -> None:
        self.tiles, self.inverse = tiles, side.inverse
        self.total = side.z.new_zeros(len(side.z))
        self.top = torch.full_like(self.total, LOWEST)

    def prepare(self, i: slice, j: slice, sim: Tensor, same: bool) -> None:
        """Take equal ids out of a tile of similarities."""
        if same:
            sim.masked_fill_(self.tiles.same(i, j), -math.inf)

    def add(self, part: slice, sim: Tensor, dim: int) -> None:
        """Add a tile's sums along `dim` to those of the anchors `part`."""
        logits = sim
        if self.inverse is not None:
            logits = torch.mul(sim, self.inverse[part].unsqueeze(dim), out=self.tiles.buffer(0, sim))
        top = torch.maximum(self.top[part], logits.amax(dim=dim))
        shifted = torch.sub(logits, top.unsqueeze(dim), out=self.tiles.buffer(0, sim))
        self.total[part] = self.total[part] * torch.exp2(self.top[part] - top) + shifted.exp2_().sum(dim=dim)
        self.top[part] = top

    def log(self) -> Tensor:
        """Return the log-sums, (rows,)."""
        return self.total.log2_().add_(self.top).mul_(LN2)


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
    """Return the gradients; see `operators.log_sums_gradient` for the arguments."""
    a, b = _sides(x, y, x_ids, y_ids, x_inverse, y_inverse)
    tiles = _Tiles(a, b)
    anchors = [_Anchors(a, x_lse, x_weight, needs_inverse)]
    anchors.append(anchors[0] if a is b else _Anchors(b, y_lse, y_weight, needs_inverse))
    form = _plain_weights if x_inverse is None and needs_no_shift(a.z, b.z) else _shifted_weights
    d_a = torch.zeros_like(a.z)
    d_b = d_a if a is b else torch.zeros_like(b.z) if needs_y else None
    for i, j, sim, same in tiles:
        m = form(tiles, i, j, sim, same, *anchors)
        d_a[i] += m @ b.z[j]
        if d_b is not None and tiles.mirrored(i, j):
            d_b[j] += m.T @ a.z[i]
    return (
        d_a.to(x.dtype),
        d_b.to(y.dtype) if d_b is not None and y is not None else x.new_empty(0),
        anchors[0].d_inverse if needs_inverse else a.z.new_empty(0),
        anchors[1].d_inverse if needs_inverse and y_lse is not None else a.z.new_empty(0),
    )


class _Anchors:
    """Log-sums and weights of one side's anchors; none (`bits is None`) where a side holds candidates only."""

    def __init__(self, side: _Side, lse: Tensor | None, weight: Tensor | None, needs_inverse: bool) -> None:
        self.inverse = side.inverse
        if lse is None or weight is None:
            self.bits = None
            self.scale = side.z.new_zeros(len(side.z))
            return
        self.bits = lse.to(side.z.dtype) / LN2
        weight = weight.to(side.z.dtype) * LN2
        # what E is multiplied with where nothing is shifted; 0 where lse is -inf: nothing was summed
        self.scale = torch.where(torch.isneginf(lse), 0.0, weight * torch.exp2(-self.bits))
        self.weight = weight if self.inverse is None else weight * self.inverse
        self.inverse_weight = weight if needs_inverse and self.inverse is not None else None
        self.d_inverse = torch.zeros_like(weight)


def _plain_weights(
    tiles: _Tiles, i: slice, j: slice, sim: Tensor, same: bool, rows: _Anchors, columns: _Anchors
) -> Tensor:
    """Return  M = E (c_a + c_b)  of a tile."""
    e = sim.exp2_()
    if same:
        tiles.zero_same(e, i, j)
    return torch.add(rows.scale[i, None], columns.scale[None, j], out=tiles.buffer(0, e)).mul_(e)


def _shifted_weights(
    tiles: _Tiles, i: slice, j: slice, sim: Tensor, same: bool, rows: _Anchors, columns: _Anchors
) -> Tensor:
    """Return  M = w_a p_ab / tau_a + w_b p_ba / tau_b  with  p_ab = 2^(s_ab / tau_a - lse_a)."""
    mask = tiles.same(i, j) if same else None
    m = _probabilities(tiles.buffer(0, sim), i, sim, mask, rows, 1)
    if not tiles.mirrored(i, j):
        return m.add_(m.T.clone())
    if columns.bits is not None:
        m += _probabilities(tiles.buffer(1, sim), j, sim, mask, columns, 0)
    return m


def _probabilities(out: Tensor, part: slice, sim: Tensor, mask: Tensor | None, anchors: _Anchors, dim: int) -> Tensor:
    """Return  w_a p_ab / tau_a  for the anchors along `dim` 1 (rows) or 0 (columns).

    What the tile gives to the gradient of their 1 / tau is added to `anchors.d_inverse`.
    """
    assert anchors.bits is not None
    bits = anchors.bits[part].unsqueeze(dim)
    if anchors.inverse is None:
        torch.sub(sim, bits, out=out)
    else:
        torch.mul(sim, anchors.inverse[part].unsqueeze(dim), out=out).sub_(bits)
    out.exp2_()
    if mask is not None:
        out.masked_fill_(mask, 0)
    if anchors.inverse_weight is not None:
        anchors.d_inverse[part] += (out * sim).sum(dim=dim) * anchors.inverse_weight[part]
    return out.mul_(anchors.weight[part].unsqueeze(dim))
