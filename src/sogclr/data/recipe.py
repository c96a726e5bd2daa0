"""Augmentation recipes: what may happen to a view, as plain numbers. No torch here, so that the CLI starts fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import BadInput


@dataclass(frozen=True)
class Recipe:
    """The distribution of the random views of one image. Probabilities are per view; strengths are half-widths.

    The defaults are SimCLR's steps (arXiv 2002.05709) and its blur, of every other view, with the jitter of SogCLR's PyTorch
    code (2202.12387), which is half of SimCLR's 0.8, 0.8, 0.8 and 0.2. No published number is of just this mixture:
    `examples/recipes` have what belongs together.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop as a fraction of the image's."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of the random crop. A crop_scale and crop_ratio of (1, 1) keeps the whole image, squeezed to a square."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    affine: float = 0.0
    """Probability of a random rotation, translation, scaling and shear."""
    rotate: float = 15.0
    """Largest rotation, degrees."""
    translate: float = 0.1
    """Largest shift along each axis, as a fraction of the image."""
    zoom: float = 0.2
    """Largest relative change of size."""
    shear: float = 10.0
    """Largest shear, degrees."""
    stroke: float = 0.0
    """Probability of thickening or thinning strokes (a blend with a 3x3 maximum or minimum)."""
    jitter: float = 0.8
    """Probability of brightness, contrast, saturation and hue jitter."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Largest hue turn, as a fraction of the colour circle."""
    gray: float = 0.2
    """Probability of dropping the colour."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Blur's standard deviation, pixels of a 224-pixel view; scaled with the view's size."""

    def __post_init__(self) -> None:
        for name in ("flip", "affine", "stroke", "jitter", "gray", "blur"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInput(
                    f"augment.{name} is a probability and was {getattr(self, name)}; give a value from 0 to 1"
                )
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high < math.inf:
                raise BadInput(f"augment.{name} is a range (low, high) with 0 < low <= high and was ({low}, {high})")
        if self.crop_scale[1] > 1.0:
            raise BadInput(
                f"augment.crop_scale ends at {self.crop_scale[1]}, more than the whole image; end it at 1.0 or less"
            )
        for name in ("brightness", "contrast", "saturation", "translate", "zoom"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise BadInput(f"augment.{name} was {getattr(self, name)}; give a value from 0 up to (not including) 1")
        for name, most in (("hue", 0.5), ("rotate", 180.0), ("shear", 45.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise BadInput(f"augment.{name} was {getattr(self, name)}; give a value from 0 to {most}")


RECIPES = {
    "simclr": Recipe(),
    "small": Recipe(crop_scale=(0.2, 1.0), blur=0.0),
    "caption": Recipe(crop_scale=(0.5, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0),
    "character": Recipe(
        crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        flip=0.0,
        affine=1.0,
        shear=15.0,
        stroke=0.5,
        brightness=0.3,
        contrast=0.5,
        saturation=0.0,
        hue=0.0,
        gray=0.0,
        blur=0.0,
    ),
}
"""Name -> recipe: photographs, small photographs, photographs with captions, and written characters."""


def named_recipe(name: str, image_size: int) -> Recipe:
    """Return the recipe of that name; `auto` is SimCLR's from 96 pixels up and its small-image variant below."""
    if name == "auto":
        name = "simclr" if image_size >= 96 else "small"
    return RECIPES[name]


def recipe_from_table(base: Recipe, table: dict[str, Any]) -> Recipe:
    """Return `base` with the fields of a configuration table put in.

    Args:
        base: what the table changes.
        table: field -> number, or two numbers for a range.

    Raises:
        BadInput: an unknown field, or a value that is no number, or no pair of numbers where a range is meant.
    """
    if not isinstance(table, dict):
        raise BadInput(f"[augment] is a table of the configuration and was {table!r}; write its fields below [augment]")
    known = {f.name for f in fields(Recipe)}
    for key, value in table.items():
        if key not in known:
            raise BadInput(f"[augment] has no field {key!r}; its fields are {', '.join(sorted(known))}")
        if isinstance(getattr(base, key), tuple):
            if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))):
                raise BadInput(f"augment.{key} is a range [low, high] of two numbers and was {value!r}")
        elif not _is_number(value):
            raise BadInput(f"augment.{key} must be a number and was {value!r}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return replace(base, **values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
