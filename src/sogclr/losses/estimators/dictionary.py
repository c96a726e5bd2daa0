"""The normalizer over the batch and a memory of past embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional as F
from ..queue import EmbeddingQueue


class Dictionary(nn.Module):
    """nu = log of the mean of exp(s_ab / tau) over b in batch and queue, without anchor a's own sample.

    The queue, K past embeddings of both views as MoCo's (1911.05722) but of the encoder itself, feeds the normalizer
    only: the loss's gradient flows through the negatives of the batch. While it is empty nu = log ĝ.

    Args:
        size: K.  dim: D, width of the embeddings.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.queue = EmbeddingQueue(size, dim)

    def forward(self, log_g: Tensor, index: Tensor, update: bool, z: Tensor, temperature: float | Tensor) -> Tensor:
        self.queue.check_width(z)
        here = F.negatives_of(index).to(log_g.dtype)
        log_sum, there = self.queue.log_sum(z, index, temperature)
        nu = torch.logaddexp(log_g + here.log(), log_sum) - (here + there).log()
        if update:
            self.queue.push(z.flatten(0, 1), index.repeat(len(z)))
        return nu
