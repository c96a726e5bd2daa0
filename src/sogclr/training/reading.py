"""How samples are read, and the batches that training reads of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .. import distributed
from ..data.crops import Batch
from ..data.decoded import DecodedImages
from ..data.loader import training_loader
from ..data.recipe import Recipe
from ..data.sampler import Order, ResumableSampler
from ..data.source import Source
from .neighbours import Neighbours


@dataclass(frozen=True)
class Reading:
    """What decides which pixels of a sample are seen."""

    recipe: Recipe
    """What may happen to a view."""
    image_size: int
    """S, pixels."""
    batch_size: int
    """Of all ranks together."""
    seed: int
    workers: int
    """Reader processes."""
    background: str
    """What transparent pixels are laid on."""
    decoded: DecodedImages | None = None
    """Where images are taken from instead of their files."""
    neighbours: Neighbours | None = None
    """Makes the order of an epoch; None for the random one."""

    @property
    def order(self) -> Order | None:
        """Return what makes the order of an epoch, if it is not the random one."""
        return None if self.neighbours is None else self.neighbours.order

    def sampler(self, source: Source, start: int) -> ResumableSampler:
        """Return the ids of this rank's part of batch `start` and of all that follow."""
        return ResumableSampler(source.usable, self.batch_size, self.seed, start, distributed.shard(), self.order)

    def batches(self, source: Source, start: int, views: int, pin_memory: bool, once: bool = False) -> Iterator[Batch]:
        """Yield this rank's part of batch `start` and of all that follow: crops, uint8 (images x views, B, S, S, 3).

        With `once` it is a pass over all samples, as epoch 0 crops them.
        """
        return training_loader(
            source,
            source.usable,
            self.recipe,
            self.image_size,
            self.batch_size,
            self.seed,
            start_step=start,
            workers=self.workers,
            views=views,
            background=self.background,
            pin_memory=pin_memory,
            part=distributed.shard(),
            decoded=self.decoded,
            once=once,
            order=self.order,
        )

    def blank_batch(self, source: Source, views: int) -> Batch:
        """Return black crops of two samples, of which only the shapes count."""
        side, ids = self.image_size, source.usable[:2]
        crops = views * source.images_of(ids).shape[1]
        return Batch(0, 0, torch.from_numpy(ids), torch.zeros(crops, 2, side, side, 3, dtype=torch.uint8), [])
