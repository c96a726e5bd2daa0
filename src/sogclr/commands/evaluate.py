"""`evaluate`: how good an encoder is on labelled images, or what can be said without labels; as JSON and as a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Group
from rich.table import Table
from torch import Tensor

from ..data.augment import Augmentation
from ..data.labels import Labels, in_order, read_labels
from ..data.manifest import Manifest
from ..data.pairs import Pairs, holds_pairs
from ..data.recipe import named_recipe
from ..errors import BadInput
from ..evaluation.knn import TEMPERATURE
from ..evaluation.label_free import refuse_non_finite
from ..evaluation.linear import DRAWS, protocol, stratified
from ..evaluation.scores import SCORES, LabelledSplit, compute
from ..evaluation.zero_shot import TEMPLATES
from ..hardware import computing_on
from ..models.backbone import create_backbone
from ..models.encoder import Encoder, EncoderInfo, load_encoder
from ..models.features import ImageEncoder, compute_features, compute_views, nothing_readable
from .evaluate_pairs import evaluate_pairs, knows_texts, zero_shot_images

FIT_PARTS = ("train", "training")
SCORE_PARTS = ("test", "testing", "val", "valid", "validation")
TEST_SHARE = 0.2
VIEWED = 2048  # images at the least, for the alignment of two views
PIXELS = 32  # raw pixels are compared at this size at the most


def evaluate(
    run_or_file: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    labels: str = "auto",
    baselines: bool = False,
    k: int = 20,
    seed: int = 0,
    templates: tuple[str, ...] = TEMPLATES,
    image_column: str | None = None,
    caption_column: str | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score an encoder: kNN and linear probes where there are labels, else RankMe, alignment and uniformity.

    A run on image-caption pairs also knows texts. On a table of pairs or tar shards it is scored by retrieval both ways,
    with chance (and, with `baselines`, untrained towers) beside it; wherever there are labels, by zero-shot
    classification from the classes' names too.

    Args:
        run_or_file: a run's folder, or an exported encoder.
        data: a folder with train/ and test/ (or val/) parts: fitted on the one, scored on the other. Any other folder
            or list file is split 80/20 within each class.
        labels: auto (folders, where they are classes), folder, none, or a CSV file of path,label.
        baselines: score raw pixels and an untrained encoder too.
        k: neighbours of kNN, which weights them by exp(cosine / 0.07).
        seed: of the split and of the few-label draws.
        templates: sentences for the class names in zero-shot classification, with {} for the name.
        image_column, caption_column: of a table of pairs; found by their names when left out.
        progress: called with (images done, images to do).

    Returns:
        JSON-able: `knn_top1`, `linear_top1`, `linear_top1_1_per_class`, `linear_top1_10_per_class` (fractions, the last
        two with `_std` over five draws), `rankme`, `uniformity` (and `alignment` without labels), what they were
        measured on (`split`, `protocol`, `classes`, `images`), and `baselines`.

    Raises:
        BadInput: something in the input cannot be used.
    """
    for name, value, least in (("--k", k, 1), ("--batch-size", batch_size, 1), ("--seed", seed, 0)):
        if value < least:
            raise BadInput(f"{name} must be {least} or more and was {value}")
    if holds_pairs(data):
        pairs = Pairs.scan(data, image_column=image_column, caption_column=caption_column)
        with computing_on(device, workers) as (chosen, readers):
            return evaluate_pairs(
                run_or_file, pairs, labels=labels, templates=templates, baselines=baselines, seed=seed,
                batch_size=batch_size, workers=readers, device=chosen, progress=progress,
            )  # fmt: skip
    with computing_on(device, workers) as (chosen, readers):
        encoder = load_encoder(run_or_file, chosen)
        manifest = Manifest.scan(data)
        split = _labelled_split(manifest, labels, seed)
        encoders: dict[str, Any] = {"": encoder}
        if baselines:
            encoders |= {"raw_pixels": RawPixels(encoder.info), "untrained": untrained(encoder.info, seed).to(chosen)}
        ids = manifest.usable if split is None else np.concatenate([split.fit, split.score])
        results: dict[str, dict[str, Any]] = {}
        for turn, (name, one) in enumerate(encoders.items()):

            def report(done: int, total: int, turn: int = turn) -> None:
                if progress is not None:
                    progress(turn * total + done, len(encoders) * total)

            features, kept, bad = compute_features(
                one, manifest, ids, batch_size=batch_size, workers=readers, device=chosen, progress=report
            )
            if not len(kept):
                raise nothing_readable(manifest, [*manifest.bad, *bad])
            refuse_non_finite(features)
            if split is None:
                results[name] = _health(one, manifest, features, kept, seed, batch_size, chosen)
            else:
                results[name] = _scores(features, kept, split, k, seed, chosen)
    about: dict[str, Any] = {
        "encoder": os.fspath(run_or_file), "model": encoder.info.name, "data": os.fspath(data), "seed": seed,
        "images": len(kept), "unreadable": len(manifest.bad) + len(bad),
    }  # fmt: skip
    if split is not None:
        about |= _about(split, kept, k, encoder.num_features)
    own = results.pop("")
    if split is not None and knows_texts(run_or_file):
        with computing_on(device, workers) as (chosen, readers):
            of_classes = Labels(split.classes, split.values, "")
            own |= zero_shot_images(run_or_file, manifest, split.score, of_classes, templates, readers, chosen)
    return {**own, **about, **({"baselines": results} if baselines else {})}


