"""sogclr: global contrastive learning at a small batch size.

    loss_fn = sogclr.GlobalContrastiveLoss(num_samples=n, temperature=0.1)
    loss = loss_fn(z0, z1, index)

    run = sogclr.train("photos/", out="runs/photos")
    encoder = sogclr.load_encoder("runs/photos")

Names are imported when they are first used, so that `sogclr --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "GlobalContrastiveLoss": "losses",
    "TwoTowerGlobalContrastiveLoss": "losses",
    "MemoryContrastiveLoss": "losses",
    "TwoTowerMemoryContrastiveLoss": "losses",
    "NTXentLoss": "losses",
    "ClipLoss": "losses",
    "SigLipLoss": "losses",
    "MoCoLoss": "losses",
    "DecoupledContrastiveLoss": "losses",
    "estimators": "losses.estimators",
    "temperatures": "losses.temperatures",
    "exact": "evaluation.exact",
    "diagnose": "evaluation.diagnosis",
    "train": "commands.train",
    "resume": "commands.train",
    "embed": "commands.embed",
    "evaluate": "commands.evaluate",
    "load_encoder": "models.encoder",
    "load_two_tower": "models.two_tower",
    "BadInput": "errors",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from .commands.embed import embed as embed
    from .commands.evaluate import evaluate as evaluate
    from .errors import BadInput as BadInput
    from .evaluation import exact as exact
    from .evaluation.diagnosis import diagnose as diagnose
    from .losses import ClipLoss as ClipLoss
    from .losses import DecoupledContrastiveLoss as DecoupledContrastiveLoss
    from .losses import GlobalContrastiveLoss as GlobalContrastiveLoss
    from .losses import MemoryContrastiveLoss as MemoryContrastiveLoss
    from .losses import MoCoLoss as MoCoLoss
    from .losses import NTXentLoss as NTXentLoss
    from .losses import SigLipLoss as SigLipLoss
    from .losses import TwoTowerGlobalContrastiveLoss as TwoTowerGlobalContrastiveLoss
    from .losses import TwoTowerMemoryContrastiveLoss as TwoTowerMemoryContrastiveLoss
    from .losses import estimators as estimators
    from .losses import temperatures as temperatures
    from .models.encoder import load_encoder as load_encoder
    from .models.two_tower import load_two_tower as load_two_tower


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sogclr' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES[name]}", __name__)
    return getattr(module, name, module)  # a module that holds no such name is what was asked for itself


def __dir__() -> list[str]:
    return sorted(__all__)
