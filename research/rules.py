"""Normalizer estimators on many runs at once, continued from averages.py: mixtures, shrinkage and queues; and all by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .averages import DCL, MovingAverage, Scent, Seen, SimCLR, cosine, mix


def batch_drift(seen: Seen, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which samples were seen before, (R, A), their number and the log of the mean of ĝ/u_old over them, (R, 1)."""
    known = torch.isfinite(old)
    ratio = torch.where(known, seen.log_g - old, -math.inf)
    count = known.sum(dim=1, keepdim=True)
    log_r = torch.where(count > 0, ratio.logsumexp(dim=1, keepdim=True) - count.clamp(min=1).log(), 0.0)
    return known, count, log_r


class Defensive(MovingAverage):
    """Long memory u (gamma), own mixture nu = log((1 - beta) r u_old + beta ĝ): weight bounded by 1/beta.

    r is the common drift of u since it was written: with `drift='batch'` the batch's mean of ĝ/u_old (over the samples
    seen before), with 'ema' its running mean (log, rate `rate`); `follow` multiplies the stored u by r too before it is blended.
    `count`: gamma = max(gamma, 1/(k+1)) with k the visits so far.  `geometric`: mixes logarithms.  `clip`: largest weight.
    `balance`: the positive is weighted too, c = 1 + balance (w - 1): unbiased, as the positive does not depend on the negatives.
    `self_norm`: nu shifted so that the batch's mean weight is one.
    """

    def __init__(
        self,
        runs: int,
        n: int,
        batch: int,
        tau: float,
        end: float = 0.1,
        start: float | None = None,
        over: float = 1.0,
        b_end: float = 0.3,
        b_start: float = 1.0,
        b_over: float = 1.0,
        drift: str = "none",
        rate: float = 0.1,
        follow: bool = False,
        count: bool = False,
        geometric: bool = False,
        clip: float = 0.0,
        self_norm: float = 0.0,
        balance: float = 0.0,
        boost: float = 1.0,
    ) -> None:
        self.balance, self.boost = balance, boost
        super().__init__(runs, n, batch, tau, end, start, over)
        self.b_end, self.b_start, self.b_over = b_end, b_start, b_over
        self.drift, self.rate, self.follow, self.count = drift, rate, follow, count
        self.geometric, self.clip, self.self_norm = geometric, clip, self_norm
        self.visits = torch.zeros(runs, n)
        self.log_r = torch.zeros(runs, 1)

    def common_drift(self, seen: Seen, old: Tensor) -> Tensor:
        """Return (R, 1), the log of the common drift."""
        if self.drift == "none":
            return torch.zeros(len(old), 1)
        _, _, log_r = batch_drift(seen, old)
        if self.drift == "batch":
            return log_r
        self.log_r = self.log_r + self.rate * (log_r - self.log_r)
        return self.log_r

    def __call__(self, seen: Seen) -> tuple[Tensor, Tensor | float]:
        old = self.old(seen)
        moved = old + self.common_drift(seen, old)
        beta = cosine(self.b_start, self.b_end, self.b_over, seen.share)
        if self.geometric:
            nu = torch.where(torch.isneginf(old), seen.log_g, (1 - beta) * moved + beta * seen.log_g)
        else:
            nu = mix(moved, seen.log_g, beta)
        gamma: float | Tensor = self.gamma(seen)
        if self.count:
            visits = self.visits.gather(1, seen.index)
            gamma = torch.clamp(1 / (visits + 1), min=gamma).clamp(max=1 - 1e-6).repeat(1, 2)
            self.visits.scatter_(1, seen.index, visits + 1)
        self.store(seen, mix(moved if self.follow else old, seen.log_g, gamma))
        if self.boost > 1:
            nu = nu - math.log(cosine(self.boost, 1.0, 1.0, seen.share))
        if self.clip:
            nu = torch.maximum(nu, seen.log_g - math.log(self.clip))
        if self.self_norm:
            weight = seen.log_g - nu
            nu = nu + self.self_norm * (weight.logsumexp(dim=1, keepdim=True) - math.log(weight.shape[1]))
        if self.balance:
            return nu, 1 + self.balance * (torch.exp(seen.log_g - nu) - 1)
        return nu, 1.0


