"""Baselines with the same call as the global loss, `loss(z0, z1, index)`: the ids only keep duplicates apart."""

from __future__ import annotations

from torch import Tensor

from . import functional as F
from .one_tower import OneTowerLoss, Reduction


class NTXentLoss(OneTowerLoss):
    """NT-Xent, SimCLR's loss:  mean over anchors of  -log( exp(s_pos/tau) / (exp(s_pos/tau) + sum over N(a) exp(s_ab/tau)) ).

    The negatives are those of the batch. A sample that is in the batch twice is no negative of itself.
    `statistics['objective']` is -s + tau log ĝ, on the scale of `GlobalContrastiveLoss`, with the batch's normalizer.

    Args:
        temperature: tau > 0.  reduction: `mean`, `sum` or `none`.  normalize: scale embeddings to norm one first.

    Example:
        >>> import torch, sogclr
        >>> z = torch.eye(4)
        >>> round(float(sogclr.NTXentLoss(temperature=1.0)(z, z, torch.arange(4))), 4)   # log(e + 6) - 1
        1.1654

    Source: Chen et al., arXiv 2002.05709.
    """

    def __init__(self, temperature: float = 0.1, reduction: Reduction = "mean", normalize: bool = True) -> None:
        super().__init__(temperature, reduction, normalize)

    def per_sample(self, s_pos: Tensor, log_g: Tensor, index: Tensor) -> Tensor:
        self.record(s_pos.detach(), log_g.detach(), log_g)
        return F.ntxent_loss(s_pos, log_g, F.negatives_of(index).to(log_g.dtype), self.temperature)
