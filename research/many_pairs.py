"""Many trainings of two small towers at once: every (method, learning rate, seed) of one batch size in one program.

As many_runs.py, for image-text pairs: a leading dimension R of runs, schedule and optimizer of its own are shared. Each
tower is a multilayer perceptron d -> 128 -> 128 -> 64 without normalisation layers. The losses are the library's pure
functions (sogclr.losses.functional), which take the dimension R as they are; gradients come by autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from sogclr.evaluation.retrieval import retrieval
from sogclr.losses import functional as F

from .averages import cosine
from .many_runs import Job, forward, init_weights, one_adam, share_of_peak

WIDTHS = (128, 128, 64)
TAU = 0.1
TEMPERATURE_RATES = {"per-sample": 0.01, "global": 2e-4}  # the library's, as are the bounds
BOUNDS = {"per-sample": (0.05, 0.7), "global": (0.01, 1.0)}
SIGMOID_RATE = 1e-3


@dataclass(frozen=True)
class PairProblem:
    """n pairs to train on, each image in V fixed views, and pairs that are held out.

    views: (n, V, d), texts: (n, e), float32.  held: name of a part -> its images (m, d), as they are, and texts (m, e).
    """

    name: str
    views: Tensor
    texts: Tensor
    held: dict[str, tuple[Tensor, Tensor]]


@dataclass
class Seen:
    """sim (R, B, B), image a against text b; index (B of each run) (R, B); share of the training that is done."""

    sim: Tensor
    index: Tensor
    share: float

    def log_g(self, tau: float | Tensor) -> Tensor:
        """Return (2, R, B): the images' anchors, then the texts'. tau: a float, (R, 1), or (2, R, B)."""
        of_images, of_texts = (tau, tau)
        if isinstance(tau, Tensor):
            of_images, of_texts = (tau[0], tau[1]) if tau.ndim == 3 else (tau, tau)
            of_images, of_texts = of_images[:, :, None], of_texts[:, None, :]
        batch = self.sim.shape[1]
        own = torch.eye(batch, dtype=torch.bool)
        to_texts = (self.sim / of_images).masked_fill(own, -math.inf).logsumexp(dim=2)
        to_images = (self.sim / of_texts).masked_fill(own, -math.inf).logsumexp(dim=1)
        return torch.stack([to_texts, to_images]) - math.log(batch - 1)

    @property
    def s_pos(self) -> Tensor:
        return self.sim.diagonal(dim1=1, dim2=2)


class Clip:
    """CLIP's loss at a constant temperature."""

    parameters: tuple[Tensor, ...] = ()
    rate = 0.0

    def __init__(self, runs: int, n: int) -> None:
        pass

    def value(self, seen: Seen) -> Tensor:
        """Return (R, B), one value a pair."""
        negatives = torch.tensor(seen.sim.shape[1] - 1.0)
        return F.ntxent_loss(seen.s_pos, seen.log_g(TAU), negatives, TAU)

    def after(self) -> None:
        """Do what follows the backward pass, beside the step of Adam."""


class SigLip(Clip):
    """SigLIP's loss; scale and bias of each run are learned, from 10 and -10."""

    rate = SIGMOID_RATE

    def __init__(self, runs: int, n: int) -> None:
        log_scale, bias = torch.full((runs, 1, 1), -math.log(TAU)), torch.full((runs, 1, 1), -10.0)
        self.parameters = (log_scale.requires_grad_(), bias.requires_grad_())

    def value(self, seen: Seen) -> Tensor:
        log_scale, bias = self.parameters
        logits = log_scale.exp() * seen.sim + bias
        own = torch.eye(seen.sim.shape[1], dtype=torch.bool)
        return -logsigmoid(torch.where(own, logits, -logits)).sum(dim=2)


