"""Many negatives from a queue of past embeddings, with both halves of the gradient: of two views, and of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import BadInput
from . import functional as F
from .contrastive import Anchors, Reduction
from .estimators import BoostedAverage, Gamma, MovingAverage, QueueNormalizer
from .image_text import TwoTowerGlobalContrastiveLoss, estimator_inputs
from .queue import EmbeddingQueue
from .rollback import StatefulModule
from .two_view import GlobalContrastiveLoss

_RATE = 0.02  # of the running means that tell how late the queue is


class QueueNegatives:
    """A queue as a batch finds it, and the log-sums over it, with their gradient, of the anchors z, (V, B, D).

    Attributes:
        ids: (K,) or (K, kinds), of the queue's keys.
        count: (B,), how many keys are negatives of each anchor.
        log_q: (V, B), log of the mean over them of exp(s_ab / tau).
    """

    def __init__(self, queue: EmbeddingQueue, z: Tensor, ids: Tensor, temperature: float) -> None:
        queue.check_width(z)
        self.z, self.own, self.temperature = z, ids, temperature
        self.keys, self.ids = queue.keys.to(z.dtype, copy=True), queue.ids.clone()  # the estimator pushes in place
        log_sum, self.count = F.log_sum_keys(z, ids, self.keys, self.ids, temperature)
        self.log_q = log_sum - self.count.clamp(min=1).log()

    def as_negatives(self, average: MovingAverage, ids: Tensor) -> Tensor:
        """Return log of the mean over the keys b of exp(s_ab / tau) / u_b, (V, B), with u of the keys' ids, (K,).

        Where u_b is right no term exceeds n, the samples of which u_b is the mean; a late u_b may let it, and the mean
        is held at n.
        """
        log_u = average.read(ids.clamp(min=0))
        of_keys = torch.where(torch.isfinite(log_u), -log_u, -torch.inf).to(self.z.dtype)
        log_sum, _ = F.log_sum_keys(self.z, self.own, self.keys, self.ids, self.temperature, of_keys)
        log_mean = log_sum - self.count.clamp(min=1).log()
        return log_mean - (log_mean - math.log(average.num_samples)).clamp(min=0).detach()


class QueueTerm(StatefulModule):
    """What a queue adds to the batch's negatives, and how much it counts: see `MemoryContrastiveLoss`.

    Attributes:
        running: (2,) float32 buffer, log of the running means of ĝ and of q.
    """

    __call__: Callable[..., tuple[Tensor, Tensor]]

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.full((2,), -math.inf))

    def forward(
        self,
        log_g: Tensor,
        nu: Tensor,
        queued: QueueNegatives,
        as_negatives: Tensor,
        here: float | Tensor,
        rise: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return what tau multiplies in the loss, of which the half as negatives has a gradient only; and lam.

        Args:
            log_g: (V, B), over the batch's negatives.
            nu: (V, B).
            queued: the queue's negatives.
            as_negatives: (V, B), as `QueueNegatives.as_negatives` gives it.
            here: negatives in the batch, a number or (B,).
            rise: what lam is multiplied by, see `_rise`.

        Returns:
            (V, B), and (B,).
        """
        with torch.no_grad():
            lam = rise * self.share(log_g, queued.log_q, queued.count, here)
        weight = (1 - lam) * torch.exp(log_g - nu) + lam * torch.exp(queued.log_q - nu)
        second = lam * torch.exp(as_negatives)  # its value is in that of the anchors b
        return weight + nu - 1 + second - second.detach(), lam

    def share(self, log_g: Tensor, log_q: Tensor, count: Tensor, here: float | Tensor) -> Tensor:
        """Return lam, (B,); the running means move on in training mode, from the first step with a queue."""
        now = torch.stack([F.log_mean(x.flatten()) for x in (log_g, log_q)]).to(self.running)
        if self.training:
            blended = torch.logaddexp(math.log(1 - _RATE) + self.running, math.log(_RATE) + now)
            self.assign(self.running, torch.where(torch.isfinite(now).all(), blended, self.running))
        log_g, log_q = self.running
        rho = torch.where(torch.isfinite(log_q), (log_q - log_g).clamp(max=0.0).exp(), 0.0)
        return rho.to(count) ** 3 * count / (count + here).clamp(min=1)


