"""Scores of two towers: retrieval both ways, and zero-shot classification of images by the names of their classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data.labels import Labels
from ..data.pair_columns import IMAGE_TEXT, Kind
from ..models.features import PairFeatures
from ..models.two_tower import TwoTower
from .scores import compute
from .zero_shot import class_embeddings


def score_pairs(found: PairFeatures, kinds: tuple[Kind, Kind], *, online: bool = False) -> dict[str, float]:
    """Return the scores of pairs: the different things of one column against those of the other.

    Args:
        found: the embeddings of both.
        kinds: what the columns hold: images and texts are called so, all else queries and documents.
        online: only the scores that are taken during training.
    """
    given = (found.first, found.second, found.first_rows, found.second_rows)
    return compute(online=online, pairs=given) if kinds == IMAGE_TEXT else compute(online=online, documents=given)


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
