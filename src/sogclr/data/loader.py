"""Batches of uint8 crops from image files, identical for any number of worker processes.

A request (step, epoch, ids) goes to a worker and a whole batch comes back; nothing else decides what is in it.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..errors import BadImage, RunFailed
from .augment import CROP_SLOTS, uniforms
from .augment_params import crop_boxes, largest_shrink
from .decoded import DecodedImages
from .images import background_colour, central_box, opened, quiet, resized_crop
from .manifest import Manifest
from .pairs import Pairs
from .recipe import Recipe
from .sampler import Request, ResumableSampler

_CACHE_BYTES = 256 << 20


class Batch(NamedTuple):
    """What a step works on."""

    step: int
    epoch: int
    index: torch.Tensor  # type: ignore[assignment]  # a field of this name hides tuple.index, which nobody calls
    """int64 (B',) on the host: manifest ids. B' is below the batch size when bad files were met."""
    crops: torch.Tensor
    """uint8 (V, B', S, S, 3)."""
    bad: list[tuple[int, str]]
    """Ids of this batch whose file could not be read, and why."""

    def first(self, count: int) -> Batch:
        """The first so many samples."""
        return self._replace(index=self.index[:count], crops=self.crops[:, :count])


class RandomCrops:
    """The V random crops of each image: a function of (seed, epoch, id) and of the image's size."""

    def __init__(self, recipe: Recipe, views: int, seed: int) -> None:
        self.recipe, self.views, self.seed = recipe, views, seed

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """float64 (n, V, 4), pixels."""
        of_view = [uniforms(self.seed, epoch, ids, v, CROP_SLOTS) for v in range(self.views)]
        return np.stack([crop_boxes(self.recipe, u, widths, heights) for u in of_view], axis=1)


class _CentralCrop:
    """The one evaluation crop."""

    views = 1

    def __init__(self, crop_fraction: float) -> None:
        self.crop_fraction = crop_fraction

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        sizes = zip(widths.tolist(), heights.tolist(), strict=True)
        return np.array([[central_box(w, h, self.crop_fraction)] for w, h in sizes]).reshape(-1, 1, 4)


class _Crops(Dataset[Batch]):
    """Request -> Batch. Lives in each worker; keeps decoded images when all of them together are small.

    Decoded images are kept, and taken from `decoded`, by their image id: pairs with an image in common have one.
    """

    def __init__(
        self,
        manifest: Manifest | Pairs,
        ids: np.ndarray,
        crop: RandomCrops | _CentralCrop,
        size: int,
        background: str,
        cache_bytes: int,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.decoded = decoded
        self.manifest, self.crop, self.size, self.background = manifest, crop, size, background
        read = np.zeros(len(manifest.images), bool)
        read[manifest.image_of(ids)] = True
        widths, heights = (v[read].astype(np.int64) for v in (manifest.images.widths, manifest.images.heights))
        # Only images that are never decoded smaller than they are, so that keeping them changes no pixel.
        small = len(ids) > 0 and widths.min() > 0 and np.minimum(widths, heights).max() < 2 * size
        self._keep = bool(decoded is None and small and 3 * int((widths * heights).sum()) <= cache_bytes)
        self._kept: dict[int, Image.Image] = {}

    def __getitem__(self, request: Request) -> Batch:
        ids = request.ids
        widths, heights = np.maximum(self.manifest.widths[ids], 1), np.maximum(self.manifest.heights[ids], 1)
        expected = self.crop.boxes(request.epoch, ids, widths, heights)  # all at once, where the headers were right
        crops = np.empty((self.crop.views, len(ids), self.size, self.size, 3), dtype=np.uint8)
        bad: list[tuple[int, str]] = []
        good: list[int] = []
        with quiet:  # here as well, for it costs less where it is on already than once an image
            for row, id in enumerate(ids.tolist()):
                try:
                    image, width, height, boxes = self._read(request.epoch, id, expected[row])
                    if image.size != (width, height):
                        boxes = boxes * ([image.width / width, image.height / height] * 2)
                    for v, box in enumerate(boxes.tolist()):
                        crops[v, len(good)] = resized_crop(image, tuple(box), self.size)
                except BadImage as error:
                    bad.append((id, str(error)))
                else:
                    good.append(id)
        index = torch.tensor(good, dtype=torch.int64)
        whole = torch.from_numpy(crops)
        return Batch(request.step, request.epoch, index, whole[:, : len(good)].contiguous() if bad else whole, bad)

    def _read(self, epoch: int, id: int, expected: np.ndarray) -> tuple[Image.Image, int, int, np.ndarray]:
        """The image, perhaps decoded smaller; its full width and height; the boxes (V, 4) at full size."""
        image_id = int(self.manifest.image_of(id))
        if image_id in self._kept:
            image = self._kept[image_id]
            return image, image.width, image.height, expected
        if self.decoded is not None and (found := self.decoded.get(image_id)) is not None:
            image, width, height = found
            return image, width, height, self._boxes(epoch, id, width, height, expected)
        with opened(self.manifest.file(id)) as file:
            width, height = file.width, file.height
            boxes = self._boxes(epoch, id, width, height, expected)
            image = file.pixels(self.background, largest_shrink(boxes, self.size))
        if self._keep and boxes is expected:
            self._kept[image_id] = image
        return image, width, height, boxes

    def _boxes(self, epoch: int, id: int, width: int, height: int, expected: np.ndarray) -> np.ndarray:
        """The boxes (V, 4) at full size: those expected, unless the size was unknown or has changed since."""
        if (width, height) == (self.manifest.widths[id], self.manifest.heights[id]):
            return expected
        return self.crop.boxes(epoch, np.array([id]), np.array([width]), np.array([height]))[0]


class _Loader(DataLoader[Batch]):
    def check_worker_number_rationality(self) -> None:
        """Torch's warning about more workers than cores: how many there are is the caller's choice."""


def read_batches(
    dataset: Dataset[Batch], requests: Iterable[Request], workers: int, pin_memory: bool
) -> Iterator[Batch]:
    pin_memory = pin_memory and torch.cuda.is_available()  # torch warns about pinning without a device
    if workers == 0:
        for request in requests:
            batch = dataset[request]
            yield batch._replace(crops=batch.crops.pin_memory()) if pin_memory else batch
        return
    loader = _Loader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its base seed would otherwise come from the global generator
        persistent_workers=True,
    )
    with _signals_held(), warnings.catch_warnings():
        # Python 3.12 warns of every fork beside threads; these workers use none of the parent's threads or locks.
        warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
        batches = iter(loader)
    try:
        yield from batches
    except (RuntimeError, ConnectionError) as error:
        if not isinstance(error, ConnectionError) and not str(error).startswith("DataLoader worker"):
            raise
        raise RunFailed(
            f"a reader process ended from outside ({' '.join(str(error).split())[:200]}), mostly for want of memory; "
            f"go on with fewer --workers (now {workers})"
        ) from None


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait while workers start, for these inherit that and so answer none before `_start_worker` has run."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """Signals that reach the whole process group are the main process's to answer: it still has a step to finish.

    So Ctrl-C is ignored, and so is SIGTERM unless the parent sent it, which is how Python ends workers at exit.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def training_loader(
    manifest: Manifest | Pairs,
    ids: np.ndarray,
    recipe: Recipe,
    image_size: int,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    workers: int = 0,
    views: int = 2,
    background: str = "white",
    pin_memory: bool = False,
    part: tuple[int, int] = (0, 1),
    decoded: DecodedImages | None = None,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on: the same for any number of workers, wherever it starts.

    Args:
        ids: int64, the manifest ids to train on.
        image_size: S, pixels.
        workers: processes that decode and crop; 0 does it in this one.
        views: V, random crops of each image.
        background: what transparent pixels are laid on.
        pin_memory: page-locked batches, for copies to a GPU that do not block.
        part: (k, parts): only the k-th of so many equal parts of each batch is read.
        decoded: of `manifest.images`: where images are taken from instead of their files, as far as it has them.

    Raises:
        BadInput: fewer ids than a batch, a batch of 1, no such colour.
    """
    background_colour(background)
    sampler = ResumableSampler(ids, batch_size, seed, start_step, part)
    crop = RandomCrops(recipe, views, seed)
    dataset = _Crops(manifest, sampler.ids, crop, image_size, background, _CACHE_BYTES // max(1, workers), decoded)
    return read_batches(dataset, sampler, workers, pin_memory)


def evaluation_loader(
    manifest: Manifest | Pairs,
    ids: np.ndarray,
    image_size: int,
    *,
    crop_fraction: float = 1.0,
    background: str = "white",
    batch_size: int = 256,
    workers: int = 0,
) -> Iterator[Batch]:
    """One pass over `ids` in their order: central crops, uint8 (1, B', S, S, 3); the last batch may be smaller.

    Raises:
        BadInput: no such colour.
    """
    background_colour(background)
    ids = np.asarray(ids, dtype=np.int64)
    starts = range(0, len(ids), batch_size)
    requests = [Request(step, 0, ids[start : start + batch_size]) for step, start in enumerate(starts)]
    dataset = _Crops(manifest, ids, _CentralCrop(crop_fraction), image_size, background, cache_bytes=0)
    return read_batches(dataset, requests, min(workers, len(requests)), pin_memory=False)
