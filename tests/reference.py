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
        for v in range(len(z))
        for other in range(len(ids))
        if ids[other] != ids[row]
    ]
    return torch.stack(terms).mean()


def positives(z: list[Tensor], view: int, row: int) -> list[Tensor]:
    """The similarities of a view with the other views of its sample."""
    return [torch.dot(z[view][row], z[other][row]) for other in range(len(z)) if other != view]


def mean_positive(z: list[Tensor], view: int, row: int) -> Tensor:
    return torch.stack(positives(z, view, row)).mean()


class SlowQueue:
    """The last `size` embeddings with their ids."""

    def __init__(self, size: int) -> None:
        self.size, self.rows = size, []

    def push(self, z: list[Tensor], ids: list[int]) -> None:
        self.rows += [(i, row.detach()) for view in z for i, row in zip(ids, view, strict=True)]
        self.rows = self.rows[-self.size :]

    def terms(self, anchor: Tensor, i: int, tau: float) -> list[float]:
        return [math.exp(float(torch.dot(anchor.detach(), row)) / tau) for other, row in self.rows if other != i]


class SlowGlobalLoss:
    """SogCLR in float64, with u itself (no logarithm) as the state."""

    def __init__(self, tau: float, gamma, convention: str = "per_view") -> None:
        self.tau, self.gamma, self.convention = tau, gamma, convention
        self.u: dict[int, float] = {}

    def blend(self, old: float | None, g: float) -> float:
        if old is None:
            return g
        gamma = self.gamma(old) if callable(self.gamma) else self.gamma
        return (1 - gamma) * old + gamma * g

    def __call__(self, *views_and_index: Tensor) -> Tensor:
        *views, index = views_and_index
        z, ids = [unit(v) for v in views], index.tolist()
        total, stored = torch.zeros((), dtype=torch.float64), defaultdict(list)
        for row, i in enumerate(ids):
            g = [batch_normalizer(z, ids, view, row, self.tau) for view in range(len(z))]
            fresh = [float(x.detach()) for x in g]
            if self.convention == "per_view":
                u = [self.blend(self.u.get(i), x) for x in fresh]
            else:
                u = [self.blend(self.u.get(i), sum(fresh) / len(z))] * len(z)
            stored[i].append(sum(u) / len(z))
            for view, (x, value) in enumerate(zip(g, u, strict=True)):
                total = total - mean_positive(z, view, row) + self.tau * (x / value + math.log(value) - 1)
        self.u |= {i: sum(values) / len(values) for i, values in stored.items()}
        return total / (len(z) * len(ids))


class SlowNeural:
    """The global loss with nu = log(eps + mean over prototypes of exp(z . c / tau)); the prototypes are trained by it."""

    def __init__(self, tau: float, prototypes: int, dim: int, restart: int, eps: float = 1e-8) -> None:
        self.tau, self.restart, self.eps, self.step, self.ready = tau, restart, eps, 0, False
        self.c = torch.zeros(prototypes, dim, dtype=torch.float64, requires_grad=True)

    def __call__(self, *views_and_index: Tensor) -> Tensor:
        *views, index = views_and_index
        z, ids = [unit(v) for v in views], index.tolist()
        c, total = self.c.clone(), torch.zeros((), dtype=torch.float64)
        for row in range(len(ids)):
            for view in range(len(z)):
                g = batch_normalizer(z, ids, view, row, self.tau)
                value = g.detach()
                if self.ready:
                    anchor = z[view][row].detach()
                    value = self.eps + torch.stack([torch.exp(anchor @ k / self.tau) for k in c]).mean()
                total = total - mean_positive(z, view, row) + self.tau * (g / value + torch.log(value) - 1)
        rows = torch.cat(z).detach()
        since = self.step if not self.ready else self.step % self.restart
        with torch.no_grad():
            for k, row in enumerate(rows, start=since * len(rows)):
                if k < len(self.c):
                    self.c[k] = row
        self.step += 1
        self.ready = self.step * len(rows) >= len(self.c)
        return total / (len(z) * len(ids))


class SlowMoCo:
    """InfoNCE of z0 against z1, with the other keys of the batch and a queue as negatives."""

    def __init__(self, tau: float, queue: int) -> None:
        self.tau, self.queue = tau, SlowQueue(queue)

    def __call__(self, z0: Tensor, z1: Tensor, index: Tensor) -> Tensor:
        queries, keys, ids = unit(z0), unit(z1).detach(), index.tolist()
        rows, total = [*zip(ids, keys, strict=True), *self.queue.rows], torch.zeros((), dtype=torch.float64)
        for query, key, i in zip(queries, keys, ids, strict=True):
            positive = torch.exp(query @ key / self.tau)
            negatives = sum(torch.exp(query @ row / self.tau) for other, row in rows if other != i)
            total = total - torch.log(positive / (positive + negatives))
        self.queue.push([keys], ids)
        return total / len(ids)


def slow_ntxent(*views_and_index: Tensor, tau: float) -> Tensor:
    *views, index = views_and_index
    z, ids = [unit(v) for v in views], index.tolist()
    total = torch.zeros((), dtype=torch.float64)
    for row, i in enumerate(ids):
        others = len(z) * sum(other != i for other in ids)
        for view in range(len(z)):
            negatives = others * batch_normalizer(z, ids, view, row, tau)
            of_pairs = [torch.exp(s / tau) for s in positives(z, view, row)]
            total = total - sum(torch.log(e / (e + negatives)) for e in of_pairs) / len(of_pairs)
    return total / (len(z) * len(ids))


