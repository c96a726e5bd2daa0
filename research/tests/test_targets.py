"""Queries against keys of a momentum target are what the losses say they are."""

import math

import pytest
import torch
from torch import Tensor, nn

import sogclr
from sogclr.losses.two_view import TwoViewLoss

from ..targets import Average, anchors_of

TAU = 0.2


def unit(rows: int, seed: int) -> Tensor:
    z = torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(z, dim=1)


def loops(queries: Tensor, keys: Tensor, index: list[int], positive_below: bool) -> float:
    """Return the mean over anchors of -s + tau log ĝ, or of NT-Xent, of queries against keys, by loops."""
    total, b = 0.0, len(index)
    for a in range(2 * b):
        pairs = [float(queries[a] @ keys[c]) for c in range(2 * b)]
        positive = pairs[(a + b) % (2 * b)]
        others = [math.exp(s / TAU) for c, s in enumerate(pairs) if index[c % b] != index[a % b]]
        if positive_below:
            total += math.log(math.exp(positive / TAU) + sum(others)) - positive / TAU
        else:
            total += -positive + TAU * math.log(sum(others) / len(others))
    return total / (2 * b)


@pytest.mark.parametrize(
    ("loss", "positive_below"),
    [
        (sogclr.GlobalContrastiveLoss(num_samples=9, temperature=TAU, gamma=1.0), False),
        (sogclr.NTXentLoss(temperature=TAU), True),
    ],
)
def test_queries_against_keys_are_the_formula(loss: TwoViewLoss, positive_below: bool) -> None:
    queries, keys, index = unit(10, 0), unit(10, 1), [3, 0, 8, 3, 5]
    found = loss.reduce(loss.per_sample(anchors_of(queries, keys, torch.tensor(index), TAU)))
    torch.testing.assert_close(float(found), loops(queries, keys, index, positive_below), rtol=1e-6, atol=1e-6)


def test_queries_against_themselves_are_the_trainers_loss() -> None:
    z, index = unit(10, 2), torch.tensor([3, 0, 8, 1, 5])
    ours = sogclr.GlobalContrastiveLoss(num_samples=9, temperature=TAU, gamma=0.9)
    theirs = sogclr.GlobalContrastiveLoss(num_samples=9, temperature=TAU, gamma=0.9)
    for _ in range(2):
        found = ours.reduce(ours.per_sample(anchors_of(z, z, index, TAU)))
        torch.testing.assert_close(found, theirs(*z.chunk(2), index))
    torch.testing.assert_close(ours.estimator.log_u, theirs.estimator.log_u)


def test_an_average_follows_weights_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(model, 0.75)
    average.follow(model)
    before = {k: v.clone() for k, v in average.model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1.0)
    model(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    average.follow(model)
    for name in ("0.weight", "1.running_mean"):
        expected = 0.75 * before[name] + 0.25 * model.state_dict()[name]
        torch.testing.assert_close(average.model.state_dict()[name], expected)
    assert not average.model.training
