"""How samples are read: for training, for the scores and for the diagnosis alike."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.decoded import DecodedImages
from ..data.recipe import Recipe


@dataclass(frozen=True)
class Reading:
    """What decides which pixels of a sample are seen."""

    recipe: Recipe
    """What may happen to a view."""
    image_size: int
    """S, pixels."""
    batch_size: int
    """Of all ranks together."""
    seed: int
    workers: int
    """Reader processes."""
    background: str
    """What transparent pixels are laid on."""
    decoded: DecodedImages | None = None
    """Where images are taken from instead of their files."""
