"""Normalizers and losses that were tried in the library's trainer and lost: no table says when to switch them on.

They were options of sogclr 0.1 (`--estimator boosted`, `memory`, `boosted-memory`, `queue-average`; `--balanced`). Under mild augmentation
they lower F2 on the small exact problems (docs/results/small_batch.md); in the trainer, with a ResNet, none beats the paper's gamma 0.9
(docs/results/with_a_resnet.md). `RatioAverage` and `DispersedLoss` never were options. `rules.py` and `candidates.py` have them for many runs at once, which tests/test_many_runs.py compares with these, and
`with_a_resnet.py` trains with them. The derivations are in docs/method.md. One process only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sogclr.losses import GlobalContrastiveLoss
from sogclr.losses.contrastive import Anchors
from sogclr.losses.estimators import Convention, CosineGamma, Estimator, EstimatorInput, Gamma, MovingAverage
from sogclr.losses.functional import count_different, log_mean, log_sum_keys
from sogclr.losses.queue import EmbeddingQueue
from sogclr.losses.rollback import StatefulModule

RATE = 0.02  # of the running means that tell how late the queue is


class BalancedLoss(GlobalContrastiveLoss):
    """`GlobalContrastiveLoss` that weighs an anchor's attraction by w = exp(log ĝ - nu), as its repulsion is."""

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return the loss, (B,), with zeros whose gradient is that of the missing weight."""
        values = super().per_sample(anchors)
        assert self.nu is not None
        excess = torch.exp(anchors.log_g - self.nu).detach().mean(dim=0) - 1
        return values - excess * (anchors.s_pos - anchors.s_pos.detach())


class BoostedAverage(MovingAverage):
    """nu = log u_i - log b, with u as SogCLR's, gamma from 1 to `end` and b from `boost` to 1 along half cosines.

    The gradient is that of  -s + b tau log g;  the value is too high by  tau (b - 1 - log b).
    """

    def __init__(
        self, num_samples: int, steps: int, boost: float = 1.6, end: float = 0.1, convention: Convention = "per_view"
    ) -> None:
        super().__init__(num_samples, CosineGamma(end, steps), convention)
        self.boost, self.falling = boost, CosineGamma(1e-12, steps)

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return  log u_i - log b  after the update of u; see `Estimator.forward` for the arguments."""
        shift = torch.log(1 + (self.boost - 1) * self.falling(self.step)).to(log_g.dtype)
        return super().forward(log_g, index, update, contrast) - shift


class QueueNormalizer(Estimator):
    """nu = log of the mean of exp(s_ab / tau) over b in batch and queue, without anchor a's own sample.

    The queue, K past candidates of both views, feeds the normalizer only. While it is empty nu = log ĝ.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.queue = EmbeddingQueue(size, dim)

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return nu, and push the batch's candidates; see `Estimator.forward` for the arguments."""
        assert contrast is not None
        here = len(contrast.candidates) * count_different(index).to(log_g.dtype)
        z, temperature = contrast.anchors, contrast.temperature
        log_sum, there = log_sum_keys(z, index, self.queue.keys.to(z.dtype), self.queue.ids, temperature)
        nu = torch.logaddexp(log_g + here.log(), log_sum) - (here + there).log()
        if update:
            self.queue.push(contrast.candidates.flatten(0, 1), index.repeat(len(contrast.candidates)))
        return nu


class QueueAverage(MovingAverage):
    """A moving average of what `QueueNormalizer` finds."""

    def __init__(self, num_samples: int, gamma: Gamma, size: int, dim: int) -> None:
        super().__init__(num_samples, gamma)
        self.wide = QueueNormalizer(size, dim)

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return log u_i after the update; see `Estimator.forward` for the arguments."""
        return super().forward(self.wide(log_g, index, update, contrast), index, update, contrast)


class RatioAverage(MovingAverage):
    """nu_a = log h(z_a) + log rho_i,  h(z) the mean of exp(z.q / tau) over a queue, rho_i a running mean of ĝ_a / h(z_a).

    `log_u` holds log rho. While there is nothing in the queue nu = log ĝ.
    """

    def __init__(self, num_samples: int, gamma: Gamma, size: int, dim: int) -> None:
        super().__init__(num_samples, gamma)
        self.queue = EmbeddingQueue(size, dim)

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return nu after the update of rho; see `Estimator.forward` for the arguments."""
        assert contrast is not None
        z, temperature = contrast.anchors, contrast.temperature
        log_sum, there = log_sum_keys(z, index, self.queue.keys.to(z.dtype), self.queue.ids, temperature)
        log_h = torch.where(there > 0, log_sum - there.log(), log_g)
        nu = super().forward(log_g - log_h, index, update, contrast) + log_h
        if update:
            self.queue.push(contrast.candidates.flatten(0, 1), index.repeat(len(contrast.candidates)))
        return nu


