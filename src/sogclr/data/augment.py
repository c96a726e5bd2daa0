"""From augmentation parameters to pixels: the random views of a batch, as batched tensor code on any device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .augment_params import AugmentParams, draw_params
from .recipe import Recipe

_CACHE_FLOATS = 1 << 18  # on a CPU, as many samples at a time as keep the work of every stage in the L2 cache


def hflip_(x: Tensor, rows: Tensor) -> Tensor:
    """Flip images left to right, in place.

    Args:
        x: float (B, 3, S, S).
        rows: int64 (b,), the images that take part.
    """
    return x.index_copy_(0, rows, x.index_select(0, rows).flip(3))


def affine_(x: Tensor, maps: Tensor, rows: Tensor) -> Tensor:
    """Move images by affine maps, in place: bilinear sampling; outside an image its border goes on.

    Args:
        x: float (B, 3, S, S).
        maps: (B, 2, 3), output coordinates in [-1, 1] -> input coordinates.
        rows: int64 (b,), the images that take part.
    """
    size = x.shape[-1]
    at = (torch.arange(size, device=x.device, dtype=torch.float32) * 2 + 1) / size - 1
    chosen = maps.index_select(0, rows)
    grid = x.new_empty(len(rows), size, size, 2)
    for k in (0, 1):
        along_x = chosen[:, k, 0, None] * at
        along_y = chosen[:, k, 1, None] * at + chosen[:, k, 2, None]
        torch.add(along_x[:, None, :], along_y[:, :, None], out=grid[..., k])
    moved = torch.nn.functional.grid_sample(x.index_select(0, rows), grid, padding_mode="border", align_corners=False)
    return x.index_copy_(0, rows, moved)


def morphology_(x: Tensor, stroke: Tensor, rows: Tensor) -> Tensor:
    """Blend images with the maximum or minimum of each 3x3 neighbourhood, in place: bright strokes get thicker or thinner.

    Args:
        x: float (B, 3, S, S).
        stroke: (B, 2), +1 (maximum) or -1 (minimum), and the weight of it in the blend.
        rows: int64 (b,), the images that take part.
    """
    chosen, how = x.index_select(0, rows), stroke.index_select(0, rows)
    sign, weight = how[:, 0, None, None, None], how[:, 1, None, None, None]
    signed = chosen * sign  # the minimum is the maximum of the negative
    for axis in (2, 3):  # the maximum over a square is that over rows, then over columns
        n = signed.shape[axis] - 1
        largest = signed.clone()
        upper, lower = largest.narrow(axis, 1, n), largest.narrow(axis, 0, n)
        torch.maximum(upper, signed.narrow(axis, 0, n), out=upper)
        torch.maximum(lower, signed.narrow(axis, 1, n), out=lower)
        signed = largest
    return x.index_copy_(0, rows, torch.lerp(chosen, signed.mul_(sign), weight))


def color_jitter(x: Tensor, colour: Tensor) -> Tensor:
    """Return M x + K mean(x), clamped to 0..1.

    Args:
        x: float (B, 3, S, S).
        colour: (B, 2, 3, 3), M and K of each image.
    """
    on_pixel, on_mean = colour.unbind(1)
    shift = (on_mean * x.mean((2, 3))[:, None, :]).sum(2)[:, :, None, None]
    on_pixel = on_pixel[..., None, None]
    red, green, blue = x.unbind(1)
    out = torch.empty_like(x)
    for c in range(3):
        plane = torch.addcmul(shift[:, c], red, on_pixel[:, c, 0], out=out[:, c])
        plane.addcmul_(green, on_pixel[:, c, 1]).addcmul_(blue, on_pixel[:, c, 2])
    return out.clamp_(0, 1)


def gaussian_blur_(x: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Blur images along rows, then columns, in place; they are reflected at the border.

    Args:
        x: float (B, 3, S, S).
        weights: (B, R + 1), of the pixels at distances 0..R.
        rows: int64 (b,), the images that take part.
    """
    chosen = x.index_select(0, rows)
    weight = weights.index_select(0, rows)[:, :, None, None, None]
    radius = weights.shape[1] - 1
    both = torch.empty_like(chosen)
    for axis, padding in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        n = chosen.shape[axis]
        padded = torch.nn.functional.pad(chosen, padding, mode="reflect")
        chosen.mul_(weight[:, 0])
        for d in range(1, radius + 1):
            torch.add(padded.narrow(axis, radius - d, n), padded.narrow(axis, radius + d, n), out=both)
            chosen.addcmul_(both, weight[:, d])
    return x.index_copy_(0, rows, chosen)


