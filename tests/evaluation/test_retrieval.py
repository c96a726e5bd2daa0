from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sogclr.errors import BadInput
from sogclr.evaluation import retrieval as module
from sogclr.evaluation.retrieval import chance_scores, ranks, retrieval
from sogclr.evaluation.zero_shot import class_embeddings, zero_shot


def unit(n, d, seed):
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return z / z.norm(dim=1, keepdim=True)


def slow_ranks(queries, candidates, query_rows, candidate_rows):
    found = []
    for q in range(len(queries)):
        matches = {int(c) for r, c in zip(query_rows, candidate_rows, strict=True) if r == q}
        sims = [float(queries[q] @ candidates[c]) for c in range(len(candidates))]
        best = max(sims[c] for c in matches)
        found.append(sum(sims[c] >= best for c in range(len(candidates)) if c not in matches))
    return found


@pytest.mark.parametrize("tile", [1 << 24, 30])
def test_recall_with_many_captions_an_image_and_images_a_caption(tile, monkeypatch):
    """Against slow loops, and in tiles of a query or two."""
    monkeypatch.setattr(module, "_TILE", tile)
    generator = np.random.default_rng(0)
    images, texts = unit(9, 4, 1), unit(14, 4, 2)
    image_rows = np.concatenate([generator.integers(0, 9, 14), np.arange(9)])
    text_rows = np.concatenate([np.arange(14), generator.integers(0, 14, 9)])
    to_text, to_image = (
        slow_ranks(images, texts, image_rows, text_rows),
        slow_ranks(texts, images, text_rows, image_rows),
    )
    assert ranks(images, texts, image_rows, text_rows).tolist() == to_text
    found = retrieval(images, texts, image_rows, text_rows)
    for name, rank in (("image_to_text", to_text), ("text_to_image", to_image)):
        for k in (1, 5, 10):
            assert found[f"{name}_r{k}"] == pytest.approx(np.mean([r < k for r in rank]))
        assert found[f"{name}_median_rank"] == np.median(rank) + 1


def slow_scores(queries, candidates, query_rows, candidate_rows):
    """The definitions, with every wrong candidate before a match of the same similarity."""
    sums = dict.fromkeys(("r1", "r5", "r10", "mrr", "ndcg10"), 0.0)
    firsts = []
    for q, query in enumerate(queries):
        matches = {int(c) for r, c in zip(query_rows, candidate_rows, strict=True) if r == q}
        sims = [float(query @ candidate) for candidate in candidates]
        order = sorted(range(len(sims)), key=lambda c: (-sims[c], c in matches))
        hits = [k for k, c in enumerate(order) if c in matches]
        firsts.append(hits[0] + 1)
        for k in (1, 5, 10):
            sums[f"r{k}"] += hits[0] < k
        sums["mrr"] += 1 / (hits[0] + 1)
        ideal = sum(1 / np.log2(k + 2) for k in range(min(10, len(hits))))
        sums["ndcg10"] += sum(1 / np.log2(k + 2) for k in hits if k < 10) / ideal
    return {k: v / len(queries) for k, v in sums.items()} | {"median_rank": np.median(firsts)}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 14), st.sampled_from([1 << 24, 20]))
def test_ranking_scores_are_those_of_slow_loops_with_ties(seed, q, m, tile):
    """Several matches a query, pairs that come again, and coordinates of so few values that many similarities tie."""
    generator = np.random.default_rng(seed)
    queries, candidates = (torch.from_numpy(generator.integers(-1, 2, (n, 3)) / 2).float() for n in (q, m))
    query_rows = np.concatenate([np.arange(q), generator.integers(0, q, generator.integers(0, 2 * q + 1))])
    candidate_rows = generator.integers(0, m, len(query_rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", tile)
        rows, rank = module.match_ranks(queries, candidates, query_rows, candidate_rows)
    found = module.ranking_scores(rows, rank)
    assert found == pytest.approx(slow_scores(queries, candidates, query_rows, candidate_rows))


def test_a_collapsed_model_scores_nothing_and_a_perfect_one_everything():
    rows = np.arange(12)
    same = torch.ones(12, 3) / 3**0.5
    assert retrieval(same, same, rows, rows)["image_to_text_r10"] == 0
    perfect = unit(12, 16, 0)
    assert all(v == 1 for v in retrieval(perfect, perfect, rows, rows).values())


def test_chance_is_what_random_embeddings_score():
    image_rows, text_rows = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7]), np.arange(11)
    mean = {}
    for seed in range(600):
        for key, value in retrieval(unit(8, 6, seed), unit(11, 6, seed + 9999), image_rows, text_rows).items():
            mean[key] = mean.get(key, 0) + value / 600
    for key, value in chance_scores(image_rows, text_rows).items():
        assert mean[key] == pytest.approx(value, abs=0.02)


class Words:
    """Texts to fixed directions: by their last word."""

    directions: ClassVar = {"cat": [1.0, 0.0], "dog": [0.0, 1.0], "hot dog": [0.6, 0.8]}

    def encode_texts(self, texts):
        longest_first = sorted(self.directions, key=len, reverse=True)
        return torch.tensor([self.directions[next(k for k in longest_first if t.endswith(k))] for t in texts])


def test_zero_shot_takes_the_nearest_class_name():
    of_classes = class_embeddings(Words(), ["cat", "dog", "hot_dog"])
    torch.testing.assert_close(of_classes, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    images = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.7], [0.95, 0.0]])
    scores = zero_shot(images, of_classes, np.array([0, 1, 1, 0]))
    assert scores == {"zero_shot_top1": 0.75, "zero_shot_mean_per_class": 0.75}
    with pytest.raises(BadInput, match=r"a template needs \{\}"):
        class_embeddings(Words(), ["cat"], ("a photo",))
