"""The scores of an encoder: a row each, in the order in which people read them.

A new score is a function of arrays in a file of this folder and a row of the table here: `eval` then computes it and
shows it in its table and its JSON, and the report shows it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Given = Literal["labels", "features", "views", "pairs", "documents", "judgements", "classes"]
"""What a score is computed of: the arguments of `compute` by these names, which its function is called with."""


@dataclass(frozen=True)
class Score:
    """A row of the table."""

    key: str
    """In a result's JSON and in a run's metrics."""
    title: str
    """Heads a column of a table; a comma is where it may be broken."""
    given: Given
    function: str
    """"module:function", where a module of this package begins with a dot. It returns the score, or several by key."""
    fraction: bool = True
    """From 0 to 1, and shown in percent."""
    higher_is_better: bool = True
    selects: bool = False
    """Picks the best checkpoint of a run, where no row above it does."""
    judges: bool = False
    """Says, beside that of the weights a run started from, whether training was worth it."""
    online: bool = False
    """Taken during training too."""
    curve: str = ""
    """What the report says of its curve over training; without, it has none."""
    curve_title: str = ""
    """Heads that curve in place of the title."""
    group: str = ""
    """Scores of one group have a table of their own."""


@dataclass(frozen=True)
class LabelledSplit:
    """Features of labelled images, for a classifier to be fitted on some and scored on the others."""

    train_x: np.ndarray
    """float32 (m, D)."""
    train_y: np.ndarray
    """int64 (m,), from 0 to num_classes - 1."""
    test_x: np.ndarray
    """float32 (t, D)."""
    test_y: np.ndarray
    """int64 (t,)."""
    num_classes: int
    k: int = 20
    """Neighbours of kNN."""
    seed: int = 0
    device: str | torch.device = "cpu"
    crops: tuple[Iterator[tuple[Tensor, Tensor]], int] | None = None
    """Batches of raw features of random crops with their classes, and how many: what the published probe is fitted on."""


def _retrieval(given: Given, first: str, second: str) -> Iterator[Score]:
    """Yield the rows of retrieval both ways."""
    function = ".retrieval:retrieval" if given == "pairs" else ".retrieval:document_retrieval"
    for way, title in (
        (f"{first}_to_{second}", f"{first} to {second}"),
        (f"{second}_to_{first}", f"{second} to {first}"),
    ):
        for k in (1, 5, 10):
            yield Score(
                f"{way}_r{k}",
                f"{title}, R@{k}",
                given,
                function,
                selects=k == 1,
                judges=k == 1,
                online=k <= 5,
                curve="on a fixed sample of training pairs" if k == 1 else "",
                group=way,
            )
        yield Score(f"{way}_mrr", f"{title}, MRR", given, function, group=way)
        yield Score(f"{way}_ndcg10", f"{title}, NDCG@10", given, function, group=way)


def _judged(name: str, title: str) -> Iterator[Score]:
    """Yield a row of judged retrieval that pairs do not have: the other scores of its function stand in theirs."""
    yield Score(
        f"query_to_document_{name}",
        f"query to document, {title}",
        "judgements",
        ".judged:judged_retrieval",
        group="query_to_document",
    )


_TABLE = (
    Score(
        "knn_top1",
        "kNN",
        "labels",
        ".knn:knn_top1",
        selects=True,
        judges=True,
        online=True,
        curve="leave-one-out accuracy on a fixed sample of training images",
        curve_title="Online kNN",
    ),
    Score("linear_top1_1_per_class", "linear, 1 label a class", "labels", ".linear:few_label_scores"),
    Score("linear_top1_10_per_class", "linear, 10 labels a class", "labels", ".linear:few_label_scores"),
    Score("linear_top1", "linear, all labels", "labels", ".linear:linear_score", judges=True),
    Score("linear_top1_published", "linear, published", "labels", ".linear:published_score"),
    Score(
        "rankme",
        "RankMe",
        "features",
        ".label_free:rankme",
        fraction=False,
        selects=True,
        online=True,
        curve="effective rank of the features",
    ),
    Score(
        "alignment",
        "alignment",
        "views",
        ".label_free:alignment",
        fraction=False,
        higher_is_better=False,
        online=True,
        curve="mean squared distance of two views of an image",
    ),
    Score(
        "uniformity",
        "uniformity",
        "features",
        ".label_free:uniformity",
        fraction=False,
        higher_is_better=False,
        online=True,
        curve="log of the mean Gaussian potential of the features",
    ),
    *_retrieval("pairs", "image", "text"),
    *_retrieval("documents", "query", "document"),
    *_judged("mrr10", "MRR@10"),
    *_judged("recall100", "recall@100"),
    Score("zero_shot_top1", "zero-shot, top 1", "classes", ".zero_shot:zero_shot", judges=True),
)
SCORES: dict[str, Score] = {score.key: score for score in _TABLE}


def compute(
    *,
    labels: LabelledSplit | None = None,
    features: np.ndarray | None = None,
    views: tuple[Tensor, Tensor] | None = None,
    pairs: tuple[Tensor, Tensor, np.ndarray, np.ndarray] | None = None,
    documents: tuple[Tensor, Tensor, np.ndarray, np.ndarray] | None = None,
    judgements: tuple[Tensor, np.ndarray, np.ndarray, np.ndarray] | None = None,
    classes: tuple[Tensor, Tensor, np.ndarray] | None = None,
    online: bool = False,
) -> dict[str, float]:
    """Return all scores of what is given, in reading order, each with what its function says beside it.

    Args:
        labels: features of labelled images in two parts.
        features: float32 (n, D).
        views: float32 (m, D) twice, row i of both from one image.
        pairs: images (n, D), texts (m, D), and int64 (p,) twice, each pair's row of images and of texts.
        documents: the same of queries and documents: pairs of two texts, or of two images.
        judgements: similarities (q, 100) of the nearest wrong documents of each query, and the query, gain and similarity
            (p,) of each relevant one.
        classes: images (n, D), class embeddings (C, D), and int64 (n,), each image's class.
        online: only those that are taken during training.
    """
    given: dict[Given, tuple[object, ...] | None] = {
        "labels": None if labels is None else (labels,),
        "features": None if features is None else (features,),
        "views": views,
        "pairs": pairs,
        "documents": documents,
        "judgements": judgements,
        "classes": classes,
    }
    found: dict[str, float] = {}
    for score in SCORES.values():
        arguments = given[score.given]
        if arguments is not None and score.key not in found and (score.online or not online):
            value = _function(score)(*arguments)
            found |= value if isinstance(value, dict) else {score.key: value}
    return {k: v for k, v in found.items() if not online or (k in SCORES and SCORES[k].online)}


def select(scores: Mapping[str, float]) -> float:
    """Return the number that is to grow in training: the largest marks the best checkpoint.

    Raises:
        ValueError: none of the scores selects.
    """
    score = selector(scores)
    return scores[score.key] if score.higher_is_better else -scores[score.key]


def selector(scores: Mapping[str, Any]) -> Score:
    """Return the first score in reading order that `selects`.

    Raises:
        ValueError: none of the scores selects.
    """
    for score in SCORES.values():
        if score.selects and score.key in scores:
            return score
    raise ValueError(f"none of the scores {', '.join(scores)} is marked `selects` in evaluation.scores; mark one")


def _function(score: Score) -> Callable[..., float | dict[str, float]]:
    module, _, name = score.function.partition(":")
    function: Callable[..., float | dict[str, float]] = getattr(import_module(module, __package__), name)
    return function
