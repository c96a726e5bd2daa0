"""Losses as drop-in modules, `loss(z0, z1, index)`, and their mathematics in `functional`."""

from .baselines import DecoupledContrastiveLoss, NTXentLoss
from .memory import MemoryContrastiveLoss
from .moco import MoCoLoss
from .one_tower import GlobalContrastiveLoss
from .validation import NonFinite

__all__ = [
    "DecoupledContrastiveLoss",
    "GlobalContrastiveLoss",
    "MemoryContrastiveLoss",
    "MoCoLoss",
    "NTXentLoss",
    "NonFinite",
]
