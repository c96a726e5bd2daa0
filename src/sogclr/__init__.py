"""sogclr: global contrastive learning at a small batch size.

    loss_fn = sogclr.GlobalContrastiveLoss(num_samples=n, temperature=0.1)
    loss = loss_fn(z0, z1, index)

    run = sogclr.train("photos/", out="runs/photos")
    encoder = sogclr.load_encoder("runs/photos")

Names are imported when they are first used, so that `sogclr --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    # the commands, and what they return
    **{"train": "commands.train", "resume": "commands.train", "RunFolder": "run_folder"},
    **{"embed": "commands.embed", "EmbedResult": "commands.embed"},
    **{"evaluate": "commands.evaluate", "EvalResult": "commands.eval_result"},
    **{"classify": "commands.classify", "ClassifyResult": "commands.classify_result"},
    **{"predict": "commands.predict", "PredictResult": "commands.predict"},
    **{"search": "commands.search", "SearchResult": "commands.search"},
    **{"export": "commands.export", "report": "commands.report"},
    **{"inspect": "commands.inspect", "Inspection": "commands.inspection"},
    **{"cache": "commands.cache", "CacheResult": "commands.cache"},
    **{"demo": "commands.demo", "DemoResult": "commands.demo_steps"},
    # the losses and their pieces
    "GlobalContrastiveLoss": "losses",
    "TwoTowerGlobalContrastiveLoss": "losses",
    "NTXentLoss": "losses",
    "DecoupledContrastiveLoss": "losses",
    "MoCoLoss": "losses",
    "ClipLoss": "losses",
    "SigLipLoss": "losses",
    "estimators": "losses.estimators",
    "temperatures": "losses.temperatures",
    "sharded": "losses.estimators.sharded",
    # instruments, trained encoders, errors
    "exact": "evaluation.exact",
    "diagnose": "evaluation.diagnosis",
    "load_encoder": "models.encoder",
    "load_classifier": "models.classifier",
    "load_two_tower": "models.two_tower",
    "BadInput": "errors",
}
"""Public name -> the module that holds it, or that it is."""

if TYPE_CHECKING:
    from .commands.cache import CacheResult, cache
    from .commands.classify import classify
    from .commands.classify_result import ClassifyResult
    from .commands.demo import demo
    from .commands.demo_steps import DemoResult
    from .commands.embed import EmbedResult, embed
    from .commands.eval_result import EvalResult
    from .commands.evaluate import evaluate
    from .commands.export import export
    from .commands.inspect import inspect
    from .commands.inspection import Inspection
    from .commands.predict import PredictResult, predict
    from .commands.report import report
    from .commands.search import SearchResult, search
    from .commands.train import resume, train
    from .errors import BadInput
    from .evaluation import exact
    from .evaluation.diagnosis import diagnose
    from .losses import (
        ClipLoss,
        DecoupledContrastiveLoss,
        GlobalContrastiveLoss,
        MoCoLoss,
        NTXentLoss,
        SigLipLoss,
        TwoTowerGlobalContrastiveLoss,
        estimators,
        temperatures,
    )
    from .losses.estimators import sharded
    from .models.classifier import load_classifier
    from .models.encoder import load_encoder
    from .models.two_tower import load_two_tower
    from .run_folder import RunFolder

__all__ = [
    "BadInput",
    "CacheResult",
    "ClassifyResult",
    "ClipLoss",
    "DecoupledContrastiveLoss",
    "DemoResult",
    "EmbedResult",
    "EvalResult",
    "GlobalContrastiveLoss",
    "Inspection",
    "MoCoLoss",
    "NTXentLoss",
    "PredictResult",
    "RunFolder",
    "SearchResult",
    "SigLipLoss",
    "TwoTowerGlobalContrastiveLoss",
    "__version__",
    "cache",
    "classify",
    "demo",
    "diagnose",
    "embed",
    "estimators",
    "evaluate",
    "exact",
    "export",
    "inspect",
    "load_classifier",
    "load_encoder",
    "load_two_tower",
    "predict",
    "report",
    "resume",
    "search",
    "sharded",
    "temperatures",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sogclr' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES[name]}", __name__)
    return getattr(module, name, module)  # a module that holds no such name is what was asked for itself


def __dir__() -> list[str]:
    return sorted(__all__)
