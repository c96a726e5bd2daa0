"""Losses on two or more views of each image: the global contrastive loss (SogCLR, arXiv 2202.12387), NT-Xent and DCL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..distributed import check_on_all_ranks
from ..kernels.ranks import gather, log_sum_negatives, uneven_batch
from . import functional as F
from . import temperatures
from .arguments import check_built_for, check_num_negatives, check_num_samples
from .contrastive import Anchors, ContrastiveLoss, Reduction, no_autocast, replicated
from .estimators import Convention, Estimator, Gamma, MovingAverage
from .validation import check_negatives, check_views


def positive_similarities(views: Sequence[Tensor]) -> Tensor:
    """Return the similarity of each of V views, (B, D) unit rows, with each of the others: (V - 1, V, B)."""
    z = torch.stack(list(views))
    return torch.stack([F.positive_similarity(z, z.roll(-k, dims=0)) for k in range(1, len(z))])


class TwoViewLoss(ContrastiveLoss):
    """What the losses on views have in common: checks, unit rows, float32, ids, ranks.

    A loss adds `per_sample`, or `values` where it sees more than the batch's negatives.
    """

    num_samples: int | None = None

    def forward(self, z0: Tensor, z1: Tensor, index: Tensor) -> Tensor:
        """Return the loss of a batch, and update the state in training mode.

        With several ranks every rank gives its own rows, as many as it has, sees everybody's, and returns the loss of
        the whole batch.

        Args:
            z0: (B, D) floating, embeddings of the first view.
            z1: (B, D) floating, embeddings of the second.
            index: (B,) int64 or int32, ids of the samples.

        Returns:
            () float32 or float64, or (B of all ranks,) with `reduction='none'`.

        Raises:
            BadInput: shapes, dtypes or ids are wrong.
            NonFinite: an embedding is not finite (CPU).
        """
        return self.of_views((z0, z1), index)

    def of_views(self, views: Tensor | Sequence[Tensor], index: Tensor) -> Tensor:
        """Return the loss of a batch in V views of each sample, and update the state in training mode.

        Every view is an anchor, its positives are the V - 1 other views of its sample, its negatives are all V views of
        the other samples. The loss is the mean over anchors and, of each, over its positives; of two views it is
        `loss_fn(z0, z1, index)` to the last bit. Crops of several sizes are views like any others.

        Args:
            views: (V, B, D) floating, or V of (B, D), V of 2 or more.
            index: (B,) int64 or int32, ids of the samples.

        Returns:
            As `forward`, of whose conditions all hold.

        Raises:
            BadInput: as `forward`, or there is one view alone.
            NonFinite: as `forward`.
        """
        index, sizes = check_on_all_ranks(check_views, views[0], views[1:], index, self.num_samples)
        with uneven_batch(sizes), no_autocast(views[0]):
            index = gather(index)
            check_negatives(index)
            values = self.values([gather(self.rows(z)) for z in views], index)
        return self.reduce(values)

    def values(self, views: Sequence[Tensor], index: Tensor) -> Tensor:
        """Return the (B,) losses of V views, (B, D) unit rows of all ranks each, with ids (B,)."""
        tau = temperatures.temperature_at(self.temperature, index, views[0])
        tau = replicated(tau) if isinstance(tau, Tensor) else tau
        negatives = F.negatives_of(index, len(views)).to(views[0].dtype)
        log_g = log_sum_negatives(views, index, tau) - negatives.log()
        positives = positive_similarities(views) if len(views) > 2 else None
        s_pos = F.positive_similarity(views[0], views[1]) if positives is None else positives.mean(dim=(0, 1))
        return self.per_sample(Anchors(torch.stack(list(views)), index, tau, s_pos, log_g, negatives, positives))

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return the loss of each sample, and record what `statistics` is made from.

        Args:
            anchors: the batch of all ranks: B samples, (V, B) anchors.

        Returns:
            (B,), differentiable in `s_pos`, `positives`, `log_g` and `temperature` of the anchors.
        """
        raise NotImplementedError


