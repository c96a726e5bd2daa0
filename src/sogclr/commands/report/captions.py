"""Captions and the images that the two towers find for them, for the report of a run on pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ...models.features import compute_features
from ...models.two_tower import load_two_tower
from ...run_folder import RunFolder
from .sample import NEIGHBOURS, QUERIES
from .thumbnails import Thumbnail, Thumbnails


def nearest_to_captions(
    run: RunFolder, ids: np.ndarray, thumbnails: Thumbnails, *, workers: int, device: str
) -> list[tuple[str, list[Thumbnail]]]:
    """Return captions spread over those of the sampled images, each with the nearest of these images.

    Args:
        run: on pairs.
        ids: int64 (m,), the sampled images.
        thumbnails: of the run's images.
        workers: processes that read images.
        device: what computes the embeddings.

    Returns:
        (caption, images); `same` says that the caption is the image's own.

    Raises:
        BadInput: the run's pairs or towers cannot be read.
    """
    pairs, towers = run.pairs(), load_two_tower(run.path, device)
    features, kept, _ = compute_features(
        towers.images, thumbnails.manifest, np.sort(ids), workers=workers, device=device
    )
    known = np.unique(pairs.second_ids[np.isin(pairs.first_ids, kept)])
    if not len(known):
        return []
    chosen = known[np.linspace(0, len(known) - 1, min(QUERIES, len(known))).round().astype(int)]
    captions = pairs.texts_of(chosen)
    similarity = towers.encode_texts(captions).cpu() @ torch.from_numpy(features).T
    values, rows = similarity.topk(min(NEIGHBOURS, len(kept)), dim=1)
    found = []
    for text_id, caption, value, row in zip(chosen.tolist(), captions, values.tolist(), rows.numpy(), strict=True):
        own = set(pairs.first_ids[pairs.second_ids == text_id].tolist())
        images = thumbnails.of(kept[row].tolist(), value)
        found.append((caption, [replace(t, same=t.id in own, class_name=None) for t in images]))
    return found
