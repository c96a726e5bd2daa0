"""The random parameters of a view, drawn on the host: a function of (seed, epoch, id, view), by hashing and without a generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .recipe import Recipe

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's output function, uint64 -> uint64: every bit depends on every bit (arithmetic modulo 2^64)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    x ^= x >> np.uint64(31)
    return x


def uniforms(seed: int, epoch: int, ids: np.ndarray, view: int, count: int, first: int = 0) -> np.ndarray:
    """Return random numbers of each (seed, epoch, id, view): float64 (n, count) in [0, 1).

    Args:
        seed: any integer.
        epoch: which, from 0.
        ids: int64 (n,), sample ids.
        view: which of an image's views, from 0.
        count: how many numbers of each.
        first: the place of the first of them among all numbers of that view.
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, view):
        key = _mix(key + _GOLDEN ^ np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    keys = _mix(key + _GOLDEN ^ np.asarray(ids).astype(np.uint64))
    slots = np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(keys[:, None] + slots) >> np.uint64(11)).astype(np.float64) * 2.0**-53


CROP_ATTEMPTS = 10
CROP_SLOTS = 2 * CROP_ATTEMPTS + 2  # (area, ratio) of each attempt, then the position
# Slots after the crop's; a slot keeps its meaning whatever the recipe switches off.
_FLIP, _AFFINE, _ROTATE, _SHIFT_X, _SHIFT_Y, _ZOOM, _SHEAR, _STROKE, _STROKE_BY = range(9)
_JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GRAYSCALE, _BLUR, _BLUR_SIGMA = range(9, 17)
_ORDER = 17  # four slots: their ranks are the order of the four colour changes
_AUGMENT_SLOTS = 21

_GRAY = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclass(frozen=True)
class AugmentParams:
    """The augmentation of one batch, drawn on the host; one row a sample."""

    rows: dict[str, np.ndarray]
    """Stage -> int64 rows that take part in it, ascending."""
    affine: np.ndarray
    """(B, 2, 3): output coordinates in [-1, 1] -> input coordinates."""
    stroke: np.ndarray
    """(B, 2): +1 (maximum) or -1 (minimum), and the share of the blend."""
    colour: np.ndarray
    """(B, 2, 3, 3): x in 0..255 -> colour[0] x + colour[1] mean(x) in 0..1."""
    colour_used: bool
    blur: np.ndarray
    """(B, R + 1): weights of the pixels at distance 0..R."""


def draw_params(recipe: Recipe, size: int, seed: int, epoch: int, ids: np.ndarray, view: int) -> AugmentParams:
    """Draw what happens to each sample's view; nothing is computed for stages that the recipe switches off.

    Args:
        recipe: what may happen.
        size: S, pixels of a view.
        seed: the run's.
        epoch: which, from 0.
        ids: int64 (B,), sample ids.
        view: which of an image's views, from 0.
    """
    u = uniforms(seed, epoch, ids, view, _AUGMENT_SLOTS, first=CROP_SLOTS)
    n = len(u)
    slots = {"flip": _FLIP, "affine": _AFFINE, "stroke": _STROKE, "blur": _BLUR}
    stroke = 2 * u[:, _STROKE_BY] - 1
    colour_used = bool(recipe.jitter or recipe.gray)
    return AugmentParams(
        rows={stage: np.flatnonzero(u[:, slot] < getattr(recipe, stage)) for stage, slot in slots.items()},
        affine=_affine_maps(recipe, u) if recipe.affine else np.zeros((n, 2, 3)),
        stroke=np.stack([np.where(stroke < 0, -1.0, 1.0), np.abs(stroke)], axis=1),
        colour=colour_maps(recipe, u) / 255 if colour_used else np.zeros((n, 2, 3, 3)),
        colour_used=colour_used,
        blur=_blur_weights(recipe, size, u) if recipe.blur else np.zeros((n, 1)),
    )


def _symmetric(u: np.ndarray, half_width: float) -> np.ndarray:
    return (2 * u - 1) * half_width


def _affine_maps(recipe: Recipe, u: np.ndarray) -> np.ndarray:
    """Return the inverse of: zoom, shear along x, rotate, then shift; float64 (B, 2, 3)."""
    angle = np.radians(_symmetric(u[:, _ROTATE], recipe.rotate))
    slant = np.tan(np.radians(_symmetric(u[:, _SHEAR], recipe.shear)))
    scale = 1 / (1 + _symmetric(u[:, _ZOOM], recipe.zoom))
    shift = 2 * np.stack([_symmetric(u[:, k], recipe.translate) for k in (_SHIFT_X, _SHIFT_Y)], axis=1)
    cos, sin = np.cos(angle), np.sin(angle)
    inverse = np.stack([cos - slant * -sin, sin - slant * cos, -sin, cos], axis=1).reshape(-1, 2, 2)
    inverse *= scale[:, None, None]
    return np.concatenate([inverse, -np.einsum("bij,bj->bi", inverse, shift)[:, :, None]], axis=2)


