"""Linear classification of frozen features: on all labels, and on a few per class.

Features are standardised with the mean and standard deviation of the training features, which needs no labels. Small
problems are solved to the optimum: logistic regression by LBFGS, its regularisation chosen on a held-out fifth of the
training part. Large ones follow the paper's protocol on fixed features: SGD with momentum 0.9, no weight decay, batches
of 1,024, learning rate 0.1 B/256 with a cosine, 90 epochs (2202.12387, section 5).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from ..errors import BadInput
from .label_free import refuse_non_finite

if TYPE_CHECKING:
    from .scores import LabelledSplit

LARGEST_FOR_LBFGS = 2_000_000_000  # rows x features x classes: a few minutes on one core
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C, the inverse of the regularisation, that are tried where labels suffice
FEW = (1, 10)  # labels per class
DRAWS = 5  # of which labels these are
FEW_STRENGTH = 0.1  # C for a few labels per class, where nothing can be held out
_ROWS = 8192  # that are standardised, and whose logits are computed, at a time
EPOCHS, BATCH_SIZE, LR, MOMENTUM = 90, 1024, 0.1 * 1024 / 256, 0.9  # of SGD


def linear_score(split: LabelledSplit) -> float:
    """Return `linear_top1` of a split."""
    arrays = (split.train_x, split.train_y, split.test_x, split.test_y)
    return linear_top1(*arrays, seed=split.seed, device=split.device)


def published_score(split: LabelledSplit) -> dict[str, float]:
    """Return `linear_top1_published` of a split that has `crops`: a classifier of raw features of new crops in each epoch."""
    if split.crops is None:
        return {}
    fitted = fit_batches(*split.crops, (split.train_x.shape[1], split.num_classes), split.device)
    return {"linear_top1_published": fitted.accuracy(split.test_x, split.test_y)}


def few_label_scores(split: LabelledSplit) -> dict[str, float]:
    """Return `few_label_top1` of a split with 1 and with 10 labels a class: the means, and beside each its `_std`."""
    arrays, found = (split.train_x, split.train_y, split.test_x, split.test_y), dict[str, float]()
    for few in FEW:
        mean, std = few_label_top1(*arrays, few, seed=split.seed, device=split.device)
        found |= {f"linear_top1_{few}_per_class": mean, f"linear_top1_{few}_per_class_std": std}
    return found


def protocol(rows: int, features: int, classes: int) -> str:
    """Return in words which of the two solvers `linear_top1` takes."""
    if small(rows, features, classes):
        return f"logistic regression (LBFGS) on standardised features, C from {STRENGTHS} on a held-out fifth"
    return sgd_protocol()


def sgd_protocol() -> str:
    """Return in words how `fit_batches` trains."""
    return f"SGD, {EPOCHS} epochs, batch {BATCH_SIZE}, lr {LR:g}, momentum {MOMENTUM}, no weight decay"


def few_label_protocol(features: int, classes: int) -> str:
    """Return in words how `few_label_scores` fits: with which solver for how many labels a class."""
    large = [str(few) for few in FEW if not small(few * classes, features, classes)]
    words = f"mean over {DRAWS} draws, logistic regression on standardised features"
    return words + (f"; with {' and '.join(large)} a class SGD, as for all labels" if large else "")


def linear_top1(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> float:
    """Return the fraction of test rows that a linear classifier fitted on the training rows gets right.

    Args:
        train_x: float (m, D).
        train_y: int64 (m,), >= 0.
        test_x: float (t, D).
        test_y: int64 (t,), >= 0; a class that training lacks counts as missed.
        seed: of the held-out fifth, or of the order of SGD.
        device: where SGD runs.

    Raises:
        BadInput: fewer than two classes to fit, or shapes that do not match.
    """
    classes = _check(train_x, train_y, test_x, test_y)
    scaling = Scaling.of(train_x)
    train, test = scaling(train_x), scaling(test_x)
    if not small(len(train), train.shape[1], len(classes)):
        return fit_sgd(train, train_y, seed, device).accuracy(test, test_y)
    fit, held = stratified(train_y, 0.2, seed)
    strength = STRENGTHS[1]
    if len(held):
        found = [fit_logistic(train[fit], train_y[fit], c).accuracy(train[held], train_y[held]) for c in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(found))]
    return fit_logistic(train, train_y, strength).accuracy(test, test_y)


def few_label_top1(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    per_class: int,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[float, float]:
    """Return the accuracy with `per_class` labels of each class: mean and standard deviation over random draws.

    A class with fewer training rows gives all that it has.

    Args:
        train_x: float (m, D).
        train_y: int64 (m,), >= 0.
        test_x: float (t, D).
        test_y: int64 (t,), >= 0.
        per_class: labels of each class.
        draws: how many times they are drawn.
        seed: of the draws, and of the order of SGD.
        device: where SGD runs.

    Raises:
        BadInput: as `linear_top1`.
    """
    classes = _check(train_x, train_y, test_x, test_y)
    scaling = Scaling.of(train_x)
    test, scores = scaling(test_x), []
    for draw in range(draws):
        generator = np.random.Generator(np.random.Philox(key=[seed, draw]))
        rows = np.concatenate([generator.permutation(np.flatnonzero(train_y == c))[:per_class] for c in classes])
        train, labels = scaling(train_x[rows]), train_y[rows]
        by_lbfgs = small(len(rows), train.shape[1], len(classes))
        fitted = fit_logistic(train, labels, FEW_STRENGTH) if by_lbfgs else fit_sgd(train, labels, seed, device)
        scores.append(fitted.accuracy(test, test_y))
    return float(np.mean(scores)), float(np.std(scores))


def stratified(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into (1 - share, share) within each class, both ascending; a class of one row stays in the first.

    Args:
        y: int64 (n,); rows with a negative class are in neither.
        share: of each class, rounded, but at least one row where there are two.
        seed: of which rows go where.

    Returns:
        Row numbers of the two parts, int64.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    first, second = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for c in np.unique(y[y >= 0]):
        rows = generator.permutation(np.flatnonzero(y == c))
        cut = min(len(rows) - 1, max(1, round(share * len(rows))))
        second.append(rows[:cut])
        first.append(rows[cut:])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


# --------------------------------------------------------------------------------------------------------------- fitting
@dataclass(frozen=True)
class Scaling:
    """What features are standardised by."""

    mean: np.ndarray
    """float64 (D,)."""
    std: np.ndarray
    """float64 (D,), > 0."""

    @classmethod
    def of(cls, x: np.ndarray) -> Scaling:
        """Return the mean and standard deviation of float (m, D) features.

        A feature that varies a thousand times less than the median one is rounding, and is not blown up to the size of the others.
        """
        mean = sum(x[part].sum(axis=0, dtype=np.float64) for part in _parts(x)) / len(x)
        std = np.sqrt(sum(np.square(x[part] - mean).sum(axis=0) for part in _parts(x)) / len(x))
        typical = float(np.median(std[std > 0])) if (std > 0).any() else 1.0
        return cls(mean, np.maximum(std, 1e-3 * typical))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return float32 (n, D) standardised features."""
        scaled = np.empty(x.shape, np.float32)
        for part in _parts(x):  # float64 of some rows alone: of ImageNet's features all would be 42 GB
            scaled[part] = (x[part] - self.mean) / self.std
        return scaled


