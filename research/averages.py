"""Normalizer estimators on many runs at once: (R, N) log ĝ -> (R, N) nu, N = 2B anchors, view 0 first.

These without a memory; rules.py has the others and names all. The library's estimators serve one run; these are the same rules with a leading run dimension (tests hold them equal),
and every rule that was tried and did not make it. A rule returns nu and the coefficient c of the positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Seen:
    """z (R, N, D) unit rows; index (R, B); s_pos, log_g (R, N); share of the training done; step."""

    z: Tensor
    index: Tensor
    s_pos: Tensor
    log_g: Tensor
    share: float
    step: int

    def part(self, runs: slice) -> Seen:
        return replace(self, z=self.z[runs], index=self.index[runs], s_pos=self.s_pos[runs], log_g=self.log_g[runs])


def cosine(start: float, end: float, over: float, share: float) -> float:
    """Fall from `start` to `end` along a half cosine over the first `over` of the training, then `end`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share / over)))


def mix(old: Tensor, new: Tensor, gamma: float | Tensor) -> Tensor:
    """Return log((1 - gamma) e^old + gamma e^new); `new` where old is -inf."""
    gamma = torch.as_tensor(gamma)
    return torch.where(torch.isneginf(old), new, torch.logaddexp(torch.log1p(-gamma) + old, gamma.log() + new))


class SimCLR:
    """NT-Xent: the positive is in the denominator."""

    memory = None

    def __init__(self, runs: int, n: int, batch: int, tau: float) -> None:
        self.tau, self.log_m = tau, math.log(2 * batch - 2)

    def __call__(self, seen: Seen) -> tuple[Tensor, Tensor]:
        nu = torch.logaddexp(seen.log_g, seen.s_pos / self.tau - self.log_m)
        return nu, torch.exp(seen.log_g - nu)


class DCL:
    """nu = log ĝ; or log ĝ - log `boost`, which falls to 1 along the whole training: a repulsion that starts stronger."""

    memory = None

    def __init__(self, runs: int, n: int, batch: int, tau: float, boost: float = 1.0) -> None:
        self.boost = boost

    def __call__(self, seen: Seen) -> tuple[Tensor, float]:
        return seen.log_g - math.log(cosine(self.boost, 1.0, 1.0, seen.share)), 1.0


class MovingAverage:
    """SogCLR: gamma from `start` to `end` over a share `over` of the training."""

    memory = None

    def __init__(
        self,
        runs: int,
        n: int,
        batch: int,
        tau: float,
        end: float = 0.9,
        start: float | None = None,
        over: float = 0.5,
        convention: str = "per_view",
    ) -> None:
        self.end, self.start, self.over = end, end if start is None else start, over
        self.log_u = torch.full((runs, n), -math.inf)
        self.views = 2
        self.convention = convention

    def gamma(self, seen: Seen) -> float:
        return cosine(self.start, self.end, self.over, seen.share)

    def old(self, seen: Seen) -> Tensor:
        """Return (R, N): u_i of both anchors of each sample."""
        return self.log_u.gather(1, seen.index).repeat(1, 2)

    def store(self, seen: Seen, new: Tensor) -> None:
        """Keep the mean of the two views of (R, N) values."""
        a, b = new.chunk(2, dim=1)
        self.log_u.scatter_(1, seen.index, torch.logaddexp(a, b) - math.log(2))

    def __call__(self, seen: Seen) -> tuple[Tensor, float]:
        new = mix(self.old(seen), seen.log_g, self.gamma(seen))
        self.store(seen, new)
        if self.convention == "per_sample":
            new = self.old(seen)
        return new, 1.0


class Scent(MovingAverage):
    """gamma_i = sigmoid(alpha + nu_i), nu_i the old value."""

    def __init__(self, runs: int, n: int, batch: int, tau: float, alpha: float = 0.0) -> None:
        super().__init__(runs, n, batch, tau)
        self.alpha = alpha

    def __call__(self, seen: Seen) -> tuple[Tensor, float]:
        old = self.old(seen)
        new = mix(old, seen.log_g, torch.sigmoid(self.alpha + old).clamp(1e-6, 1 - 1e-6))
        self.store(seen, new)
        return new, 1.0
