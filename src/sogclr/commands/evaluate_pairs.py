"""How good two towers are on image-caption pairs: retrieval both ways, and zero-shot classification where there are classes."""

from __future__ import annotations

import os
from pathlib import Path

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
from .eval_result import EvalResult, EvalSettings


def knows_texts(run: str | os.PathLike[str]) -> bool:
    """Return whether this is a run on image-caption pairs."""
    return Path(run).is_dir() and RunFolder(run).holds_pairs()


def zero_shot_images(
    run: str | os.PathLike[str], manifest: Manifest, ids: np.ndarray, labels: Labels, settings: EvalSettings
) -> dict[str, float]:
    """Return `score_classes` of a run on pairs, on some labelled images.

    Args:
        run: on pairs.
        manifest: the images.
        ids: int64 (m,), those to classify.
        labels: of all images.
        settings: of the evaluation.
    """
    device = settings.device
    towers = load_two_tower(run, device)
    features, kept, _ = compute_features(towers, manifest, ids, workers=settings.workers, device=device)
    return score_classes(towers, torch.from_numpy(features).to(device), kept, labels, settings.templates)


def evaluate_pairs(run: str | os.PathLike[str], pairs: Pairs, settings: EvalSettings) -> EvalResult:
    """Score all usable pairs of a table or of shards, beside chance; with `baselines`, untrained towers too.

    Raises:
        BadInput: the run knows no texts, or no image can be read.
    """
    if not knows_texts(run):
        raise BadInput(
            f"{run} is no run on image-caption pairs and {pairs.source} holds captions; give a folder of images"
        )
    towers, rows = load_two_tower(run, settings.device), pairs.usable
    labels = read_labels(pairs.images, settings.labels)
    if not len(rows):
        raise BadInput(f"{pairs.source} has no pair with a readable image; see `sogclr inspect {pairs.source}`")

    def score(towers: TwoTower, progress: ProgressCallback | None = None) -> dict[str, float]:
        found = pair_features(
            towers,
            pairs,
            rows,
            workers=settings.workers,
            device=settings.device,
            batch_size=settings.batch_size,
            progress=progress,
        )
        scores = score_pairs(found)
        if labels is not None:
            scores |= score_classes(towers, found.images, found.image_ids, labels, settings.templates)
        return {**scores, "images": len(found.images), "captions": len(found.texts), "unreadable": len(found.bad)}

    scores = score(towers, settings.progress)
    images, captions, unreadable = (int(scores.pop(name)) for name in ("images", "captions", "unreadable"))
    baselines = {"chance": chance_scores(pairs.image_ids[rows], pairs.text_ids[rows])}
    split = f"{len(rows):,} pairs: {images:,} images, {captions:,} captions"
    if labels is not None:
        baselines["chance"]["zero_shot_top1"] = 1 / len(labels.classes)
        split += f"; zero-shot among {len(labels.classes)} classes ({labels.source})"
    if settings.baselines:
        baselines["untrained"] = score(untrained_towers(towers, settings.seed))
    return EvalResult(
        scores,
        encoder=os.fspath(run),
        model=towers.info.name,
        data=os.fspath(pairs.source),
        seed=settings.seed,
        images=images,
        unreadable=unreadable + len(pairs.images.bad) + len(pairs.rejected),
        split=split,
        classes=None if labels is None else len(labels.classes),
        captions=captions,
        templates=None if labels is None else settings.templates,
        baselines=baselines,
    )


def untrained_towers(towers: TwoTower, seed: int) -> TwoTower:
    """Return the same towers with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone(towers.info.name, towers.info.image_size)
        model = TwoTowerModel(backbone, towers.text.build(), towers.num_features)
    return TwoTower(model.to(towers.device).eval().requires_grad_(False), towers.info, towers.text, towers.device)
