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
from torch import Tensor, nn
from torch.utils.data import Dataset

from .. import distributed
from ..data.augment import Augmentation
from ..data.images import opened, resized_crop
from ..data.labels import Labels
from ..data.loader import Batch, RandomCrops, read_batches
from ..data.manifest import Difference, Manifest
from ..data.sampler import Request, ResumableSampler
from ..data.source import Source
from ..errors import BadImage, BadInput
from ..evaluation.knn import knn_leave_one_out
from ..evaluation.label_free import label_free
from ..models.encoder import EncoderInfo
from ..models.features import same_buffers
from ..models.two_view import ContrastiveModel
from ..run_folder import RunFolder
from .online_eval import IMAGES, VIEWED, choose
from .own_parts import name_of
from .reading import Reading

PROBED = 8  # samples whose size says how large the images are


class DatasetSource:
    """A data set of a user's own as a source of samples, with ids 0..n-1.

    Args:
        dataset: with a length; `dataset[i]` is (image, i) or (views, i).
    """

    kind = "images"
    rejected: list[tuple[str, str]] = []  # noqa: RUF012  (never written to)
    bad: list[tuple[int, str]] = []  # noqa: RUF012

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise BadInput(
                f"dataset= is a {name_of(dataset)} without a length; give a map-style data set of (image, index)"
            )
        self.dataset, self.name, self.count = dataset, name_of(dataset), len(dataset)
        self.root = self.source = Path(f"dataset={self.name}")
        self.fingerprint = hashlib.sha256(f"{self.name} of {self.count}".encode()).hexdigest()
        self.widths, self.heights = np.zeros(self.count, np.int32), np.zeros(self.count, np.int32)
        with _generators_kept():
            for id in np.linspace(0, self.count - 1, min(PROBED, self.count), dtype=np.int64).tolist():
                image = item_of(dataset, id)
                if isinstance(image, Image.Image):
                    self.widths[id], self.heights[id] = image.size

    def __len__(self) -> int:
        return self.count

    @property
    def images(self) -> Any:
        """Return the source itself: each sample is an image."""
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

    def image_of(self, ids: Any) -> Any:
        """Return the ids: each sample is an image."""
        return ids

    def describe(self) -> str:
        """Return one line of counts."""
        return f"{self.count:,} of {self.name}"

    def rescan(self, config_columns: dict[str, str | None]) -> DatasetSource:
        """Return the source itself: there are no files that change."""
        return self

    def difference(self, other: DatasetSource) -> Difference:
        """Return no difference: `load_state_dict` compares the fingerprints."""
        return Difference([], [], [])

    def save_to(self, run: RunFolder) -> None:
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


