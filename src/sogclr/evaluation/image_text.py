"""Scores of two towers on image-text pairs: retrieval both ways, and zero-shot classification."""

from __future__ import annotations

import numpy as np
import torch

from ..data.labels import Labels
from ..data.pairs import Pairs
from ..errors import BadInput
from ..models.features import features_over_ranks, texts_over_ranks
from ..models.two_tower import TwoTower
from ..progress import ProgressCallback
from .retrieval import retrieval
from .zero_shot import class_embeddings, zero_shot


def score_pairs(
    towers: TwoTower, pairs: Pairs, rows: np.ndarray, *, workers: int, device: torch.device, batch_size: int = 256,
    labels: Labels | None = None, templates: tuple[str, ...] = (), progress: ProgressCallback | None = None,
) -> dict[str, float]:  # fmt: skip
    """`retrieval` on some pairs, their different images against their different captions; and `zero_shot` with labels.

    Args:
        rows: int64, ids of the pairs.
        labels: of the images.

    Raises:
        BadInput: none of the images can be read.
    """
    image_ids, text_ids = pairs.image_ids[rows], pairs.text_ids[rows]
    features, kept, bad = features_over_ranks(
        towers, pairs.images, np.unique(image_ids), batch_size=batch_size, workers=workers, device=device, progress=progress
    )  # fmt: skip
    if not len(kept):
        raise BadInput(
            f"none of the {len(bad):,} images of {pairs.source} can be read (first: {bad[0][1]}); give others"
        )
    there = np.isin(image_ids, kept)
    image_ids, text_ids = image_ids[there], text_ids[there]
    different = np.unique(text_ids)
    images = torch.from_numpy(features).to(device)
    texts = texts_over_ranks(towers, pairs.captions_of(different))
    image_rows, text_rows = np.searchsorted(kept, image_ids), np.searchsorted(different, text_ids)
    scores: dict[str, float] = retrieval(images, texts, image_rows, text_rows)
    if labels is not None:
        scores |= zero_shot_scores(towers, images, kept, labels, templates)
    return {**scores, "images": len(kept), "captions": len(different), "unreadable": len(bad)}


def zero_shot_scores(
    towers: TwoTower, images: torch.Tensor, ids: np.ndarray, labels: Labels, templates: tuple[str, ...]
) -> dict[str, float]:
    """`zero_shot` of the images that have a label; their ids are those of the manifest."""
    known = labels.values[ids] >= 0
    if not known.any():
        return {}
    of_classes = class_embeddings(towers, labels.classes, templates)
    return zero_shot(images[torch.from_numpy(known).to(images.device)], of_classes, labels.values[ids][known])