class SogClr(Clip):
    """The two-way global contrastive loss. gamma from `start` to `end` over the first half; tau constant or learned."""

    def __init__(
        self,
        runs: int,
        n: int,
        end: float = 0.9,
        start: float | None = None,
        temperature: str = "constant",
        rho: float = 0.3,
    ) -> None:
        self.end, self.start = end, end if start is None else start
        self.kind, self.rho = temperature, rho
        self.log_u = torch.full((2, runs, n), -math.inf)
        if temperature == "global":
            self.rate = TEMPERATURE_RATES[temperature]
            self.parameters = (torch.full((runs, 1), TAU).requires_grad_(),)
        elif temperature == "per-sample":
            self.table = torch.full((2, runs, n), TAU)

    def tau(self, index: Tensor) -> float | Tensor:
        """Return a float, (R, 1), or (2, R, B) of which the gradient is kept."""
        if self.kind == "global":
            return self.parameters[0]
        if self.kind == "per-sample":
            self.index, self.drawn = index.expand(2, -1, -1), self.table.gather(2, index.expand(2, -1, -1))
            return self.drawn.requires_grad_()
        return TAU

    def value(self, seen: Seen) -> Tensor:
        tau = self.tau(seen.index)
        log_g, where = seen.log_g(tau), seen.index.expand(2, -1, -1)
        gamma = torch.tensor(cosine(self.start, self.end, 0.5, seen.share))
        nu = F.moving_average(self.log_u.gather(2, where), log_g.detach(), gamma)
        self.log_u.scatter_(2, where, nu)
        values = F.dual_loss(seen.s_pos, log_g, nu, tau)
        if isinstance(tau, Tensor):
            values = values + self.rho * (tau.mean(dim=0) if tau.ndim == 3 else tau)
        return values

    @torch.no_grad()
    def after(self) -> None:
        """Take a step of plain gradient descent with the temperatures of the batch's anchors, each by its own part of the mean."""
        if self.kind == "per-sample":
            batch = self.drawn.shape[2]
            moved = self.drawn - TEMPERATURE_RATES[self.kind] * 2 * batch * self.drawn.grad
            self.table.scatter_(2, self.index, moved.clamp_(*BOUNDS[self.kind]))
        elif self.kind == "global":
            self.parameters[0].clamp_(*BOUNDS[self.kind])


METHODS = {"clip": Clip, "siglip": SigLip, "sogclr": SogClr}


