"""The losses once more, in float64 by slow loops and straight from the formulas: what the fast code is held against."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor


def unit(z: Tensor) -> Tensor:
    z = z.double()
    return z / z.pow(2).sum(dim=1, keepdim=True).sqrt()


def batch_normalizer(z: list[Tensor], ids: list[int], view: int, row: int, tau: float) -> Tensor:
    """ĝ_a: mean of exp(s_ab / tau) over all views of all other samples in the batch."""
    terms = [
        torch.exp(torch.dot(z[view][row], z[v][other]) / tau)
        for v in range(2)
        for other in range(len(ids))
        if ids[other] != ids[row]
    ]
    return torch.stack(terms).mean()


class SlowGlobalLoss:
    """SogCLR in float64, with u itself (no logarithm) as the state."""

    def __init__(self, tau: float, gamma: float, convention: str) -> None:
        self.tau, self.gamma, self.convention = tau, gamma, convention
        self.u: dict[int, float] = {}

    def blend(self, old: float | None, g: float) -> float:
        return g if old is None else (1 - self.gamma) * old + self.gamma * g

    def __call__(self, z0: Tensor, z1: Tensor, index: Tensor) -> Tensor:
        z, ids = [unit(z0), unit(z1)], index.tolist()
        total, stored = torch.zeros((), dtype=torch.float64), defaultdict(list)
        for row, i in enumerate(ids):
            g = [batch_normalizer(z, ids, view, row, self.tau) for view in range(2)]
            if self.convention == "per_view":
                u = [self.blend(self.u.get(i), float(x.detach())) for x in g]
            else:
                u = [self.blend(self.u.get(i), float(sum(g).detach()) / 2)] * 2
            stored[i].append(sum(u) / 2)
            positive = torch.dot(z[0][row], z[1][row])
            for x, value in zip(g, u, strict=True):
                total = total - positive + self.tau * (x / value + math.log(value) - 1)
        self.u |= {i: sum(values) / len(values) for i, values in stored.items()}
        return total / (2 * len(ids))


def slow_ntxent(z0: Tensor, z1: Tensor, index: Tensor, tau: float) -> Tensor:
    z, ids = [unit(z0), unit(z1)], index.tolist()
    total = torch.zeros((), dtype=torch.float64)
    for row, i in enumerate(ids):
        positive = torch.exp(torch.dot(z[0][row], z[1][row]) / tau)
        others = 2 * sum(other != i for other in ids)
        for view in range(2):
            negatives = others * batch_normalizer(z, ids, view, row, tau)
            total = total - torch.log(positive / (positive + negatives))
    return total / (2 * len(ids))


def exact_objective(z: Tensor, tau: float) -> float:
    """F2 over the whole data set, from embeddings (2, n, D): mean of -s + tau log of the mean over views of g."""
    views = [unit(z[0]), unit(z[1])]
    ids = list(range(z.shape[1]))
    total = 0.0
    for row in ids:
        g = sum(float(batch_normalizer(views, ids, v, row, tau)) for v in range(2)) / 2
        total += -float(torch.dot(views[0][row], views[1][row])) + tau * math.log(g)
    return total / len(ids)
