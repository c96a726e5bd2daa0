"""Boxes of an image, and what is cut out by them."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized_crop(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: int,
    interpolation: str = "bilinear",
    exact: bool = False,
) -> np.ndarray:
    """Resize a box (left, top, right, bottom; pixels, may be fractional) of an image: uint8 (size, size, 3).

    It is reduced by whole factors first, which is faster; with `exact` it is what `Image.resize` makes of it.
    """
    if image.size == (size, size) and box == (0.0, 0.0, float(size), float(size)):
        return np.asarray(image)
    gap = None if exact else 2.0
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()], box=box, reducing_gap=gap))


def central_box(
    width: int, height: int, crop_fraction: float, squash: bool = False
) -> tuple[float, float, float, float]:
    """Return the central square that keeps `crop_fraction` of the shorter side: left, top, right, bottom in pixels.

    With `squash` it is the whole image, which is then squeezed into a square.
    """
    if squash:
        return 0.0, 0.0, float(width), float(height)
    side = max(1.0, min(width, height) * crop_fraction)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def central_crop(image: Image.Image, size: int, crop_fraction: float = 1.0) -> np.ndarray:
    """Return a small copy: the central square, antialiased to uint8 (size, size, 3)."""
    return resized_crop(image, central_box(image.width, image.height, crop_fraction), size)
