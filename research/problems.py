"""Small real problems with a FINITE set of augmentations, so that the whole-data objective is computed, not estimated.

A problem holds V fixed random views of each of n images as rows of numbers. Training draws its two views of an image
from these V, and the exact objective runs over the same V: 'exact' means exact.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from sogclr.commands.demo_pairs import write_emoji


@dataclass(frozen=True)
class Problem:
    """views: (n, V, d) float32, standardised.  clean: (n, d), the images themselves.  labels: (n,) int64."""

    name: str
    views: Tensor
    clean: Tensor
    labels: np.ndarray


def random_views(images: Tensor, count: int, strength: float, seed: int, flip: bool = False) -> Tensor:
    """Return `count` random views of each image: (n, C, H, W) in [0, 1] -> (n, count, C, H, W).

    Rotation to 15 degrees, shift to an eighth of the side, zoom to a fifth, contrast to a third and noise of 0.1,
    all times `strength`; with `flip`, half of them mirrored.
    """
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        n = len(images)
        angle, zoom, dx, dy, contrast = (torch.rand(5, n, generator=g) * 2 - 1) * strength
        angle, zoom = angle * np.pi / 12, torch.exp(0.2 * zoom)
        sign = torch.where(torch.rand(n, generator=g) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
        rows = [
            zoom * angle.cos() * sign,
            -zoom * angle.sin(),
            dx / 4,
            zoom * angle.sin() * sign,
            zoom * angle.cos(),
            dy / 4,
        ]
        grid = affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
        moved = grid_sample(images, grid, align_corners=False, padding_mode="border")
        scale = torch.exp(contrast / 3)[:, None, None, None]
        made.append(moved * scale + 0.1 * strength * torch.randn(moved.shape, generator=g))
    return torch.stack(made, dim=1)


def build(name: str, images: Tensor, labels: np.ndarray, views: int, strength: float, flip: bool = False) -> Problem:
    rows = random_views(images, views, strength, seed=1, flip=flip).flatten(2)
    mean, std = rows.mean(), rows.std()
    return Problem(name, (rows - mean) / std, (images.flatten(1) - mean) / std, labels)


def digits(views: int = 8, strength: float = 1.0) -> Problem:
    """Return scikit-learn's 1,797 digits, 8x8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images / 16).float()[:, None]
    return build("digits", images, data.target.astype(np.int64), views, strength)


def fashion(folder: Path, n: int = 3_000, side: int = 14, views: int = 4, strength: float = 1.0) -> Problem:
    """Return the first n images of Fashion-MNIST's training part, at 14x14; `folder` holds the idx files (.gz or not)."""
    images = torch.from_numpy(read_idx(folder, "train-images-idx3-ubyte")[:n].copy()).float()[:, None] / 255
    labels = read_idx(folder, "train-labels-idx1-ubyte")[:n].astype(np.int64)
    return build("fashion", interpolate(images, size=side, mode="area"), labels, views, strength, flip=True)


def emoji(side: int = 12, views: int = 4, strength: float = 1.0) -> Problem:
    """Return 3,000 of OpenMoji's colour pictures that have a name, at 12x12 on white; the labels are their categories."""
    files = sorted(write_emoji()[0].glob("*/*/*.png"), key=lambda f: (f.parent.name, f.name))
    files = [files[k] for k in sorted(np.random.Generator(np.random.Philox(key=0)).permutation(len(files))[:3_000])]
    groups = sorted({f.parent.name for f in files})
    images = []
    for file in files:
        picture = Image.open(file).convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        images.append(np.asarray(page.convert("RGB").resize((side, side), Image.Resampling.BOX)))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return build("openmoji", x, np.array([groups.index(f.parent.name) for f in files]), views, strength)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Return an idx file of bytes: magic, sizes, values, big-endian."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise SystemExit(
            f"{folder} has no {name} or {name}.gz; give the folder of Fashion-MNIST's idx files with --data"
        )
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dims = data[3]
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def write_images(folder: Path, data: Path, train: int, test: int) -> None:
    """Write PNG files, a folder a class, in train/ and val/."""
    images, labels = read_idx(data, "train-images-idx3-ubyte"), read_idx(data, "train-labels-idx1-ubyte")
    for i in range(train + test):
        place = folder / ("train" if i < train else "val") / str(labels[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(place / f"{i:05d}.png")
