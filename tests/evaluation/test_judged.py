"""Judged retrieval against slow loops."""

import math

import numpy as np
import pytest
import torch

from sogclr.evaluation import judged as module
from sogclr.evaluation.judged import DEPTH, NearestWrong, judged_retrieval


def slow_scores(sims, gains):
    """As the definitions say, of similarities (q, m) and gains (q, m), 0 where a document is wrong."""
    sums = dict.fromkeys(("r1", "r5", "r10", "ndcg10", "mrr10", "recall100"), 0.0)
    for sim, gain in zip(sims, gains, strict=True):
        order = sorted(range(len(sim)), key=lambda d: (-sim[d], gain[d]))
        found = [gain[d] for d in order]
        first = next((k for k, g in enumerate(found) if g > 0), math.inf)
        for k in (1, 5, 10):
            sums[f"r{k}"] += first < k
        if first < 10:
            sums["mrr10"] += 1 / (first + 1)
        if max(gain) > 0:
            ideal = sum(g / math.log2(k + 2) for k, g in enumerate(sorted(gain, reverse=True)[:10]))
            sums["ndcg10"] += sum(g / math.log2(k + 2) for k, g in enumerate(found[:10])) / ideal
            sums["recall100"] += sum(g > 0 for g in found[:100]) / sum(g > 0 for g in gain)
    return {f"query_to_document_{k}": v / len(sims) for k, v in sums.items()}


def score(queries, documents, gains, block):
    rows, columns = np.nonzero(gains)
    wrong, sims = NearestWrong(queries), np.full(len(rows), -np.inf, np.float32)
    for start in range(0, len(documents), block):
        here = np.flatnonzero((columns >= start) & (columns < start + block))
        sims[here] = wrong.add(documents[start : start + block], rows[here], columns[here] - start)
    return judged_retrieval(wrong.similarities, rows, gains[rows, columns].astype(np.float64), sims)


@pytest.mark.parametrize("tile", [1 << 24, 50])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_slow_loops_find_with_grades_and_ties(seed, tile, monkeypatch):
    """Coordinates of few values, so that many similarities are the same; queries without a relevant document too."""
    monkeypatch.setattr(module, "_TILE", tile)
    generator = np.random.default_rng(seed)
    queries, documents = (torch.from_numpy(generator.integers(-1, 2, (n, 4))).float() for n in (12, 260))
    gains = generator.integers(1, 4, (12, 260)) * (generator.random((12, 260)) < generator.choice([0.02, 0.1, 0.6]))
    gains[3] = 0
    found = score(queries, documents, gains, block=37)
    assert found == pytest.approx(slow_scores((queries @ documents.T).tolist(), gains.tolist()), abs=1e-6)


def test_collapsed_embeddings_score_nothing():
    same, gains = torch.ones(300, 3) / 3**0.5, np.zeros((5, 300), np.int64)
    gains[:, 7] = 2
    assert set(score(same[:5], same, gains, 100).values()) == {0.0}


def test_a_relevant_document_that_is_not_in_the_corpus_is_not_found():
    wrong = torch.full((1, DEPTH), -torch.inf)  # as of a corpus without a wrong document
    found = judged_retrieval(wrong, np.array([0, 0]), np.array([1.0, 1.0]), np.array([0.5, -np.inf], np.float32))
    assert found["query_to_document_recall100"] == 0.5
    assert found["query_to_document_ndcg10"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
