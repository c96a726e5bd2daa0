"""Many small trainings at once: every (rule, learning rate, seed) of one batch size in one batched program.

A step of a tiny encoder is all overhead; stacked along a leading dimension R the same step costs a tenth. All runs
share the schedule (warm-up of a twentieth, then cosine to 0); runs of one seed share weights, order and views.
Encoder: d -> 128 -> 64 (features), head 64 -> 64 -> 32, ReLU, no normalisation layers, so that the exact objective
needs no word about batch statistics. Adam. The gradient of the loss is METHOD's closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .averages import Seen
from .problems import Problem
from .rules import build_rule

WIDTHS = (128, 64, 64, 32)
FEATURES = 2  # features are the activations after this many layers


@dataclass
class Job:
    """One run."""

    rule: dict[str, Any]
    lr: float
    seed: int


def init_weights(d: int, seeds: list[int], widths: tuple[int, ...] = WIDTHS) -> list[Tensor]:
    """Return He-normal weights and zero biases: W (R, in, out), b (R, 1, out), alike for the same seed."""
    weights: list[Tensor] = []
    sizes = (d, *widths)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for a, b in pairwise(sizes):
        weights.append(torch.stack([torch.randn(a, b, generator=g) * math.sqrt(2 / a) for g in generators]))
        weights.append(torch.zeros(len(seeds), 1, b))
    return weights


def forward(weights: list[Tensor], x: Tensor, layers: int | None = None) -> Tensor:
    """Map (R, N, d) -> (R, N, width of the last layer asked for; of the last of all when left out)."""
    depth = len(weights) // 2
    for k in range(layers or depth):
        x = torch.baddbmm(weights[2 * k + 1], x, weights[2 * k])
        if k < depth - 1:
            x = x.relu()
    return x


def one_adam(jobs: list[Job], weights: list[Tensor]) -> torch.optim.Optimizer:
    """Return Adam with one parameter group a learning rate, each holding slices that share memory with the stacked weights, (R, ...)."""
    groups: dict[float, list[Tensor]] = {}
    start = 0
    while start < len(jobs):
        stop = start
        while stop < len(jobs) and jobs[stop].lr == jobs[start].lr:
            stop += 1
        for w in weights:
            part = w.detach()[start:stop].requires_grad_()
            part.grad = w.grad[start:stop]
            groups.setdefault(jobs[start].lr, []).append(part)
        start = stop
    return torch.optim.Adam([{"params": p, "lr": lr, "peak": lr} for lr, p in groups.items()], fused=True)


def share_of_peak(step: int, total: int) -> float:
    """Return the schedule's share of the peak rate: warm-up of a twentieth, then cosine to 0."""
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class ManyRuns:
    """Runs in progress. Jobs of one rule must be adjacent; `rules` holds (slice, rule)."""

    def __init__(self, problem: Problem, jobs: list[Job], batch: int, epochs: int, temperature: float = 0.1) -> None:
        self.problem, self.jobs, self.batch, self.tau = problem, jobs, batch, temperature
        self.n, self.views = problem.views.shape[:2]
        self.table = problem.views.flatten(0, 1)  # row i V + v
        self.steps_per_epoch = self.n // batch
        self.total = self.steps_per_epoch * epochs
        self.weights = [w.requires_grad_() for w in init_weights(self.table.shape[1], [j.seed for j in jobs])]
        for w in self.weights:
            w.grad = torch.zeros_like(w)
        self.optimizer = one_adam(jobs, self.weights)
        self.seeds = sorted({j.seed for j in jobs})
        self.which = torch.tensor([self.seeds.index(j.seed) for j in jobs])
        self.generators = [torch.Generator().manual_seed(10_000 + s) for s in self.seeds]
        self.rules = []
        self.watchers: list[tuple[slice, Any]] = []  # rules that see every batch and change nothing
        start = 0
        while start < len(jobs):
            stop = start
            while stop < len(jobs) and jobs[stop].rule == jobs[start].rule:
                stop += 1
            rule = build_rule(jobs[start].rule, stop - start, self.n, batch, temperature)
            self.rules.append((slice(start, stop), rule))
            start = stop
        anchors = torch.arange(2 * batch)
        self.masked = (anchors[:, None] - anchors[None, :]) % batch == 0  # itself and its positive
        self.partner = (anchors + batch) % (2 * batch)
        self.step = 0
        self.order = torch.empty(0)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return index (R, B) and rows of the table (R, 2B); an epoch visits each image once, views are two different of V."""
        at = self.step % self.steps_per_epoch
        if at == 0:
            self.order = torch.stack([torch.randperm(self.n, generator=g) for g in self.generators])
            first = torch.stack([torch.randint(self.views, (self.n,), generator=g) for g in self.generators])
            gap = torch.stack([torch.randint(1, self.views, (self.n,), generator=g) for g in self.generators])
            self.drawn = torch.stack([first, (first + gap) % self.views], dim=1)  # (S, 2, n)
        part = slice(at * self.batch, (at + 1) * self.batch)
        index = self.order[:, part]
        rows = (index[:, None] * self.views + self.drawn[:, :, part]).flatten(1)
        return index[self.which], rows[self.which]

    def see(self, z: Tensor, index: Tensor) -> tuple[Seen, Tensor]:
        """Return what the rules may look at, and E_ab / m with zeros where b is no negative, (R, N, N)."""
        sim = torch.bmm(z, z.transpose(1, 2)) / self.tau
        s_pos = sim[:, self.partner, torch.arange(2 * self.batch)] * self.tau
        e = torch.exp(sim).masked_fill_(self.masked, 0.0) / (2 * self.batch - 2)
        return Seen(z, index, s_pos, e.sum(dim=2).log(), self.step / self.total, self.step), e

    def gradient(self, z: Tensor, index: Tensor) -> Tensor:
        """Return dL/dz, (R, N, D), by each run's own rule:  (1/N) { -(c_a + c_p) z_p + (w E + E w) z },  w_a = exp(-nu_a)."""
        seen, e = self.see(z, index)
        out = torch.empty_like(z)
        for part, rule in self.rules:
            out[part], _ = self.dz_of(rule, seen.part(part), e[part])
        for part, rule in self.watchers:
            self.dz_of(rule, seen.part(part), e[part])
        return out

    def dz_of(self, rule: Any, mine: Seen, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return dL/dz, (R, N, D), by one rule, and its nu, (R, N)."""
        nu, c = rule(mine)
        w = torch.exp(-nu)
        push = torch.bmm((w[:, :, None] + w[:, None, :]) * e, mine.z)
        if rule.memory is not None:
            push = rule.memory(mine, push, w)
        positive = mine.z[:, self.partner]
        pull = (c + c[:, self.partner])[:, :, None] * positive if isinstance(c, Tensor) else 2 * c * positive
        return (push - pull) / (2 * self.batch), nu

    def train_step(self) -> None:
        index, rows = self.next_batch()
        for w in self.weights:
            w.grad.zero_()
        z = normalize(forward(self.weights, self.table[rows]), dim=2)
        with torch.no_grad():
            dz = self.gradient(z.detach(), index)
        z.backward(dz)
        share = share_of_peak(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.step()
        self.step += 1

    def run(self, marks: tuple[float, ...] = (1.0,)):  # type: ignore[no-untyped-def]
        """Train to the end; yield the share done at each of `marks`."""
        stops = {max(1, round(m * self.total)): m for m in marks}
        while self.step < self.total:
            self.train_step()
            if self.step in stops:
                yield stops[self.step]

    @torch.no_grad()
    def embeddings(self, run: int) -> Tensor:
        """Return (V, n, D) unit rows of one run."""
        z = normalize(forward([w[run : run + 1] for w in self.weights], self.table[None]), dim=2)[0]
        return z.view(self.n, self.views, -1).transpose(0, 1).contiguous()

    @torch.no_grad()
    def features(self, run: int) -> Tensor:
        """Return (n, 64), what is kept of the encoder, on the clean images."""
        return forward([w[run : run + 1] for w in self.weights], self.problem.clean[None], FEATURES)[0]
