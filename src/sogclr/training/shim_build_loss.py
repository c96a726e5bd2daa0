"""SHIM until the branches are merged: `build_loss(config, source)` of today's functions. Then it is training.build_loss's."""

from __future__ import annotations

from typing import Any

from ..config.schema import TrainConfig
from ..data.pairs import Pairs
from ..data.source import Source
from ..losses import ClipLoss, SigLipLoss, TwoTowerGlobalContrastiveLoss, TwoTowerMemoryContrastiveLoss
from ..losses.contrastive import ContrastiveLoss
from . import build_loss as today


def build_loss(config: TrainConfig, source: Source) -> ContrastiveLoss:
    """Return the loss of `--method`; for pairs with an estimator and perhaps temperatures for images and for texts."""
    if not isinstance(source, Pairs):
        return today.build_loss(config, len(source))
    loss, images, texts = config.loss, len(source.images), len(source.captions)
    towers = [today.build_temperature(loss, n) for n in (images, texts)]
    tau: Any = tuple(towers) if loss.temperature_mode == "per-sample" else towers[0]
    if loss.method == "clip":
        return ClipLoss(tau)
    if loss.method == "siglip":
        return SigLipLoss(loss.temperature)
    if loss.estimator in ("memory", "boosted-memory"):
        return TwoTowerMemoryContrastiveLoss(
            images,
            config.model.head_dim,
            today.queue_of(loss),
            loss.temperature,
            num_texts=texts,
            steps=today.memory_steps(config),
        )
    of_images, of_texts = (today.build_estimator(config, n) for n in (images, texts))
    return TwoTowerGlobalContrastiveLoss(
        images, tau, num_texts=texts, estimator=(of_images, of_texts), balanced=loss.balanced
    )
