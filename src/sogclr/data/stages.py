"""The tensor stages of a view after its crop.

Each takes float32 (b, 3, S, S) and works on one sample at a time or elementwise, without asking the device for a value.
No matrix products or convolutions: autocast and TF32 would change their precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flipped(x: Tensor, rows: Tensor) -> Tensor:
    """Left and right exchanged in those rows."""
    return x.index_copy_(0, rows, x.index_select(0, rows).flip(3))


def warped(x: Tensor, maps: Tensor, rows: Tensor) -> Tensor:
    """Affine maps (b, 2, 3) by bilinear sampling; outside the image its border goes on."""
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


def stroked(x: Tensor, stroke: Tensor, rows: Tensor) -> Tensor:
    """Blend with the maximum (bright strokes thicken) or minimum of each 3x3 neighbourhood; stroke (b, 2)."""
    chosen, how = x.index_select(0, rows), stroke.index_select(0, rows)
    sign, share = how[:, 0, None, None, None], how[:, 1, None, None, None]
    signed = chosen * sign  # the minimum is the maximum of the negative
    for axis in (2, 3):  # the maximum over a square is that over rows, then over columns
        n = signed.shape[axis] - 1
        largest = signed.clone()
        upper, lower = largest.narrow(axis, 1, n), largest.narrow(axis, 0, n)
        torch.maximum(upper, signed.narrow(axis, 0, n), out=upper)
        torch.maximum(lower, signed.narrow(axis, 1, n), out=lower)
        signed = largest
    return x.index_copy_(0, rows, torch.lerp(chosen, signed.mul_(sign), share))


def recoloured(x: Tensor, colour: Tensor) -> Tensor:
    """x -> M x + K mean(x) with colour (b, 2, 3, 3) = (M, K), clamped to 0..1."""
    on_pixel, on_mean = colour.unbind(1)
    shift = (on_mean * x.mean((2, 3))[:, None, :]).sum(2)[:, :, None, None]
    on_pixel = on_pixel[..., None, None]
    red, green, blue = x.unbind(1)
    out = torch.empty_like(x)
    for c in range(3):
        plane = torch.addcmul(shift[:, c], red, on_pixel[:, c, 0], out=out[:, c])
        plane.addcmul_(green, on_pixel[:, c, 1]).addcmul_(blue, on_pixel[:, c, 2])
    return out.clamp_(0, 1)


def blurred(x: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Gaussian blur along rows, then columns, reflected at the border; weights (b, R + 1) at distances 0..R."""
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