class DispersedLoss(GlobalContrastiveLoss):
    """`GlobalContrastiveLoss` plus  lam x the mean over the batch's negatives b of (s_ab + 1/(n-1))^2  (VRN).

    Args:
        num_samples: n.
        lam: how much it counts.
        options: of `GlobalContrastiveLoss`.
    """

    def __init__(self, num_samples: int, lam: float = 1.0, **options: Any) -> None:
        super().__init__(num_samples, **options)
        self.lam, self.floor = lam, 1 / (num_samples - 1)

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return the loss with the term, (B,)."""
        z, ids = anchors.z.flatten(0, 1), anchors.index.repeat(len(anchors.z))
        other = (ids[:, None] != ids).to(z.dtype)
        term = ((z @ z.T + self.floor).square() * other).sum(dim=1) / other.sum(dim=1)
        return super().per_sample(anchors) + self.lam * term.view(len(anchors.z), -1).mean(dim=0)


class QueueShare(StatefulModule):
    """How much a queue of K keys beside m negatives counts:  lam = rho^3 K / (K + m).

    rho is the ratio of the running means of the queue's q and the batch's ĝ, at most 1: the later the queue, the less.

    Attributes:
        running: (2,) float32 buffer, log of the running means of ĝ and of q.
    """

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.full((2,), -math.inf))

    @torch.no_grad()
    def forward(self, log_g: Tensor, log_q: Tensor, count: Tensor, here: float | Tensor) -> Tensor:
        """Return lam, (B,); the running means move on in training mode, from the first step with a queue."""
        now = torch.stack([log_mean(x.flatten()) for x in (log_g, log_q)]).to(self.running)
        if self.training:
            blended = torch.logaddexp(math.log(1 - RATE) + self.running, math.log(RATE) + now)
            self.assign(self.running, torch.where(torch.isfinite(now).all(), blended, self.running))
        log_g, log_q = self.running
        rho = torch.where(torch.isfinite(log_q), (log_q - log_g).clamp(max=0.0).exp(), 0.0)
        return rho.to(count) ** 3 * count / (count + here).clamp(min=1)


class MemoryContrastiveLoss(GlobalContrastiveLoss):
    """Global contrastive loss whose negatives are the batch's and the last K embeddings, with both halves of the gradient.

    With ĝ_a the mean of exp(s_ab / tau) over the batch's negatives and q_a that over the queue's, the gradient by z_a is
    that of

        -s_{a,p(a)} + tau { (1 - lam) e^{-nu_a} ĝ_a
                            + lam [ e^{-nu_a} q_a + mean over b in the queue of e^{-nu_b} exp(s_ab / tau) ] }

    with nu_b = log u_b. Without `steps` nu is a moving average of batch and queue together; with `steps` it is
    `BoostedAverage`'s, of the batch alone, and lam is multiplied by a share that rises from 0 to 1 along the run.

    Args:
        num_samples: n.
        dim: D, width of the embeddings.
        queue: K.
        temperature: tau > 0, a constant.
        gamma: weight of the new estimate in nu; not used with `steps`.
        steps: updates in the whole run, for the schedules.
    """

    estimator: MovingAverage

    def __init__(
        self,
        num_samples: int,
        dim: int,
        queue: int,
        temperature: float = 0.1,
        gamma: Gamma = 1.0,
        steps: int | None = None,
    ) -> None:
        fed = QueueAverage(num_samples, gamma, queue, dim)
        super().__init__(
            num_samples, temperature, estimator=fed if steps is None else BoostedAverage(num_samples, steps)
        )
        # a queue that feeds nu is filled there
        self.queue = fed.wide.queue if steps is None else EmbeddingQueue(queue, dim)
        self.share, self.rising = QueueShare(), None if steps is None else CosineGamma(1e-12, steps)

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return -s plus tau times the bracket of the class's equation, the mean over the views: (B,)."""
        tau, log_g, z = anchors.temperature, anchors.log_g, anchors.z
        assert isinstance(tau, float)
        # the queue as the batch finds it
        other = (self.queue.ids >= 0) & (self.queue.ids != anchors.index[:, None])  # (B, K)
        count = other.sum(dim=1).to(log_g.dtype)
        sim = (z @ self.queue.keys.to(z.dtype, copy=True).T / tau).masked_fill(~other, -math.inf)  # (V, B, K)
        log_count = count.clamp(min=1).log()
        log_q = self._log_sum(sim) - log_count
        ids, rise = self.queue.ids.clone(), 1.0 if self.rising is None else 1 - self.rising(self.estimator.step)
        nu = self.estimator(log_g.detach(), anchors.index, self.training, anchors.estimator_input())
        if self.rising is not None and self.training:
            self.queue.push(z.flatten(0, 1), anchors.index.repeat(len(z)))
        # a as a negative of the keys b, of which none counts for more than n
        log_u = self.estimator.read(ids.clamp(min=0))
        of_keys = torch.where(torch.isfinite(log_u), -log_u, -math.inf).to(z.dtype)
        second = self._log_sum(sim + of_keys) - log_count
        second = second - (second - math.log(self.estimator.num_samples)).clamp(min=0).detach()

        lam = rise * self.share(log_g, log_q, count, anchors.negatives)
        weight = (1 - lam) * torch.exp(log_g - nu) + lam * torch.exp(log_q - nu)
        push = lam * torch.exp(second)  # its value is in that of the anchors b
        values = -anchors.s_pos + tau * (weight + nu - 1 + push - push.detach()).mean(dim=0)
        self.record(anchors, nu, objective=values.detach().mean(), queue_share=lam.mean())
        return values

    @staticmethod
    def _log_sum(terms: Tensor) -> Tensor:
        """Return log of the sum over the keys, -inf, without a gradient, where there are none: (V, B, K) -> (V, B)."""
        some = (terms > -math.inf).any(dim=-1)
        return torch.where(some, torch.where(some[..., None], terms, 0.0).logsumexp(dim=-1), -math.inf)
