"""Captions and the images that the two towers find for them, for the report of a run on pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import BadInput
from ...models.features import compute_features
from ...models.two_tower import load_two_tower
from ...run_folder import RunFolder
from .pictures import NEIGHBOURS, QUERIES

if TYPE_CHECKING:
    from .report_data import ReportData, Thumbnails


def add_texts(
    run: RunFolder, ids: np.ndarray, shelf: Thumbnails, content: ReportData, *, workers: int, device: str
) -> None:
    """Captions spread over those of the sampled images, each with the nearest of these images.

    Args:
        ids: the sample's image ids.
    """
    try:
        pairs, towers = run.pairs(), load_two_tower(run.path, device)
    except BadInput as error:
        content.notes.append(f"No captions are shown: {error}.")
        return
    features, kept, _ = compute_features(towers, shelf.manifest, np.sort(ids), workers=workers, device=device)
    known = np.unique(pairs.text_ids[np.isin(pairs.image_ids, kept)])
    if not len(known):
        return
    chosen = known[np.linspace(0, len(known) - 1, min(QUERIES, len(known))).round().astype(int)]
    captions = pairs.captions_of(chosen)
    similarity = towers.encode_texts(captions).cpu() @ torch.from_numpy(features).T
    values, rows = similarity.topk(min(NEIGHBOURS, len(kept)), dim=1)
    for text_id, caption, value, row in zip(chosen.tolist(), captions, values.tolist(), rows.numpy(), strict=True):
        own = set(pairs.image_ids[pairs.text_ids == text_id].tolist())
        found = kept[row].tolist()
        content.texts.append((caption, shelf.tiles(found, value, right=own)))
