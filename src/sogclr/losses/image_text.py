"""Images and texts, one encoder each: the two-way global contrastive loss (arXiv 2202.12387, §5)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..distributed import check_on_all_ranks
from ..errors import BadInput
from ..kernels.ranks import gather, log_sum_between, uneven_batch
from . import functional as F
from . import temperatures
from .arguments import check_built_for, check_num_negatives, check_num_samples
from .candidates import HardNegatives, KnownPairs, log_mean_masked, negatives_of_pairs, similarities
from .contrastive import Anchors, ContrastiveLoss, Reduction, no_autocast, replicated
from .estimators import Estimator, EstimatorInput, Gamma, MovingAverage
from .validation import (
    check_hard_negatives,
    check_negatives,
    check_pairs,
    check_positives,
    check_some_negative,
)

_WHAT = "image and text embeddings"


class ImageTextLoss(ContrastiveLoss):
    """What the losses on pairs have in common: checks, unit rows, float32, two kinds of ids, hard negatives, ranks.

    Images and texts stand for any two kinds of things. A row is one pair, so of a thing with several positives each row
    pulls at its own, and the mean over its rows is that of -s over its positives.

    A loss adds `per_pair`, or `values` where it needs the rows themselves.

    Args:
        temperature: tau > 0, or a module of `sogclr.temperatures`.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.
        text_temperature: the texts', where they have temperatures of their own.
        sizes: how many images and how many texts there are; None where ids are any.
        positives: ids of images and of texts, (P,) each: all pairs of the data set. A candidate that matches an anchor
            by a pair that is not in the batch is then no negative of it. Data, not in `state_dict()`.
        same_kind: both are one kind with one space of ids, as two columns of texts: what has the anchor's id is no
            negative of it, and pairs match both ways.
        share_negatives: hard negatives count for all images of the batch, and not for their row's alone.
    """

    def __init__(
        self,
        temperature: float | nn.Module,
        reduction: Reduction,
        normalize: bool,
        text_temperature: nn.Module | None = None,
        sizes: tuple[int | None, int | None] = (None, None),
        positives: tuple[Tensor, Tensor] | None = None,
        same_kind: bool = False,
        share_negatives: bool = False,
    ) -> None:
        super().__init__(temperature, reduction, normalize)
        self.text_temperature = text_temperature  # where texts have temperatures of their own
        self.num_samples, self.num_texts = sizes
        self.known: KnownPairs | None = None
        self.same_kind, self.share_negatives = same_kind, share_negatives
        if positives is not None:
            check_positives(positives, *sizes)
            known = KnownPairs(*positives, same_kind)
            self.known = None if known.one_each() else known  # no thing has another match than its row's

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        index: Tensor,
        text_index: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_index: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch of pairs, and update the state in training mode.

        Args:
            image_embeddings: (B, D) floating.
            text_embeddings: (B, D) floating.
            index: (B,) int64 or int32, ids of the images.
            text_index: (B,), ids of the texts, where an image has several captions or a caption several images; the
                images' ids when left out. Pairs that share an image or a text are never negatives of each other.
            negatives: (B, H, D) floating, or (B, D) for one each: texts that are hard negatives of each row's image.
                With gradient, and no anchors. On all ranks or on none, with one H.
            negative_index: (B, H) or (B,), their ids as texts; -1 where there is none, whose embedding may be anything.
                One that is in the batch, that came before, or that is a known match, is not counted (again).

        Returns:
            () float32 or float64, or (B of all ranks,) with `reduction='none'`.

        Raises:
            BadInput: shapes, dtypes or ids are wrong, or no anchor of the batch has a negative (CPU).
            NonFinite: an embedding is not finite (CPU).
        """
        x, y, hard = image_embeddings, text_embeddings, None
        x_ids, sizes = check_on_all_ranks(check_pairs, x, y, index, self.num_samples, _WHAT)
        if text_index is not None:
            y_ids, _ = check_on_all_ranks(check_pairs, x, y, text_index, self.num_texts, _WHAT, False)
        if negatives is not None or negative_index is not None:
            hard_ids, _ = check_on_all_ranks(check_hard_negatives, y, negatives, negative_index, self.num_texts)
        with uneven_batch(sizes), no_autocast(x):
            x_ids = gather(x_ids)
            check_negatives(x_ids)
            y_ids = x_ids if text_index is None else gather(y_ids)
            check_negatives(y_ids)
            x, y = gather(self.rows(x)), gather(self.rows(y))
            if negatives is not None:
                z = torch.where(hard_ids[..., None] >= 0, negatives.view(*hard_ids.shape, y.shape[1]), 0.0)
                hard = HardNegatives(gather(self.rows(z).to(x.dtype)), gather(hard_ids), self.share_negatives)
            values = self.values(x, y, x_ids, y_ids, hard)
        return self.reduce(values)

    def negatives_of(self, x_ids: Tensor, y_ids: Tensor, hard: HardNegatives | None) -> Tensor | None:
        """Return which candidates are negatives of each image, (B, B + K) bool; None where their ids say all.

        Raises:
            BadInput: there is no negative at all (CPU).
        """
        negative = negatives_of_pairs(x_ids, y_ids, hard, self.known, self.same_kind)
        if negative is not None:
            check_some_negative(negative)
        return negative

    def values(self, x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, hard: HardNegatives | None) -> Tensor:
        """Return the (B,) losses of the rows of all ranks.

        Args:
            x: (B, D) unit rows, the images.
            y: (B, D) unit rows, the texts.
            x_ids: (B,) ids of the images.
            y_ids: (B,) ids of the texts; `x_ids` itself where they are the images'.
            hard: further texts.
        """
        tau = self.temperature_of(x_ids, y_ids, x)
        tau = replicated(tau) if isinstance(tau, Tensor) else tau
        negative = self.negatives_of(x_ids, y_ids, hard)
        if negative is not None:
            log_g, negatives = log_mean_masked(similarities(x, y, hard), negative, tau)
        else:
            ids = F.ids_of_pairs(x_ids, y_ids)
            log_sum = torch.stack(log_sum_between(x, y, ids, F.by_tower(tau)))
            negatives = F.count_different(ids).to(x.dtype)
            # with one kind of ids everyone has a negative
            log_g = log_sum - negatives.log() if y_ids is x_ids else F.log_mean_of_pairs(log_sum, negatives)
        anchors = Anchors(torch.stack([x, y]), x_ids, tau, F.positive_similarity(x, y), log_g, negatives)
        return self.per_pair(anchors, y_ids)

    def temperature_of(self, x_ids: Tensor, y_ids: Tensor, like: Tensor) -> float | Tensor:
        """Return tau of a batch of all ranks: a float, () or (2, B), the images' and the texts'.

        One a pair serves both ways.
        """
        tau = temperatures.temperature_at(self.temperature, x_ids, like)
        theirs = (
            tau if self.text_temperature is None else temperatures.temperature_at(self.text_temperature, y_ids, like)
        )
        if isinstance(tau, Tensor) and isinstance(theirs, Tensor) and (tau.ndim or theirs is not tau):
            return torch.stack([tau.expand(len(like)), theirs.expand(len(like))])
        return tau

    def per_pair(self, anchors: Anchors, y_ids: Tensor) -> Tensor:
        """Return the loss of each pair, and record what `statistics` is made from.

        Args:
            anchors: the pairs of all ranks, (2, B): images, then texts; `index` holds the images' ids.
            y_ids: (B,) int64, the texts' ids; the tensor `anchors.index` itself where they are the images'.

        Returns:
            (B,), differentiable in `s_pos`, `log_g` and `temperature` of the anchors.
        """
        raise NotImplementedError


