"""How a run is doing while it trains: kNN with labels; RankMe, alignment and uniformity without; and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .. import distributed
from ..data.augment import Augmentation
from ..data.labels import Labels, read_labels
from ..data.loader import training_loader
from ..data.manifest import Manifest
from ..errors import BadInput
from ..evaluation.diagnosis import diagnose
from ..evaluation.exact import eval_mode
from ..evaluation.knn import knn_leave_one_out
from ..evaluation.scores import compute
from ..models.encoder import Encoder, EncoderInfo
from ..models.features import broadcast_buffers, compute_views, features_over_ranks
from ..models.two_view import ContrastiveModel
from .reading import Reading

IMAGES = 2000  # enough for kNN to a percent, and a small part of an epoch
DIAGNOSED = 512  # images over which the diagnosis is exact, in twice the views of a batch
DIAGNOSED_BYTES = 1 << 30  # of their pixels: fewer images where they are large
VIEWED = 512  # of them at the least, for the alignment of two views


def choose(ids: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return a fixed random sample of at most so many ids, ascending."""
    if len(ids) <= most:
        return ids
    return np.sort(np.random.Generator(np.random.Philox(key=seed)).choice(ids, most, replace=False))


class Scored(NamedTuple):
    """Images that are scored."""

    manifest: Manifest
    labels: Labels | None
    """Of all images of the manifest; None for scores without."""
    ids: np.ndarray
    """int64 (m,): those that are scored."""


def labelled_ids(usable: np.ndarray, labels: Labels | None) -> np.ndarray:
    """Return those of the usable ids that have a label, where there are labels."""
    return usable if labels is None else usable[labels.values[usable] >= 0]


def all_of(images: Manifest, how: str) -> Scored:
    """Return all images of a validation set.

    Args:
        images: of it.
        how: where labels come from: auto, folder, none, or a CSV file.

    Raises:
        BadInput: labels were not given up, and there are none.
    """
    labels = read_labels(images, how)
    if labels is None and how != "none":
        raise BadInput(
            f"--validation {images.source} has no labels (a folder for each class, or --labels FILE); label it, or give "
            "--labels none for scores without"
        )
    return Scored(images, labels, labelled_ids(images.usable, labels))


def scored_ids(usable: np.ndarray, labels: Labels | None, seed: int) -> np.ndarray:
    """Return the ids of the fixed sample that is scored: of at most 2,000 images, of those with a label where there are labels."""
    return choose(labelled_ids(usable, labels), IMAGES, seed)


def knn_score(features: np.ndarray, ids: np.ndarray, labels: Labels) -> dict[str, float]:
    """Return `knn_top1`, the leave-one-out accuracy of features (m, F) of the ids (m,)."""
    return {"knn_top1": knn_leave_one_out(features, labels.values[ids], num_classes=len(labels.classes))}


def online_scores(
    scored: Scored,
    reading: Reading,
    model: ContrastiveModel,
    info: EncoderInfo,
    augment: Augmentation,
    device: torch.device,
) -> dict[str, float]:
    """Return scores of images; `evaluation.scores.select` says which is to grow.

    With labels: leave-one-out kNN accuracy of the backbone's features. Without: RankMe and uniformity of the features,
    and alignment between two views. All ranks compute features; the main one goes on to the scores.

    Args:
        scored: the images, with their labels.
        reading: how they are read.
        model: whose backbone is scored.
        info: with the normalisation of its inputs.
        augment: draws the two views.
        device: where the model is.

    Returns:
        `knn_top1`, or `rankme`, `alignment` and `uniformity`; nothing on other ranks than the main one.
    """
    manifest, labels, ids = scored
    model.eval()
    broadcast_buffers(model)
    encoder = Encoder(model.backbone, info)
    try:
        features, kept, _ = features_over_ranks(encoder, manifest, ids, workers=reading.workers, device=device)
        if not distributed.is_rank0():
            return {}
        if labels is not None:
            return knn_score(features, kept, labels)
        some = ids[:: max(1, len(ids) // VIEWED)]
        views = compute_views(encoder, manifest, some, augment, batch_size=reading.batch_size, device=device)
        return compute(online=True, features=features, views=views)
    finally:
        model.train()


def online_diagnosis(
    manifest: Manifest,
    reading: Reading,
    model: ContrastiveModel,
    loss: nn.Module,
    augment: Augmentation,
    device: torch.device,
) -> dict[str, float]:
    """Return what `diagnose` finds on a fixed sample of images in fixed views, in float32 with BatchNorm at its running statistics.

    Over that sample the objective, the gradient and the normalizers are exact; of the whole data set they are estimates
    (the objective's negatives are a sample), and exactly so where the sample is all of it.

    Args:
        manifest: the training images.
        reading: how they are read; its seed decides which they are.
        model: backbone and head.
        loss: what is diagnosed.
        augment: draws the views: those of epoch 0.
        device: where the model is.
    """
    # which images
    count_views = 2 * reading.views
    most = DIAGNOSED_BYTES // (count_views * 3 * 4 * reading.image_size**2)
    count = min(len(manifest.usable), DIAGNOSED, max(2, most))
    draw = np.random.Generator(np.random.Philox(key=reading.seed + 1))
    ids = np.sort(draw.choice(manifest.usable, count, replace=False))
    # their views, (V, m, 3, S, S)
    loader = training_loader(
        manifest,
        ids,
        reading.recipe,
        reading.image_size,
        len(ids),
        reading.seed,
        views=count_views,
        background=reading.background,
    )
    batch = next(loader)
    crops = batch.crops.to(device)
    views = torch.stack([augment(crops[v], batch.index.numpy(), 0, v) for v in range(count_views)])
    # the diagnosis
    size = min(reading.batch_size, len(ids))
    with eval_mode(model):
        return diagnose(
            loss,
            model,
            views,
            index=batch.index,
            batch_size=size,
            batches=200,
            single_batches=16,
            views_per_batch=reading.views,
        )
