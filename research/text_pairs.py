"""Pairs of texts, two bags of features: a tower light enough to train on 113,659 pairs in a minute on one core.

A text is the set of its words, and on the side of the words also of their pieces of three letters, each hashed to a row
of one table; its embedding is the sum of its rows, scaled to norm one. A step reads and writes the rows of its texts
only: Adam's moments of the others stand still, as in `torch.optim.SparseAdam`. The losses are the library's functions.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from sogclr.data.wordnet import Synset
from sogclr.evaluation.retrieval import ranks
from sogclr.kernels import log_sum_between
from sogclr.losses import functional as F

from .averages import cosine
from .many_runs import Job, share_of_peak

ROWS, WIDTH, TAU = 2**17, 128, 0.07
SAMPLE, ANCHORS = (
    2000,
    1000,
)  # training definitions that look for their words; pairs that the exact objective is taken of
BETAS, EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Bags:
    """The features of texts: text i has `ids[start[i] : start[i] + length[i]]`."""

    ids: Tensor
    start: Tensor
    length: Tensor

    def take(self, rows: Tensor) -> Bags:
        """Return the bags of the texts `rows`, in that order, one after the other."""
        length = self.length[rows]
        start = length.cumsum(0) - length
        places = torch.arange(int(length.sum())) + torch.repeat_interleave(self.start[rows] - start, length)
        return Bags(self.ids[places], start, length)

    def embed(self, table: Tensor) -> Tensor:
        """Return the sums of the rows of the table, (N, D)."""
        return embedding_bag(self.ids, table, self.start, mode="sum")


@dataclass(frozen=True)
class TextProblem:
    """Pairs to train on and pairs held out; text 2 i is the definition of pair i, text 2 i + 1 its words."""

    train: Bags
    test: Bags
    train_texts: tuple[np.ndarray, np.ndarray]
    """Of each pair, which of the different definitions and which of the different words it has."""
    test_texts: tuple[np.ndarray, np.ndarray]

    @property
    def pairs(self) -> int:
        return len(self.train.start) // 2


def text_problem(train: list[Synset], test: list[Synset]) -> TextProblem:
    return TextProblem(bags_of(train), bags_of(test), different(train), different(test))


def different(pairs: list[Synset]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pair a number of its definition and one of its words, the same for the same text."""
    definitions, words = (np.unique(column, return_inverse=True)[1] for column in zip(*pairs, strict=True))
    return definitions, words


def features(text: str, pieces: bool) -> set[int]:
    """Return the rows of a text's words, and of their pieces of three letters."""
    words = set(re.findall(r"[a-z0-9']+", text.lower()))
    if pieces:
        words |= {f"#{word[k : k + 3]}" for word in {f"<{word}>" for word in words} for k in range(len(word) - 2)}
    return {zlib.crc32(word.encode()) % ROWS for word in words}


def bags_of(pairs: list[Synset]) -> Bags:
    texts = [(text, pieces) for pair in pairs for text, pieces in ((pair.definition, False), (pair.word, True))]
    found = [sorted(features(text, pieces)) for text, pieces in texts]
    length = torch.tensor([len(one) for one in found])
    return Bags(torch.tensor([row for one in found for row in one]), length.cumsum(0) - length, length)