class GlobalContrastiveLoss(TwoViewLoss):
    r"""Global contrastive loss: each positive pair against ALL negatives of the data set, at any batch size.

    Value of a batch, over its anchors a (sample i, view A):

        mean of  -s_{a,p(a)} + tau ( exp(log ĝ_a - nu_a) + nu_a - 1 ),   nu_a = log u_i after
        u_i <- (1 - gamma) u_i + gamma ĝ_i

    ĝ_a is the mean of exp(s_ab / tau) over the negatives in the batch. The gradient, with nu held constant, is
    SogCLR's; the value is an estimate of the global objective itself, so it can be watched. (nu holds gamma ĝ, which makes it
    a little too low at a small batch: docs/method.md.)

    Args:
        num_samples: samples in the data set; `index` runs from 0 to num_samples - 1.
        temperature: tau > 0, or `sogclr.temperatures.PerSample` or `Global`, which are learned.
        gamma: weight of the new estimate in (0, 1], or `sogclr.estimators.CosineGamma` or `AdaptiveGamma`; 1 is the
            mini-batch loss.
        convention: `per_view` or `per_sample`, see `sogclr.estimators.MovingAverage`.
        estimator: another source of nu, instead of `gamma` and `convention`.
        reduction: `mean`, `sum` or `none` (one value a sample).
        normalize: scale embeddings to norm one first; pass False only if they have it already.
        num_negatives: m: the positive stands in the denominator beside m negatives, so that the loss is the softmax loss of
            a batch with so many, at any batch size; None for SogCLR's, which leaves the positive out (m infinite).

    All state is in `state_dict()`: `estimator.log_u` (float32, one number a sample) and `estimator.step`. It changes
    in training mode only (`loss_fn.eval()` leaves it alone).

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.GlobalContrastiveLoss(num_samples=1000, temperature=0.1, gamma=0.9)
        >>> z0, z1 = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss = loss_fn(z0, z1, index=torch.arange(8))
        >>> loss.backward()
        >>> int(torch.isfinite(loss_fn.estimator.log_u).sum())
        8

    More views of each sample, (V, B, D), all in one encoder pass; NT-Xent and DCL take them too:

        >>> z = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss_fn.of_views(z, index=torch.arange(8)).backward()

    Source: arXiv 2202.12387, Algorithm 1; many views at once: 2403.05490.
    """

    def __init__(
        self,
        num_samples: int,
        temperature: float | nn.Module = 0.1,
        gamma: Gamma = 0.9,
        convention: Convention = "per_view",
        estimator: Estimator | None = None,
        reduction: Reduction = "mean",
        normalize: bool = True,
        num_negatives: float | None = None,
    ) -> None:
        super().__init__(temperature, reduction, normalize)
        self.num_samples = check_num_samples(num_samples)
        self.num_negatives = check_num_negatives(num_negatives)
        self.estimator = MovingAverage(num_samples, gamma, convention) if estimator is None else estimator
        for part in (self.estimator, temperature):
            check_built_for(part, num_samples, "samples", "give both num_samples=len(dataset)")

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return  -s + tau (exp(log ĝ - nu) + nu - 1) + rho tau,  the mean over the views: (B,)."""
        nu = self.estimator(anchors.log_g.detach(), anchors.index, self.training, anchors.estimator_input())
        return self.dual_values(anchors, replicated(nu)) + temperatures.penalty(self.temperature, anchors.temperature)


class NTXentLoss(TwoViewLoss):
    """NT-Xent, SimCLR's loss:  mean over anchors of  -log( e / (e + sum over N(a) exp(s_ab/tau)) ),  e = exp(s_pos/tau).

    The negatives are those of the batch. A sample that is in the batch twice is no negative of itself.
    `statistics['objective']` is -s + tau log ĝ, on the scale of `GlobalContrastiveLoss`, with the batch's normalizer.

    Args:
        temperature: tau > 0, or a module of `sogclr.temperatures`.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.

    Example:
        >>> import torch, sogclr
        >>> z = torch.eye(4)
        >>> round(float(sogclr.NTXentLoss(temperature=1.0)(z, z, torch.arange(4))), 4)   # log(e + 6) - 1
        1.1654

    Source: Chen et al., arXiv 2002.05709.
    """

    per_temperature = True

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return  log( exp(s/tau) + sum over N(a) of exp(s_ab/tau) ) - s/tau, the mean over the views: (B,)."""
        self.record(anchors, anchors.log_g)
        return F.ntxent_loss(anchors.pairs, anchors.log_g, anchors.negatives, anchors.temperature)


class DecoupledContrastiveLoss(TwoViewLoss):
    """DCL:  mean over anchors of  -s_pos/tau + log( sum over N(a) exp(s_ab/tau) ).  NT-Xent without the positive below.

    Its gradient is 1/tau times that of `GlobalContrastiveLoss` with the mini-batch's normalizer.

    Args:
        temperature: tau > 0, or a module of `sogclr.temperatures`.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.

    Example:
        >>> import torch, sogclr
        >>> z = torch.eye(4)
        >>> round(float(sogclr.DecoupledContrastiveLoss(temperature=1.0)(z, z, torch.arange(4))), 4)   # log 6 - 1
        0.7918

    Source: Yeh et al., arXiv 2110.06848.
    """

    per_temperature = True

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return  log( sum over N(a) of exp(s_ab/tau) ) - s/tau, the mean over the views: (B,)."""
        self.record(anchors, anchors.log_g)
        return F.decoupled_loss(anchors.s_pos, anchors.log_g, anchors.negatives, anchors.temperature)
