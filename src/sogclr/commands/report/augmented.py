"""Some views of a few images as the encoder saw them in the first epoch, after all augmentation."""

from __future__ import annotations

import numpy as np
import torch

from ...data.augment import Augmentation
from ...data.loader import training_loader
from ...data.manifest import Manifest
from ...models.encoder import EncoderInfo
from ...training.reading import view_groups
from .run_summary import RunSummary
from .thumbnails import data_uri

VIEWS = 8  # of each image: the first two are those of the first epoch


def augmented_views(summary: RunSummary, manifest: Manifest, ids: np.ndarray) -> dict[int, list[str]]:
    """Return data URIs of views of full size, by image; none of a run whose views are the user's own.

    Args:
        summary: of the run.
        manifest: where its images are.
        ids: int64 (m,), of the images.
    """
    if "own" in summary.config or not summary.config.get("augment") or len(ids) < 2:
        return {}
    config = summary.run.config()
    info, group = EncoderInfo.of_run(config), view_groups(config)[0]
    augment = Augmentation(group.recipe, group.size, info.mean, info.std, config.run.seed)
    loader = training_loader(
        manifest,
        np.sort(ids),
        group.recipe,
        group.size,
        len(ids),
        config.run.seed,
        views=VIEWS,
        background=info.background,
        once=True,
    )
    batch = next(iter(loader))
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    found: dict[int, list[str]] = {int(id): [] for id in batch.index}
    for view in range(VIEWS):
        pixels = (augment(batch.crops[view], batch.index, 0, view) * std + mean).clamp(0, 1) * 255
        for id, one in zip(batch.index.tolist(), pixels.round().to(torch.uint8), strict=True):
            found[id].append(data_uri(one.permute(1, 2, 0).contiguous().numpy()))
    return found
