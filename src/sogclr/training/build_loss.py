"""From `--method` and its options to a loss, what trains the loss's own parameters, and MoCo's momentum encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from ..config.schema import LossConfig, TrainConfig
from ..losses import (
    DecoupledContrastiveLoss,
    GlobalContrastiveLoss,
    MemoryContrastiveLoss,
    MoCoLoss,
    NTXentLoss,
    SigLipLoss,
    estimators,
)
from ..losses.contrastive import ContrastiveLoss
from ..losses.temperatures import Global, PerSample
from ..losses.two_view import TwoViewLoss
from .skip import use_fused

_TEMPERATURE_RATE = {"per-sample": 0.01, "global": 2e-4}  # LibAUC's eta for iSogCLR; FastCLIP v3's for CC3M
_SIGMOID_RATE = 1e-3  # of SigLIP's scale and bias


def build_loss(config: TrainConfig, num_samples: int) -> TwoViewLoss:
    """The loss of a resolved configuration, with its estimator and temperature."""
    loss, dim = config.loss, config.model.head_dim
    tau = build_temperature(loss, num_samples)
    if loss.method == "simclr":
        return NTXentLoss(tau)
    if loss.method == "dcl":
        return DecoupledContrastiveLoss(tau)
    if loss.method == "moco":
        return MoCoLoss(dim, queue_of(loss), tau)
    if loss.estimator in ("memory", "boosted-memory"):
        return MemoryContrastiveLoss(num_samples, dim, queue_of(loss), loss.temperature, steps=memory_steps(config))
    estimator = build_estimator(config, num_samples)
    return GlobalContrastiveLoss(num_samples, tau, estimator=estimator, balanced=loss.balanced)


def queue_of(loss: LossConfig) -> int:
    """The queue's length, of a resolved configuration."""
    if loss.queue is None:
        raise ValueError("the queue's length is open in this configuration; defaults.resolve makes the choices")
    return loss.queue


def updates(config: TrainConfig) -> int:
    """Of an estimator in the whole run: one a batch, of which `--accumulate` make a step."""
    return (config.run.max_steps or 1) * config.optim.accumulate


def memory_steps(config: TrainConfig) -> int | None:
    """Of the schedules of a loss with a memory; None where it has none."""
    return updates(config) if config.loss.estimator == "boosted-memory" else None


def build_estimator(config: TrainConfig, num_samples: int) -> nn.Module:
    """The source of nu of `--estimator`, for so many samples."""
    loss, steps = config.loss, updates(config)
    return estimators.create(
        str(loss.estimator), num_samples, config.model.head_dim, build_gamma(loss, steps), loss.convention or "per_view",
        queue_of(loss), loss.prototypes, steps,
    )  # fmt: skip


def build_temperature(loss: LossConfig, num_samples: int) -> float | nn.Module:
    """A constant, or the module of `--temperature-mode`, whose bounds hold the initial value."""
    tau = loss.temperature
    if loss.temperature_mode == "per-sample":
        return PerSample(num_samples, tau, loss.rho, min(0.05, tau), max(0.7, tau))
    if loss.temperature_mode == "global":
        return Global(tau, loss.rho, min(0.01, tau), max(1.0, tau))
    return tau


def build_gamma(loss: LossConfig, steps: int) -> estimators.Gamma:
    """A constant, or the rate of `--gamma-schedule` in a run of so many updates; 1 where the estimator takes none."""
    if loss.gamma_schedule == "adaptive":
        return estimators.AdaptiveGamma(loss.alpha)
    if loss.gamma is None:
        return 1.0
    if loss.gamma_schedule == "cosine":
        return estimators.CosineGamma(loss.gamma, max(1, steps // 2))
    if loss.gamma_schedule == "cosine-full":
        return estimators.CosineGamma(loss.gamma, steps)
    return loss.gamma


def build_loss_optimizers(loss: ContrastiveLoss, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """What trains the loss's own parameters, at constant rates; empty where there are none.

    Per-sample temperatures: plain SGD, which takes their sparse gradients and so moves the visited ones only; its rate
    is multiplied by the anchors of a step that have a temperature of their own, of which each gradient is the mean.
    All else: Adam.
    """
    options = config.loss
    rate = options.temperature_lr or _TEMPERATURE_RATE.get(str(options.temperature_mode), 0.0)
    rates = {PerSample: rate, Global: rate, estimators.Neural: options.prototype_lr, SigLipLoss: _SIGMOID_RATE}
    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for module in loss.modules():
        kind = next((k for k in rates if isinstance(module, k)), None)
        parameters = [p for p in module.parameters() if p.requires_grad] if kind else []
        if kind and parameters:
            groups[kind is PerSample].append({"params": parameters, "lr": rates[kind]})
    found: list[torch.optim.Optimizer] = []
    if groups[True]:
        towers = len(groups[True])
        anchors = config.run.batch_size * config.optim.accumulate * towers
        found.append(torch.optim.SGD([{**group, "lr": group["lr"] * anchors} for group in groups[True]]))
    if groups[False]:
        found.append(torch.optim.Adam(groups[False], fused=use_fused(list(loss.parameters()))))
    return found


def transfer_state(loss: nn.Module, old: dict[str, Tensor], columns: Mapping[str, tuple[pa.Array, pa.Array]]) -> int:
    """Copy what a loss keeps for each sample, where another run's loss has the same; how many samples that was, at most.

    Args:
        old: that loss's state.
        columns: name in the state -> the samples' names here, and there.
    """
    ours, carried = loss.state_dict(keep_vars=True), 0
    for key, (here, there) in columns.items():
        mine, theirs = ours.get(key), old.get(key)
        if mine is None or theirs is None or not mine.ndim == theirs.ndim == 1:
            continue
        where = pc.fill_null(pc.index_in(here, value_set=there), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        rows = np.flatnonzero(where >= 0)
        with torch.no_grad():
            mine[torch.from_numpy(rows).to(mine.device)] = theirs[torch.from_numpy(where[rows])].to(mine.device)
        carried = max(carried, len(rows))
    return carried
