"""Optimizers, parameter groups, learning-rate rules and the schedule. All taken from torch and timm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..config.schema import OptimConfig
from ..models.torchvision_cpu import import_timm
from .skip import use_fused

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


def build_optimizer(
    model: nn.Module, config: OptimConfig, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Two groups: matrices and filters; and 1-D parameters, without decay and (LARS) without adaptation.

    Args:
        rates: beginning of parameters' names -> their share of the learning rate, which is kept as the `rate` of two
            groups of their own; 1 for all others.
    """
    if config.lr is None or config.weight_decay is None:
        raise ValueError("the learning rate and the weight decay are open; resolve the configuration first")
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((r for start, r in (rates or {}).items() if name.startswith(start)), 1.0)
            by_rate.setdefault(rate, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for rate, parameters in by_rate.items():
        matrices, vectors = ([p for p in parameters if (p.ndim >= 2) is big] for big in (True, False))
        groups.append({"params": matrices, "weight_decay": config.weight_decay, "rate": rate, "always_adapt": True})
        groups.append({"params": vectors, "weight_decay": 0.0, "rate": rate, "always_adapt": False})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=use_fused(list(model.parameters())))
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, fused=use_fused(list(model.parameters()))
        )
    import_timm()
    from timm.optim import Lars

    return Lars(groups, lr=config.lr, momentum=config.momentum, trust_coeff=0.001)


def warmup_cosine(total: int, warmup: int) -> Callable[[int], float]:
    """Step -> share of the peak rate: a line from 1/warmup to 1, then a half cosine to 0 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return factor
