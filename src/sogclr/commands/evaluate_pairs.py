"""How good two towers are on image-caption pairs: retrieval both ways, and zero-shot classification where there are classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.labels import Labels, read_labels
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..errors import BadInput
from ..evaluation.image_text import score_classes, score_pairs
from ..evaluation.retrieval import chance_scores
from ..models.backbone import create_backbone
from ..models.features import compute_features, pair_features
from ..models.two_tower import TwoTower, TwoTowerModel, load_two_tower
from ..progress import ProgressCallback
from ..run_folder import RunFolder


def knows_texts(run_or_file: str | os.PathLike[str]) -> bool:
    """Whether it is a run on image-caption pairs."""
    return Path(run_or_file).is_dir() and RunFolder(run_or_file).holds_pairs()


def zero_shot_images(
    run: str | os.PathLike[str], manifest: Manifest, ids: np.ndarray, labels: Labels, templates: tuple[str, ...],
    workers: int, device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """`score_classes` of a run on pairs, on some labelled images."""
    towers = load_two_tower(run, device)
    features, kept, _ = compute_features(towers, manifest, ids, workers=workers, device=device)
    return score_classes(towers, torch.from_numpy(features).to(device), kept, labels, templates)


def evaluate_pairs(
    run: str | os.PathLike[str], pairs: Pairs, *, labels: str, templates: tuple[str, ...],
    baselines: bool, seed: int, batch_size: int, workers: int, device: torch.device, progress: ProgressCallback | None = None,
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
    how: dict[str, Any] = {"workers": workers, "device": device, "batch_size": batch_size}

    def scored(towers: TwoTower, progress: ProgressCallback | None = None) -> dict[str, Any]:
        embedded = pair_features(towers, pairs, rows, progress=progress, **how)
        scores = score_pairs(embedded)
        if classes is not None:
            scores |= score_classes(towers, embedded.images, embedded.image_ids, classes, templates)
        counts = {"images": len(embedded.images), "captions": len(embedded.texts), "unreadable": len(embedded.bad)}
        return {**scores, **counts}

    rows = pairs.usable
    if not len(rows):
        raise BadInput(f"{data} has no pair with a readable image; see `sogclr inspect {data}`")
    own = scored(towers, progress)
    image_ids, text_ids = pairs.image_ids[rows], pairs.text_ids[rows]
    found: dict[str, dict[str, Any]] = {"chance": chance_scores(image_ids, text_ids)}
    if classes is not None:
        found["chance"]["zero_shot_top1"] = 1 / len(classes.classes)
    if baselines:
        found["untrained"] = scored(untrained(towers, seed))
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