def slow_decoupled(*views_and_index: Tensor, tau: float) -> Tensor:
    *views, index = views_and_index
    z, ids = [unit(v) for v in views], index.tolist()
    total = torch.zeros((), dtype=torch.float64)
    for row, i in enumerate(ids):
        others = len(z) * sum(other != i for other in ids)
        for view in range(len(z)):
            g = batch_normalizer(z, ids, view, row, tau)
            total = total - mean_positive(z, view, row) / tau + torch.log(others * g)
    return total / (len(z) * len(ids))


def exact_objective(z: Tensor, tau: float) -> float:
    """F2 over the whole data set, from embeddings (2, n, D): mean of -s + tau log of the mean over views of g."""
    views = [unit(z[0]), unit(z[1])]
    ids = list(range(z.shape[1]))
    total = 0.0
    for row in ids:
        g = sum(float(batch_normalizer(views, ids, v, row, tau)) for v in range(2)) / 2
        total += -float(torch.dot(views[0][row], views[1][row])) + tau * math.log(g)
    return total / len(ids)


def check_finite_on_near_duplicates(loss, dtype):
    """Step a loss of 8 samples of width 16 with rows that are all but the same; value and gradient stay finite."""
    base = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    z = (base[:1] + 1e-3 * base).to(dtype).requires_grad_()
    for step in range(5):
        value = loss(z if step % 2 else -z, z, torch.arange(8))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(z.grad).all()
        assert value.dtype == torch.float32


class SlowPairs:
    """Losses on pairs, whose candidates are what no id, no known pair and no repetition excludes; u itself is the state.

    pairs: the known ones, as a set.  kind: `global` (u with gamma), `clip` or `siglip`.
    """

    def __init__(self, kind, tau, gamma=1.0, pairs=(), same_kind=False, share=False, bias=0.0):
        self.kind, self.tau, self.gamma, self.bias = kind, tau, gamma, bias
        self.pairs = set(pairs) | ({(b, a) for a, b in pairs} if same_kind else set())
        self.same_kind, self.share, self.u = same_kind, share, ({}, {})

    def matches(self, first: int, second: int) -> bool:
        return (first, second) in self.pairs or (self.same_kind and first == second)

    def negatives(self, a: int, x_ids, y_ids, hard_ids) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """The rows that are negatives of image a, the rows that are negatives of text a, the hard negatives of image a."""
        others = [b for b in range(len(x_ids)) if x_ids[b] != x_ids[a] and y_ids[b] != y_ids[a]]
        rows = [b for b in others if not self.matches(x_ids[a], y_ids[b])]
        back = [b for b in others if not self.matches(x_ids[b], y_ids[a])]
        hard, seen = [], set(y_ids)
        for row in range(len(x_ids)) if self.share else [a]:
            for h, t in enumerate(hard_ids[row]):
                if t >= 0 and t not in seen and not self.matches(x_ids[a], t):
                    seen.add(t)
                    hard.append((row, h))
        return rows, back, hard

    def __call__(self, x, y, index, text_index, hard=None, hard_index=None) -> Tensor:
        x, y, ids = unit(x), unit(y), (index.tolist(), text_index.tolist())
        hard_ids = [[]] * len(x) if hard_index is None else hard_index.tolist()
        sims: tuple[list[list[Tensor]], ...] = ([], [])
        for a in range(len(x)):
            rows, back, more = self.negatives(a, *ids, hard_ids)
            of_hard = [torch.dot(x[a], unit(hard[row, h : h + 1])[0]) for row, h in more]
            sims[0].append([torch.dot(x[a], y[b]) for b in rows] + of_hard)
            sims[1].append([torch.dot(y[a], x[b]) for b in back])
        s = [torch.dot(x[a], y[a]) for a in range(len(x))]
        if self.kind == "siglip":
            terms = [torch.log(torch.sigmoid(v / self.tau + self.bias)) for v in s]
            terms += [torch.log(torch.sigmoid(-(v / self.tau + self.bias))) for row in sims[0] for v in row]
            return -sum(terms) / len(x)
        values = [self.tower(tower, ids[tower], s, sims[tower]) for tower in range(2)]
        return sum(values) / (2 * len(x))

    def tower(self, tower: int, ids: list[int], s: list[Tensor], sims: list[list[Tensor]]) -> Tensor:
        if self.kind == "clip":
            positive = [torch.exp(v / self.tau) for v in s]
            others = [sum(torch.exp(v / self.tau) for v in row) for row in sims]
            return -sum(torch.log(p / (p + o)) for p, o in zip(positive, others, strict=True))
        found = [torch.stack([torch.exp(v / self.tau) for v in row]).mean() if row else None for row in sims]
        known = [float(g.detach()) for g in found if g is not None]
        mean = torch.tensor(sum(known) / len(known) if known else 1.0, dtype=torch.float64)
        total, stored = torch.zeros((), dtype=torch.float64), defaultdict(list)
        for i, v, g in zip(ids, s, [mean if g is None else g for g in found], strict=True):
            old, new = self.u[tower].get(i), float(g.detach())
            u = new if old is None else (1 - self.gamma) * old + self.gamma * new
            stored[i].append(u)
            total = total - v + self.tau * (g / u + math.log(u) - 1)
        self.u[tower].update({i: sum(v) / len(v) for i, v in stored.items()})
        return total
