"""What is done to the pixels that an encoder sees: normalisation, and the central crop at evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import BadInput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")
"""Pillow's names of its filters."""


@dataclass(frozen=True)
class Inputs:
    """The [inputs] table of a configuration; the weights that a run starts from say it, where it does not."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from the channels, which are in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """The channels are divided by it."""
    crop_fraction: float = 1.0
    """Share of the (square) image that the central crop keeps at evaluation."""
    interpolation: str = "bilinear"
    """How that crop is resized, one of `INTERPOLATIONS`."""
    squash: bool = False
    """Whether the whole image is squeezed into the square at evaluation instead, as SigLIP does."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not (isinstance(values, tuple) and len(values) == 3 and all(map(_is_number, values))):
                raise BadInput(f"inputs.{name} must be three numbers, one a channel, and was {values!r}")
        if min(self.std) <= 0:
            raise BadInput(f"inputs.std must be above 0 and was {self.std}; the channels are divided by it")
        if not (_is_number(self.crop_fraction) and 0 < self.crop_fraction <= 1):
            raise BadInput(f"inputs.crop_fraction must be above 0 and at most 1 and was {self.crop_fraction!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise BadInput(
                f"inputs.interpolation must be one of {', '.join(INTERPOLATIONS)} and was {self.interpolation!r}"
            )
        if not isinstance(self.squash, bool):
            raise BadInput(f"inputs.squash must be true or false and was {self.squash!r}")
        if self.squash and self.crop_fraction != 1:
            raise BadInput(
                f"inputs.squash takes the whole image and inputs.crop_fraction {self.crop_fraction:g} a part of it; keep one"
            )


def inputs_from_table(base: Inputs, table: dict[str, Any]) -> Inputs:
    """Return `base` with the fields of a configuration table put in.

    Args:
        base: what the table changes.
        table: field -> value.

    Raises:
        BadInput: an unknown field, or a value that cannot be used.
    """
    if not isinstance(table, dict):
        raise BadInput(f"[inputs] is a table of the configuration and was {table!r}; write its fields below [inputs]")
    known = [f.name for f in fields(Inputs)]
    for key in table:
        if key not in known:
            raise BadInput(f"[inputs] has no field {key!r}; its fields are {', '.join(known)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return replace(base, **values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
