"""Log-sums over negatives: through them, and through nothing else, a loss sees the batch.

For anchors a (rows of x) and candidates b (rows of y), each with an id,

    lse_a = log of the sum over b with another id than a's of exp(x_a · y_b / tau_a),

differentiable in x, y and tau. Backward takes any weights w_a = dL/d lse_a, so every estimator and loss of the family
composes on top. With E_ab = exp(s_ab / tau), G_ab = E_ab (w_a exp(-lse_a) + w_b exp(-lse_b)) / tau is formed from
similarities that are made again, tile by tile: what is kept between forward and backward is linear in the batch.
An anchor without a candidate of another id has lse_a = -inf. Rows may have several kinds of ids, (N, kinds), as a pair
has its image's and its text's: then b counts for a where every kind is another.

Three kernels give the same numbers: `dense` keeps all similarities (small batches), `tiled` makes them twice and never
holds more than a tile, `triton` does so on a GPU's chip. `choice` picks; `use` and the argument `kernel` overrule it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import BadInput
from . import dense
from .choice import Kernel, choose, use
from .dense import at_least_float32
from .operators import log_sums, log_sums_gradient

__all__ = [
    "Kernel",
    "at_least_float32",
    "choose",
    "gradient_of_rows",
    "log_sum_between",
    "log_sum_negatives",
    "log_sum_rows",
    "use",
]

Temperature = float | Tensor
LOG2_E = math.log2(math.e)


def log_sum_negatives(z: Tensor, ids: Tensor, temperature: Temperature, kernel: Kernel | None = None) -> Tensor:
    """Return lse_a over the rows of other ids, of one set of rows.

    Args:
        z: (N, D) floating.
        ids: (N,) or (N, kinds) integers.
        temperature: a number, a () tensor, or (N,), one an anchor.
        kernel: `dense`, `tiled` or `triton`; the fastest when left out.

    Returns:
        (N,) float32, or float64 for float64 rows.

    Example:
        >>> import torch
        >>> log_sum_negatives(torch.eye(3), torch.tensor([0, 0, 1]), 1.0)   # log 1, log 1, log 2
        tensor([0.0000, 0.0000, 0.6931])
    """
    _check(z, z, ids, ids)
    kernel = choose(z, z, kernel)
    if kernel == "dense":
        return dense.log_sum_negatives(at_least_float32(z), ids, _factor(temperature, z))
    inverse: Tensor | None = None
    if _one_each(temperature):
        inverse = _inverse(temperature, z)
    elif kernel == "triton":
        inverse = _inverse(temperature, z).expand(len(z))
    else:
        z = at_least_float32(z) * (LOG2_E / temperature) ** 0.5
    rows: Tensor = log_sums(z, None, ids, None, inverse, None, True, kernel)[0]
    return rows


def log_sum_between(
    x: Tensor,
    y: Tensor,
    x_ids: Tensor,
    y_ids: Tensor,
    temperature: Temperature | tuple[Tensor, Tensor],
    kernel: Kernel | None = None,
) -> tuple[Tensor, Tensor]:
    """Return lse of each row of x over y, and of each row of y over x, from one set of similarities.

    Args:
        x: (R, D) floating.
        y: (C, D) floating.
        x_ids: (R,) or (R, kinds) integers.
        y_ids: (C,) or (C, kinds) integers.
        temperature: a number, a () tensor, or a pair of (R,) and (C,).
        kernel: as of `log_sum_negatives`.

    Returns:
        (R,) and (C,) float32, or float64 for float64 rows.
    """
    return _between(x, y, x_ids, y_ids, temperature, True, kernel)


def log_sum_rows(
    x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, temperature: Temperature, kernel: Kernel | None = None
) -> Tensor:
    """Return lse of each row of x over candidates y that are no anchors: a queue, or another rank's rows.

    Args:
        x: (R, D) floating.
        y: (C, D) floating.
        x_ids: (R,) or (R, kinds) integers.
        y_ids: (C,) or (C, kinds) integers.
        temperature: a number, () or (R,).
        kernel: as of `log_sum_negatives`.

    Returns:
        (R,) float32, or float64 for float64 rows.
    """
    pair = (temperature, torch.ones(len(y), device=x.device)) if _one_each(temperature) else temperature
    return _between(x, y, x_ids, y_ids, pair, False, kernel)[0]  # type: ignore[arg-type]


def _between(
    x: Tensor,
    y: Tensor,
    x_ids: Tensor,
    y_ids: Tensor,
    temperature: Temperature | tuple[Tensor, Tensor],
    columns: bool,
    kernel: Kernel | None,
) -> tuple[Tensor, Tensor]:
    _check(x, y, x_ids, y_ids)
    kernel = choose(x, y, kernel)
    pair = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    if kernel == "dense":
        factors = (_factor(t, x) for t in pair)
        return dense.log_sum_between(at_least_float32(x), at_least_float32(y), x_ids, y_ids, *factors)
    x_inverse: Tensor | None = None
    y_inverse: Tensor | None = None
    if isinstance(temperature, tuple):
        x_inverse, y_inverse = (_inverse(t, x) for t in temperature)
    elif kernel == "triton":
        x_inverse, y_inverse = (_inverse(temperature, x).expand(n) for n in (len(x), len(y)))
    else:
        x, y = at_least_float32(x) * (LOG2_E / temperature), at_least_float32(y)
    both: tuple[Tensor, Tensor] = log_sums(x, y, x_ids, y_ids, x_inverse, y_inverse, columns, kernel)
    return both


def gradient_of_rows(
    x: Tensor,
    y: Tensor,
    x_ids: Tensor,
    y_ids: Tensor,
    temperature: float | tuple[Tensor, Tensor],
    lse: tuple[Tensor, Tensor | None],
    weight: tuple[Tensor, Tensor | None],
    kernel: Kernel | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the whole gradient of the rows x, as anchors and as candidates of the anchors y, from numbers of both.

    Args:
        x: (R, D) floating.
        y: (C, D) floating.
        x_ids: (R,) or (R, kinds) integers.
        y_ids: (C,) or (C, kinds) integers.
        temperature: a number, or (R,) and (C,).
        lse: (R,) and (C,), the log-sums; None for y where y are no anchors.
        weight: (R,) and (C,), dL/d lse; None for y where y are no anchors.
        kernel: as of `log_sum_negatives`.

    Returns:
        (R, D), dL/dx, and (R,), dL/d temperature of x (empty for a number). Not differentiable.
    """
    kernel = choose(x, y, kernel)
    scale = 1.0
    x_inverse: Tensor | None = None
    y_inverse: Tensor | None = None
    if isinstance(temperature, tuple):
        x_inverse, y_inverse = (_inverse(t, x) for t in temperature)
    elif kernel == "triton":
        x_inverse, y_inverse = (_inverse(temperature, x).expand(n) for n in (len(x), len(y)))
    else:
        scale = LOG2_E / temperature
        x = at_least_float32(x) * scale
    recomputing = "tiled" if kernel == "dense" else kernel
    each = isinstance(temperature, tuple)
    d_x, _, d_inverse, _ = log_sums_gradient(
        x, y, x_ids, y_ids, x_inverse, y_inverse, *lse, *weight, False, each, recomputing
    )
    if each and x_inverse is not None:
        d_inverse = d_inverse * x_inverse.square() * (-1 / LOG2_E)
    return d_x * scale, d_inverse


def _one_each(temperature: object) -> bool:
    return isinstance(temperature, Tensor) and temperature.ndim == 1


def _inverse(temperature: Temperature, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(temperature, Tensor):
        return LOG2_E / temperature.to(dtype)
    return torch.full((), LOG2_E / temperature, dtype=dtype, device=like.device)


def _factor(temperature: Temperature, like: Tensor) -> Tensor | float:
    return _inverse(temperature, like) if isinstance(temperature, Tensor) else LOG2_E / temperature


def _check(x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise BadInput(f"rows and candidates must be (R, D) and (C, D), and are {tuple(x.shape)} and {tuple(y.shape)}")
    of_rows = x_ids.shape[:1] == x.shape[:1] and y_ids.shape[:1] == y.shape[:1]
    if not of_rows or x_ids.shape[1:] != y_ids.shape[1:] or x_ids.ndim > 2:
        raise BadInput(
            f"{len(x)} rows and {len(y)} candidates need as many ids, and have {tuple(x_ids.shape)} and "
            f"{tuple(y_ids.shape)}"
        )
