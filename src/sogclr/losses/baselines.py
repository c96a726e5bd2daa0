"""Baselines with the same call as the global loss, `loss(z0, z1, index)`: the ids only keep duplicates apart."""

from __future__ import annotations

from torch import Tensor, nn

from . import functional as F
from .one_tower import Anchors, OneTowerLoss, Reduction


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

    per_temperature = True

    def __init__(
        self, temperature: float | nn.Module = 0.1, reduction: Reduction = "mean", normalize: bool = True
    ) -> None:
        super().__init__(temperature, reduction, normalize)

    def per_sample(self, anchors: Anchors) -> Tensor:
        self.record(anchors, anchors.log_g)
        return F.ntxent_loss(anchors.s_pos, anchors.log_g, anchors.negatives, anchors.temperature)


class DecoupledContrastiveLoss(OneTowerLoss):
    """DCL:  mean over anchors of  -s_pos/tau + log( sum over N(a) exp(s_ab/tau) ).  NT-Xent without the positive below.

    Its gradient is 1/tau times that of `GlobalContrastiveLoss` with the mini-batch's normalizer.

    Args:
        temperature: tau > 0.  reduction: `mean`, `sum` or `none`.  normalize: scale embeddings to norm one first.

    Example:
        >>> import torch, sogclr
        >>> z = torch.eye(4)
        >>> round(float(sogclr.DecoupledContrastiveLoss(temperature=1.0)(z, z, torch.arange(4))), 4)   # log 6 - 1
        0.7918

    Source: Yeh et al., arXiv 2110.06848.
    """

    per_temperature = True

    def __init__(
        self, temperature: float | nn.Module = 0.1, reduction: Reduction = "mean", normalize: bool = True
    ) -> None:
        super().__init__(temperature, reduction, normalize)

    def per_sample(self, anchors: Anchors) -> Tensor:
        self.record(anchors, anchors.log_g)
        return F.decoupled_loss(anchors.s_pos, anchors.log_g, anchors.negatives, anchors.temperature)
