"""Optimizers, parameter groups and the schedule. All taken from torch and timm."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..config.objective import OptimConfig
from ..models.torchvision_cpu import import_timm
from .skip import use_fused

LR_SCALE = "rate"  # the key of a parameter group's learning-rate scale, as checkpoints hold it


def build_optimizer(
    model: nn.Module, config: OptimConfig, lr_scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer of two groups: matrices and filters; and 1-D parameters, without decay and (LARS) adaptation.

    Where the learning rate decays over layers there are two groups for each. What a backbone of ours wants without decay,
    as a vision transformer its positions and its class token, is in the second; not in runs that were begun before.

    Args:
        model: what is trained, with image encoders of timm as `backbone` (and of a second column `text_backbone`).
        config: resolved.
        lr_scales: beginning of parameters' names -> their learning-rate scale, the `LR_SCALE` of two groups of their own;
            1 for all others.
    """
    if config.lr is None or config.weight_decay is None:
        raise ValueError("the learning rate and the weight decay are open; resolve the configuration first")
    by_scale: dict[float, list[nn.Parameter]] = {}
    layers, undecayed = _layers(model, config.layer_decay)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = next((s for start, s in (lr_scales or {}).items() if name.startswith(start)), 1.0)
            scale *= layers.get(parameter, 1.0)
            by_scale.setdefault(scale, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for scale, parameters in by_scale.items():
        matrices, vectors = (
            [p for p in parameters if (p.ndim >= 2 and p not in undecayed) is big] for big in (True, False)
        )
        groups.append({"params": matrices, "weight_decay": config.weight_decay, LR_SCALE: scale, "always_adapt": True})
        groups.append({"params": vectors, "weight_decay": 0.0, LR_SCALE: scale, "always_adapt": False})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=use_fused(list(model.parameters())))
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, fused=use_fused(list(model.parameters()))
        )
    import_timm()
    from timm.optim.lars import Lars

    return Lars(groups, lr=config.lr, momentum=config.momentum, trust_coeff=0.001)


def _layers(model: nn.Module, decay: float | None) -> tuple[dict[nn.Parameter, float], set[nn.Parameter]]:
    """Return the learning-rate scale of each parameter of timm's image encoders, and those without weight decay.

    Args:
        model: with `backbone` and perhaps `text_backbone`.
        decay: from a layer to the one below; None, in a run of an older version, gives nothing.

    Source: layer-wise decay as in BEiT (2106.08254), by timm.
    """
    scales: dict[nn.Parameter, float] = {}
    undecayed: set[nn.Parameter] = set()
    for name in ("backbone", "text_backbone"):
        backbone: Any = getattr(model, name, None)
        if decay is None or not hasattr(backbone, "group_matcher"):
            continue
        if hasattr(backbone, "no_weight_decay"):
            names = backbone.no_weight_decay()
            undecayed |= {p for key, p in backbone.named_parameters() if key in names}
        if decay != 1.0:
            import_timm()
            timm_optim: Any = importlib.import_module("timm.optim")
            groups = timm_optim.param_groups_layer_decay(backbone, layer_decay=decay)
            scales |= {p: group["lr_scale"] for group in groups for p in group["params"]}
    return scales, undecayed


def warmup_cosine(total: int, warmup: int, still: int = 0) -> Callable[[int], float]:
    """Return the schedule, step -> factor of the peak learning rate: a line from 1/warmup to 1, then a half cosine to 0.

    Args:
        total: steps of the run, at whose end the factor is 0.
        warmup: steps of the line.
        still: steps before it whose factor is 0: no weight moves, decayed or not, while the optimizer's moments and the
            loss's normalizers fill. BatchNorm's statistics follow the data, and what the loss itself learns is learned.
    """

    def factor(step: int) -> float:
        if step < still:
            return 0.0
        if step < still + warmup:
            return (step - still + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - still - warmup) / max(1, total - still - warmup))))

    return factor
