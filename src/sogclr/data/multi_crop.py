"""How many views of an image there are, and of which size: alike, or SwAV's multi-crop (2006.09882). No torch here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise

from .recipe import Recipe

_WIDEST_SMALL, _LEAST_SMALL = 1.75, 0.625  # of the recipe's least area: SwAV's 0.14 and 0.05, of SimCLR's 0.08


@dataclass(frozen=True)
class CropGroup:
    """Views of one size."""

    views: int
    """How many."""
    size: int
    """S, pixels."""
    recipe: Recipe
    """What may happen to them."""


def parse_crops(crops: str) -> list[tuple[int, int]]:
    """Return (views, side) of each part of `--crops`, as 2x224,4x96, which `crops_refusal` accepts."""
    return [(int(count), int(side)) for count, side in (part.split("x") for part in crops.split(","))]


def crops_refusal(crops: str) -> str | None:
    """Return what is wrong with a value of `--crops`; None where nothing is."""
    if not re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*(,[1-9][0-9]*x[1-9][0-9]*)*", crops):
        return f"must be COUNTxSIDE,COUNTxSIDE,... as 2x224,4x96 and was {crops!r}"
    counts, sides = zip(*parse_crops(crops), strict=True)
    if sum(counts) < 2:
        return f"was {crops}, one view, and a positive is another view of the same image; give 2 or more in all"
    if min(sides) < 8:
        return f"was {crops}, with a side of {min(sides)} pixels; give sides of 8 or more"
    if any(a <= b for a, b in pairwise(sides)):
        return f"was {crops}; give each side once, the largest first"
    return None


def full_side(crops: str | None) -> int | None:
    """Return the side of the full-size views of `--crops`, None without."""
    return parse_crops(crops)[0][1] if crops else None


def crop_groups(crops: str | None, views: int, size: int, recipe: Recipe) -> list[CropGroup]:
    """Return the views of an image, the largest first.

    Of several sizes, the area of the first runs from 1.75 times the recipe's least to its largest, that of the others from
    0.625 to 1.75 times the least: 0.14 to 1 and 0.05 to 0.14 of an image for SimCLR's recipe, as in SwAV.

    Args:
        crops: `--crops`, or None for `views` of `size` pixels.
        views: V.
        size: S, pixels.
        recipe: of the run.
    """
    parts = parse_crops(crops) if crops else [(views, size)]
    if len(parts) == 1:
        return [CropGroup(*parts[0], recipe)]
    least, most = recipe.crop_scale
    between = min(_WIDEST_SMALL * least, most)
    scales = [(between, most), *[(_LEAST_SMALL * least, between)] * (len(parts) - 1)]
    return [CropGroup(*part, replace(recipe, crop_scale=scale)) for part, scale in zip(parts, scales, strict=True)]


def needed_side(groups: list[CropGroup]) -> int:
    """Return how long an image's shorter side must be, pixels, so that not even the smallest crop is enlarged."""
    return max(math.ceil(g.size / math.sqrt(g.recipe.crop_scale[0])) for g in groups)


def views_words(groups: list[CropGroup], samples: int) -> str:
    """Return the words of the line on the views of a batch of so many samples."""
    if [group.views for group in groups] == [2]:
        return f"{groups[0].size} pixels"
    first, *others = (f"{g.views * samples:,} rows of {g.size} pixels" + _area(g, groups) for g in groups)
    rest = [f"{g.views} views: {words}" for g, words in zip(groups[1:], others, strict=True)]
    return "; ".join([f"{groups[0].views} views of {samples:,} samples: {first}", *rest])


def _area(group: CropGroup, groups: list[CropGroup]) -> str:
    low, high = group.recipe.crop_scale
    return f" (area {low:.3g} to {high:.3g})" if len(groups) > 1 else ""