@dataclass(frozen=True)
class Linear:
    """A linear classifier of features."""

    weight: np.ndarray
    """float (C, D)."""
    bias: np.ndarray
    """float (C,)."""
    classes: np.ndarray
    """int64 (C,), the class that each logit is of."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return float (n, C) of float (n, D) features."""
        found: np.ndarray = x @ self.weight.T + self.bias
        return found

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Return the fraction of float (n, D) features whose class, int64 (n,), has the largest logit."""
        parts = [self.logits(x[part]).argmax(1) for part in _parts(x)]
        return float((self.classes[np.concatenate(parts)] == y).mean())


def _parts(x: np.ndarray) -> list[slice]:
    return [slice(k, k + _ROWS) for k in range(0, len(x), _ROWS)]


def small(rows: int, features: int, classes: int) -> bool:
    """Return whether a problem is solved to its optimum, by LBFGS."""
    return rows * features * classes <= LARGEST_FOR_LBFGS


def fit_logistic(x: np.ndarray, y: np.ndarray, strength: float) -> Linear:
    """Return a logistic regression with C = strength on standardised features, float32 (m, D), and classes, int64 (m,)."""
    with warnings.catch_warnings():
        # A run that is cut off here is as good a classifier as one that turns the last digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, tol=1e-3, max_iter=500).fit(x, y)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes share one logit
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Linear(weight, bias, model.classes_)


def fit_sgd(x: np.ndarray, y: np.ndarray, seed: int, device: str | torch.device) -> Linear:
    """Return a classifier trained by the paper's protocol on standardised features, float32 (m, D), and classes, int64 (m,)."""
    features, labels = torch.from_numpy(x), torch.from_numpy(np.asarray(y, dtype=np.int64))
    batch = min(BATCH_SIZE, len(x))
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(EPOCHS):
            order = torch.randperm(len(x), generator=generator)
            for rows in torch.split(order, batch)[: len(x) // batch]:
                yield features[rows], labels[rows]

    return fit_batches(batches(), EPOCHS * (len(x) // batch), (x.shape[1], int(y.max()) + 1), device)


def fit_batches(
    batches: Iterator[tuple[Tensor, Tensor]], steps: int, shape: tuple[int, int], device: str | torch.device
) -> Linear:
    """Return a classifier trained by the paper's SGD.

    Args:
        batches: float32 (B, D) features and int64 (B,) classes of each step.
        steps: how many there are.
        shape: D and the number of classes.
        device: where SGD runs.
    """
    classifier = nn.Linear(*shape, device=device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=LR, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for features, labels in batches:
        loss = functional.cross_entropy(classifier(features.to(device)), labels.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    weight, bias = (p.detach().cpu().numpy() for p in (classifier.weight, classifier.bias))
    return Linear(weight, bias, np.arange(len(bias)))


def _check(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """Return the classes of the training part once everything is known to fit."""
    for what, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != (len(x),) or not len(x):
            raise BadInput(
                f"{what} features of shape {x.shape} and labels of shape {y.shape} do not fit; give one label each"
            )
    if train_x.shape[1] != test_x.shape[1]:
        raise BadInput(f"training features have {train_x.shape[1]} columns and test features {test_x.shape[1]}")
    refuse_non_finite(train_x, test_x)
    classes = np.unique(train_y)
    if len(classes) < 2:
        raise BadInput(f"the training part has {len(classes)} class; a classifier needs two or more")
    return classes
