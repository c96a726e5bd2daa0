"""From `--method` and its options to a loss, and what trains the loss's own parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..config.methods import METHODS, estimator_of
from ..config.objective import LossConfig
from ..config.rows import construct
from ..config.schema import TrainConfig
from ..data.pairs import Pairs
from ..data.source import Source
from ..losses.contrastive import ContrastiveLoss
from ..losses.estimators import AdaptiveGamma, CosineGamma, Gamma
from ..losses.temperatures import Global, PerSample
from .skip import use_fused

_TEMPERATURE_RATE = {"per-sample": 0.01, "global": 2e-4}  # LibAUC's eta for iSogCLR; FastCLIP v3's for CC3M


def build_loss(config: TrainConfig, source: Source) -> ContrastiveLoss:
    """Return the loss of a resolved configuration, with its estimator and temperature.

    Args:
        config: what `resolve` made.
        source: the samples, of a kind that the method works on.
    """
    options, row = config.loss, METHODS[config.loss.method]
    sizes = {"num_samples": len(source.images)}
    if isinstance(source, Pairs):
        sizes = {"num_samples": len(source.things(0)), "num_texts": len(source.things(1))}
    values: dict[str, object] = {
        **_values(config),
        **_relation(config, source),
        **sizes,
        "temperature": _temperatures(options, list(sizes.values())),
    }
    if row.estimator:
        built = [build_estimator(config, n) for n in sizes.values()]
        values["estimator"] = built[0] if len(built) == 1 else tuple(built)
    loss = construct(row.losses[source.kind], values)
    assert isinstance(loss, ContrastiveLoss), f"{row.losses[source.kind]} made no contrastive loss"
    return loss


def _relation(config: TrainConfig, source: Source) -> dict[str, object]:
    """Return what a loss is told of pairs beside their number: which of them match, and whose hard negatives count."""
    if not isinstance(source, Pairs):
        return {}
    found: dict[str, object] = {"share_negatives": config.pairs.share_negatives}
    if config.pairs.known_pairs:
        found["positives"] = torch.from_numpy(source.first_ids.copy()), torch.from_numpy(source.second_ids.copy())
        found["same_kind"] = source.kinds[0] == source.kinds[1]
    return found


def build_estimator(config: TrainConfig, num_samples: int) -> nn.Module:
    """Return the source of the normalizers of so many samples."""
    row = estimator_of(config.loss.method, config.loss.estimator)
    assert row is not None, f"--method {config.loss.method} has no estimator"
    estimator = construct(row.builder, {**_values(config), "num_samples": num_samples})
    assert isinstance(estimator, nn.Module), f"{row.builder} made no module"
    return estimator


def _values(config: TrainConfig) -> dict[str, object]:
    """Return what builders may ask for, all but what depends on the number of samples."""
    steps = (config.run.max_steps or 1) * config.optim.accumulate  # an estimator has an update a batch
    made = {"dim": config.model.head_dim, "steps": steps, "gamma": build_gamma(config.loss, steps), "estimator": None}
    return {**vars(config.loss), **made}


def build_temperature(options: LossConfig, num_samples: int) -> float | nn.Module:
    """Return a constant, or the module of `--temperature-mode`, whose bounds hold the initial value."""
    tau = options.temperature
    assert tau is not None, "the temperature is open in this configuration; resolve chooses it"
    if options.temperature_mode == "per-sample":
        return PerSample(num_samples, tau, options.rho, min(0.05, tau), max(0.7, tau))
    if options.temperature_mode == "global":
        return Global(tau, options.rho, min(0.01, tau), max(1.0, tau))
    return tau


def _temperatures(options: LossConfig, sizes: list[int]) -> object:
    """Return one temperature; or, of pairs with a temperature for each sample, the images' and the texts'."""
    if options.temperature_mode == "per-sample" and len(sizes) == 2:
        return tuple(build_temperature(options, n) for n in sizes)
    return build_temperature(options, sizes[0])


def build_gamma(options: LossConfig, steps: int) -> Gamma:
    """Return a constant, or the schedule of `--gamma-schedule` in a run of so many updates; 1 where none is taken."""
    if options.gamma_schedule == "adaptive":
        return AdaptiveGamma(options.alpha)
    if options.gamma is None:
        return 1.0
    if options.gamma_schedule == "cosine":
        return CosineGamma(options.gamma, max(1, steps // 2))
    if options.gamma_schedule == "cosine-full":
        return CosineGamma(options.gamma, steps)
    return options.gamma


# ------------------------------------------------------------------------------------------- what trains and carries it
def build_loss_optimizers(loss: ContrastiveLoss, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return what trains the loss's own parameters, at constant rates; empty where there are none.

    Per-sample temperatures: plain SGD, which takes their sparse gradients and so moves the visited ones only; its rate
    is multiplied by the anchors of a step that have a temperature of their own, of which each gradient is the mean, and
    divided by what the gradient is multiplied by for the model. All else: Adam, which feels no scale.
    """
    options = config.loss
    of_temperature = options.temperature_lr or _TEMPERATURE_RATE.get(str(options.temperature_mode), 0.0)
    lr = (estimator_of(options.method, options.estimator) or METHODS[options.method]).lr
    of_others = float(getattr(options, lr)) if isinstance(lr, str) else lr
    sgd: list[dict[str, Any]] = []
    adam: list[dict[str, Any]] = []
    for module in loss.modules():
        parameters = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if isinstance(module, PerSample):
            sgd.append({"params": parameters, "lr": of_temperature})
        elif parameters:
            adam.append({"params": parameters, "lr": of_temperature if isinstance(module, Global) else of_others})
    anchors = config.run.batch_size * config.optim.accumulate * len(sgd)  # of all towers
    factor = anchors / (config.optim.gradient_scale or 1.0)
    found: list[torch.optim.Optimizer] = []
    if sgd:
        found.append(torch.optim.SGD([{**group, "lr": group["lr"] * factor} for group in sgd]))
    if adam:
        found.append(torch.optim.Adam(adam, fused=use_fused(list(loss.parameters()))))
    return found
