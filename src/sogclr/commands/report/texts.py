"""What the report shows of a run on texts: some of them with the nearest of the other column, and both ends of log u."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...data.pairs import Pairs
from ...models.two_tower import TwoTower
from .sample import NEIGHBOURS, QUERIES


@dataclass(frozen=True)
class ShownText:
    """One text beside a query, or at an end of log u."""

    text: str
    value: float
    """Cosine to the query, or log u."""
    same: bool = False
    """Whether it is the query's own match."""


def nearest_texts(pairs: Pairs, towers: TwoTower, most: int) -> tuple[list[tuple[str, list[ShownText]]], int]:
    """Return texts of the first column, each with the nearest of a sample of the second's, and the sample's size.

    Args:
        pairs: of texts.
        towers: of the run.
        most: texts in the sample; the same ones every time.
    """
    known = np.unique(pairs.second_ids)
    sample = np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(known)[:most])
    asked = np.unique(pairs.first_ids[np.isin(pairs.second_ids, sample)])
    asked = asked[np.linspace(0, len(asked) - 1, min(QUERIES, len(asked))).round().astype(int)]
    similarity = towers.texts(0).encode(pairs.texts_of(asked)) @ towers.texts(1).encode(pairs.texts_of(sample)).T
    values, rows = similarity.cpu().topk(min(NEIGHBOURS, len(sample)), dim=1)
    found = []
    for query, text, value, row in zip(
        asked.tolist(), pairs.texts_of(asked), values.tolist(), rows.numpy(), strict=True
    ):
        own = set(pairs.second_ids[pairs.first_ids == query].tolist())
        near = zip(sample[row].tolist(), pairs.texts_of(sample[row]), value, strict=True)
        found.append((text, [ShownText(other, cosine, id in own) for id, other, cosine in near]))
    return found, len(sample)


def texts_at_both_ends(log_u: np.ndarray, pairs: Pairs, count: int) -> tuple[list[ShownText], list[ShownText]]:
    """Return the texts of the first column with the largest and with the smallest log u, farthest first.

    Args:
        log_u: float32 (m,), by text id; what has not been visited is not finite.
        pairs: of texts.
        count: at most so many at each end.
    """
    order = np.argsort(log_u, kind="stable")
    order = order[np.isfinite(log_u[order])]
    count = min(count, len(order) // 2)
    largest, smallest = (
        [ShownText(text, float(log_u[i])) for i, text in zip(ids.tolist(), pairs.texts_of(ids), strict=True)]
        for ids in (order[::-1][:count], order[:count])
    )
    return largest, smallest