class TwoTowerGlobalContrastiveLoss(ImageTextLoss):
    r"""Two-way global contrastive loss: each pair against ALL texts and ALL images of the data set, at any batch size.

    Value of a batch, the mean over its images a (against texts) and its texts a (against images) of

        -s_{a,p(a)} + tau ( exp(log ĝ_a - nu_a) + nu_a - 1 ),   nu_a = log u_a after  u_a <- (1 - gamma) u_a + gamma ĝ_a

    with one running normalizer for each image and one for each text. ĝ_a is the mean of exp(s_ab / tau) over the
    negatives in the batch. Means over negatives and anchors: the size of the gradient does not depend on the batch's.

    Args:
        num_samples: images in the data set; `index` runs from 0 to num_samples - 1.
        temperature: tau > 0; or `sogclr.temperatures.Global`, learned; or `PerSample`, copied for the texts; or two
            modules, for images and for texts.
        gamma: weight of the new estimate in (0, 1], or `sogclr.estimators.CosineGamma` or `AdaptiveGamma`; 1 is the
            mini-batch loss.
        num_texts: texts in the data set, where they have ids of their own; num_samples when left out.
        estimator: another source of nu, copied for the texts; or two, for images and for texts.
        reduction: `mean`, `sum` or `none` (one value a pair).
        normalize: scale embeddings to norm one first; pass False only if they have it already.
        positives: as of `ImageTextLoss`, as are the next two.
        same_kind: whether images and texts are one kind with one space of ids.
        share_negatives: whether hard negatives count for all images.
        num_negatives: m: the positive stands in the denominator beside m negatives, so that the loss is the softmax loss of
            a batch with so many, at any batch size; None for SogCLR's, which leaves the positive out (m infinite).

    All state is in `state_dict()`: `image_estimator.log_u`, `text_estimator.log_u` (float32, one number each) and their
    `step`. It changes in training mode only.

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.TwoTowerGlobalContrastiveLoss(num_samples=1000, temperature=0.07, gamma=0.9)
        >>> image, text = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss = loss_fn(image, text, index=torch.arange(8))
        >>> loss.backward()
        >>> int(torch.isfinite(loss_fn.text_estimator.log_u).sum())
        8

    Source: arXiv 2202.12387.
    """

    def __init__(
        self,
        num_samples: int,
        temperature: float | nn.Module | tuple[nn.Module, nn.Module] = 0.07,
        gamma: Gamma = 0.9,
        num_texts: int | None = None,
        estimator: Estimator | tuple[Estimator, Estimator] | None = None,
        reduction: Reduction = "mean",
        normalize: bool = True,
        positives: tuple[Tensor, Tensor] | None = None,
        same_kind: bool = False,
        share_negatives: bool = False,
        num_negatives: float | None = None,
    ) -> None:
        num_samples = check_num_samples(num_samples)
        texts = num_samples if num_texts is None else check_num_samples(num_texts, "num_texts")
        of_images, of_texts = _two_temperatures(temperature, num_samples, texts)
        super().__init__(
            of_images, reduction, normalize, of_texts, (num_samples, texts), positives, same_kind, share_negatives
        )
        self.num_negatives = check_num_negatives(num_negatives)
        if estimator is None:
            estimator = MovingAverage(num_samples, gamma), MovingAverage(texts, gamma)
        elif not isinstance(estimator, tuple):
            estimator = estimator, copy.deepcopy(estimator)
        self.image_estimator, self.text_estimator = estimator
        two = "give two, estimator=(for images, for texts)"
        check_built_for(self.image_estimator, num_samples, "images", two)
        check_built_for(self.text_estimator, texts, "texts", two)

    def per_pair(self, anchors: Anchors, y_ids: Tensor) -> Tensor:
        """Return  -s + tau (exp(log ĝ - nu) + nu - 1) + rho tau,  the mean over image and text: (B,)."""
        of_images, of_texts = _estimator_inputs(anchors)
        log_g = anchors.log_g.detach()
        nu = torch.cat(
            [
                self.image_estimator(log_g[:1], anchors.index, self.training, of_images),
                self.text_estimator(log_g[1:], y_ids, self.training, of_texts),
            ]
        )
        return self.dual_values(anchors, replicated(nu)) + self.penalty(anchors.temperature)

    def penalty(self, tau: float | Tensor) -> float | Tensor:
        """Return rho tau; the mean of the images' and the texts' where each have their own, (2, B) -> (B,)."""
        if self.text_temperature is None or not isinstance(tau, Tensor):
            return temperatures.penalty(self.temperature, tau)
        return (
            temperatures.penalty(self.temperature, tau[0]) + temperatures.penalty(self.text_temperature, tau[1])
        ) / 2


