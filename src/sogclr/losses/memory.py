"""Many negatives from a memory of past embeddings, with both halves of the gradient, at any batch size."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ..errors import BadInput
from . import functional as F
from .estimators import Dictionary, Gamma, MovingAverage
from .one_tower import Anchors, GlobalContrastiveLoss, Reduction
from .queue import EmbeddingQueue

BATCHES = 32  # the queue's default length, in batches of B embeddings: 16 steps
_RATE = 0.02  # of the running means that tell how late the queue is


class MemoryContrastiveLoss(GlobalContrastiveLoss):
    r"""Global contrastive loss whose negatives are the batch's and the last K embeddings, a queue.

    With ĝ_a the mean of exp(s_ab / tau) over the batch's negatives (m of them) and q_a that over the queue's, the
    gradient by an anchor's embedding z_a is that of

        -s_{a,p(a)} + tau { (1 - lam) e^{-nu_a} ĝ_a  +  lam [ e^{-nu_a} q_a + mean over b in the queue of e^{-nu_b} exp(s_ab / tau) ] }

    plus what a gives as a negative of the batch's other anchors. The bracket holds both halves of the whole-data
    gradient: a as an anchor, and a as a negative of b, whose normalizer nu_b = log u_b is what the n floats remember.
    nu_a = log of the mean over the batch's and the queue's negatives together (`gamma` 1), or its moving average.

    The queue is up to K/2B steps late. What that does shows in q being too small; with rho the ratio of the running
    means of q and ĝ, at most 1,  lam = rho^3 K / (K + m):  the later the queue, the less it counts.

    Args:
        num_samples: n; `index` runs from 0 to n - 1.  dim: D, width of the embeddings.
        queue: K, embeddings that are kept; 32 times the batch (of all ranks) works well.
        temperature: tau > 0, a constant.  gamma: weight of the new estimate in nu, 1 or less.
        reduction: `mean`, `sum` or `none`.  normalize: scale embeddings to norm one first.

    The value is an estimate of the global objective. State, all in `state_dict()`: `estimator.log_u` (n floats), the
    queue (K D floats and K ids) and two running means. It changes in training mode only.

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.MemoryContrastiveLoss(num_samples=1000, dim=16, queue=256)
        >>> z0, z1 = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss_fn(z0, z1, index=torch.arange(8)).backward()
        >>> int((loss_fn.memory.ids >= 0).sum())
        16

    The derivation is in docs/method.md.
    """

    running: Tensor

    def __init__(
        self,
        num_samples: int,
        dim: int,
        queue: int,
        temperature: float = 0.1,
        gamma: Gamma = 1.0,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        if not isinstance(temperature, int | float):
            raise BadInput("the loss with a memory needs a constant temperature; give a number")
        average = MovingAverage(num_samples, gamma, dictionary=Dictionary(queue, dim))
        super().__init__(num_samples, temperature, estimator=average, reduction=reduction, normalize=normalize)
        self.register_buffer("running", torch.full((2,), -math.inf))  # log of the running means of ĝ and of q

    @property
    def average(self) -> MovingAverage:
        return cast(MovingAverage, self.estimator)

    @property
    def memory(self) -> EmbeddingQueue:
        return cast(Dictionary, self.average.dictionary).queue

    def per_sample(self, anchors: Anchors) -> Tensor:
        z, index, tau, log_g = anchors.z, anchors.index, anchors.temperature, anchors.log_g
        self.memory.check_width(z)
        keys, ids = self.memory.keys.to(z.dtype, copy=True), self.memory.ids.clone()  # the estimator pushes in place
        log_sum, count = F.log_sum_keys(z, index, keys, ids, tau)
        log_q = log_sum - count.clamp(min=1).log()
        with torch.no_grad():
            nu = self.average(log_g.detach(), index, self.training, z=z.detach(), temperature=tau)
            log_u = self.average.read(ids.clamp(min=0))
            of_keys = torch.where(torch.isfinite(log_u), -log_u, -torch.inf).to(z.dtype)
            lam = self.share(log_g, log_q, count, F.negatives_of(index))
        weight = (1 - lam) * torch.exp(log_g - nu) + lam * torch.exp(log_q - nu)
        as_negative = F.log_sum_keys(z, index, keys, ids, tau, of_keys)[0] - count.clamp(min=1).log()
        second = lam * torch.exp(as_negative)  # a gradient only: its value is in that of the anchors b
        values = -anchors.s_pos + tau * (weight + nu - 1 + second - second.detach()).mean(dim=0)
        self.record(anchors, nu, objective=values.detach().mean(), queue_share=lam.mean())
        return values

    def share(self, log_g: Tensor, log_q: Tensor, count: Tensor, here: Tensor) -> Tensor:
        """lam, (B,); the running means move on in training mode, from the first step with a queue."""
        now = torch.stack([F.log_mean(x.flatten()) for x in (log_g, log_q)]).to(self.running)
        if self.training:
            blended = torch.logaddexp(math.log(1 - _RATE) + self.running, math.log(_RATE) + now)
            self.running.copy_(torch.where(torch.isfinite(now).all(), blended, self.running))
        log_g, log_q = self.running
        rho = torch.where(torch.isfinite(log_q), (log_q - log_g).clamp(max=0.0).exp(), 0.0)
        return rho.to(count) ** 3 * count / (count + here)

    def snapshot(self, index: Tensor) -> tuple[Tensor, ...]:
        """What `restore` needs, of this module's own buffer (the estimator and the queue keep theirs)."""
        return (self.running.clone(),)

    def restore(self, saved: tuple[Tensor, ...]) -> None:
        """Undo the update since `snapshot`."""
        self.running.copy_(saved[0])
