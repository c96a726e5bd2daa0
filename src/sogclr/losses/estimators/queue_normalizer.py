"""The normalizer over the batch and a queue of past embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional as F
from ..queue import EmbeddingQueue
from .protocol import Estimator, EstimatorInput


class QueueNormalizer(Estimator):
    """nu = log of the mean of exp(s_ab / tau) over b in batch and queue, without anchor a's own sample.

    The queue, K past candidates as MoCo's (1911.05722) but of the encoder itself, feeds the normalizer only: the loss's
    gradient flows through the negatives of the batch. While it is empty nu = log ĝ.

    Args:
        size: K.
        dim: D, width of the embeddings.
        feeds: whether the queue counts in nu; False keeps it for others and leaves nu = log ĝ.
    """

    def __init__(self, size: int, dim: int, feeds: bool = True) -> None:
        super().__init__()
        self.feeds = feeds
        self.queue = EmbeddingQueue(size, dim)

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return nu, and push the batch's candidates; see `Estimator.forward` for the arguments."""
        assert contrast is not None
        z, ids, candidates = contrast.anchors, contrast.ids, contrast.candidates
        self.queue.check_width(z)
        nu = log_g
        if self.feeds:
            here = len(candidates) * F.count_different(ids).to(log_g.dtype)
            log_sum, there = self.queue.log_sum(z, ids, contrast.temperature)
            both = torch.logaddexp(log_g + here.log(), log_sum) - (here + there).log()
            nu = torch.where(here + there > 0, both, log_g)  # nothing to contrast with, here or there
        if update:
            self.queue.push(candidates.flatten(0, 1), torch.cat([ids] * len(candidates)))
        return nu