class Shrink(MovingAverage):
    """Empirical Bayes: nu_a = mean + k (log ĝ_a - mean_a), the prior mean being the drifted memory.

    The spread of d = log ĝ - log u_old - common drift is noise of ĝ plus what u does not know; the two views of a
    sample share the second and not (much of) the first, so the covariance of d over the two views estimates it:
    k = cov / var, averaged over steps. No parameter but the rate of that average.
    """

    def __init__(
        self,
        runs: int,
        n: int,
        batch: int,
        tau: float,
        rate: float = 0.01,
        end: float | None = None,
        drift: bool = True,
    ) -> None:
        super().__init__(runs, n, batch, tau)
        self.rate, self.fixed, self.use_drift = rate, end, drift
        self.cov, self.var = torch.ones(runs, 1), torch.ones(runs, 1)

    def __call__(self, seen: Seen) -> tuple[Tensor, float]:
        old = self.old(seen)
        known, count, log_r = batch_drift(seen, old)
        moved = old + (log_r if self.use_drift else 0.0)
        if bool((count > 8).all()):
            d = torch.where(known, torch.exp(seen.log_g - moved) - 1, 0.0)
            a, b = d.chunk(2, dim=1)
            n = count / 2
            cov = (a * b).sum(dim=1, keepdim=True) / n
            var = ((a * a + b * b) / 2).sum(dim=1, keepdim=True) / n
            self.cov += self.rate * (cov - self.cov)
            self.var += self.rate * (var - self.var)
        k = (self.cov / self.var).clamp(0.02, 1 - 1e-6)
        self.k = k
        nu = mix(moved, seen.log_g, k)
        self.store(seen, mix(moved, seen.log_g, k if self.fixed is None else self.fixed))
        return nu, 1.0


