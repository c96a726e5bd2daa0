"""The order of samples: a function of (seed, epoch), or made of it when an epoch begins, so that a run can start again at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..errors import BadInput

Order = Callable[[np.ndarray, int], np.ndarray]
"""(int64 (n,) ids in a random order, epoch) -> the same ids in the order of that epoch, of which the first whole batches are used."""


class Request(NamedTuple):
    """One batch to be made."""

    step: int
    epoch: int
    ids: np.ndarray
    """int64 (B,): sample ids, all different."""


class ResumableSampler:
    """Endless batches from `start_step` on: each epoch visits every id at most once and drops the remainder.

    Args:
        ids: int64 (n,), all different.
        batch_size: B, at least 2.
        seed: any integer.
        start_step: the first step to give.
        part: (k, parts): of each batch only the k-th of so many equal parts, in the batch's order.
        order: makes an epoch's order, once all batches before it have been asked for; None for the random one.

    Raises:
        BadInput: a batch of 1, fewer ids than a batch, repeated ids.

    Example:
        >>> sampler = ResumableSampler(np.arange(10), batch_size=4, seed=0, start_step=3)
        >>> request = next(iter(sampler))
        >>> request.step, request.epoch, len(request.ids)
        (3, 1, 4)
    """

    def __init__(
        self,
        ids: np.ndarray,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        part: tuple[int, int] = (0, 1),
        order: Order | None = None,
    ) -> None:
        ids = np.asarray(ids, dtype=np.int64)
        if batch_size < 2:
            raise BadInput(
                f"a batch size of {batch_size} leaves nothing to contrast with: contrastive learning needs other "
                f"samples as negatives; give --batch-size 2 or more"
            )
        if len(ids) < batch_size:
            raise BadInput(
                f"there are {len(ids):,} usable images, fewer than one batch of {batch_size:,}; give a smaller "
                f"--batch-size or more images"
            )
        ascending = bool((ids[1:] > ids[:-1]).all())  # as sources give them: nothing has to be sorted
        repeated = 0 if ascending else len(ids) - len(np.unique(ids))
        if repeated:
            raise BadInput(f"the sampler's ids must differ from one another and {repeated} repeat; give each once")
        if start_step < 0:
            raise BadInput(f"the first step was {start_step}; give 0 or more")
        if batch_size % part[1]:
            raise BadInput(
                f"a batch of {batch_size} cannot be split into {part[1]} equal parts; give a multiple of that"
            )
        self.ids, self.part, self.order = ids, part, order
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.steps_per_epoch = len(ids) // batch_size

    def permutation(self, epoch: int) -> np.ndarray:
        """Return the ids in the random order of that epoch, int64 (n,).

        Sorted random numbers rather than `Generator.permutation`: raw Philox output is fixed by its definition,
        while NumPy may change how it shuffles, and a run must resume under another NumPy.
        """
        bits = np.random.Philox(key=np.array([self.seed & 0xFFFFFFFFFFFFFFFF, epoch], dtype=np.uint64))
        return self.ids[np.argsort(bits.random_raw(len(self.ids)), kind="stable")]

    def __iter__(self) -> Iterator[Request]:
        for requests in self.epochs():
            yield from requests

    def epochs(self) -> Iterator[Iterator[Request]]:
        """Yield the requests of an epoch at a time: those of the first one from `start_step` on."""
        step = self.start_step
        while True:
            yield self._epoch(step)
            step += self.steps_per_epoch - step % self.steps_per_epoch

    def passes(self) -> Iterable[Iterable[Request]]:
        """Return what can be read ahead, in one piece each: all that follows, or an epoch where the next one's order is not made yet."""
        return [self] if self.order is None else self.epochs()

    def _epoch(self, step: int) -> Iterator[Request]:
        each, epoch = self.batch_size // self.part[1], step // self.steps_per_epoch
        ids = self.permutation(epoch)
        if self.order is not None:
            ids = self.order(ids, epoch)
        for position in range(step % self.steps_per_epoch, self.steps_per_epoch):
            first = position * self.batch_size + self.part[0] * each
            yield Request(step, epoch, ids[first : first + each])
            step += 1
