"""A linear classifier of features for use: cross-validated, calibrated, and with a threshold above which it is sure.

Every labelled row is predicted by classifiers that were fitted without it. Three things are chosen on these predictions:
the regularisation, by log loss; one temperature that divides the logits (arXiv 1706.04599); and the least probability
that is sure. What is reported of a fold is measured with what the predictions of all other folds chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import BadInput
from ..progress import ProgressCallback
from .label_free import refuse_non_finite
from .linear import STRENGTHS, Linear, Scaling, fit_logistic, fit_sgd, small


@dataclass(frozen=True)
class CrossValidation:
    """What is measured on rows that the classifier has not seen; accuracies are fractions."""

    folds: int
    rows: int
    """How many were predicted: all but classes that cannot be held out in part."""
    accuracy: float
    accuracy_std: float
    """Standard deviation over the folds."""
    balanced_accuracy: float
    """Mean of the recalls."""
    recalls: list[float | None]
    """Of each class; None where it has one row, or one group, which cannot be held out."""
    log_loss: float
    """Mean of -log p of the true class, nats."""
    log_loss_before: float
    """The same at a temperature of 1."""
    sure: float
    """Fraction of the rows that are sure."""
    sure_accuracy: float | None
    """Of these alone; None where none is."""


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier fitted on all rows: softmax(x @ weight.T + bias) are calibrated probabilities."""

    weight: np.ndarray
    """float32 (C, D), for features as they are."""
    bias: np.ndarray
    """float32 (C,)."""
    strength: float | None
    """C, the inverse of the regularisation; None of SGD, which has none."""
    temperature: float
    """Is in the weights already."""
    threshold: float | None
    """The least probability that is sure; None where none suffices."""
    scores: CrossValidation


@dataclass(frozen=True)
class _Choice:
    strength: float | None
    temperature: float
    threshold: float | None


def fit_classifier(
    x: np.ndarray,
    y: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    sure: float = 0.95,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: ProgressCallback | None = None,
) -> FittedClassifier:
    """Fit a classifier, and measure on held-out rows what it is worth.

    Args:
        x: float32 (n, D).
        y: int64 (n,), in 0..C-1, each class at least once.
        groups: int64 (n,), as `deal` takes them.
        folds: parts of which each is held out once; fewer where no class has so many rows.
        sure: accuracy that the sure predictions are to have.
        seed: of the parts, and of the order of SGD.
        device: where SGD runs.
        progress: called with (classifiers fitted, classifiers to fit).

    Raises:
        BadInput: no class can be held out in part, fewer than two classes, or features that are not finite.
    """
    refuse_non_finite(x)
    num_classes = int(y.max(initial=-1)) + 1
    if num_classes < 2:
        raise BadInput(f"there is {num_classes} class; a classifier needs two or more")
    fold = deal(y, folds, seed, groups)
    count = int(fold.max()) + 1
    strengths: Sequence[float | None] = STRENGTHS if small(count * len(x), x.shape[1], num_classes) else (None,)

    def fit(rows: np.ndarray, strength: float | None) -> Linear:
        scaling = Scaling.of(x[rows])
        scaled = scaling(x[rows])
        found = fit_sgd(scaled, y[rows], seed, device) if strength is None else fit_logistic(scaled, y[rows], strength)
        weight = found.weight / scaling.std
        return Linear(weight, found.bias - weight @ scaling.mean, found.classes)

    total, done = count * len(strengths) + 1, 0
    logits = {strength: np.zeros((len(x), num_classes), np.float32) for strength in strengths}
    for held in range(count):
        for strength in strengths:
            logits[strength][fold == held] = fit(np.flatnonzero(fold != held), strength).logits(x[fold == held])
            done += 1
            if progress is not None:
                progress(done, total)
    chosen = _choose(logits, y, fold >= 0, sure)
    final = fit(np.arange(len(x)), chosen.strength)
    if progress is not None:
        progress(total, total)
    return FittedClassifier(
        (final.weight / chosen.temperature).astype(np.float32),
        (final.bias / chosen.temperature).astype(np.float32),
        chosen.strength,
        chosen.temperature,
        chosen.threshold,
        _measure(logits, y, fold, sure),
    )


