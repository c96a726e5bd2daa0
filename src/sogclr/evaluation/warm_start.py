"""Set a loss's running normalizers to their exact values, from embeddings of all its samples, before it trains or while it does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import distributed
from ..losses import GlobalContrastiveLoss, TwoTowerGlobalContrastiveLoss
from ..losses.estimators import MovingAverage
from ..losses.functional import log_mean
from ..losses.temperatures import detached, temperature_at
from ..progress import ProgressCallback
from .exact import eval_mode, normalizers
from .exact_pairs import pair_normalizers


def moving_averages(loss: nn.Module) -> list[MovingAverage]:
    """Return the running normalizers in a loss."""
    return [part for part in loss.modules() if isinstance(part, MovingAverage)]


def keeps_normalizers(loss: nn.Module) -> bool:
    """Return whether a loss has running normalizers that can be set: it is a global loss, with moving averages."""
    return isinstance(loss, GlobalContrastiveLoss | TwoTowerGlobalContrastiveLoss) and bool(moving_averages(loss))


@torch.no_grad()
def set_view_normalizers(
    loss: GlobalContrastiveLoss, embeddings: Tensor, index: Tensor, progress: ProgressCallback | None = None
) -> None:
    """Set u of the samples that are given to the exact mean of g over their views, at the loss's current temperature.

    Args:
        loss: with a `MovingAverage`; another estimator is left as it is.
        embeddings: (V, n, D) of V views of each sample, of any norm.
        index: (n,) int64 ids, on the device of the embeddings.
        progress: called with (samples done, samples to do).
    """
    if not isinstance(loss.estimator, MovingAverage):
        return
    with eval_mode(loss):  # a temperature is not put back into its bounds
        tau = detached(temperature_at(loss.temperature, index, embeddings))
    log_g = log_mean(normalizers(embeddings, tau, progress=progress))
    distributed.broadcast(log_g)  # to the last bit the same on all ranks
    loss.estimator.warm_start(log_g, index)


@torch.no_grad()
def set_pair_normalizers(
    loss: TwoTowerGlobalContrastiveLoss,
    first: Tensor,
    second: Tensor,
    first_ids: Tensor,
    second_ids: Tensor,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Set both kinds of u to their exact values over the pairs that are given, at the loss's current temperature.

    What the loss knows of the pairs decides what is a negative of what, as in training. Hard negatives are candidates
    where they count for all anchors; where each counts for its own alone it is one candidate of as many as there are
    pairs, and is left out.

    Args:
        loss: an estimator of it that is no `MovingAverage` is left as it is.
        first: (n, D) embeddings of the pairs' first things, of any norm.
        second: (n, D), of their second things.
        first_ids: (n,) int64, on the device of the embeddings.
        second_ids: (n,) int64.
        negatives: (K, D) hard negatives.
        negative_ids: (K,) int64.
        progress: called with (pairs done, pairs to do).
    """
    with eval_mode(loss):
        tau = detached(loss.temperature_of(first_ids, second_ids, first))
    shared = loss.share_negatives
    log_g = pair_normalizers(
        first,
        second,
        first_ids,
        second_ids,
        tau,
        positives=loss.known,
        same_kind=loss.same_kind,
        negatives=negatives if shared else None,
        negative_ids=negative_ids if shared else None,
        progress=progress,
    )
    distributed.broadcast(log_g)
    both = ((loss.image_estimator, first_ids), (loss.text_estimator, second_ids))
    for (estimator, ids), values in zip(both, log_g, strict=True):
        if isinstance(estimator, MovingAverage):
            estimator.warm_start(values, ids)