class ManyPairs:
    """Runs in progress; jobs of one rule must be adjacent."""

    def __init__(self, problem: PairProblem, jobs: list[Job], batch: int, epochs: int) -> None:
        self.problem, self.jobs, self.batch = problem, jobs, batch
        self.n, self.views = problem.views.shape[:2]
        self.table = problem.views.flatten(0, 1)  # row i V + v
        self.steps_per_epoch = self.n // batch
        self.total = self.steps_per_epoch * epochs
        seeds = [j.seed for j in jobs]
        towers = (self.table.shape[1], seeds), (problem.texts.shape[1], [1_000 + s for s in seeds])
        self.towers = [[w.requires_grad_() for w in init_weights(d, s, WIDTHS)] for d, s in towers]
        self.weights = self.towers[0] + self.towers[1]
        for w in self.weights:
            w.grad = torch.zeros_like(w)
        self.optimizer = one_adam(jobs, self.weights)
        self.seeds = sorted(set(seeds))
        self.which = torch.tensor([self.seeds.index(s) for s in seeds])
        self.generators = [torch.Generator().manual_seed(10_000 + s) for s in self.seeds]
        self.methods: list[tuple[slice, Clip]] = []
        for start in [k for k in range(len(jobs)) if k == 0 or jobs[k].rule != jobs[k - 1].rule]:
            stop = next((k for k in range(start, len(jobs)) if jobs[k].rule != jobs[start].rule), len(jobs))
            options = {k: v for k, v in jobs[start].rule.items() if k != "rule"}
            method = METHODS[jobs[start].rule["rule"]](stop - start, self.n, **options)
            self.methods.append((slice(start, stop), method))
        own = [{"params": m.parameters, "lr": m.rate} for _, m in self.methods if m.parameters]
        self.loss_optimizer = torch.optim.Adam(own) if own else None
        self.step = 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return index and rows of the table of views, (R, B); an epoch visits each pair once, in one of its V views."""
        at = self.step % self.steps_per_epoch
        if at == 0:
            self.order = torch.stack([torch.randperm(self.n, generator=g) for g in self.generators])
            self.drawn = torch.stack([torch.randint(self.views, (self.n,), generator=g) for g in self.generators])
        part = slice(at * self.batch, (at + 1) * self.batch)
        index = self.order[:, part]
        return index[self.which], (index * self.views + self.drawn[:, part])[self.which]

    def values(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Map (R, B, D) unit rows of images and of texts, (R, B) ids -> (R, B), by each run's own method."""
        sim, share = torch.bmm(x, y.transpose(1, 2)), self.step / self.total
        return torch.cat([m.value(Seen(sim[part], index[part], share)) for part, m in self.methods])

    def train_step(self) -> None:
        index, rows = self.next_batch()
        for w in self.weights:
            w.grad.zero_()
        if self.loss_optimizer is not None:
            self.loss_optimizer.zero_grad()
        x = normalize(forward(self.towers[0], self.table[rows]), dim=2)
        y = normalize(forward(self.towers[1], self.problem.texts[index]), dim=2)
        self.values(x, y, index).mean(dim=1).sum().backward()
        share = share_of_peak(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.step()
        if self.loss_optimizer is not None:
            self.loss_optimizer.step()
        for _, method in self.methods:
            method.after()
        self.step += 1

    @torch.no_grad()
    def embed(self, run: int, tower: int, rows: Tensor) -> Tensor:
        """Map (N, d) -> (N, D) unit rows; tower 0 is the images', 1 the texts'."""
        return normalize(forward([w[run : run + 1] for w in self.towers[tower]], rows[None]), dim=2)[0]

    def result(self, run: int) -> dict[str, Any]:
        """Return the exact objective of the training pairs, and recall on the parts that are held out."""
        images = self.embed(run, 0, self.table).view(self.n, self.views, -1).transpose(0, 1)
        found: dict[str, Any] = {"objective": exact_objective(images, self.embed(run, 1, self.problem.texts), TAU)}
        for name, (x, y) in self.problem.held.items():
            x, y = self.embed(run, 0, x), self.embed(run, 1, y)
            rows = torch.arange(len(x)).numpy()
            scores = retrieval(x, y, rows, rows)
            found |= {f"{name}_{k}": v for k, v in scores.items() if k.endswith(("_r1", "_r10"))}
        return found


@torch.no_grad()
def exact_objective(images: Tensor, texts: Tensor, tau: float, rows: int = 128) -> float:
    """Return the mean of -s, plus tau times the mean over both kinds of anchors of log g: (V, n, D), (n, D) unit rows.

    The negatives of image view (v, i) are the n - 1 other texts; those of text i all V views of the n - 1 other images.
    """
    views, n, _ = images.shape
    own = torch.einsum("vnd,nd->vn", images, texts)
    of_texts, log_g = torch.zeros(n), torch.empty(views, n)
    for v in range(views):
        for k in range(0, n, rows):
            e = (((images[v, k : k + rows] @ texts.T) - 1) / tau).exp_()
            e[torch.arange(len(e)), torch.arange(k, k + len(e))] = 0.0
            of_texts += e.sum(dim=0)
            log_g[v, k : k + rows] = (e.sum(dim=1) / (n - 1)).log() + 1 / tau
    text_log_g = (of_texts / (views * (n - 1))).log() + 1 / tau
    return float(-own.double().mean() + tau / 2 * (log_g.double().mean() + text_log_g.double().mean()))
