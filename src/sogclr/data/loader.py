"""Batches of uint8 crops from image files, identical for any number of worker processes.

A request (step, epoch, ids) goes to a worker and a whole batch comes back; nothing else decides what is in it.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import RunFailed
from . import watch
from .crops import Batch, CentralCrop, CropDataset, RandomCrops
from .decoded import DecodedImages
from .images import background_colour
from .multi_crop import CropGroup
from .readers import reader_context
from .recipe import Recipe
from .sampler import Order, Request, ResumableSampler
from .source import Source

_CACHE_BYTES = 256 << 20
T = TypeVar("T")


def training_loader(
    source: Source,
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
    once: bool = False,
    small: Sequence[CropGroup] = (),
    order: Order | None = None,
) -> Iterator[Batch]:
    """Yield endless batches from `start_step` on: the same for any number of workers, wherever it starts.

    Args:
        source: where the images are.
        ids: int64, the sample ids to train on.
        recipe: how its crops are drawn.
        image_size: S, pixels.
        batch_size: B, samples on all ranks.
        seed: of the order and of the crops.
        start_step: the first step to give.
        workers: processes that decode and crop; 0 does it in this one.
        views: V, random crops of each image.
        background: what transparent pixels are laid on.
        pin_memory: page-locked batches, for copies to a GPU that do not block.
        part: (k, parts): only the k-th of so many equal parts of each batch is read.
        decoded: of `source.images`: where images are taken from instead of their files, as far as it has them.
        once: yield each sample once instead, in the order of the ids and as epoch 0 crops it; part k is each k-th batch.
        small: smaller crops of each image, beside the V.
        order: makes an epoch's order when it begins; None for the random one.

    Raises:
        BadInput: fewer ids than a batch, a batch of 1, no such colour.
    """
    background_colour(background)
    sampler = ResumableSampler(ids, batch_size, seed, start_step, part, order)
    cropper = RandomCrops(recipe, views, seed, small)
    cache_bytes = _CACHE_BYTES // max(1, workers)
    dataset = CropDataset(source, sampler.ids, cropper, image_size, background, cache_bytes, decoded, small)
    passes = [one_pass(sampler.ids, batch_size)[part[0] :: part[1]]] if once else sampler.passes()
    return read_batches(dataset, passes, workers, pin_memory, source.images.relative)


def one_pass(ids: np.ndarray, batch_size: int) -> list[Request]:
    """Return requests for each of the ids once, in their order and of epoch 0; the last may be smaller."""
    starts = range(0, len(ids), batch_size)
    return [Request(step, 0, ids[start : start + batch_size]) for step, start in enumerate(starts)]


def evaluation_loader(
    source: Source,
    ids: np.ndarray,
    image_size: int,
    *,
    crop_fraction: float = 1.0,
    interpolation: str = "bilinear",
    squash: bool = False,
    background: str = "white",
    batch_size: int = 256,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield one pass over `ids` in their order: central crops, uint8 (1, B', S, S, 3); the last batch may be smaller.

    Args:
        source: where the images are.
        ids: int64, sample ids.
        image_size: S, pixels.
        crop_fraction: how much of the shorter side the crop keeps.
        interpolation: how the crop is resized.
        squash: whether the whole image is squeezed into the square instead.
        background: what transparent pixels are laid on.
        batch_size: B, samples.
        workers: processes that decode and crop; 0 does it in this one.

    Raises:
        BadInput: no such colour.
    """
    background_colour(background)
    ids = np.asarray(ids, dtype=np.int64)
    requests = one_pass(ids, batch_size)
    cropper = CentralCrop(crop_fraction, interpolation, squash)
    dataset = CropDataset(source, ids, cropper, image_size, background, cache_bytes=0)
    return read_batches(dataset, [requests], min(workers, len(requests)), False, source.images.relative)


# ---------------------------------------------------------------------------------------------------- worker processes
class _InWorker(Dataset[Batch | RunFailed]):
    """Return a failure rather than raise it: torch would make its sentence a traceback on the way."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Request) -> Batch | RunFailed:
        try:
            return self.dataset[request]
        except RunFailed as error:
            return error


class _Loader(DataLoader[Batch | RunFailed]):
    def check_worker_number_rationality(self) -> None:
        """Leave out torch's warning of more workers than cores: how many there are is the caller's choice."""


class _OfPass:
    """The requests of the pass that is read."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def read_batches(
    dataset: Dataset[Batch],
    passes: Iterable[Iterable[Request]],
    workers: int,
    pin_memory: bool,
    name: Callable[[int], str] = "image {}".format,
) -> Iterator[Batch]:
    """Yield the batch of each request, in their order.

    Args:
        dataset: request -> batch.
        passes: requests, as many as there are. No pass is asked for before all batches of the last one have been taken.
        workers: processes that make the batches; 0 makes them in this one.
        pin_memory: page-locked batches, where there is a GPU.
        name: image id -> its file, for the error of one whose reading does not end.

    Raises:
        RunFailed: a process was ended from outside, reads one file for too long, or lost its connection to remote images.
    """
    pin_memory = pin_memory and torch.cuda.is_available()  # torch warns about pinning without a device
    if workers == 0:
        for request in chain.from_iterable(passes):
            watch.watch_here(name)
            try:
                batch = dataset[request]
            finally:
                watch.reads(-1)
            yield _pinned(batch) if pin_memory else batch
        return
    table = watch.new_watch(workers)
    loader = _Loader(
        _InWorker(dataset),
        batch_size=None,
        sampler=(of_pass := _OfPass()),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, table),
        timeout=watch.LOOK_EVERY,
        generator=torch.Generator(),  # its base seed would otherwise come from the global generator
        persistent_workers=True,
        multiprocessing_context=reader_context(),
    )
    try:
        for of_pass.requests in passes:
            with _signals_held(), warnings.catch_warnings():
                # Python 3.12 warns of every fork beside threads; these workers use none of the parent's threads or locks.
                warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
                batches = iter(loader)  # from the second pass on the same workers
            for batch in _watched(batches, table, name):
                if isinstance(batch, RunFailed):
                    raise batch
                yield batch
    except (RuntimeError, ConnectionError) as error:
        if not isinstance(error, ConnectionError) and not str(error).startswith("DataLoader worker"):
            raise
        raise RunFailed(
            f"a reader process ended from outside ({' '.join(str(error).split())[:200]}), mostly for want of memory; "
            f"go on with fewer --workers (now {workers})"
        ) from None


def _watched(batches: Iterator[T], table: torch.Tensor, name: Callable[[int], str]) -> Iterator[T]:
    """Yield the batches, and look at the readers while none comes."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            watch.check_readers(table, name)
        else:
            yield batch


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back while workers start: these inherit that, and so answer none before `_start_worker` has run."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pinned(batch: Batch) -> Batch:
    small = tuple(crops.pin_memory() for crops in batch.small)
    return batch._replace(crops=batch.crops.pin_memory(), small=small)


def _as_it_is(batch: object) -> object:
    return batch


def _start_worker(table: torch.Tensor, worker: int) -> None:
    """Ignore Ctrl-C, and SIGTERM unless the parent sent it, which is how Python ends workers at exit.

    Signals that reach the whole process group are the main process's to answer: it still has a step to finish.
    """
    torch.set_num_threads(1)
    watch.watch_reader(table, worker)
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
