from typing import ClassVar

import numpy as np
import pytest
import torch

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
