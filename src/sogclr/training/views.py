"""Where the views of an image come from: image files, cropped by readers and augmented on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from ..data.augment import Augmentation
from ..data.crops import Batch
from ..data.labels import Labels
from ..data.manifest import Manifest
from ..models.encoder import EncoderInfo
from ..models.two_view import ContrastiveModel
from .online_eval import Scored, online_diagnosis, online_scores, scored_ids
from .reading import Reading


class Views(Protocol):
    """Views of every image of a data set: a function of (seed, epoch, id)."""

    scored: str
    """What the online scores are of, in the plural."""
    counts: tuple[int, ...]
    """How many views of an image there are of each size, the largest first."""

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield this rank's part of batch `start` and of all that follow, without end."""
        ...

    def one_pass(self) -> Iterator[Batch]:
        """Yield this rank's part of all samples, each once, in the views of epoch 0."""
        ...

    def blank_batch(self) -> Batch:
        """Return a batch of two samples without content, of which only the shapes count."""
        ...

    def inputs(self, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        """Return the V views of each size of all images, (V B, C, S, S): the first views before the second."""
        ...

    def evaluate(self, model: ContrastiveModel, device: torch.device) -> dict[str, float]:
        """Return the online scores of the backbone: all on the main rank."""
        ...

    def diagnose(self, model: ContrastiveModel, loss: nn.Module, device: torch.device) -> dict[str, float]:
        """Return how far the loss's gradient is from the exact one."""
        ...


class ImageViews:
    """Views of image files.

    Args:
        manifest: the images.
        labels: for the online evaluation; None for label-free scores.
        info: with the normalisation of the encoder's inputs.
        reading: how images are read.
        held_out: what the online evaluation is on; None for a fixed sample of the images.
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: Labels | None,
        info: EncoderInfo,
        reading: Reading,
        held_out: Scored | None = None,
    ) -> None:
        self.manifest, self.info, self.reading = manifest, info, reading
        self.scored = "training images" if held_out is None else "validation images"
        self.evaluated = held_out or Scored(manifest, labels, scored_ids(manifest.usable, labels, reading.seed))
        self.augment, *self.of_small = (
            Augmentation(g.recipe, g.size, info.mean, info.std, reading.seed) for g in reading.groups
        )
        self.counts = tuple(g.views for g in reading.groups)

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield batches from `start` on, V crops of each image, uint8 (V, B, S, S, 3)."""
        return self.reading.batches(self.manifest, start, self.reading.views, pin_memory)

    def one_pass(self) -> Iterator[Batch]:
        """Yield the crops of each image, once, as epoch 0 draws them."""
        return self.reading.batches(self.manifest, 0, self.reading.views, False, once=True)

    def blank_batch(self) -> Batch:
        """Return two black images."""
        return self.reading.blank_batch(self.manifest, self.reading.views)

    def inputs(self, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        """Return the V views of each size of all images, (V B, 3, S, S), augmented on the device."""
        ids, found, view = batch.index.numpy(), [], 0
        for augment, crops in zip((self.augment, *self.of_small), (batch.crops, *batch.small), strict=True):
            on_device = crops.to(device, non_blocking=True)
            found.append(torch.cat([augment(c, ids, batch.epoch, view + k) for k, c in enumerate(on_device)]))
            view += len(crops)
        return tuple(found)

    def evaluate(self, model: ContrastiveModel, device: torch.device) -> dict[str, float]:
        """Return the accuracy of kNN with labels, label-free scores without."""
        return online_scores(self.evaluated, self.reading, model, self.info, self.augment, device)

    def diagnose(self, model: ContrastiveModel, loss: nn.Module, device: torch.device) -> dict[str, float]:
        """Return how far the loss's gradient is from the exact one, on a fixed part of the images."""
        return online_diagnosis(self.manifest, self.reading, model, loss, self.augment, device)
