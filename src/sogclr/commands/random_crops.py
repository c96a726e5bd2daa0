"""What the linear probe of papers is fitted on: raw features of a new random crop and flip of each image in each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data.augment import Augmentation
from ..data.loader import training_loader
from ..data.manifest import Manifest
from ..data.recipe import Recipe
from ..evaluation import linear
from ..models.features import ImageEncoder
from .eval_result import EvalSettings

Crops = tuple[Iterator[tuple[Tensor, Tensor]], int]
RECIPE = Recipe(jitter=0.0, gray=0.0, blur=0.0)  # a crop of 0.08 to 1 of the image, and a flip


def random_crops(
    encoder: ImageEncoder, manifest: Manifest, ids: np.ndarray, values: np.ndarray, settings: EvalSettings
) -> Crops:
    """Return the batches of all epochs, float32 (B, D) features and int64 (B,) classes, and how many there are.

    Args:
        encoder: on `settings.device`, in evaluation mode.
        manifest: where the images are.
        ids: int64 (m,), 2 or more, of images that can be read.
        values: int64 (n,), the class of each id.
        settings: seed, readers, and how many images are encoded at a time.
    """
    info, size = encoder.info, min(linear.BATCH_SIZE, len(ids))
    steps = linear.EPOCHS * (len(ids) // size)
    augment = Augmentation(RECIPE, info.image_size, info.mean, info.std, settings.seed)
    loader = training_loader(
        manifest,
        ids,
        RECIPE,
        info.image_size,
        size,
        settings.seed,
        workers=settings.workers,
        views=1,
        background=info.background,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(steps):
            batch = next(loader)
            index = batch.index.numpy()
            views = augment(batch.crops[0].to(settings.device), index, batch.epoch, 0)
            with torch.no_grad():
                features = torch.cat([encoder(part).float() for part in torch.split(views, settings.batch_size)])
            yield features, torch.from_numpy(values[index])

    return batches(), steps
