"""How samples are read, and the batches that training reads of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .. import distributed
from ..config.methods import METHODS
from ..config.schema import TrainConfig
from ..data.crops import Batch
from ..data.decoded import DecodedImages, find_decoded
from ..data.loader import training_loader
from ..data.multi_crop import CropGroup, crop_groups, needed_side
from ..data.recipe import Recipe, recipe_from_table
from ..data.sampler import Order, ResumableSampler
from ..data.source import Source
from ..errors import BadInput
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
    views: int = 2
    """Of each image, of `image_size` pixels; of pairs one is read."""
    small: tuple[CropGroup, ...] = ()
    """Smaller views of each image beside them, of multi-crop."""
    neighbours: Neighbours | None = None
    """Makes the order of an epoch; None for the random one."""

    @property
    def groups(self) -> list[CropGroup]:
        """Return the views of each image, the largest first."""
        return [CropGroup(self.views, self.image_size, self.recipe), *self.small]

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
            small=self.small,
            order=self.order,
        )

    def blank_batch(self, source: Source, views: int) -> Batch:
        """Return black crops of two samples, of which only the shapes count."""
        ids = source.usable[:2]
        sizes = [(views * source.images_of(ids).shape[1], self.image_size), *((g.views, g.size) for g in self.small)]
        crops, *small = (torch.zeros(count, 2, side, side, 3, dtype=torch.uint8) for count, side in sizes)
        return Batch(0, 0, torch.from_numpy(ids), crops, [], tuple(small))


def view_groups(config: TrainConfig) -> list[CropGroup]:
    """Return the views of each image of a resolved configuration, the largest first."""
    data = config.data
    return crop_groups(data.crops, data.views, data.image_size or 0, recipe_from_table(Recipe(), config.augment))


def choose_cache(config: TrainConfig, source: Source, groups: list[CropGroup]) -> tuple[str, list[str]]:
    """Return which decoded images are read, `none`, `full` or their side; and a line about it.

    Args:
        config: with the choice or without.
        source: the images.
        groups: their views, which say how large the images must be.

    Raises:
        BadInput: the choice is smaller than the views.
    """
    asked, size, need = config.data.cache, groups[0].size, needed_side(groups)
    remedy = (
        f"views of {size} pixels, some of {groups[-1].recipe.crop_scale[0]:.2g} of an image's area, need {need} on its "
        f"shorter side: `sogclr cache {config.data.data} --side {need}`"
    )
    if asked.isdecimal() and int(asked) < size:
        raise BadInput(f"--cache {asked} is smaller than the views and would be enlarged; {remedy}")
    if asked != "auto":
        return asked, []
    if config.pairs.image_rate == 0:
        return "none", []  # the features of a frozen image tower are looked up
    found, reason = find_decoded(source.images, config.data.background)
    for images in found:
        if images.enough(source.images, need):
            return images.kind, [f"cache     {images.describe()}"]
        reason = f"{images.path} is not used: its images have at most {images.kind} pixels, and {remedy}"
    return "none", [f"cache     {reason}"] if reason else []


def check_views(config: TrainConfig, kind: str) -> None:
    """Check that more than two views of an image go with the kind of DATA and the method.

    Raises:
        BadInput: they do not.
    """
    data, method = config.data, config.loss.method
    option = f"--views {data.views}" if data.crops is None else f"--crops {data.crops}"
    if data.crops is None and data.views == 2:
        return
    if kind != "images":
        raise BadInput(f"{option} is for images alone and {data.data} holds {kind}; leave it out")
    if not METHODS[method].many_views:
        raise BadInput(f"{option} does not go with --method {method}, which contrasts two views; leave it out")
    if "," in option and config.run.diagnose_every:
        raise BadInput(f"--diagnose-every needs views of one size and {option} has several; leave one out")
