"""The order of samples: a function of (seed, epoch) alone, so that a run can start again at any step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..errors import BadInput


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

    Raises:
        BadInput: a batch of 1, fewer ids than a batch, repeated ids.

    Example:
        >>> sampler = ResumableSampler(np.arange(10), batch_size=4, seed=0, start_step=3)
        >>> request = next(iter(sampler))
        >>> request.step, request.epoch, len(request.ids)
        (3, 1, 4)
    """

    def __init__(
        self, ids: np.ndarray, batch_size: int, seed: int, start_step: int = 0, part: tuple[int, int] = (0, 1)
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
        self.ids, self.part = ids, part
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.steps_per_epoch = len(ids) // batch_size

    def permutation(self, epoch: int) -> np.ndarray:
        """Return the ids in the order of that epoch, int64 (n,).

        Sorted random numbers rather than `Generator.permutation`: raw Philox output is fixed by its definition,
        while NumPy may change how it shuffles, and a run must resume under another NumPy.
        """
        bits = np.random.Philox(key=np.array([self.seed & 0xFFFFFFFFFFFFFFFF, epoch], dtype=np.uint64))
        return self.ids[np.argsort(bits.random_raw(len(self.ids)), kind="stable")]

    def __iter__(self) -> Iterator[Request]:
        step, each = self.start_step, self.batch_size // self.part[1]
        while True:
            epoch = step // self.steps_per_epoch
            order = self.permutation(epoch)
            for position in range(step % self.steps_per_epoch, self.steps_per_epoch):
                first = position * self.batch_size + self.part[0] * each
                yield Request(step, epoch, order[first : first + each])
                step += 1
