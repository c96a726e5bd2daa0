"""Scores of an image and a text tower: retrieval both ways, and zero-shot classification."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data.labels import Labels
from ..models.features import PairFeatures
from ..models.two_tower import TwoTower
from .scores import compute
from .zero_shot import class_embeddings


def score_pairs(found: PairFeatures, *, online: bool = False) -> dict[str, float]:
    """Return the scores of pairs: their different images against their different captions.

    Args:
        found: the embeddings of both.
        online: only the scores that are taken during training.
    """
    return compute(online=online, pairs=(found.images, found.texts, found.image_rows, found.text_rows))


def score_classes(
    towers: TwoTower, images: Tensor, ids: np.ndarray, labels: Labels, templates: tuple[str, ...]
) -> dict[str, float]:
    """Return the zero-shot scores of those images that have a label; nothing where none has.

    Args:
        towers: whose text tower embeds the classes' names.
        images: (n, D) unit rows.
        ids: int64 (n,), ids of the manifest.
        labels: of the manifest.
        templates: sentences with {} for a class's name.
    """
    known = labels.values[ids] >= 0
    if not known.any():
        return {}
    classes = class_embeddings(towers, labels.classes, templates)
    return compute(classes=(images[torch.from_numpy(known).to(images.device)], classes, labels.values[ids][known]))