def _estimator_inputs(anchors: Anchors) -> tuple[EstimatorInput, EstimatorInput]:
    """Return what the estimators see: images against texts, and texts against images."""
    x, y = torch.split(anchors.z.detach(), 1)
    tau = temperatures.detached(anchors.temperature)
    own = (tau[0], tau[1]) if isinstance(tau, Tensor) and tau.ndim else (tau, tau)
    return EstimatorInput(x, y, own[0]), EstimatorInput(y, x, own[1])


def _two_temperatures(
    temperature: float | nn.Module | tuple[nn.Module, nn.Module], num_samples: int, num_texts: int
) -> tuple[float | nn.Module, nn.Module | None]:
    """Return the images' temperature, and the texts' where it is another."""
    if isinstance(temperature, tuple):
        if not all(isinstance(t, nn.Module) for t in temperature):
            raise BadInput(
                f"two temperatures are two modules, as temperatures.Global, and were {temperature}; or give one"
            )
        return temperature
    if not isinstance(temperature, temperatures.PerSample):
        return temperature, None
    if num_texts != num_samples:
        raise BadInput(
            f"one PerSample temperature serves {temperature.num_samples} images and the loss has {num_texts} texts; "
            "give two, temperature=(PerSample(images), PerSample(texts))"
        )
    return temperature, copy.deepcopy(temperature)