def item_of(dataset: Any, id: int) -> Any:
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
def _generators_kept() -> Iterator[None]:
    """Put the global generators back at the end: a reader may be in the training process itself."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_generators(seed: int, epoch: int, id: int) -> None:
    words = [int(word) for word in np.random.SeedSequence([seed, epoch, id]).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2] << 32 | words[3])


class _Reader(Dataset[Batch]):
    """Request -> Batch of float views (2, B, C, H, W), or of uint8 crops (2, B, S, S, 3) that are still to be augmented.

    Args:
        dataset: of (image or views, index).
        transform: image -> view; None for our crops of images, and for views.
        crops: where our crops of an image lie.
        size: S, of our crops.
        seed: the run's.
    """

    def __init__(
        self, dataset: Any, transform: Callable[[Any], Tensor] | None, crops: RandomCrops, size: int, seed: int
    ) -> None:
        self.dataset, self.transform, self.crops, self.size, self.seed = dataset, transform, crops, size, seed

    def __getitem__(self, request: Request) -> Batch:
        views: list[Tensor] = []
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        with _generators_kept():
            for id in request.ids.tolist():
                _seed_generators(self.seed, request.epoch, id)
                try:
                    views.append(self.views(id, request.epoch))
                except BadImage as error:
                    bad.append((id, str(error)))
                else:
                    good.append(id)
        crops = torch.stack(views, dim=1) if views else torch.empty(2, 0)
        return Batch(request.step, request.epoch, torch.tensor(good, dtype=torch.int64), crops, bad)

    def views(self, id: int, epoch: int) -> Tensor:
        """Return both views of a sample, (2, C, H, W) or (2, S, S, 3)."""
        content, name = item_of(self.dataset, id), name_of(self.dataset)
        if self.transform is not None:
            return two_views(
                [self.transform(content), self.transform(content)], f"transform= ({name_of(self.transform)})"
            )
        if not isinstance(content, Image.Image):
            if isinstance(content, tuple | list) or (isinstance(content, Tensor) and content.ndim == 4):
                return two_views(content, name)
            raise BadInput(
                f"{name}[{id}] gave a {type(content).__name__}; give PIL images, two views of shape (C, H, W), or transform="
            )
        image = content.convert("RGB")
        sizes = np.array([image.width]), np.array([image.height])
        boxes = self.crops.boxes(epoch, np.array([id]), *sizes)[0].tolist()
        return torch.stack([torch.from_numpy(resized_crop(image, tuple(box), self.size).copy()) for box in boxes])


class OwnViews:
    """Views of a data set or by a transform of a user's own.

    Args:
        source: the samples.
        dataset: of (image or views, index), for the ids of `source`.
        transform: image -> view; None for our own augmentation of images, and for views.
        labels: for the online evaluation, of image files.
        info: with the normalisation of our own augmentation.
        reading: how samples are read.
    """

    def __init__(
        self,
        source: Source,
        dataset: Any,
        transform: Callable[[Any], Tensor] | None,
        labels: Labels | None,
        info: EncoderInfo,
        reading: Reading,
    ) -> None:
        self.source, self.labels, self.reading = source, labels, reading
        crops = RandomCrops(reading.recipe, 2, reading.seed)
        self.reader = _Reader(dataset, transform, crops, reading.image_size, reading.seed)
        self.augment = Augmentation(reading.recipe, reading.image_size, info.mean, info.std, reading.seed)

    def view_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of the first readable sample's views, as the model sees them."""
        with _generators_kept():
            for id in self.source.usable[:100].tolist():
                _seed_generators(self.reading.seed, 0, id)
                try:
                    views = self.reader.views(id, 0)
                except BadImage:
                    continue
                return tuple(
                    self._augmented(Batch(0, 0, torch.tensor([id]), views[:, None], []), torch.device("cpu")).shape[1:]
                )
        raise BadInput("none of the first 100 images can be read; give others")

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield batches from `start` on, two views of each sample."""
        reading = self.reading
        sampler = ResumableSampler(self.source.usable, reading.batch_size, reading.seed, start, distributed.shard())
        return read_batches(self.reader, sampler, reading.workers, pin_memory)

    def blank_batch(self) -> Batch:
        """Return two samples, of which only the shapes count."""
        batch = self.reader[Request(0, 0, self.source.usable[:2])]
        return batch._replace(crops=torch.zeros_like(batch.crops))

    def inputs(self, batch: Batch, device: torch.device) -> Tensor:
        """Return both views of all samples, (2B, C, H, W): the first views before the second."""
        return self._augmented(batch, device)

    def _augmented(self, batch: Batch, device: torch.device) -> Tensor:
        crops = batch.crops.to(device, non_blocking=True)
        if crops.dtype != torch.uint8:  # views already
            return crops.float().flatten(0, 1)
        return torch.cat([self.augment(crops[v], batch.index.numpy(), batch.epoch, v) for v in (0, 1)])

    @torch.inference_mode()
    def evaluate(self, model: ContrastiveModel, device: torch.device) -> dict[str, float]:
        """Return the accuracy of kNN with labels, label-free scores without, of a fixed sample's views in epoch 0.

        The main rank computes them alone.
        """
        same_buffers(model)
        if not distributed.is_rank0():
            return {}
        ids = self.source.usable
        if self.labels is not None:
            ids = ids[self.labels.values[ids] >= 0]
        ids = choose(ids, IMAGES, self.reading.seed)
        model.eval()
        try:
            batches = [self.reader[Request(0, 0, part)] for part in np.array_split(ids, -(-len(ids) // 64))]
            rows = [
                model.backbone(self._augmented(b, device)).float().view(2, len(b.index), -1)
                for b in batches
                if len(b.index)
            ]
        finally:
            model.train()
        z = torch.cat(rows, dim=1)
        features = z[0].cpu().numpy()
        if self.labels is not None:
            kept = torch.cat([b.index for b in batches]).numpy()
            y = self.labels.values[kept]
            return {"knn_top1": knn_leave_one_out(features, y, num_classes=len(self.labels.classes))}
        some = slice(None, None, max(1, len(features) // VIEWED))
        return label_free(features, z[0, some], z[1, some])

    def diagnose(self, model: ContrastiveModel, loss: nn.Module, device: torch.device) -> dict[str, float]:
        """Raise: `diagnose_every` was refused."""
        raise NotImplementedError


def view_side(dataset: Any, transform: Callable[[Any], Tensor] | None) -> int | None:
    """Return the height of the views that a data set of a user's own makes, or a transform of a blank image.

    Returns:
        Pixels; None for images, whose views our own augmentation makes.
    """
    with _generators_kept():
        _seed_generators(0, 0, 0)
        content = Image.new("RGB", (256, 256)) if dataset is None else item_of(dataset, 0)
        if transform is not None:
            content = [transform(content), transform(content)]
        if isinstance(content, Image.Image):
            return None
        views = two_views(content, name_of(dataset if transform is None else transform))
    return int(views.shape[2])
