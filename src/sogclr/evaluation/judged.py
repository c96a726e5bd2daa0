"""Retrieval from a corpus of any size, scored by judgements that have grades, as BEIR and trec_eval score it.

A document that was not judged relevant is wrong. A wrong one that is just as similar to a query as a relevant one counts
as before it, and of two relevant ones the less relevant, so that embeddings that have all collapsed score nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .retrieval import AT

DEPTH = 100  # wrong documents kept of each query: the deepest rank that is asked for
_TILE = 1 << 24  # similarities at a time


class NearestWrong:
    """The nearest wrong documents of each query, from a corpus that comes in blocks: what `judged_retrieval` needs of it.

    Args:
        queries: (q, D) unit rows.

    Attributes:
        similarities: (q, DEPTH), the nearest first; -inf where there are fewer.
    """

    def __init__(self, queries: Tensor) -> None:
        self.queries = queries
        self.similarities = torch.full((len(queries), DEPTH), -torch.inf, device=queries.device)

    def add(self, documents: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Take a block of the corpus into account, but for some pairs, whose similarities are returned.

        Args:
            documents: (m, D) unit rows.
            rows: int64 (p,), queries.
            columns: int64 (p,), documents of this block.

        Returns:
            float32 (p,).
        """
        found = np.empty(len(rows), np.float32)
        step = max(1, _TILE // max(1, len(documents)))
        for start in range(0, len(self.queries), step):
            sim = self.queries[start : start + step] @ documents.T
            here = np.flatnonzero((rows >= start) & (rows < start + step))
            row, column = (torch.from_numpy(ids[here]).to(sim.device) for ids in (rows - start, columns))
            found[here] = sim[row, column].cpu().numpy()
            sim[row, column] = -torch.inf
            best = self.similarities[start : start + step]
            block = sim.topk(min(DEPTH, sim.shape[1]), dim=1).values
            best.copy_(torch.cat([best, block], dim=1).topk(DEPTH, dim=1).values)
        return found


def judged_retrieval(wrong: Tensor, rows: np.ndarray, gains: np.ndarray, similarities: np.ndarray) -> dict[str, float]:
    """Return recall at 1, 5, 10 (any relevant document), NDCG@10, MRR@10, and the share of the relevant among the first 100.

    NDCG@10 is the sum of gain / log2(1 + rank) over the first 10, by what it would be at best. All are means over all
    queries; one without a relevant document scores 0.

    Args:
        wrong: (q, DEPTH), similarities of the nearest wrong documents, the nearest first.
        rows: int64 (p,), the query of each relevant document.
        gains: float64 (p,), above 0.
        similarities: float32 (p,), to its query; -inf where the document is not in the corpus.

    Returns:
        `query_to_document_r1`, `_r5`, `_r10`, `_ndcg10`, `_mrr10`, `_recall100`, fractions.
    """
    order = np.lexsort((gains, -similarities, rows))
    rows, gains, similarities = rows[order], gains[order], similarities[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    rank, step = np.empty(len(rows), np.int64), 1 << 16
    for start in range(0, len(rows), step):
        row, own = (torch.from_numpy(x[start : start + step]).to(wrong.device) for x in (rows, similarities))
        before = (wrong[row] >= own[:, None]).sum(dim=1).cpu().numpy()
        rank[start : start + step] = before + place[start : start + step]
    counts = np.bincount(rows, minlength=len(wrong))
    some = np.maximum(counts, 1)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(rows, values, minlength=len(wrong))

    best = np.full(len(wrong), DEPTH)
    np.minimum.at(best, rows, rank)
    ideal = gains[np.lexsort((-gains, rows))]
    discounted = [
        total(np.where(at < 10, gain / np.log2(at + 2.0), 0.0)) for at, gain in ((rank, gains), (place, ideal))
    ]
    scores = {f"r{k}": best < k for k in AT} | {
        "ndcg10": discounted[0] / np.where(counts > 0, discounted[1], 1.0),
        "mrr10": np.where(best < 10, 1 / (best + 1.0), 0.0),
        "recall100": total(rank < DEPTH) / some,
    }
    return {f"query_to_document_{name}": float(value.mean()) for name, value in scores.items()}
