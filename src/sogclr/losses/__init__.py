"""Losses as drop-in modules, `loss(z0, z1, index)` or `loss(images, texts, index)`; their mathematics in `functional`."""

from .baselines import DecoupledContrastiveLoss, NTXentLoss
from .memory import MemoryContrastiveLoss, TwoTowerMemoryContrastiveLoss
from .moco import MoCoLoss
from .one_tower import GlobalContrastiveLoss
from .two_tower import ClipLoss, SigLipLoss, TwoTowerGlobalContrastiveLoss
from .validation import NonFinite

__all__ = [
    "ClipLoss",
    "DecoupledContrastiveLoss",
    "GlobalContrastiveLoss",
    "MemoryContrastiveLoss",
    "MoCoLoss",
    "NTXentLoss",
    "NonFinite",
    "SigLipLoss",
    "TwoTowerGlobalContrastiveLoss",
    "TwoTowerMemoryContrastiveLoss",
]
