"""Two more rules on many runs at once, continued from rules.py: a term that holds negatives' similarities together, and a ratio to a queue's mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .averages import MovingAverage, Seen, mix
from .rules import Queue


class Dispersed(MovingAverage):
    """SogCLR plus  lam x the mean over the negatives b of (s_ab + 1/(n-1))^2,  which reduces the variance of their similarities (VRN).

    -1/(n-1) is what all of n embeddings have to each other where they are spread evenly.
    """

    def __init__(self, runs: int, n: int, batch: int, tau: float, lam: float = 1.0, end: float = 0.9) -> None:
        super().__init__(runs, n, batch, tau, end)
        self.lam, self.floor = lam, 1 / (n - 1)
        self.memory = self.push

    def push(self, seen: Seen, push: Tensor, w: Tensor) -> Tensor:
        """Add the term's gradient: of a as an anchor and, which is the same, as a negative."""
        sim = torch.bmm(seen.z, seen.z.transpose(1, 2)) + self.floor
        ids = seen.index.repeat(1, 2)
        sim.masked_fill_(ids[:, :, None] == ids[:, None, :], 0.0)
        return push + self.lam * 4 / (seen.z.shape[1] - 2) * torch.bmm(sim, seen.z)


class Ratio(Queue):
    """nu_a = log h(z_a) + log rho_i,  h(z) the mean of exp(z.q / tau) over a queue, rho_i a running mean of ĝ_a / h(z_a).

    The queue follows the encoder from step to step and is noisy, rho is what it lacks of g, which changes slowly.
    """

    def __call__(self, seen: Seen) -> tuple[Tensor, float]:
        if self.zq is None:
            self.zq = torch.zeros(len(seen.z), self.size, seen.z.shape[2])
        log_h, k = seen.log_g, self.filled
        if k > 0:
            sim = torch.bmm(seen.z, self.zq[:, :k].transpose(1, 2)) / self.tau
            sim.masked_fill_(seen.index.repeat(1, 2)[:, :, None] == self.idq[:, None, :k], -math.inf)
            log_h = sim.logsumexp(dim=2) - (sim > -math.inf).sum(dim=2).log()
        rho = mix(self.old(seen), seen.log_g - log_h, self.gamma(seen))
        self.store(seen, rho)
        self.enqueue(seen)
        return log_h + rho, 1.0