# ----------------------------------------------------------------------------------------------------------- the split
@dataclass(frozen=True)
class Split:
    """Which labelled images a classifier is fitted on, and which it is scored on."""

    fit: np.ndarray
    score: np.ndarray
    """int64 ids of the manifest."""
    values: np.ndarray
    """int64 (n,): the class of each id, -1 where unknown."""
    classes: list[str]
    text: str
    """One line that says all this."""


def _labelled_split(manifest: Manifest, how: str, seed: int) -> Split | None:
    """None where there are no labels.

    Raises:
        BadInput: labels that cannot be read, or too few of them.
    """
    names, tops = manifest.top_folders()
    fit_part = next((n for n in FIT_PARTS if n in names), None)
    score_part = next((n for n in SCORE_PARTS if n in names), None)
    parts = [p for p in (fit_part, score_part) if p is not None]
    labels = _labels_of_parts(manifest, parts, how) if len(parts) == 2 else read_labels(manifest, how)
    if labels is None:
        return None
    values = np.where(np.isin(np.arange(len(manifest)), manifest.usable), labels.values, -1)
    where = f"labels: {labels.source}, {len(labels.classes)} classes"
    if fit_part is not None and score_part is not None:
        fit, score = (np.flatnonzero((tops == names.index(p)) & (values >= 0)) for p in parts)
        text = f"fitted on {len(fit):,} images of {fit_part}/, scored on {len(score):,} of {score_part}/; {where}"
    else:
        fit, score = stratified(values, TEST_SHARE, seed)
        text = (
            f"a fixed stratified split of one folder (seed {seed}): fitted on {len(fit):,} images, scored on "
            f"{len(score):,}, all of which the encoder may have seen in training, without labels; {where}"
        )
    if len(np.unique(values[fit])) < 2 or not len(score):
        raise BadInput(
            f"{manifest.root} has {len(fit):,} labelled images of {len(np.unique(values[fit]))} classes to fit on and "
            f"{len(score):,} to score on; label two classes or more in both, or use --labels none"
        )
    return Split(fit, score, values, labels.classes, text)


def _labels_of_parts(manifest: Manifest, parts: list[str], how: str) -> Labels | None:
    """Labels of a folder with train/ and test/: the classes are the folders below these."""
    if how not in ("auto", "folder"):
        return read_labels(manifest, how)
    names, tops = manifest.top_folders()
    found = []
    for name in parts:
        part = manifest.part([name])
        labels = None if part is None else read_labels(part, how)
        if labels is None:
            return None
        found.append((np.flatnonzero(tops == names.index(name)), labels))
    classes = in_order(sorted({c for _, labels in found for c in labels.classes}))
    values = np.full(len(manifest), -1, dtype=np.int64)
    for rows, labels in found:
        code = np.array([*(classes.index(c) for c in labels.classes), -1])  # the last serves -1
        values[rows] = code[labels.values]
    return Labels(classes, values, "folder")


