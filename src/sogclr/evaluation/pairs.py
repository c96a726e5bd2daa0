"""How good two towers are on image-caption pairs: retrieval both ways, and zero-shot classification where there are classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.labels import Labels, read_labels
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..embedding import compute_features
from ..errors import BadInput
from ..models import create_backbone
from ..run_folder import RunFolder
from ..towers import TwoTower, TwoTowerModel, load_two_tower
from .over_ranks import features_over_ranks, texts_over_ranks
from .retrieval import chance_scores, retrieval
from .zero_shot import class_embeddings, zero_shot

Progress = Callable[[int, int], None]


def score_pairs(
    towers: TwoTower, pairs: Pairs, rows: np.ndarray, *, workers: int, device: torch.device, batch_size: int = 256,
    labels: Labels | None = None, templates: tuple[str, ...] = (), progress: Progress | None = None,
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


def knows_texts(run_or_file: str | os.PathLike[str]) -> bool:
    """Whether it is a run on image-caption pairs."""
    return Path(run_or_file).is_dir() and RunFolder(run_or_file).holds_pairs()


def zero_shot_images(
    run: str | os.PathLike[str], manifest: Manifest, ids: np.ndarray, labels: Labels, templates: tuple[str, ...],
    workers: int, device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """`zero_shot_scores` of a run on pairs, on some labelled images."""
    towers = load_two_tower(run, device)
    features, kept, _ = compute_features(towers, manifest, ids, workers=workers, device=device)
    return zero_shot_scores(towers, torch.from_numpy(features).to(device), kept, labels, templates)


def evaluate_pairs(
    run: str | os.PathLike[str], pairs: Pairs, *, labels: str, templates: tuple[str, ...],
    baselines: bool, seed: int, batch_size: int, workers: int, device: torch.device, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Scores on all usable pairs of a table or of shards, beside those of chance; with `baselines`, of untrained towers too.

    Raises:
        BadInput: the run knows no texts, or no image can be read.
    """
    if not knows_texts(run):
        raise BadInput(
            f"{run} is no run on image-caption pairs and {pairs.source} holds captions; give a folder of images"
        )
    towers, data = load_two_tower(run, device), pairs.source
    classes = read_labels(pairs.images, labels)
    how: dict[str, Any] = {
        "workers": workers, "device": device, "batch_size": batch_size, "labels": classes, "templates": templates,
    }  # fmt: skip
    rows = pairs.usable
    if not len(rows):
        raise BadInput(f"{data} has no pair with a readable image; see `sogclr inspect {data}`")
    own: dict[str, Any] = dict(score_pairs(towers, pairs, rows, progress=progress, **how))
    image_ids, text_ids = pairs.image_ids[rows], pairs.text_ids[rows]
    found: dict[str, dict[str, Any]] = {"chance": chance_scores(image_ids, text_ids)}
    if classes is not None:
        found["chance"]["zero_shot_top1"] = 1 / len(classes.classes)
    if baselines:
        found["untrained"] = score_pairs(untrained(towers, seed), pairs, rows, **how)
    split = f"{len(rows):,} pairs: {own['images']:,} images, {own['captions']:,} captions"
    if classes is not None:
        split += f"; zero-shot among {len(classes.classes)} classes ({classes.source})"
        own |= {"classes": len(classes.classes), "templates": list(templates)}
    own["unreadable"] += len(pairs.images.bad) + len(pairs.rejected)
    about = {
        "encoder": os.fspath(run),
        "model": towers.info.name,
        "data": os.fspath(data),
        "seed": seed,
        "split": split,
    }
    return {**own, **about, "baselines": found}


def untrained(towers: TwoTower, seed: int) -> TwoTower:
    """The same towers with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone(towers.info.name, towers.info.image_size)
        model = TwoTowerModel(backbone, towers.text.build(), towers.num_features)
    return TwoTower(model.to(towers.device).eval().requires_grad_(False), towers.info, towers.text, towers.device)
