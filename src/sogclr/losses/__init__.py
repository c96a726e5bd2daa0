"""Losses as drop-in modules, `loss(z0, z1, index)` or `loss(images, texts, index)`; `functional` has the formulas."""

from __future__ import annotations

from .clip import ClipLoss, SigLipLoss
from .image_text import TwoTowerGlobalContrastiveLoss
from .moco import MoCoLoss
from .two_view import DecoupledContrastiveLoss, GlobalContrastiveLoss, NTXentLoss
from .validation import NonFinite

__all__ = [
    "ClipLoss",
    "DecoupledContrastiveLoss",
    "GlobalContrastiveLoss",
    "MoCoLoss",
    "NTXentLoss",
    "NonFinite",
    "SigLipLoss",
    "TwoTowerGlobalContrastiveLoss",
]
