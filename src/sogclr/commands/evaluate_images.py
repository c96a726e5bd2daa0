"""How good an encoder is on images: kNN and linear probes where there are labels, else what can be said without."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.augment import Augmentation
from ..data.labels import Labels, in_order, read_labels
from ..data.manifest import Manifest
from ..data.pair_overlap import count_shared_images
from ..data.recipe import named_recipe
from ..errors import BadInput
from ..evaluation.knn import TEMPERATURE
from ..evaluation.label_free import refuse_non_finite
from ..evaluation.linear import few_label_protocol, protocol, sgd_protocol, stratified
from ..evaluation.scores import LabelledSplit, compute
from ..evaluation.worth import worth_of_scores
from ..models.encoder import Encoder, EncoderInfo
from ..models.features import ImageEncoder, compute_features, compute_views, nothing_readable
from ..models.two_tower import create_run_backbone, load_run_encoder, load_two_tower
from ..run_folder import RunFolder
from .eval_result import EvalResult, EvalSettings, compared_with
from .evaluate_pairs import knows_texts, zero_shot_images
from .random_crops import Crops, random_crops

FIT_PARTS = ("train", "training")
SCORE_PARTS = ("test", "testing", "val", "valid", "validation")
TEST_SHARE = 0.2
VIEWED = 2048  # images at the least, for the alignment of two views
PIXELS = 32  # raw pixels are compared at this size at the most


def evaluate_images(run: str | os.PathLike[str], data: str | os.PathLike[str], settings: EvalSettings) -> EvalResult:
    """Score an encoder, and its baselines, on the images of a folder or list.

    Raises:
        BadInput: no such encoder or images, labels that cannot be used, or features that are not finite.
    """
    encoder, shares = load_run_encoder(run, settings.device), compared_with(run, settings.mix)
    manifest = Manifest.scan(data)
    split = split_labelled(manifest, settings.labels, settings.seed)
    encoders: dict[str, ImageEncoder] = {"": encoder}
    encoders |= {name: load_run_encoder(run, settings.device, mix=share) for name, share in shares.items()}
    if settings.baselines:
        encoders["raw_pixels"] = RawPixels(encoder.info)
        encoders["untrained"] = untrained(encoder.info, settings.seed, run).to(settings.device)
    if split is None and settings.published:
        raise BadInput(
            f"--protocol published needs classes, and {manifest.root} has none; give --labels, or leave it out"
        )
    ids = manifest.usable if split is None else np.concatenate([split.fit, split.score])
    results: dict[str, dict[str, float]] = {}
    for turn, (name, one) in enumerate(encoders.items()):

        def report(done: int, total: int, turn: int = turn) -> None:
            settings.progress(turn * total + done, len(encoders) * total)

        features, kept, bad = compute_features(
            one,
            manifest,
            ids,
            batch_size=settings.batch_size,
            workers=settings.workers,
            device=settings.device,
            progress=report,
        )
        if not len(kept):
            raise nothing_readable(manifest, [*manifest.bad, *bad])
        refuse_non_finite(features)
        if split is None:
            results[name] = _label_free(one, manifest, features, kept, settings)
        else:
            fitted, wanted = np.intersect1d(split.fit, kept), settings.published and not name
            crops = random_crops(one, manifest, fitted, split.values, settings) if wanted else None
            results[name] = _score(features, kept, split, settings, crops)
    if split is not None and knows_texts(run):
        labels = Labels(split.classes, split.values, "")
        for name, share in {"": 1.0, **shares}.items():
            towers = load_two_tower(run, settings.device, mix=share)
            results[name] |= zero_shot_images(towers, manifest, split.score, labels, settings)
    scores = results.pop("")
    text = None if split is None else split.text + _seen_words(manifest, RunFolder(run), split.score)
    fit, score = (0, 0) if split is None else (int(np.isin(part, kept).sum()) for part in (split.fit, split.score))
    return EvalResult(
        scores,
        encoder=os.fspath(run),
        model=encoder.info.name,
        data=os.fspath(data),
        seed=settings.seed,
        images=len(kept),
        unreadable=len(manifest.bad) + len(bad),
        split=text,
        classes=None if split is None else len(split.classes),
        fit_images=None if split is None else fit,
        score_images=None if split is None else score,
        protocol=None if split is None else _protocol(fit, encoder.num_features, len(split.classes), settings),
        baselines=results or None,
        worth=worth_of_scores(results["start"], scores, {"": score}) if "start" in results else None,
    )


def _seen_words(manifest: Manifest, run: RunFolder, ids: np.ndarray) -> str:
    """Return how many of the images that are scored the run was trained on; nothing where it was on none."""
    if not run.manifest_file.is_file():
        return "; whether the encoder was trained on these images is not known"
    seen = count_shared_images(manifest, run.manifest(), ids)
    return f"; {seen:,} of the {len(ids):,} scored were trained on, without labels" if seen else ""


# ----------------------------------------------------------------------------------------------------------- the split
@dataclass(frozen=True)
class Split:
    """Which labelled images a classifier is fitted on, and which it is scored on."""

    fit: np.ndarray
    """int64 ids of the manifest."""
    score: np.ndarray
    """int64 ids of the manifest."""
    values: np.ndarray
    """int64 (n,): the class of each id, -1 where unknown."""
    classes: list[str]
    text: str
    """One line that says all this."""


def split_labelled(manifest: Manifest, how: str, seed: int) -> Split | None:
    """Split the labelled images by the names of their folders, or else 80/20 within each class.

    Args:
        manifest: the images.
        how: where labels come from: auto, folder, none, or a CSV file.
        seed: of the 80/20.

    Returns:
        None where there are no labels.

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
            f"{len(score):,}; {where}"
        )
    if len(np.unique(values[fit])) < 2 or not len(score):
        raise BadInput(
            f"{manifest.root} has {len(fit):,} labelled images of {len(np.unique(values[fit]))} classes to fit on and "
            f"{len(score):,} to score on; label two classes or more in both, or use --labels none"
        )
    return Split(fit, score, values, labels.classes, text)


