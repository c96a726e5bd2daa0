"""Optimizers, parameter groups, learning-rate rules and the schedule. All taken from torch and timm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from .config import OptimConfig
from .torchvision_cpu import import_timm

# learning rate at batch 256, by optimizer and rule; 1.2 sqrt(B/256) = 0.075 sqrt(B)
_RATE_AT_256 = {
    "lars": {"sqrt": 1.2, "linear": 0.3},
    "sgd": {"sqrt": 0.06, "linear": 0.06},
    "adamw": {"sqrt": 1e-3, "linear": 1e-3},
}
_DECAY = {"lars": 1e-6, "sgd": 1e-4, "adamw": 0.05}


def learning_rate(optimizer: str, rule: str, batch_size: int) -> float:
    """Peak learning rate for B samples an optimizer step: LARS 0.075 sqrt(B) or 0.3 B/256 (SimCLR, appendix B.1)."""
    share = batch_size / 256
    return _RATE_AT_256[optimizer][rule] * (math.sqrt(share) if rule == "sqrt" else share)


def weight_decay(optimizer: str) -> float:
    """The default of each optimizer."""
    return _DECAY[optimizer]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Two groups: matrices and filters; and 1-D parameters, without decay and (LARS) without adaptation."""
    if config.lr is None or config.weight_decay is None:
        raise ValueError("the learning rate and the weight decay are open; resolve the configuration first")
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    import_timm()
    from timm.optim import Lars

    groups[0]["always_adapt"], groups[1]["always_adapt"] = True, False
    return Lars(groups, lr=config.lr, momentum=config.momentum, trust_coeff=0.001)


def warmup_cosine(total: int, warmup: int) -> Callable[[int], float]:
    """step -> share of the peak rate: a line from 1/warmup to 1, then a half cosine to 0 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return factor
