"""Gradients in closed form, which autograd cannot differentiate again: a second derivative raises.

torch's `once_differentiable` raises where the incoming weights carry a graph; where they are constants its gradient has no graph at
all, and where they are not, that graph does not reach the inputs: a second derivative would silently lack this part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import BadInput

Gradients = tuple[Tensor | None, ...]


def refuse(*_: object) -> NoReturn:
    """Raise, as the backward pass of a gradient.

    Raises:
        BadInput: always.
    """
    raise BadInput(
        "this loss has no second derivative, as create_graph=True asks for: its gradient is computed in closed form; "
        "differentiate it once"
    )


class _Refuse(torch.autograd.Function):
    """The same gradient, with a way back to all that it was computed from."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *_: object) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> NoReturn:
        refuse()


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Return the backward pass of an `autograd.Function` without gradient inside, and whose results cannot be differentiated.

    The function must have saved, by `save_for_backward`, every input that it is differentiable in.
    """

    @wraps(backward)
    def only_once(ctx: Any, *weights: Tensor | None) -> Gradients:
        with torch.no_grad():
            gradients = backward(ctx, *weights)
        if not torch.is_grad_enabled():
            return gradients
        of: Callable[..., Tensor] = _Refuse.apply
        return tuple(None if g is None else of(g, *ctx.saved_tensors, *weights) for g in gradients)

    return only_once
