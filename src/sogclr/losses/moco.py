"""MoCo's loss: queries against keys of a momentum encoder and a queue of past keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import BadInput
from . import functional as F
from . import temperatures
from .contrastive import Anchors, Reduction, replicated
from .queue import EmbeddingQueue
from .two_view import TwoViewLoss
from .validation import check_not_negative


class MoCoLoss(TwoViewLoss):
    """InfoNCE of queries z0 against keys z1:  mean of  -log( exp(s_pos/tau) / (exp(s_pos/tau) + sum exp(s_ab/tau)) ).

    b runs over the queue's keys and the batch's other keys (so the first step has negatives too), without those of the
    anchor's own sample. z1 is the momentum encoder's output; it gets no gradient. After the step the batch's keys are
    in the queue, which is in `state_dict()` with the ids of its samples.

    Symmetric: `loss_fn(q0, k1, index) / 2 + loss_fn(q1, k0, index) / 2`, with queries and keys of both views.

    Args:
        dim: D, width of the embeddings.
        queue: K, keys that are kept.
        temperature: tau > 0, or a module of `sogclr.temperatures`.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.MoCoLoss(dim=16, queue=1024)
        >>> query, key = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss_fn(query, key, torch.arange(8)).backward()
        >>> int((loss_fn.queue.ids >= 0).sum())
        8

    Source: He et al., arXiv 1911.05722; tau 0.2 is v2's (2003.04297).
    """

    per_temperature = True

    def __init__(
        self,
        dim: int,
        queue: int = 4096,
        temperature: float | nn.Module = 0.2,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(temperature, reduction, normalize)
        self.queue = EmbeddingQueue(queue, dim)

    def values(self, views: Sequence[Tensor], index: Tensor) -> Tensor:
        """Return the (B,) losses of queries against keys, (B, D) each, and push the keys."""
        if len(views) != 2:
            raise BadInput(
                f"MoCo's loss takes a query and a key of each sample and was given {len(views)} views; give two"
            )
        z0, z1 = views
        self.queue.check_width(z0)
        check_not_negative(index)
        z1 = z1.detach()
        tau = temperatures.temperature_at(self.temperature, index, z0)
        tau = replicated(tau) if isinstance(tau, Tensor) else tau
        keys, ids = torch.cat([z1, self.queue.keys.to(z1.dtype)]), torch.cat([index, self.queue.ids])
        log_sum, count = F.log_sum_keys(z0[None], index, keys, ids, tau)
        anchors = Anchors(z0[None], index, tau, F.positive_similarity(z0, z1), log_sum - count.log())
        if self.training:
            self.queue.push(z1, index)
        self.record(anchors, anchors.log_g)
        return F.ntxent_loss(anchors.s_pos, anchors.log_g, count, tau)