class MemoryContrastiveLoss(GlobalContrastiveLoss):
    r"""Global contrastive loss whose negatives are the batch's and the last K embeddings, a queue.

    With ĝ_a the mean of exp(s_ab / tau) over the batch's negatives (m of them) and q_a that over the queue's, the
    gradient by an anchor's embedding z_a is that of

        -s_{a,p(a)} + tau { (1 - lam) e^{-nu_a} ĝ_a
                            + lam [ e^{-nu_a} q_a + mean over b in the queue of e^{-nu_b} exp(s_ab / tau) ] }

    plus what a gives as a negative of the batch's other anchors. The bracket holds both halves of the whole-data
    gradient: a as an anchor, and a as a negative of b, whose normalizer nu_b = log u_b is what the n floats remember.
    nu_a = log of the mean over the batch's and the queue's negatives together (`gamma` 1), or its moving average.

    The queue is up to K/2B steps late. What that does shows in q being too small; with rho the ratio of the running
    means of q and ĝ, at most 1,  lam = rho^3 K / (K + m):  the later the queue, the less it counts.

    With `steps`, three things change along the run: lam is multiplied by a share that rises from 0 to 1 along a half
    cosine (the queue is the less late the smaller the learning rate is), and nu is `BoostedAverage`'s, of the batch's
    negatives alone, with gamma from 1 to 0.1 and a repulsion that starts `boost` times as strong.

    Args:
        num_samples: n; `index` runs from 0 to n - 1.
        dim: D, width of the embeddings.
        queue: K, embeddings that are kept; 32 times the batch (of all ranks) works well, and 512 with `steps`.
        temperature: tau > 0, a constant.
        gamma: weight of the new estimate in nu, 1 or less; not used with `steps`.
        steps: updates in the whole run, for the schedules.
        boost: of the repulsion at the start, with `steps`.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.

    The value is an estimate of the global objective. State, all in `state_dict()`: `estimator.log_u` (n floats), the
    queue (K D floats and K ids) and two running means. It changes in training mode only.

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.MemoryContrastiveLoss(num_samples=1000, dim=16, queue=256)
        >>> z0, z1 = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss_fn(z0, z1, index=torch.arange(8)).backward()
        >>> int((loss_fn.queue.ids >= 0).sum())
        16

    The derivation is in docs/method.md.
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
        boost: float = 1.6,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        average = _average(num_samples, dim, queue, gamma, steps, boost)
        super().__init__(
            num_samples, _constant(temperature), estimator=average, reduction=reduction, normalize=normalize
        )
        self.recall = QueueTerm()

    @property
    def queue(self) -> EmbeddingQueue:
        """Return the queue of past embeddings, of both views."""
        return _queue_of(self.estimator)

    def per_sample(self, anchors: Anchors) -> Tensor:
        """Return -s plus tau times the bracket of the class's equation, the mean over the views: (B,)."""
        tau, log_g = _constant(anchors.temperature), anchors.log_g
        queued, rise = QueueNegatives(self.queue, anchors.z, anchors.index, tau), _rise(self.estimator)
        nu = self.estimator(log_g.detach(), anchors.index, self.training, anchors.estimator_input())
        second = queued.as_negatives(self.estimator, queued.ids)
        terms, lam = self.recall(log_g, nu, queued, second, anchors.negatives, rise)
        values = -anchors.s_pos + tau * terms.mean(dim=0)
        self.record(anchors, nu, objective=values.detach().mean(), queue_share=lam.mean())
        return values