def deal(y: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Deal rows, or groups of them, to folds one after another within each class.

    Args:
        y: int64 (n,).
        folds: how many; fewer where no class has so many rows, or there are fewer groups.
        seed: of which rows go where.
        groups: int64 (n,), rows that go to one fold, as photographs of one camera do; -1 of a row that goes by itself.

    Returns:
        int64 (n,): the fold; -1 of the rows of a class that lies in one fold, which every classifier needs to see.

    Raises:
        BadInput: all do.
    """
    classes, counts = np.unique(y, return_counts=True)
    own = np.arange(len(y)) if groups is None else np.where(groups < 0, groups.max() + 1 + np.arange(len(y)), groups)
    generator = np.random.Generator(np.random.Philox(key=seed))
    order = np.concatenate([generator.permutation(np.flatnonzero(y == c)) for c in classes])
    _, first, unit = np.unique(own[order], return_index=True, return_inverse=True)
    turn = np.argsort(np.argsort(first))  # groups are dealt in the order in which they are met
    fold = np.empty(len(y), np.int64)
    fold[order] = turn[unit] % min(folds, int(counts.max()))
    fold[np.isin(y, [c for c in classes if len(np.unique(fold[y == c])) == 1])] = -1
    if fold.max() < 0:
        what = "one image that can be read" if groups is None else "one group of images"
        raise BadInput(
            f"each of the {len(classes)} classes has {what}, so none can be held out to measure the accuracy on; "
            "label two or more of each"
        )
    return np.where(fold < 0, -1, np.searchsorted(np.unique(fold[fold >= 0]), fold))  # a fold may have become empty


def fit_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """Return the T that minimises the log loss of softmax(logits / T), found by bisection: it is convex in 1/T.

    One row more counts in whose class may be any, so that T is not 0 where all are right.

    Args:
        logits: float (n, C).
        y: int64 (n,).
    """
    z = logits.astype(np.float64) - logits.max(1, keepdims=True)
    seen = len(y) / (len(y) + 1)
    target = seen * z[np.arange(len(y)), y].mean() + (1 - seen) * z.mean()
    low, high = -10.0, 10.0  # of log(1 / T)
    for _ in range(50):
        middle = (low + high) / 2
        slope = (softmax(np.exp(middle) * z) * z).sum(1).mean() - target
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-middle))


def find_threshold(probability: np.ndarray, right: np.ndarray, sure: float) -> float | None:
    """Return the least t such that predictions with a probability of t or more are right often enough.

    One error more than there is counts, of one more prediction: then a handful that happens to be right does not suffice,
    and what is chosen here tends to hold on new rows.

    Args:
        probability: float (n,), of the predicted class.
        right: bool (n,).
        sure: fraction that is to be right.

    Returns:
        None where there is no such t.
    """
    order = np.argsort(-probability, kind="stable")
    ranked, wrong = probability[order], np.cumsum(~right[order])
    last = np.append(ranked[1:] < ranked[:-1], True)  # of equal ones all are sure or none
    holds = last & (wrong + 1 <= (1 - sure) * (np.arange(len(ranked)) + 2))
    return float(ranked[np.flatnonzero(holds)[-1]]) if holds.any() else None


def softmax(z: np.ndarray) -> np.ndarray:
    """Return exp(z) / sum(exp(z)) of each row of float (n, C)."""
    exp = np.exp(z - z.max(1, keepdims=True))
    probabilities: np.ndarray = exp / exp.sum(1, keepdims=True)
    return probabilities


def log_loss(logits: np.ndarray, y: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean of -log p of the true classes, int64 (n,), where p is the softmax of float (n, C) logits / temperature."""
    z = logits.astype(np.float64) / temperature
    z -= z.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]).mean())


def _choose(logits: dict[float | None, np.ndarray], y: np.ndarray, rows: np.ndarray, sure: float) -> _Choice:
    """Choose regularisation, temperature and threshold by the held-out predictions of some rows, bool (n,)."""
    temperatures = {strength: fit_temperature(z[rows], y[rows]) for strength, z in logits.items()}
    best = min(logits, key=lambda strength: log_loss(logits[strength][rows], y[rows], temperatures[strength]))
    p = softmax(logits[best][rows] / temperatures[best])
    return _Choice(best, temperatures[best], find_threshold(p.max(1), p.argmax(1) == y[rows], sure))


def _measure(logits: dict[float | None, np.ndarray], y: np.ndarray, fold: np.ndarray, sure: float) -> CrossValidation:
    """Measure each fold with what the others choose."""
    count = int(fold.max()) + 1
    right, is_sure = np.zeros((2, len(y)), bool)
    losses: list[float] = []
    before: list[float] = []
    for held in range(count):
        chosen, rows = _choose(logits, y, (fold >= 0) & (fold != held), sure), fold == held
        z = logits[chosen.strength][rows]
        p = softmax(z / chosen.temperature)
        right[rows] = p.argmax(1) == y[rows]
        is_sure[rows] = False if chosen.threshold is None else p.max(1) >= chosen.threshold
        losses.append(log_loss(z, y[rows], chosen.temperature) * len(z))
        before.append(log_loss(z, y[rows]) * len(z))
    scored = fold >= 0
    recalls = [
        float(right[scored & (y == c)].mean()) if (scored & (y == c)).any() else None for c in range(y.max() + 1)
    ]
    return CrossValidation(
        folds=count,
        rows=int(scored.sum()),
        accuracy=float(right[scored].mean()),
        accuracy_std=float(np.std([right[fold == held].mean() for held in range(count)])),
        balanced_accuracy=float(np.mean([recall for recall in recalls if recall is not None])),
        recalls=recalls,
        log_loss=sum(losses) / int(scored.sum()),
        log_loss_before=sum(before) / int(scored.sum()),
        sure=float(is_sure[scored].mean()),
        sure_accuracy=float(right[is_sure].mean()) if is_sure.any() else None,
    )
