"""Images a CPU second from file to augmented batch, beside torchvision's v2 transforms and kornia: python -m benchmarks.loader

Real photographs (the two that scikit-learn ships) cut into JPEG tiles. One process, one thread; the contestants take
turns in rounds, and ratios are taken within a round, so that a busy machine slows all. `make bench-peers` installs kornia
in an environment of its own; without it, it is left out. Writes docs/results/loader.md.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from sogclr.data.augment import Augmentation
from sogclr.data.decoded import write_decoded
from sogclr.data.inputs import IMAGENET_MEAN, IMAGENET_STD
from sogclr.data.loader import training_loader
from sogclr.data.manifest import Manifest
from sogclr.data.recipe import Recipe, named_recipe
from sogclr.models.torchvision_cpu import import_timm

from . import pages

import_timm()  # declares torchvision's operators where they are missing
from torchvision.transforms import v2  # noqa: E402

CASES = ((60, 32, 1024, "small"), (256, 224, 64, "simclr"))  # tile, view, images in a batch's turn, recipe
BASE = "torchvision v2, decoding"


def write_tiles(folder: Path, side: int, count: int) -> None:
    photos = load_sample_images().images
    generator = np.random.Generator(np.random.Philox(key=0))
    for k in range(count):
        photo = photos[k % len(photos)]
        top, left = (int(generator.integers(0, extent - side + 1)) for extent in photo.shape[:2])
        Image.fromarray(photo[top : top + side, left : left + side]).save(folder / f"{k:05d}.jpg", quality=92)


def ours(folder: Path, recipe: Recipe, size: int, batch: int, how: str) -> Callable[[], int]:
    """Return a turn that makes two views of each of `batch` images and normalises them."""
    keep = how == "kept decoded"
    manifest = Manifest.scan(folder, cache=False)
    augment = Augmentation(recipe, size, IMAGENET_MEAN, IMAGENET_STD, seed=0)
    decoded = write_decoded(manifest)[0] if how == "from `sogclr cache`" else None
    loader: Iterator = training_loader(manifest, manifest.usable, recipe, size, batch, seed=0, decoded=decoded)
    if keep:
        for _ in range(-(-len(manifest) // batch)):
            next(loader)

    def turn() -> int:
        nonlocal loader
        if not keep:  # a fresh loader has nothing kept
            loader = training_loader(manifest, manifest.usable, recipe, size, batch, seed=0, decoded=decoded)
        drawn = next(loader)
        for view in (0, 1):
            augment(drawn.crops[view], drawn.index.numpy(), drawn.epoch, view)
        return 2 * batch

    return turn


def torchvision(folder: Path, recipe: Recipe, size: int, batch: int, keep: bool) -> Callable[[], int]:
    """Return a turn with the same recipe as its users write it: a `Compose` on PIL images, one image at a time, stacked."""
    jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    kernel = max(3, int(0.1 * size) | 1)
    steps = [
        v2.RandomResizedCrop(size, scale=recipe.crop_scale, ratio=recipe.crop_ratio),
        v2.RandomHorizontalFlip(recipe.flip),
        v2.RandomApply([jitter], p=recipe.jitter),
        v2.RandomGrayscale(recipe.gray),
        *([v2.RandomApply([v2.GaussianBlur(kernel, recipe.blur_sigma)], p=recipe.blur)] if recipe.blur else []),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    transform, paths = v2.Compose(steps), sorted(folder.iterdir())[:batch]
    kept = [Image.open(path).convert("RGB") for path in paths] if keep else None

    def turn() -> int:
        images = kept or [Image.open(path).convert("RGB") for path in paths]
        for _ in (0, 1):
            torch.stack([transform(image) for image in images])
        return 2 * batch

    return turn


def kornia(folder: Path, recipe: Recipe, size: int, batch: int, keep: bool) -> Callable[[], int]:
    """Return a turn with the same recipe in kornia: batched tensors, parameters of its own for every sample. All tiles are of one size."""
    import kornia.augmentation as K

    kernel = max(3, int(0.1 * size) | 1)
    sigma = recipe.blur_sigma
    transform = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=recipe.crop_scale, ratio=recipe.crop_ratio),
        K.RandomHorizontalFlip(p=recipe.flip),
        K.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue, p=recipe.jitter),
        K.RandomGrayscale(p=recipe.gray),
        *([K.RandomGaussianBlur((kernel, kernel), sigma, p=recipe.blur)] if recipe.blur else []),
        K.Normalize(mean=torch.tensor(IMAGENET_MEAN), std=torch.tensor(IMAGENET_STD)),
    )
    paths = sorted(folder.iterdir())[:batch]

    def pixels() -> torch.Tensor:
        images = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in paths]
        return torch.stack(images).permute(0, 3, 1, 2)

    kept = pixels() if keep else None

    def turn() -> int:
        images = (pixels() if kept is None else kept).float() / 255
        with torch.no_grad():
            for _ in (0, 1):
                transform(images)
        return 2 * batch

    return turn


def measure(side: int, size: int, batch: int, recipe_name: str, rounds: int) -> dict[str, list[float]]:
    """Return the views a CPU second of each contestant, round by round."""
    recipe = named_recipe(recipe_name, size)
    with tempfile.TemporaryDirectory(prefix="loader-") as name:
        folder = Path(name) / "tiles"
        folder.mkdir()
        write_tiles(folder, side, batch)
        os.environ["SOGCLR_CACHE"] = str(folder.parent / f"{folder.name}-cache")
        turns = {
            f"ours, {how}": ours(folder, recipe, size, batch, how)
            for how in ("decoding", "from `sogclr cache`", "kept decoded")
        }
        peers = {"torchvision v2": torchvision, **({"kornia": kornia} if find_spec("kornia") else {})}
        for peer, contestant in peers.items():
            turns[f"{peer}, decoding"] = contestant(folder, recipe, size, batch, keep=False)
            turns[f"{peer}, kept decoded"] = contestant(folder, recipe, size, batch, keep=True)
        found: dict[str, list[float]] = {contestant: [] for contestant in turns}
        for number in range(rounds + 1):
            for contestant, turn in turns.items():
                begun = time.process_time()
                views = turn()
                if number:  # the first round warms up
                    found[contestant].append(views / (time.process_time() - begun))
    return found


def rows(found: dict[str, list[float]]) -> list[str]:
    base = found[BASE]
    return [
        f"| {name} | {statistics.median(rates):,.0f} | "
        f"{statistics.median(a / b for a, b in zip(rates, base, strict=True)):.1f} |"
        for name, rates in found.items()
    ]


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = [
        "# From file to augmented batch",
        f"`python -m benchmarks.loader --rounds {options.rounds}`, {pages.one_thread()}. Two views of each image, cropped, augmented, normalised; "
        "JPEG tiles of real photographs. CPU time; medians over rounds in which the contestants take turns; ratios within "
        "a round. `kept decoded`: the images are in memory as pixels, as ours keeps small data sets after the first epoch; "
        "`sogclr cache`: they are in its memory-mapped file. torchvision works on one image at a time, kornia on batches.",
    ]
    for side, size, batch, recipe in CASES:
        table = [f"| {side} → {size} px, recipe `{recipe}` | views a CPU second | ratio |", "|---|---:|---:|"]
        parts.append("\n".join(table + rows(measure(side, size, batch, recipe, options.rounds))))
    pages.write_page("loader.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