# --------------------------------------------------------------------------------------------------------- the training
class Training:
    """Runs of one seed side by side: one first table, one order of the pairs, and rates and losses of their own."""

    def __init__(self, problem: TextProblem, jobs: list[Job], batch: int, epochs: int) -> None:
        """Begin `jobs` of one seed, those of CLIP before the others."""
        self.problem, self.jobs, self.batch, self.step = problem, jobs, batch, 0
        self.steps_per_epoch = problem.pairs // batch
        self.total = self.steps_per_epoch * epochs
        first = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(jobs[0].seed)) / WIDTH**0.5
        # of each row: all runs' weights, then Adam's first moments, then its second
        self.state = torch.empty(ROWS, 3 * len(jobs) * WIDTH).fill_(0.0)  # zeros would take the memory page by page
        self.state[:, : len(jobs) * WIDTH] = first.repeat(1, len(jobs))
        self.generator = torch.Generator().manual_seed(10_000 + jobs[0].seed)
        self.lr = torch.tensor([job.lr for job in jobs]).repeat_interleave(WIDTH)
        self.clip = sum(job.rule.get("rule") == "clip" for job in jobs)
        self.log_u = torch.full((2, len(jobs) - self.clip, problem.pairs), -math.inf)
        self.local = torch.arange(batch)

    def table(self, run: int) -> Tensor:
        """Return the weights of one run, (ROWS, D)."""
        return self.state[:, run * WIDTH : (run + 1) * WIDTH].contiguous()

    def next_batch(self) -> tuple[Tensor, Bags]:
        """Return the ids of the pairs, (B,), and the bags of their 2B texts; an epoch visits each pair once."""
        at, texts = self.step % self.steps_per_epoch, 2 * self.batch
        if at == 0:
            self.order = torch.randperm(self.problem.pairs, generator=self.generator)
            self.order = self.order[: self.steps_per_epoch * self.batch]
            self.epoch = self.problem.train.take(torch.stack([2 * self.order, 2 * self.order + 1], dim=1).flatten())
            self.bounds = [*self.epoch.start[::texts].tolist(), len(self.epoch.ids)]
        start, length = (t[at * texts : (at + 1) * texts] for t in (self.epoch.start, self.epoch.length))
        ids = self.epoch.ids[self.bounds[at] : self.bounds[at + 1]]
        return self.order[at * self.batch : (at + 1) * self.batch], Bags(ids, start - self.bounds[at], length)

    def gammas(self) -> Tensor:
        """Return the rates of the runs that have one, (runs, 1)."""
        rules, share = [job.rule for job in self.jobs[self.clip :]], self.step / self.total
        return torch.tensor([[cosine(rule.get("start", rule["end"]), rule["end"], 0.5, share)] for rule in rules])

    def values(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Return the losses of the pairs, (R, B), of (R, B, D) unit rows, and update the normalizers."""
        sums = [torch.stack(log_sum_between(a, b, self.local, self.local, TAU)) for a, b in zip(x, y, strict=True)]
        log_g = torch.stack(sums, dim=1) - math.log(self.batch - 1)
        s_pos = F.positive_similarity(x.flatten(0, 1), y.flatten(0, 1)).view(len(x), -1)
        of_clip = F.ntxent_loss(s_pos[: self.clip], log_g[:, : self.clip], self.batch - 1, TAU)
        if self.clip == len(x):
            return of_clip
        log_g = log_g[:, self.clip :]
        nu = F.moving_average(self.log_u[:, :, index], log_g.detach(), self.gammas())
        self.log_u[:, :, index] = nu
        return torch.cat([of_clip, F.dual_loss(s_pos[self.clip :], log_g, nu, TAU)])

    def train_step(self) -> None:
        index, bags = self.next_batch()
        ordered, order = bags.ids.sort()
        rows, place, count = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        state = self.state.index_select(0, rows)
        own = torch.empty_like(order)
        own[order] = place  # each feature's place among `rows`
        weights = state.chunk(3, dim=1)[0].contiguous()
        z = Bags(own, bags.start, bags.length).embed(weights).requires_grad_()
        x, y = normalize(z.view(self.batch, 2, -1, WIDTH), dim=3).permute(1, 2, 0, 3)
        self.values(x, y, index).mean(dim=1).sum().backward()
        texts = torch.repeat_interleave(bags.length)[order]
        grad = embedding_bag(texts, z.grad, count.cumsum(0) - count, mode="sum")  # a row's: the sum over its texts
        self.step += 1
        adam_(state, grad, self.lr * share_of_peak(self.step - 1, self.total), self.step)
        self.state.index_copy_(0, rows, state)


def adam_(state: Tensor, grad: Tensor, lr: Tensor, step: int) -> None:
    """Take Adam's step numbered `step`, from 1, in place.

    Args:
        state: (U, 3 K) weights and both moments of the rows that have a gradient.
        grad: (U, K).
        lr: (K,).
        step: 1 for the first.
    """
    weight, first, second = state.chunk(3, dim=1)
    first.lerp_(grad, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    size = lr * (-math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step))
    weight.addcmul_(first / second.sqrt().add_(EPS), size)


# ------------------------------------------------------------------------------------------------------ what is measured
def held_out(table: Tensor, problem: TextProblem) -> dict[str, Any]:
    """Return recall at 1 and the mean reciprocal rank among the held-out pairs, both ways; of equal texts any counts.

    `test_hits` has a digit a pair: 0, 1 or 2 for how many of its texts find the other.
    """
    x, y = sides(problem.test, table, problem.test_texts)
    definitions, words = problem.test_texts
    of_definitions, of_words = ranks(x, y, definitions, words), ranks(y, x, words, definitions)
    hits = (of_definitions < 1)[definitions].astype(int) + (of_words < 1)[words]
    found: dict[str, Any] = {"test_hits": "".join(map(str, hits))}
    for name, rank in (("definition_to_word", of_definitions), ("word_to_definition", of_words)):
        found |= {f"test_{name}_r1": float((rank < 1).mean()), f"test_{name}_mrr": float((1 / (1 + rank)).mean())}
    return found


def sides(bags: Bags, table: Tensor, texts: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return the unit rows of the different definitions and of the different words, each in the order of its numbers."""
    z = normalize(bags.embed(table), dim=1)
    found = [torch.empty(int(numbers.max()) + 1, WIDTH) for numbers in texts]
    for side, (rows, numbers) in enumerate(zip(found, texts, strict=True)):
        rows[torch.from_numpy(numbers)] = z[side::2]
    return found[0], found[1]


def in_training(table: Tensor, problem: TextProblem) -> dict[str, float]:
    """Return how many of a fixed sample of training definitions find their words among all, and the exact objective."""
    definitions, words = problem.train_texts
    x, y = sides(problem.train, table, problem.train_texts)
    sample = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:SAMPLE]
    place = np.full(len(x), -1)
    place[sample.numpy()] = np.arange(len(sample))
    asked = place[definitions]
    rank = ranks(x[sample], y, asked[asked >= 0], words[asked >= 0])
    z = normalize(problem.train.embed(table), dim=1)
    anchors = torch.randperm(problem.pairs, generator=torch.Generator().manual_seed(2))[:ANCHORS]
    return {"train_r1": float((rank < 1).mean()), "objective": exact_objective(z[0::2], z[1::2], anchors)}


def exact_objective(x: Tensor, y: Tensor, anchors: Tensor, rows: int = 50) -> float:
    """Return the two-way objective of the pairs `anchors` among all, of (n, D) unit rows.

    -s + tau times the mean over both anchors of log g, the negatives being the other side of all n - 1 other pairs.
    """
    total = -(x[anchors] * y[anchors]).sum(dim=1).double().mean()
    for queries, candidates in ((x, y), (y, x)):
        for part in anchors.split(rows):
            sim = (queries[part] @ candidates.T).div_(TAU)
            sim[torch.arange(len(part)), part] = -math.inf
            total += TAU / 2 * (sim.logsumexp(dim=1) - math.log(len(x) - 1)).double().sum() / len(anchors)
    return float(total)


def run(
    problem: TextProblem, jobs: list[Job], batch: int, epochs: int, training: bool = True
) -> Iterator[dict[str, Any]]:
    """Train the jobs of one seed side by side; yield what is measured of each, of the training pairs where asked for."""
    runs = Training(problem, jobs, batch, epochs)
    while runs.step < runs.total:
        runs.train_step()
    for k in range(len(jobs)):
        table = runs.table(k)
        yield held_out(table, problem) | (in_training(table, problem) if training else {})
