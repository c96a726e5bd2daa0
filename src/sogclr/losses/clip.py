"""The baselines on image-text pairs: CLIP's loss and SigLIP's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import BadInput
from . import functional as F
from .candidates import HardNegatives, log_mean_masked, similarities
from .contrastive import Anchors, Reduction, replicated
from .image_text import ImageTextLoss


class ClipLoss(ImageTextLoss):
    """CLIP's loss:  mean over images (against texts) and texts (against images) of  -log softmax of s/tau.

    The negatives are those of the batch; what shares an image or a text is left out of them.
    `statistics['objective']` is -s + tau log ĝ, on the scale of `TwoTowerGlobalContrastiveLoss`, with the batch's
    normalizer.

    Args:
        temperature: tau > 0, or a module of `sogclr.temperatures`.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.
        positives: as of `ImageTextLoss`, as are the next two.
        same_kind: whether images and texts are one kind with one space of ids.
        share_negatives: whether hard negatives count for all images.

    Example:
        >>> import torch, sogclr
        >>> z = torch.eye(4)
        >>> round(float(sogclr.ClipLoss(temperature=1.0)(z, z, torch.arange(4))), 4)   # log(e + 3) - 1
        0.7437

    Source: Radford et al., arXiv 2103.00020.
    """

    per_temperature = True

    def __init__(
        self,
        temperature: float | nn.Module = 0.07,
        reduction: Reduction = "mean",
        normalize: bool = True,
        positives: tuple[Tensor, Tensor] | None = None,
        same_kind: bool = False,
        share_negatives: bool = False,
    ) -> None:
        super().__init__(
            temperature,
            reduction,
            normalize,
            positives=positives,
            same_kind=same_kind,
            share_negatives=share_negatives,
        )

    def per_pair(self, anchors: Anchors, y_ids: Tensor) -> Tensor:
        """Return  log( exp(s/tau) + sum over negatives of exp(s_ab/tau) ) - s/tau,  the mean of both ways: (B,)."""
        self.record(anchors, anchors.log_g)
        return F.ntxent_loss(anchors.s_pos, anchors.log_g, anchors.negatives, anchors.temperature)


class SigLipLoss(ImageTextLoss):
    """SigLIP's loss:  mean over images of  -sum over texts of log sigmoid( ±(s_ab / tau + bias) ),  + for the own text.

    The scale 1/tau and the bias are learned, as in the paper: give `loss_fn.parameters()` to the optimizer too.
    `statistics['objective']` is -s + tau log ĝ with the batch's normalizer, as in `ClipLoss`.

    Args:
        temperature: tau > 0 to start from.
        bias: to start from.
        learnable: False keeps both as they are.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.
        positives: as of `ImageTextLoss`, as are the next two.
        same_kind: whether images and texts are one kind with one space of ids.
        share_negatives: whether hard negatives count for all images.

    Example:
        >>> import torch, sogclr
        >>> z = torch.eye(4)
        >>> f"{sogclr.SigLipLoss(temperature=1.0, bias=0.0)(z, z, torch.arange(4)):.4f}"   # log(1 + 1/e) + 3 log 2
        '2.3927'

    Source: Zhai et al., arXiv 2303.15343.
    """

    per_temperature = True

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        learnable: bool = True,
        reduction: Reduction = "mean",
        normalize: bool = True,
        positives: tuple[Tensor, Tensor] | None = None,
        same_kind: bool = False,
        share_negatives: bool = False,
    ) -> None:
        super().__init__(
            temperature,
            reduction,
            normalize,
            positives=positives,
            same_kind=same_kind,
            share_negatives=share_negatives,
        )
        if not math.isfinite(bias):
            raise BadInput(f"bias must be finite and was {bias}; -10 is the paper's")
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

    def values(self, x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, hard: HardNegatives | None) -> Tensor:
        """Return  -sum over texts b of log sigmoid( ±(s_ab / tau + bias) )  of each image: (B,)."""
        scale, bias = replicated(self.log_scale).exp().to(x.dtype), replicated(self.bias).to(x.dtype)
        negative = self.negatives_of(x_ids, y_ids, hard)
        sim = None if negative is None else similarities(x, y, hard)
        with torch.no_grad():
            if negative is None or sim is None:
                log_g = F.log_mean_negatives_two_towers(x, y, x_ids, y_ids, 1 / scale)
            else:
                log_g = log_mean_masked(sim, negative, 1 / scale)[0]
            self.record(Anchors(torch.stack([x, y]), x_ids, 1 / scale, F.positive_similarity(x, y), log_g), log_g)
        if negative is None or sim is None:
            return F.sigmoid_loss(x, y, x_ids, y_ids, scale, bias)
        return F.sigmoid_loss_masked(sim, negative, scale, bias)