def _labels_of_parts(manifest: Manifest, parts: list[str], how: str) -> Labels | None:
    """Return the labels of a folder with train/ and test/: the classes are the folders below these."""
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
def _score(
    features: np.ndarray, ids: np.ndarray, split: Split, settings: EvalSettings, crops: Crops | None
) -> dict[str, float]:
    """Return the accuracies of classifiers on float32 (m, D) features of the int64 (m,) ids."""
    fit, score = np.isin(ids, split.fit), np.isin(ids, split.score)
    for what, rows, wanted in (("fit", fit, split.fit), ("score", score, split.score)):
        if not rows.any():
            raise BadInput(f"none of the {len(wanted):,} images to {what} on can be read; give others")
    parts = LabelledSplit(
        features[fit],
        split.values[ids[fit]],
        features[score],
        split.values[ids[score]],
        len(split.classes),
        settings.k,
        settings.seed,
        settings.device,
        crops,
    )
    return compute(labels=parts, features=features)


def _label_free(
    encoder: ImageEncoder, manifest: Manifest, features: np.ndarray, ids: np.ndarray, settings: EvalSettings
) -> dict[str, float]:
    """Return RankMe, alignment and uniformity of float32 (m, D) features of the int64 (m,) ids."""
    info = encoder.info
    augment = Augmentation(named_recipe("auto", info.image_size), info.image_size, info.mean, info.std, settings.seed)
    if len(ids) < 2:
        raise BadInput(f"{manifest.root} has {len(ids)} readable image; give 2 or more")
    some = ids[:: max(1, len(ids) // VIEWED)]
    views = compute_views(encoder, manifest, some, augment, batch_size=settings.batch_size, device=settings.device)
    return compute(features=features, views=views)


def _protocol(fit: int, width: int, classes: int, settings: EvalSettings) -> dict[str, str]:
    """Return how the accuracies were measured, in words."""
    published = {
        "linear_published": f"{sgd_protocol()}; raw features, a random crop and flip of each image in each epoch"
    }
    return (published if settings.published else {}) | {
        "knn": f"cosine, weighted, k={min(settings.k, fit)}, T={TEMPERATURE}",
        "linear": protocol(fit, width, classes),
        "few_labels": few_label_protocol(width, classes),
    }


# ------------------------------------------------------------------------------------------------------- the baselines
class RawPixels:
    """The baseline without an encoder: the pixels themselves, at most 32 x 32 of them."""

    def __init__(self, info: EncoderInfo) -> None:
        size = min(PIXELS, info.image_size)
        self.info = EncoderInfo("raw pixels", size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), background=info.background)
        self.num_features = 3 * size * size

    def encode(self, crops: Tensor) -> Tensor:
        """Return uint8 (N, S, S, 3) as float32 (N, 3 S S) in 0..1."""
        return crops.flatten(1).float() / 255

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 (N, 3, S, S) as (N, 3 S S): what two views are compared by."""
        return images.flatten(1)


def untrained(info: EncoderInfo, seed: int, run: str | os.PathLike[str] | None = None) -> Encoder:
    """Return the same encoder, of a run or an exported file, with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_run_backbone(run, info)
    return Encoder(backbone, info).eval().requires_grad_(False)
