"""The recomputing kernels as two PyTorch operators, so that a compiler sees one call and autograd knows the way back.

Between forward and backward only the rows and their log-sums are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import tiled
from .once import refuse


def _module(kernel: str) -> ModuleType:
    if kernel == "triton":
        from . import triton as module

        return module
    return tiled


def _rows(like: Tensor, count: int) -> Tensor:
    return torch.empty(count, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32, device=like.device)


@torch.library.custom_op("sogclr::log_sums", mutates_args=())
def log_sums(
    x: Tensor,
    y: Tensor | None,
    x_ids: Tensor,
    y_ids: Tensor | None,
    x_inverse: Tensor | None,
    y_inverse: Tensor | None,
    columns: bool,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """Return the log-sums of the rows of x over y and, with `columns`, of the rows of y over x.

    Without y, y is x, and the second result is empty.

    Args:
        x: (R, D).
        y: (C, D).
        x_ids: (R,) or (R, kinds).
        y_ids: (C,) or (C, kinds).
        x_inverse: (R,), log2(e) / tau; 1 where missing, the rows then being scaled already.
        y_inverse: (C,), the same of y.
        columns: whether the rows of y are anchors too.
        kernel: `tiled` or `triton`.

    Returns:
        (R,); and (C,), or (0,) without `columns`.
    """
    compute: Callable[..., tuple[Tensor, Tensor]] = _module(kernel).log_sums
    return compute(x, y, x_ids, y_ids, x_inverse, y_inverse, columns)


@log_sums.register_fake
def _(
    x: Tensor, y: Tensor | None, x_ids: Tensor, y_ids: Any, x_inverse: Any, y_inverse: Any, columns: bool, kernel: str
) -> tuple[Tensor, Tensor]:
    return _rows(x, x.shape[0]), _rows(x, y.shape[0] if columns and y is not None else 0)


@torch.library.custom_op("sogclr::log_sums_gradient", mutates_args=())
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
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dL/dx, dL/dy, dL/d x_inverse, dL/d y_inverse from the weights dL/d lse; empty tensors where not asked for.

    Args:
        x: (R, D).
        y: (C, D).
        x_ids: (R,) or (R, kinds).
        y_ids: (C,) or (C, kinds).
        x_inverse: as of `log_sums`.
        y_inverse: as of `log_sums`.
        x_lse: (R,) log-sums.
        y_lse: (C,), or None: y then holds candidates that are no anchors.
        x_weight: (R,) dL/d lse.
        y_weight: (C,), or None.
        needs_y: whether dL/dy is asked for.
        needs_inverse: whether those of the factors are.
        kernel: `tiled` or `triton`.
    """
    compute: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = _module(kernel).log_sums_gradient
    return compute(x, y, x_ids, y_ids, x_inverse, y_inverse, x_lse, y_lse, x_weight, y_weight, needs_y, needs_inverse)


@log_sums_gradient.register_fake
def _(
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
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    anchors = needs_inverse and y is not None and y_lse is not None
    return (
        torch.empty_like(x),
        torch.empty_like(y) if needs_y and y is not None else x.new_empty(0),
        _rows(x, x.shape[0] if needs_inverse else 0),
        _rows(x, y.shape[0] if anchors and y is not None else 0),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, x_ids, y_ids, x_inverse, y_inverse, ctx.columns, ctx.kernel = inputs
    ctx.save_for_backward(x, y, x_ids, y_ids, x_inverse, y_inverse, *output)
    ctx.set_materialize_grads(True)


def _backward(ctx: Any, x_weight: Tensor, y_weight: Tensor) -> tuple[Tensor | None, ...]:
    x, y, x_ids, y_ids, x_inverse, y_inverse, x_lse, y_lse = ctx.saved_tensors
    anchors = ctx.columns and y is not None
    need_x, need_y, _, _, need_x_inverse, need_y_inverse, *_ = ctx.needs_input_grad
    d_x, d_y, d_x_inverse, d_y_inverse = log_sums_gradient(
        x,
        y,
        x_ids,
        y_ids,
        x_inverse,
        y_inverse,
        x_lse,
        y_lse if anchors else None,
        x_weight.contiguous(),
        y_weight.contiguous() if anchors else None,
        need_y,
        need_x_inverse or need_y_inverse,
        ctx.kernel,
    )
    return (
        d_x if need_x else None,
        d_y if need_y else None,
        None,
        None,
        d_x_inverse if need_x_inverse else None,
        d_y_inverse if need_y_inverse and anchors else None,
        None,
        None,
    )


log_sums.register_autograd(_backward, setup_context=_keep)
log_sums_gradient.register_autograd(refuse)
