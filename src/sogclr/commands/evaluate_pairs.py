"""How good two towers are on pairs: retrieval both ways, and zero-shot classification where there are classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..data.labels import Labels, read_labels
from ..data.manifest import Manifest
from ..data.pair_columns import IMAGE_TEXT, ColumnNames
from ..data.pair_overlap import count_shared
from ..data.pairs import Pairs
from ..data.tables import is_table
from ..errors import BadInput
from ..evaluation.image_text import score_classes, score_pairs
from ..evaluation.retrieval import chance_scores
from ..evaluation.worth import worth_of_scores
from ..models.features import compute_features, pair_features
from ..models.two_tower import TwoTower, build_towers, load_two_tower
from ..progress import ProgressCallback
from ..run_folder import RunFolder
from .eval_result import EvalResult, EvalSettings, compared_with


def knows_texts(run: str | os.PathLike[str]) -> bool:
    """Return whether this is a run on pairs with a column of texts, and one of images."""
    columns = RunFolder(run).pair_columns()
    return columns is not None and columns[1] == IMAGE_TEXT


def open_pairs(run: str | os.PathLike[str], data: str | os.PathLike[str], named: ColumnNames) -> Pairs:
    """Return the pairs of a table or of shards, by the columns that were named, or else by those of the run.

    Raises:
        BadInput: the run is not on pairs, or the columns hold something else than the run was trained on.
    """
    folder = RunFolder(run)
    columns = folder.pair_columns()
    if columns is None:
        raise BadInput(f"{run} is no run on pairs and {data} holds pairs; give a folder of images")
    own = folder.config().pairs
    if named == ColumnNames() and is_table(Path(data)):
        named = ColumnNames(own.image_column, own.caption_column, own.columns and ",".join(own.columns.split(",")[:2]))
    pairs, kinds = Pairs.scan(data, named), columns[1]
    if pairs.kinds != kinds:
        raise BadInput(
            f"{run} was trained on pairs of {kinds[0]} and {kinds[1]}, and {data} holds {pairs.kinds[0]} ({pairs.names[0]}) "
            f"and {pairs.kinds[1]} ({pairs.names[1]}); name its columns with --columns A,B"
        )
    return pairs


def zero_shot_images(
    towers: TwoTower, manifest: Manifest, ids: np.ndarray, labels: Labels, settings: EvalSettings
) -> dict[str, float]:
    """Return `score_classes` of two towers, on some labelled images.

    Args:
        towers: of a run on images with texts.
        manifest: the images.
        ids: int64 (m,), those to classify.
        labels: of all images.
        settings: of the evaluation.
    """
    device = settings.device
    features, kept, _ = compute_features(towers.images, manifest, ids, workers=settings.workers, device=device)
    return score_classes(towers, torch.from_numpy(features).to(device), kept, labels, settings.templates)


def evaluate_pairs(run: str | os.PathLike[str], pairs: Pairs, settings: EvalSettings) -> EvalResult:
    """Score all usable pairs of a table or of shards, beside the run's start and chance; with `baselines`, untrained towers too.

    Raises:
        BadInput: no image can be read, or there is nothing to mix.
    """
    shares = compared_with(run, settings.mix)
    towers, rows, kinds = load_two_tower(run, settings.device), pairs.usable, pairs.kinds
    labels = read_labels(pairs.images, settings.labels) if kinds == IMAGE_TEXT else None
    if not len(rows):
        raise BadInput(f"{pairs.source} has no pair with a readable image; see `sogclr inspect {pairs.source}`")

    def score(
        towers: TwoTower, progress: ProgressCallback | None = None
    ) -> tuple[dict[str, float], tuple[int, int, int]]:
        found = pair_features(
            towers,
            pairs,
            rows,
            workers=settings.workers,
            device=settings.device,
            batch_size=settings.batch_size,
            progress=progress,
        )
        scores = score_pairs(found, kinds)
        if labels is not None:
            scores |= score_classes(towers, found.first, found.first_ids, labels, settings.templates)
        return scores, (len(found.first), len(found.second), len(found.bad))

    scores, (first, second, unreadable) = score(towers, settings.progress)
    others = {name: score(load_two_tower(run, settings.device, mix=share))[0] for name, share in shares.items()}
    names = ("image", "text") if kinds == IMAGE_TEXT else ("query", "document")
    others["chance"] = chance_scores(pairs.first_ids[rows], pairs.second_ids[rows], names)
    what = (
        ("images", "captions") if kinds == IMAGE_TEXT else (f"{pairs.names[0]} (query)", f"{pairs.names[1]} (document)")
    )
    split = f"{len(rows):,} pairs: {first:,} {what[0]}, {second:,} {what[1]}"
    if seen := count_shared(pairs, RunFolder(run).pairs(), rows):
        split += f"; {seen:,} of these {len(rows):,} pairs were trained on"
    if labels is not None:
        others["chance"]["zero_shot_top1"] = 1 / len(labels.classes)
        split += f"; zero-shot among {len(labels.classes)} classes ({labels.source})"
    counts = {"": first, f"{names[0]}_to_{names[1]}": first, f"{names[1]}_to_{names[0]}": second}
    if settings.baselines:
        others["untrained"] = score(untrained_towers(towers, settings.seed))[0]
    return EvalResult(
        scores,
        encoder=os.fspath(run),
        model=towers.info.name if "images" in kinds else "texts",
        data=os.fspath(pairs.source),
        seed=settings.seed,
        images=first,
        unreadable=unreadable + len(pairs.images.bad) + len(pairs.rejected),
        split=split,
        classes=None if labels is None else len(labels.classes),
        captions=second,
        templates=None if labels is None else settings.templates,
        baselines=others,
        worth=worth_of_scores(others["start"], scores, counts) if "start" in others else None,
    )


def untrained_towers(towers: TwoTower, seed: int) -> TwoTower:
    """Return the same towers with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shared = towers.model.shared
        model = build_towers(
            towers.kinds, towers.info, towers.text, towers.num_features, shared=shared, clip=towers.clip
        )
    model = model.to(towers.device).eval().requires_grad_(False)
    return TwoTower(model, towers.kinds, towers.info, towers.text, towers.device)