class TwoTowerMemoryContrastiveLoss(TwoTowerGlobalContrastiveLoss):
    r"""`MemoryContrastiveLoss` for images and texts, whose further negatives are the last K texts and K images.

    With a an image and b a text of the queue, nu_a is the image's own normalizer and nu_b = log u_b the text's, so that
    a is pushed as an anchor and as a negative of b; and the same with a a text and b an image. Each queue has its own
    lam.

    Args:
        num_samples: images; `index` runs from 0 to num_samples - 1.
        dim: D, width of the embeddings.
        queue: K, texts and images that are kept, each; 16 times the batch (of all ranks) is as late as 32 of two views.
        temperature: tau > 0, a constant.
        gamma: as of `MemoryContrastiveLoss`.
        num_texts: texts, where they have ids of their own; num_samples when left out.
        steps: as of `MemoryContrastiveLoss`.
        boost: as of `MemoryContrastiveLoss`.
        reduction: `mean`, `sum` or `none`.
        normalize: scale embeddings to norm one first.

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.TwoTowerMemoryContrastiveLoss(num_samples=1000, dim=16, queue=128)
        >>> image, text = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss_fn(image, text, index=torch.arange(8)).backward()
        >>> [int((queue.ids[:, 0] >= 0).sum()) for queue in loss_fn.queues]
        [8, 8]

    The derivation is in docs/method.md.
    """

    image_estimator: MovingAverage
    text_estimator: MovingAverage

    def __init__(
        self,
        num_samples: int,
        dim: int,
        queue: int,
        temperature: float = 0.07,
        gamma: Gamma = 1.0,
        num_texts: int | None = None,
        steps: int | None = None,
        boost: float = 1.6,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        averages = [_average(n, dim, queue, gamma, steps, boost) for n in (num_samples, num_texts or num_samples)]
        super().__init__(
            num_samples,
            _constant(temperature),
            num_texts=num_texts,
            estimator=(averages[0], averages[1]),
            reduction=reduction,
            normalize=normalize,
        )
        self.image_recall, self.text_recall = QueueTerm(), QueueTerm()

    @property
    def queues(self) -> tuple[EmbeddingQueue, EmbeddingQueue]:
        """Return the queue of texts, which are the images' negatives, and that of images."""
        return _queue_of(self.image_estimator), _queue_of(self.text_estimator)

    def per_pair(self, anchors: Anchors, y_ids: Tensor) -> Tensor:
        """Return -s plus tau times the bracket of `MemoryContrastiveLoss`, the mean over image and text: (B,)."""
        tau, log_g, z = _constant(anchors.temperature), anchors.log_g, torch.split(anchors.z, 1)
        both = estimator_inputs(anchors, y_ids)
        queued = [QueueNegatives(queue, z[k], both[k].ids, tau) for k, queue in enumerate(self.queues)]
        of_images, of_texts = self.image_estimator, self.text_estimator
        rise = _rise(of_images)
        nu = [
            of_images(log_g[:1].detach(), anchors.index, self.training, both[0]),
            of_texts(log_g[1:].detach(), y_ids, self.training, both[1]),
        ]
        # the keys are the other tower's, and so are their normalizers
        second = (
            queued[0].as_negatives(of_texts, queued[0].ids[:, 1]),
            queued[1].as_negatives(of_images, queued[1].ids[:, 0]),
        )
        terms_of, here = (self.image_recall, self.text_recall), anchors.negatives
        terms, lam = zip(
            *(terms_of[k](log_g[k : k + 1], nu[k], queued[k], second[k], here, rise) for k in (0, 1)), strict=True
        )
        values = -anchors.s_pos + tau * torch.cat(terms).mean(dim=0)
        self.record(anchors, torch.cat(nu), objective=values.detach().mean(), queue_share=torch.stack(lam).mean())
        return values


def _constant(temperature: object) -> float:
    if not isinstance(temperature, int | float):
        raise BadInput("the loss with a memory needs a constant temperature; give a number")
    return temperature


def _queue_of(estimator: MovingAverage) -> EmbeddingQueue:
    assert estimator.dictionary is not None
    return estimator.dictionary.queue


def _average(n: int, dim: int, queue: int, gamma: Gamma, steps: int | None, boost: float) -> MovingAverage:
    """Return the source of nu, with the queue, which feeds nu too where there are no schedules."""
    if steps is None:
        return MovingAverage(n, gamma, dictionary=QueueNormalizer(queue, dim))
    return BoostedAverage(n, steps, boost, dictionary=QueueNormalizer(queue, dim, feeds=False))


def _rise(estimator: MovingAverage) -> float | Tensor:
    """Return what lam is multiplied by at the next update: 1, or, with schedules, from 0 to 1 along the run."""
    return 1 - estimator.falling() if isinstance(estimator, BoostedAverage) else 1.0
