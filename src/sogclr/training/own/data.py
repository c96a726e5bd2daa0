"""Data of a user's own: a map-style data set of images or of views, or a transform that makes the views.

Randomness inside them is a function of (seed, epoch, index): `random`, `numpy.random` and torch's generator of the CPU
are seeded before each sample is read. So a resumed run sees the same views, with any number of reader processes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.column_files import RunFiles
from ...data.images import opened
from ...data.manifest import Difference, Manifest
from ...data.pair_columns import ColumnNames
from ...data.paths import AnyPath
from ...errors import BadInput
from .parts import MapDataset, name_of

PROBED = 8  # samples whose size says how large the images are


class DatasetSource:
    """A data set of a user's own as a source of samples, with ids 0..n-1.

    Args:
        dataset: with a length; `dataset[i]` is (image, i) or (views, i).
    """

    kind = "images"
    rejected: list[tuple[str, str]] = []  # noqa: RUF012  (never written to)
    bad: list[tuple[int, str]] = []  # noqa: RUF012

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset, self.name, self.count = dataset, name_of(dataset), len(dataset)
        self.root: AnyPath = Path(f"dataset={self.name}")
        self.source: AnyPath = self.root
        self.fingerprint = hashlib.sha256(f"{self.name} of {self.count}".encode()).hexdigest()
        self.widths, self.heights = np.zeros(self.count, np.int32), np.zeros(self.count, np.int32)
        with generators_kept():
            for id in np.linspace(0, self.count - 1, min(PROBED, self.count), dtype=np.int64).tolist():
                image = item_of(dataset, id)
                if isinstance(image, Image.Image):
                    self.widths[id], self.heights[id] = image.size

    def __len__(self) -> int:
        return self.count

    @property
    def images(self) -> Any:
        """Return the source itself: each sample is an image. It is no `Manifest`, as there are no files."""
        return self

    @property
    def usable(self) -> np.ndarray:
        """Return all ids, int64."""
        return np.arange(self.count)

    def relative(self, id: int) -> str:
        """Return a name for a sample."""
        return f"{self.name}[{id}]"

    def file(self, id: int) -> str | BinaryIO:
        """Raise BadInput: there are no files."""
        raise BadInput(f"{self.relative(id)} is of a data set of your own and has no file")

    def images_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the image ids of samples (k,): int64 (k, 1), the same."""
        return ids[:, None]

    def describe(self) -> str:
        """Return one line of counts."""
        return f"{self.count:,} of {self.name}"

    def training_part(self) -> DatasetSource | None:
        """Return None: all of a data set is for training."""
        return None

    def rescan(self, columns: ColumnNames) -> DatasetSource:
        """Return the source itself: there are no files that change."""
        return self

    def difference(self, other: DatasetSource) -> Difference:
        """Return no difference: `load_state_dict` compares the fingerprints."""
        return Difference([], [], [])

    def save_to(self, run: RunFiles) -> None:
        """Write nothing: `resume` is given the data set again."""


class ManifestImages:
    """The images of files as a data set of (PIL image, id), for a transform of a user's own."""

    def __init__(self, manifest: Manifest, background: str) -> None:
        self.manifest, self.background = manifest, background

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, id: int) -> tuple[Image.Image, int]:
        with opened(self.manifest.file(id)) as file:
            return file.pixels(self.background), id


def item_of(dataset: MapDataset, id: int) -> Any:
    """Return the image or the views of `dataset[id]`.

    Raises:
        BadInput: it is no pair of them and its own index.
    """
    item = dataset[id]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise BadInput(
            f"{name_of(dataset)}[{id}] is a {type(item).__name__}; a data set of your own must give (image, index)"
        )
    content, index = item
    index = index.item() if isinstance(index, Tensor | np.generic) and np.ndim(index) == 0 else index
    if isinstance(index, bool) or not isinstance(index, int) or index != id:
        shown = index if isinstance(index, int) else type(index).__name__
        raise BadInput(
            f"{name_of(dataset)}[{id}] gave the index {shown}, not {id}; return (image, index) with the very index that it "
            "was asked for, not a label"
        )
    return content


def two_views(content: Any, name: str) -> Tensor:
    """Return views, (2, C, H, W), of a tensor or a list of tensors.

    Raises:
        BadInput: they are not two images of one shape.
    """
    views = list(content)
    images = [v for v in views if isinstance(v, Tensor) and v.is_floating_point() and v.ndim == 3]
    if len(views) != 2 or len(images) != 2 or images[0].shape != images[1].shape:
        found = ", ".join(
            f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in views[:3]
        )
        raise BadInput(f"{name} gives {len(views)} views ({found}); give two floating tensors of one shape (C, H, W)")
    return torch.stack(views)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the states of the global random generators at the end: a reader may be in the training process itself."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_generators(seed: int, epoch: int, id: int) -> None:
    """Seed `random`, `numpy.random` and torch's generator of the CPU, for one sample in one epoch."""
    words = [int(word) for word in np.random.SeedSequence([seed, epoch, id]).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2] << 32 | words[3])


def view_side(dataset: MapDataset | None, transform: Callable[[Any], Tensor] | None) -> int | None:
    """Return the height of the views that a data set of a user's own makes, or a transform of a blank image.

    Returns:
        Pixels; None for images, whose views our own augmentation makes.
    """
    with generators_kept():
        seed_generators(0, 0, 0)
        content = Image.new("RGB", (256, 256)) if dataset is None else item_of(dataset, 0)
        if transform is not None:
            content = [transform(content), transform(content)]
        if isinstance(content, Image.Image):
            return None
        views = two_views(content, name_of(dataset if transform is None else transform))
    return int(views.shape[2])
