"""The two passes on a GPU: similarities live on the chip only. A program owns a block of rows and walks all columns.

Nothing is added to memory by more than one program, so results repeat bit for bit. Products take the inputs' precision
(float32 as `torch.backends.cuda.matmul` says: TF32, or three of them, as exact as float32) and accumulate in float32; all
else is float32. Rows may be up to 256 wide. Every row comes with its log2(e) / tau, so logits are in bits.
"""
# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"
# kernels are written in Triton's language: their arguments are pointers and constants of compile time

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .choice import tf32
from .dense import LN2

# the interpreter multiplies bfloat16 wrongly
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# float16 products: typical p w is about 1 / N of the largest possible one; this spends float16's range on small values
_HEADROOM = 2.0**14


@triton.jit
def _similarities(x, y_ptr, columns, d, stride, count, width, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """Return the similarities of x, (ROWS, WIDTH), with rows `columns` of y, and the block of y."""
    inside = (columns[:, None] < count) & (d[None, :] < width)
    y = tl.load(y_ptr + columns[:, None].to(tl.int64) * stride + d[None, :], mask=inside, other=0.0)
    if UPCAST:
        y = y.to(tl.float32)
    return tl.dot(x, tl.trans(y), input_precision=PRECISION), y


@triton.jit
def _negatives(x_ids, x_ids_ptr, rows, valid, y_ids_ptr, columns, there, KINDS: tl.constexpr):
    """Return which columns are there and share no id, of any kind, with the row; x_ids are the first kind's."""
    y_ids = tl.load(y_ids_ptr + columns * KINDS, mask=there, other=-1)
    negative = (x_ids[:, None] != y_ids[None, :]) & there[None, :]
    for kind in tl.static_range(1, KINDS):
        x_other = tl.load(x_ids_ptr + rows * KINDS + kind, mask=valid, other=-1)
        y_other = tl.load(y_ids_ptr + columns * KINDS + kind, mask=there, other=-1)
        negative = negative & (x_other[:, None] != y_other[None, :])
    return negative


@triton.jit
def _row_log_sums(
    x_ptr,
    y_ptr,
    x_ids_ptr,
    y_ids_ptr,
    inverse_ptr,
    out_ptr,
    rows_count,
    columns_count,
    width,
    x_stride,
    y_stride,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the log-sums of a block of rows over all columns: the largest logit and the sum of 2^(logit - largest)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    valid = rows < rows_count
    x = tl.load(
        x_ptr + rows[:, None].to(tl.int64) * x_stride + d[None, :],
        mask=valid[:, None] & (d[None, :] < width),
        other=0.0,
    )
    if UPCAST:
        x = x.to(tl.float32)
    x_ids = tl.load(x_ids_ptr + rows * KINDS, mask=valid, other=-1)
    inverse = tl.load(inverse_ptr + rows, mask=valid, other=0.0)
    top = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, columns_count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        s, _ = _similarities(x, y_ptr, columns, d, y_stride, columns_count, width, UPCAST, PRECISION)
        there = columns < columns_count
        negative = _negatives(x_ids, x_ids_ptr, rows, valid, y_ids_ptr, columns, there, KINDS)
        logits = tl.where(negative, s * inverse[:, None], float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(logits - new_top[:, None]), axis=1)
        top = new_top
    tl.store(out_ptr + rows, (tl.log2(total) + top) * 0.6931471805599453, mask=valid)


@triton.jit
def _row_gradient(
    x_ptr,
    y_ptr,
    x_ids_ptr,
    y_ids_ptr,
    x_inverse_ptr,
    y_inverse_ptr,
    x_bits_ptr,
    y_bits_ptr,
    x_weight_ptr,
    y_weight_ptr,
    scale_ptr,
    d_x_ptr,
    d_inverse_ptr,
    rows_count,
    columns_count,
    width,
    x_stride,
    y_stride,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    Y_ANCHORS: tl.constexpr,
):
    """Write dL/dx of a block of rows: sum over b of (w_a p_ab / tau_a + w_b p_ba / tau_b) y_b."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    valid = rows < rows_count
    place = rows[:, None].to(tl.int64) * x_stride + d[None, :]
    x = tl.load(x_ptr + place, mask=valid[:, None] & (d[None, :] < width), other=0.0)
    if UPCAST:
        x = x.to(tl.float32)
    x_ids = tl.load(x_ids_ptr + rows * KINDS, mask=valid, other=-1)
    inverse = tl.load(x_inverse_ptr + rows, mask=valid, other=0.0)
    bits = tl.load(x_bits_ptr + rows, mask=valid, other=0.0)
    weight = tl.load(x_weight_ptr + rows, mask=valid, other=0.0)
    scale = tl.load(scale_ptr)
    gradient = tl.zeros((ROWS, WIDTH), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    for start in range(0, columns_count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        there = columns < columns_count
        s, y = _similarities(x, y_ptr, columns, d, y_stride, columns_count, width, UPCAST, PRECISION)
        negative = _negatives(x_ids, x_ids_ptr, rows, valid, y_ids_ptr, columns, there, KINDS)
        p = tl.exp2(tl.where(negative, s * inverse[:, None] - bits[:, None], float("-inf")))
        moment += tl.sum(p * s, axis=1)
        m = p * (weight * inverse * scale)[:, None]
        if Y_ANCHORS:
            y_inverse = tl.load(y_inverse_ptr + columns, mask=there, other=0.0)
            y_bits = tl.load(y_bits_ptr + columns, mask=there, other=0.0)
            y_weight = tl.load(y_weight_ptr + columns, mask=there, other=0.0) * y_inverse * scale
            q = tl.exp2(tl.where(negative, s * y_inverse[None, :] - y_bits[None, :], float("-inf")))
            m += q * y_weight[None, :]
        gradient += tl.dot(m.to(y.dtype), y, input_precision=PRECISION)
    out = d_x_ptr + rows[:, None].to(tl.int64) * width + d[None, :]
    tl.store(out, gradient / scale, mask=valid[:, None] & (d[None, :] < width))
    tl.store(d_inverse_ptr + rows, moment * weight, mask=valid)


def _blocks(z: Tensor) -> dict[str, Any]:
    """Return the sizes that were fastest on an H100 (N = 8,192), and the precision of the products.

    float32 without TF32 is three TF32 products: as exact as float32's own, whose products miss the tensor cores and take 60
    times as long.
    """
    width, half = max(16, triton.next_power_of_2(z.shape[1])), z.dtype != torch.float32
    return {
        "ROWS": 64 if half else 32,
        "COLUMNS": 32 if half and width > 128 else 64,
        "WIDTH": width,
        "UPCAST": _INTERPRETED and z.dtype == torch.bfloat16,
        "PRECISION": "tf32" if half or tf32() else "tf32x3",
        "num_warps": 4,
        "num_stages": 3,
    }


def _launch(kernel: Any, x: Tensor, *arguments: object, **constants: object) -> None:
    blocks = _blocks(x)
    # Triton launches on the current device; on the CPU, the interpreter's, this does nothing
    with torch.cuda.device_of(x):
        kernel[(triton.cdiv(len(x), blocks["ROWS"]),)](*arguments, **blocks, **constants)


def _kinds(ids: Tensor) -> int:
    return 1 if ids.ndim == 1 else ids.shape[1]


def _contiguous(z: Tensor) -> Tensor:
    return z if z.stride(1) == 1 else z.contiguous()


def log_sums(
    x: Tensor,
    y: Tensor | None,
    x_ids: Tensor,
    y_ids: Tensor | None,
    x_inverse: Tensor,
    y_inverse: Tensor | None,
    columns: bool,
) -> tuple[Tensor, Tensor]:
    """Return the log-sums; see `operators.log_sums` for the arguments."""
    if y is None or y_ids is None:
        return _log_sums_of_rows(x, x, x_ids, x_ids, x_inverse), _floats(x, 0)
    rows = _log_sums_of_rows(x, y, x_ids, y_ids, x_inverse)
    if not columns or y_inverse is None:
        return rows, _floats(x, 0)
    return rows, _log_sums_of_rows(y, x, y_ids, x_ids, y_inverse)


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _log_sums_of_rows(x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, inverse: Tensor) -> Tensor:
    x, y, out = _contiguous(x), _contiguous(y), _floats(x, len(x))
    sizes = (len(x), len(y), x.shape[1], x.stride(0), y.stride(0))
    vectors = x_ids.contiguous(), y_ids.contiguous(), inverse.contiguous()
    _launch(_row_log_sums, x, x, y, *vectors, out, *sizes, KINDS=_kinds(x_ids))
    return out


def log_sums_gradient(
    x: Tensor,
    y: Tensor | None,
    x_ids: Tensor,
    y_ids: Tensor | None,
    x_inverse: Tensor,
    y_inverse: Tensor | None,
    x_lse: Tensor,
    y_lse: Tensor | None,
    x_weight: Tensor,
    y_weight: Tensor | None,
    needs_y: bool,
    needs_inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients; see `operators.log_sums_gradient` for the arguments."""
    rows = _Rows(x, x_ids, x_inverse, x_lse, x_weight)
    if y is None:
        d_x, d_inverse = _gradient_of_rows(rows, rows)
        return d_x, x.new_empty(0), d_inverse if needs_inverse else _floats(x, 0), _floats(x, 0)
    assert y_ids is not None
    others = _Rows(y, y_ids, y_inverse, y_lse, y_weight)
    d_x, d_inverse = _gradient_of_rows(rows, others)
    d_y, d_y_inverse = x.new_empty(0), _floats(x, 0)
    if needs_y or (needs_inverse and others.anchors):
        d_y, d_y_inverse = _gradient_of_rows(others, rows)
    return (
        d_x,
        d_y if needs_y else x.new_empty(0),
        d_inverse if needs_inverse else _floats(x, 0),
        d_y_inverse if needs_inverse and others.anchors else _floats(x, 0),
    )


class _Rows:
    """One side's rows and, where they are anchors, their factors, log-sums in bits and weights."""

    def __init__(
        self, z: Tensor, ids: Tensor, inverse: Tensor | None, lse: Tensor | None, weight: Tensor | None
    ) -> None:
        self.z, self.ids, self.anchors = _contiguous(z), ids.contiguous(), lse is not None
        zeros = torch.zeros(len(z), dtype=torch.float32, device=z.device)
        self.inverse = zeros if inverse is None else inverse.float().contiguous()
        # where nothing was summed every probability is 0
        self.bits = zeros if lse is None else torch.where(torch.isneginf(lse), 1e30, lse / LN2)
        self.weight = zeros if weight is None else weight.float() * LN2


def _gradient_of_rows(rows: _Rows, others: _Rows) -> tuple[Tensor, Tensor]:
    d_x, d_inverse = _floats(rows.z, *rows.z.shape), _floats(rows.z, len(rows.z))
    largest = torch.maximum((rows.weight * rows.inverse).abs().amax(), (others.weight * others.inverse).abs().amax())
    scale = min(_HEADROOM, max(len(others.z), 1)) / largest.clamp(min=1e-30)
    vectors = [v for pair in zip(_vectors(rows), _vectors(others), strict=True) for v in pair]
    sizes = (len(rows.z), len(others.z), rows.z.shape[1], rows.z.stride(0), others.z.stride(0))
    _launch(
        _row_gradient, rows.z, *vectors, scale, d_x, d_inverse, *sizes, KINDS=_kinds(rows.ids), Y_ANCHORS=others.anchors
    )
    return d_x.to(rows.z.dtype), d_inverse


def _vectors(side: _Rows) -> tuple[Tensor, ...]:
    return side.z, side.ids, side.inverse, side.bits, side.weight