class Augmentation:
    """What happens to a view after its crop, batched, with parameters of its own for every sample.

    The same code on CPU and CUDA; parameters are drawn on the host and sent along, nothing is read back.

    Args:
        recipe: what may happen.
        image_size: S, pixels.
        mean: subtracted at the end, of values in 0..1, per channel.
        std: divided by after that, per channel.
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
        """Return the views of a batch of crops.

        Args:
            crops: uint8 (B, S, S, 3), on the device.
            index: int64 (B,) on the host, sample ids.
            epoch: which, from 0.
            view: which of an image's views, from 0.

        Returns:
            float32 (B, 3, S, S), channels last in memory, normalised.
        """
        ids = index.numpy() if isinstance(index, Tensor) else index
        drawn = draw_params(self.recipe, self.image_size, self.seed, epoch, ids, view)
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
            x = hflip_(x, rows)
        if (rows := drawn.rows("affine", start, stop)) is not None:
            x = affine_(x, drawn.affine[here], rows)
        if (rows := drawn.rows("stroke", start, stop)) is not None:
            x = morphology_(x, drawn.stroke[here], rows)
        x = color_jitter(x, drawn.colour[here]) if drawn.colour_used else x.mul_(1 / 255)
        if (rows := drawn.rows("blur", start, stop)) is not None:
            x = gaussian_blur_(x, drawn.blur[here, : drawn.blur_radius(start, stop) + 1], rows)
        for c in range(3):
            x[:, c].mul_(1 / self.std[c]).sub_(self.mean[c] / self.std[c])
        out.copy_(x.permute(0, 2, 3, 1))


class _OnDevice:
    """A batch's drawn parameters on the device, sent as one float32 and one int64 block without waiting for it."""

    def __init__(self, drawn: AugmentParams, device: torch.device) -> None:
        self._drawn = drawn
        self.colour_used = drawn.colour_used
        blocks = [drawn.affine, drawn.stroke, drawn.colour, drawn.blur]
        flat = np.concatenate([b.reshape(len(b), math.prod(b.shape[1:])) for b in blocks], axis=1)
        numbers = torch.from_numpy(flat.astype(np.float32)).to(device, non_blocking=True)
        affine, self.stroke, colour, self.blur = torch.split(numbers, [6, 2, 18, drawn.blur.shape[1]], dim=1)
        self.affine, self.colour = affine.view(len(flat), 2, 3), colour.view(len(flat), 2, 3, 3)
        counts = [len(rows) for rows in drawn.rows.values()]
        rows = torch.from_numpy(np.concatenate(list(drawn.rows.values()))).to(device, non_blocking=True)
        self._rows = dict(zip(drawn.rows, torch.split(rows, counts), strict=True))

    def rows(self, stage: str, start: int, stop: int) -> Tensor | None:
        """Return the rows of start..stop that take part, int64, counted from start; None when there are none."""
        first, last = np.searchsorted(self._drawn.rows[stage], [start, stop]).tolist()
        return self._rows[stage][first:last] - start if last > first else None

    def blur_radius(self, start: int, stop: int) -> int:
        """Return the widest radius drawn in these rows; the weights beyond a sample's own are 0 and change nothing."""
        return max(1, int(np.count_nonzero(self._drawn.blur[start:stop], axis=1).max()) - 1)
