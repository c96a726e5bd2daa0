"""Random views that are a function of (seed, epoch, id, view): crops on the host, the rest as batched tensor code.

Nothing here keeps a random generator. Every number is a hash of what it is for, so a sample's views are the same in
any batch, with any number of loader workers, and after a resume.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from . import stages
from .drawing import CROP_ATTEMPTS, CROP_SLOTS, Drawn, draw
from .hashing import uniforms
from .recipe import Recipe

__all__ = ["CROP_SLOTS", "Augmentation", "crop_boxes", "keeps_whole_image", "largest_shrink", "uniforms"]

_CACHE_FLOATS = 1 << 18  # on a CPU, as many samples at a time as keep the work of every stage in the L2 cache


def keeps_whole_image(recipe: Recipe) -> bool:
    """Whether the crop is the whole image, squeezed to a square."""
    return recipe.crop_scale == (1.0, 1.0) and recipe.crop_ratio == (1.0, 1.0)


def crop_boxes(recipe: Recipe, uniforms: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Random resized crops: float64 (n, 4) of left, top, right, bottom in pixels, always inside the image.

    As torchvision's RandomResizedCrop: area uniform in crop_scale, ratio log-uniform in crop_ratio, ten attempts, then
    the central crop of the nearest allowed ratio; but at fractional positions, since they are resampled anyway.

    Args:
        uniforms: (n, CROP_SLOTS) in [0, 1).
        widths, heights: (n,), pixels.
    """
    width, height = np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    if keeps_whole_image(recipe):
        return np.stack([np.zeros_like(width), np.zeros_like(width), width, height], axis=1)
    (low, high), (narrow, wide) = recipe.crop_scale, recipe.crop_ratio
    area = (low + (high - low) * uniforms[:, 0 : 2 * CROP_ATTEMPTS : 2]) * (width * height)[:, None]
    log_ratio = math.log(narrow) + (math.log(wide) - math.log(narrow)) * uniforms[:, 1 : 2 * CROP_ATTEMPTS : 2]
    ratio = np.exp(log_ratio)
    w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (w <= width[:, None]) & (h <= height[:, None])
    row, first = np.arange(len(width)), np.argmax(fits, axis=1)
    allowed = np.clip(width / height, narrow, wide)
    found = fits[row, first]
    w = np.where(found, w[row, first], np.minimum(width, height * allowed))
    h = np.where(found, h[row, first], np.minimum(height, width / allowed))
    w, h = np.maximum(w, np.minimum(1.0, width)), np.maximum(h, np.minimum(1.0, height))
    u = np.where(found[:, None], uniforms[:, 2 * CROP_ATTEMPTS :], 0.5)
    left, top = u[:, 0] * (width - w), u[:, 1] * (height - h)
    return np.stack([left, top, np.minimum(left + w, width), np.minimum(top + h, height)], axis=1)


def largest_shrink(boxes: np.ndarray, size: int) -> int:
    """How many times smaller the image may be decoded with every box still at least `size` pixels wide and high."""
    shortest = min(min(right - left, bottom - top) for left, top, right, bottom in boxes.tolist())
    return max(1, int(shortest // size))


class Augmentation:
    """All that happens to a view after its crop, batched, with parameters of its own for every sample.

    The same code on CPU and CUDA; parameters are drawn on the host and sent along, nothing is read back.

    Args:
        recipe: what may happen.
        image_size: S, pixels.
        mean, std: normalisation at the end, of values in 0..1.
        seed: the run's.
    """

    def __init__(
        self,
        recipe: Recipe,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        seed: int,
    ) -> None:
        self.recipe = recipe
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.seed = seed

    @torch.no_grad()
    def __call__(self, crops: Tensor, index: Tensor | np.ndarray, epoch: int, view: int) -> Tensor:
        """uint8 (B, S, S, 3) and host int64 (B,) -> float32 (B, 3, S, S), channels last in memory, normalised."""
        ids = index.numpy() if isinstance(index, Tensor) else index
        drawn = draw(self.recipe, self.image_size, self.seed, epoch, ids, view)
        out = torch.empty_like(crops, dtype=torch.float32)
        at_once = max(1, len(ids))
        if crops.device.type == "cpu":
            at_once = max(1, _CACHE_FLOATS // (3 * self.image_size**2))
        on_device = _OnDevice(drawn, crops.device)
        for start in range(0, len(ids), at_once):
            stop = min(start + at_once, len(ids))
            self._augment(crops[start:stop], on_device, start, stop, out[start:stop])
        return out.permute(0, 3, 1, 2)

    def _augment(self, crops: Tensor, drawn: _OnDevice, start: int, stop: int, out: Tensor) -> None:
        x = crops.permute(0, 3, 1, 2).contiguous().float()  # planes: every stage runs along rows of one channel
        here = slice(start, stop)
        if (rows := drawn.rows("flip", start, stop)) is not None:
            x = stages.flipped(x, rows)
        if (rows := drawn.rows("affine", start, stop)) is not None:
            x = stages.warped(x, drawn.affine[here], rows)
        if (rows := drawn.rows("stroke", start, stop)) is not None:
            x = stages.stroked(x, drawn.stroke[here], rows)
        x = stages.recoloured(x, drawn.colour[here]) if drawn.colour_used else x.mul_(1 / 255)
        if (rows := drawn.rows("blur", start, stop)) is not None:
            x = stages.blurred(x, drawn.blur[here, : drawn.blur_radius(start, stop) + 1], rows)
        for c in range(3):
            x[:, c].mul_(1 / self.std[c]).sub_(self.mean[c] / self.std[c])
        out.copy_(x.permute(0, 2, 3, 1))


class _OnDevice:
    """A batch's drawn parameters on the device, sent as one float32 and one int64 block without waiting for it."""

    def __init__(self, drawn: Drawn, device: torch.device) -> None:
        self._drawn = drawn
        self.colour_used = drawn.colour_used
        blocks = [drawn.affine, drawn.stroke, drawn.colour, drawn.blur]
        flat = np.concatenate([b.reshape(len(b), math.prod(b.shape[1:])) for b in blocks], axis=1)
        numbers = torch.from_numpy(flat.astype(np.float32)).to(device, non_blocking=True)
        affine, self.stroke, colour, self.blur = numbers.split([6, 2, 18, drawn.blur.shape[1]], dim=1)
        self.affine, self.colour = affine.unflatten(1, (2, 3)), colour.unflatten(1, (2, 3, 3))
        counts = [len(rows) for rows in drawn.rows.values()]
        rows = torch.from_numpy(np.concatenate(list(drawn.rows.values()))).to(device, non_blocking=True)
        self._rows = dict(zip(drawn.rows, rows.split(counts), strict=True))

    def rows(self, stage: str, start: int, stop: int) -> Tensor | None:
        """The rows of start..stop that take part, counted from start; None when there are none."""
        first, last = np.searchsorted(self._drawn.rows[stage], [start, stop]).tolist()
        return self._rows[stage][first:last] - start if last > first else None

    def blur_radius(self, start: int, stop: int) -> int:
        """The widest that is drawn in these rows; the weights beyond a sample's own are 0 and change nothing."""
        return max(1, int(np.count_nonzero(self._drawn.blur[start:stop], axis=1).max()) - 1)