# ---------------------------------------------------------------------------------------------------------- the scores
def _scores(
    features: np.ndarray, ids: np.ndarray, split: Split, k: int, seed: int, device: torch.device
) -> dict[str, float]:
    fit, score = np.isin(ids, split.fit), np.isin(ids, split.score)
    for what, rows, wanted in (("fit", fit, split.fit), ("score", score, split.score)):
        if not rows.any():
            raise BadInput(f"none of the {len(wanted):,} images to {what} on can be read; give others")
    x, y = features[fit], split.values[ids[fit]]
    test_x, test_y = features[score], split.values[ids[score]]
    parts = LabelledSplit(x, y, test_x, test_y, len(split.classes), k, seed, device)
    return compute(labels=parts, features=features)


def _health(
    encoder: ImageEncoder, manifest: Manifest, features: np.ndarray, ids: np.ndarray, seed: int, batch_size: int,
    device: torch.device,
) -> dict[str, float]:  # fmt: skip
    info = encoder.info
    recipe = named_recipe("auto", info.image_size)
    augment = Augmentation(recipe, info.image_size, info.mean, info.std, seed)
    if len(ids) < 2:
        raise BadInput(f"{manifest.root} has {len(ids)} readable image; give 2 or more")
    some = ids[:: max(1, len(ids) // VIEWED)]
    views = compute_views(encoder, manifest, some, augment, batch_size=batch_size, device=device)
    return compute(features=features, views=views)


class RawPixels:
    """The baseline without an encoder: the pixels themselves, at most 32 x 32 of them."""

    def __init__(self, info: EncoderInfo) -> None:
        size = min(PIXELS, info.image_size)
        self.info = EncoderInfo("raw pixels", size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), background=info.background)
        self.num_features = 3 * size * size

    def encode(self, crops: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) -> float32 (N, 3 S S) in 0..1."""
        return crops.flatten(1).float() / 255

    def __call__(self, images: Tensor) -> Tensor:
        """As an encoder is called: on normalised images."""
        return images.flatten(1)


def untrained(info: EncoderInfo, seed: int) -> Encoder:
    """The same encoder with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone(info.name, info.image_size)
    return Encoder(backbone, info).eval().requires_grad_(False)


def _about(split: Split, kept: np.ndarray, k: int, width: int) -> dict[str, Any]:
    """What the accuracies were measured on, and how."""
    fit, score = (int(np.isin(part, kept).sum()) for part in (split.fit, split.score))
    return {
        "split": split.text, "fit_images": fit, "score_images": score, "classes": len(split.classes),
        "protocol": {
            "knn": f"cosine, weighted, k={min(k, fit)}, T={TEMPERATURE}",
            "linear": protocol(fit, width, len(split.classes)),
            "few_labels": f"mean over {DRAWS} draws, logistic regression on standardised features",
        },
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the tables
def table(result: dict[str, Any]) -> Group:
    """A result for people, with its baselines below it."""
    rows = {Path(result["encoder"]).resolve().name: result}
    rows |= {name.replace("_", " "): scores for name, scores in result.get("baselines", {}).items()}
    lost = f"; {result['unreadable']:,} could not be read" if result["unreadable"] else ""
    title = result.get("split", f"{result['images']:,} images without labels") + lost
    return Group(title, *comparisons(rows))


def comparisons(rows: dict[str, dict[str, Any]]) -> list[Table]:
    """As `comparison`, in several tables where there are more columns than a terminal has room for."""
    keys = [key for key in SCORES if any(key in scores for scores in rows.values())]
    groups = sorted(dict.fromkeys(SCORES[key].group for key in keys), key=lambda group: not group)
    others = [{key for key in SCORES if SCORES[key].group != group} for group in groups]
    return [comparison({n: {k: v for k, v in s.items() if k not in o} for n, s in rows.items()}) for o in others]


def comparison(rows: dict[str, dict[str, Any]]) -> Table:
    """Several results beside each other: accuracies in percent (± standard deviation over draws), or health."""
    keys = [key for key in SCORES if any(key in scores for scores in rows.values())]
    accuracies = [key for key in keys if SCORES[key].fraction]
    # On a terminal's width there is room for one kind; the JSON has both.
    shown = accuracies or keys
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    found.add_column("")
    for key in shown:
        found.add_column(SCORES[key].title.replace(", ", "\n"), justify="right", no_wrap=True)
    for name, scores in rows.items():
        found.add_row(name, *(_cell(scores, key) for key in shown))
    return found


def _cell(scores: dict[str, Any], key: str) -> str:
    if key not in scores:
        return ""
    if not SCORES[key].fraction:
        return f"{scores[key]:.3g}"
    spread = scores.get(f"{key}_std")
    return f"{100 * scores[key]:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