class Queue(MovingAverage):
    """A queue of the last K embeddings (of one rank) beside the batch; ids keep a sample from being its own negative.

    ĝ is the mean over batch and queue; nu = mix(u_old, ĝ, gamma). With `lam` > 0 the queue also pushes the anchors:
    the push on row a is (1 - lam) times the batch's and lam times the queue's
    mean over q of (e^{-nu_a} + e^{-nu_q}) E_aq z_q, both halves of the whole-data gradient, with nu_q = log u of q now.
    """

    def __init__(
        self,
        runs: int,
        n: int,
        batch: int,
        tau: float,
        size: int = 512,
        end: float = 0.5,
        start: float | None = None,
        over: float = 1.0,
        lam: float = 0.0,
        lam_start: float = 0.0,
        lam_over: float = 1.0,
        half: bool = False,
        feed: bool = True,
        wait: float = 0.0,
        rel: bool = False,
        balance: float = 0.0,
        center: bool = False,
        match: bool = False,
        auto: float = 0.0,
        logs: bool = False,
        alone: bool = False,
        boost: float = 1.0,
        rate: float = 0.02,
        ramp: bool = False,
        fade: float = 0.0,
    ) -> None:
        super().__init__(runs, n, batch, tau, end, start, over)
        self.size, self.tau, self.lam, self.lam_start, self.lam_over = size, tau, lam, lam_start, lam_over
        self.half, self.feed, self.wait = half, feed, wait
        self.zq: Tensor | None = None
        self.idq = torch.full((runs, size), -1)
        self.filled = 0
        self.memory = self.push if max(lam, lam_start, auto) > 0 else None
        self.rel, self.balance, self.center, self.match = rel, balance, center, match
        self.auto, self.rate, self.logs, self.alone, self.boost = auto, rate, logs, alone, boost
        self.ramp, self.fade = ramp, fade
        self.log_ratio = torch.zeros(runs, 1)
        self.mean_b, self.mean_q = torch.zeros(runs, 1), torch.zeros(runs, 1)
        self.e: Tensor | None = None

    def __call__(self, seen: Seen) -> tuple[Tensor, Tensor | float]:
        if self.zq is None:
            self.zq = torch.zeros(len(seen.z), self.size, seen.z.shape[2])
        k = self.filled
        log_g = seen.log_g
        batch = seen.index.shape[1]
        if k > 0:
            e = torch.exp(torch.bmm(seen.z, self.zq[:, :k].transpose(1, 2)) / self.tau)
            same = seen.index.repeat(1, 2)[:, :, None] == self.idq[:, None, :k]
            e.masked_fill_(same, 0.0)
            count = k - same.sum(dim=2)
            self.e, self.count = e, count
            m = 2 * batch - 2
            total = e.sum(dim=2)
            if self.auto:
                now_b, now_q = seen.log_g.exp().mean(dim=1, keepdim=True), (total / count).mean(dim=1, keepdim=True)
                self.mean_b += self.rate * (now_b - self.mean_b)
                self.mean_q += self.rate * (now_q - self.mean_q)
                self.log_ratio += self.rate * ((now_q / now_b).log() - self.log_ratio)
            if self.match:
                lam = self.lam_now(seen, k)
                log_g = ((1 - lam) * log_g.exp() + lam * total / count).log()
            elif self.alone:
                log_g = (total / count).log()
            elif self.feed:
                log_g = ((log_g.exp() * m + total) / (m + count)).log()
        nu = mix(self.old(seen), log_g, self.gamma(seen))
        self.store(seen, nu)
        if self.boost > 1:
            nu = nu - math.log(cosine(self.boost, 1.0, 1.0, seen.share))
        if self.memory is None:
            self.enqueue(seen)
        kappa = cosine(self.fade, 0.0, 1.0, seen.share)
        if kappa > 0:  # SimCLR's denominator at first: an anchor counts 1 - (share of its positive)
            whole = torch.logaddexp(nu, seen.s_pos / self.tau + math.log(kappa / (2 * batch - 2)))
            return whole, torch.exp(nu - whole)
        if not self.balance:
            return nu, 1.0
        weight = torch.exp(seen.log_g - nu)
        if k > 0 and self.memory is not None and seen.share >= self.wait:
            lam = self.lam_now(seen, k)
            weight = (1 - lam) * weight + lam * (self.e.sum(dim=2) / self.count) * torch.exp(-nu)
        return nu, 1 + self.balance * (weight - 1)

    def lam_now(self, seen: Seen, k: int) -> Any:
        if (
            self.auto
        ):  # the queue's share of the negatives, times how far it is behind: the ratio of its mean ĝ to the batch's
            ratio = self.log_ratio.exp() if self.logs else self.mean_q / self.mean_b
            ratio = ratio.clamp(max=1.0)
            lam = ratio**self.auto * (k / (k + seen.z.shape[1] - 2))
            return lam * cosine(0.0, 1.0, 1.0, seen.share) if self.ramp else lam
        lam = cosine(self.lam_start, self.lam, self.lam_over, seen.share)
        return lam * k / (k + seen.z.shape[1] - 2) if self.rel else lam

    def push(self, seen: Seen, push: Tensor, w: Tensor) -> Tensor:
        k = self.filled
        if k > 0 and seen.share >= self.wait:
            lam = self.lam_now(seen, k)
            wq = torch.exp(-self.log_u.gather(1, self.idq[:, :k]))
            if self.half:
                wq = torch.zeros_like(wq)
            weight = (w[:, :, None] + wq[:, None, :]) * self.e / self.count[:, :, None]
            late = torch.bmm(weight, self.zq[:, :k])
            if self.center:  # the queue may not move the batch's mean, which it lags behind
                late = late + (push - late).mean(dim=1, keepdim=True)
            lam = lam[:, :, None] if isinstance(lam, Tensor) else lam
            push = (1 - lam) * push + lam * late
        self.enqueue(seen)
        return push

    def enqueue(self, seen: Seen) -> None:
        rows, ids = seen.z, seen.index.repeat(1, 2)
        if rows.shape[1] > self.size:
            rows, ids = rows[:, : self.size], ids[:, : self.size]
        k = rows.shape[1]
        self.zq = torch.cat([rows, self.zq[:, : self.size - k]], dim=1)
        self.idq = torch.cat([ids, self.idq[:, : self.size - k]], dim=1)
        self.filled = min(self.size, self.filled + k)


RULES = {
    "simclr": SimCLR,
    "dcl": DCL,
    "sogclr": MovingAverage,
    "scent": Scent,
    "defensive": Defensive,
    "shrink": Shrink,
    "queue": Queue,
}


def build_rule(spec: dict[str, Any], runs: int, n: int, batch: int, tau: float) -> Any:
    """Build `{"rule": "sogclr", "end": 0.5}` -> the rule, for `runs` runs."""
    from .candidates import Dispersed, Ratio  # they continue this file

    options = {k: v for k, v in spec.items() if k != "rule"}
    return (RULES | {"dispersed": Dispersed, "ratio": Ratio})[spec["rule"]](runs, n, batch, tau, **options)