def colour_maps(recipe: Recipe, u: np.ndarray) -> np.ndarray:
    """Return colour jitter in random order, then grey: float64 (B, 2, 3, 3), matrices of the pixel and of the mean colour.

    Brightness, saturation, hue and grey are 3x3 matrices of a pixel; contrast blends with the image's mean luminance,
    which is linear in the image's mean colour. So any order of them is x -> M x + K mean(x), with no step per change.
    Unlike torchvision's, values are clamped once at the end rather than after each change, and hue turns the plane of
    chrominance (YIQ), which keeps the luminance, where torchvision turns the hue of HSV, which keeps the maximum.
    """
    n = len(u)
    eye, to_gray = np.eye(3), np.tile(_GRAY, (3, 1))
    brightness = 1 + _symmetric(u[:, _BRIGHTNESS], recipe.brightness)
    saturation = (1 + _symmetric(u[:, _SATURATION], recipe.saturation))[:, None, None]
    contrast = (1 + _symmetric(u[:, _CONTRAST], recipe.contrast))[:, None, None]
    turn = 2 * np.pi * _symmetric(u[:, _HUE], recipe.hue)
    rotation = np.zeros((n, 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(turn)
    rotation[:, 2, 1] = np.sin(turn)
    rotation[:, 1, 2] = -rotation[:, 2, 1]
    on_pixel = np.stack(
        [
            brightness[:, None, None] * eye,
            contrast * eye,
            saturation * eye + (1 - saturation) * to_gray,
            _FROM_YIQ @ rotation @ _TO_YIQ,
        ]
    )
    on_mean = np.zeros_like(on_pixel)
    on_mean[1] = (1 - contrast) * to_gray
    order = np.argsort(u[:, _ORDER : _ORDER + 4], axis=1)
    pixel, mean = np.tile(eye, (n, 1, 1)), np.zeros((n, 3, 3))
    row = np.arange(n)
    for change in order.T:
        a, b = on_pixel[change, row], on_mean[change, row]
        pixel, mean = a @ pixel, a @ mean + b @ (pixel + mean)
    jittered = (u[:, _JITTER] < recipe.jitter)[:, None, None]
    pixel, mean = np.where(jittered, pixel, eye), np.where(jittered, mean, 0.0)
    gray = (u[:, _GRAYSCALE] < recipe.gray)[:, None, None]
    return np.stack([np.where(gray, to_gray @ pixel, pixel), np.where(gray, to_gray @ mean, mean)], axis=1)


def _blur_weights(recipe: Recipe, size: int, u: np.ndarray) -> np.ndarray:
    """Return Gaussian weights (B, R + 1) out to three of their standard deviations, then zeros up to the recipe's widest."""
    low, high = (sigma * size / 224 for sigma in recipe.blur_sigma)
    radius = min(max(1, math.ceil(3 * high)), size - 1)
    sigma = low + (high - low) * u[:, _BLUR_SIGMA, None]
    distance = np.arange(radius + 1)
    weights: np.ndarray = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= np.ceil(3 * sigma))
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
    return weights


def keeps_whole_image(recipe: Recipe) -> bool:
    """Return whether the crop is the whole image, squeezed to a square."""
    return recipe.crop_scale == (1.0, 1.0) and recipe.crop_ratio == (1.0, 1.0)


def crop_boxes(recipe: Recipe, uniforms: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Draw random resized crops: float64 (n, 4) of left, top, right, bottom in pixels, always inside the image.

    As torchvision's RandomResizedCrop: area uniform in crop_scale, ratio log-uniform in crop_ratio, ten attempts, then
    the central crop of the nearest allowed ratio; but at fractional positions, since they are resampled anyway.

    Args:
        recipe: how they are drawn.
        uniforms: (n, CROP_SLOTS) in [0, 1).
        widths: (n,), pixels of the images.
        heights: (n,), pixels of the images.
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


def largest_shrink(boxes: np.ndarray, sizes: Sequence[int]) -> int:
    """Return how many times smaller an image may be decoded with each box, (V, 4), still its size wide and high, pixels."""
    sides = (min(right - left, bottom - top) for left, top, right, bottom in boxes.tolist())
    return max(1, int(min(side // size for side, size in zip(sides, sizes, strict=True))))
