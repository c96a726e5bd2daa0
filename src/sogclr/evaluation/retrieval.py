"""Retrieval between the two sides of pairs: exact, where a query may have several matches and a candidate several queries.

A query counts as answered at K when ANY of its matches is among its K most similar candidates. A wrong candidate that is
just as similar as a match counts as before it, so that embeddings that have all collapsed to one point score nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AT = (1, 5, 10)
_TILE = 1 << 24  # similarities at a time


def retrieval(
    images: Tensor,
    texts: Tensor,
    image_rows: np.ndarray,
    text_rows: np.ndarray,
    names: tuple[str, str] = ("image", "text"),
) -> dict[str, float]:
    """Return recall at 1, 5 and 10, MRR, NDCG@10 and the median rank of the best match (1 is first), both ways.

    Args:
        images: (n, D) unit rows; of other pairs, those of the first column.
        texts: (m, D) unit rows; those of the second.
        image_rows: int64 (p,), each pair's row of `images`; every row is in a pair.
        text_rows: int64 (p,), each pair's row of `texts`; every row is in a pair.
        names: what the two sides are called in the scores' names.

    Returns:
        `image_to_text_r1` ... `text_to_image_r10`, `image_to_text_mrr` and `_ndcg10` (fractions),
        `image_to_text_median_rank`, `text_to_image_median_rank`.
    """
    found: dict[str, float] = {}
    ways = {
        f"{names[0]}_to_{names[1]}": (images, texts, image_rows, text_rows),
        f"{names[1]}_to_{names[0]}": (texts, images, text_rows, image_rows),
    }
    for name, (queries, candidates, of_query, of_candidate) in ways.items():
        rows, rank = match_ranks(queries, candidates, of_query, of_candidate)
        found |= {f"{name}_{key}": value for key, value in ranking_scores(rows, rank).items()}
    return found


def document_retrieval(
    queries: Tensor, documents: Tensor, query_rows: np.ndarray, document_rows: np.ndarray
) -> dict[str, float]:
    """Return `retrieval` of pairs whose sides are called query and document."""
    return retrieval(queries, documents, query_rows, document_rows, ("query", "document"))


def ranking_scores(rows: np.ndarray, rank: np.ndarray) -> dict[str, float]:
    """Return `r1`, `r5`, `r10`, `mrr`, `ndcg10` (means over queries) and `median_rank` of the best match (1 is first).

    Args:
        rows: int64 (p,), ascending: each match's query; every query has one.
        rank: int64 (p,): how many candidates come before each match, ascending within a query.
    """
    first = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
    best, counts = rank[first], np.diff(np.append(first, len(rows)))
    gain = np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(10) + 2.0))[np.minimum(counts, 10) - 1]
    found = {f"r{k}": float((best < k).mean()) for k in AT}
    found["mrr"] = float((1 / (best + 1.0)).mean())
    found["ndcg10"] = float((np.add.reduceat(gain, first) / ideal).mean())
    return found | {"median_rank": float(np.median(best)) + 1}


def match_ranks(
    queries: Tensor, candidates: Tensor, query_rows: np.ndarray, candidate_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the candidates that come before each match of each query.

    Args:
        queries: (q, D) unit rows.
        candidates: (m, D) unit rows.
        query_rows: int64 (p,), each pair's row of `queries`.
        candidate_rows: int64 (p,), each pair's row of `candidates`.

    Returns:
        int64 (p',) twice, a match each, by query and the nearest first: its query, and how many come before it.
    """
    rows, matches = np.divmod(np.unique(query_rows * len(candidates) + candidate_rows), len(candidates))
    ahead, right = np.empty(len(rows), np.int64), np.empty(len(rows), np.float64)
    step = max(1, _TILE // max(1, len(candidates)))
    for start in range(0, len(queries), step):
        sim = queries[start : start + step] @ candidates.T
        first, last = np.searchsorted(rows, [start, start + step])
        for k in range(first, last, step):
            part = slice(k, min(k + step, last))
            row, match = (torch.from_numpy(ids[part]).to(sim.device) for ids in (rows - start, matches))
            own = sim[row, match]
            ahead[part] = (sim[row] >= own[:, None]).sum(dim=1).cpu().numpy() - 1
            right[part] = own.double().cpu().numpy()
    order = np.lexsort((-right, rows))
    rows, ahead, right = rows[order], ahead[order], right[order]
    # `ahead` counts the query's other matches of at least this similarity; what comes before is the wrong ones of these,
    # and the matches that stand above it in the order
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    level = (
        np.unique(rows, return_inverse=True)[1].astype(np.float64) * 8 - right
    )  # ascending: similarities are in -1..1
    at_least = np.searchsorted(level, level, side="right") - np.searchsorted(rows, rows)
    return rows, ahead - (at_least - 1) + place


def ranks(queries: Tensor, candidates: Tensor, query_rows: np.ndarray, candidate_rows: np.ndarray) -> np.ndarray:
    """Count the wrong candidates that are at least as similar to each query as its best match.

    Args as of `match_ranks`; every query has a match.

    Returns:
        int64 (q,), 0 where the best match comes first.
    """
    rows, rank = match_ranks(queries, candidates, query_rows, candidate_rows)
    return rank[np.searchsorted(rows, np.arange(len(queries)))]


def chance(query_rows: np.ndarray, candidates: int) -> dict[int, float]:
    """Return the recall at each K of random embeddings.

    It is the mean over queries of 1 - C(m - c, K) / C(m, K), with c matches among m candidates.
    """
    _, counts = np.unique(query_rows, return_counts=True)
    found = {}
    for k in AT:
        missed = np.ones(len(counts))
        for j in range(min(k, candidates)):
            missed *= np.maximum(candidates - counts - j, 0) / (candidates - j)
        found[k] = float(1 - missed.mean())
    return found


def chance_scores(
    image_rows: np.ndarray, text_rows: np.ndarray, names: tuple[str, str] = ("image", "text")
) -> dict[str, float]:
    """Return the recalls of random embeddings under the keys of `retrieval`."""
    images, texts = len(np.unique(image_rows)), len(np.unique(text_rows))
    return {f"{names[0]}_to_{names[1]}_r{k}": v for k, v in chance(image_rows, texts).items()} | {
        f"{names[1]}_to_{names[0]}_r{k}": v for k, v in chance(text_rows, images).items()
    }
