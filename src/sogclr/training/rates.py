"""What a run's learning rate, weight decay and warm-up are where they are left open, and the words that say by which rule."""

from __future__ import annotations

import math
from dataclasses import replace

from ..config.methods import estimator_of
from ..config.objective import LossConfig, OptimConfig
from ..config.schema import TrainConfig
from ..errors import BadInput
from ..models.backbone import has_batchnorm

# learning rate at batch 256, by optimizer and rule; 1.2 sqrt(B/256) = 0.075 sqrt(B)
_RATE_AT_256 = {
    "lars": {"sqrt": 1.2, "linear": 0.3},
    "sgd": {"sqrt": 0.06, "linear": 0.06},
    "adamw": {"sqrt": 1e-3, "linear": 1e-3},
}
# SimCLR's rates are for views of 224 pixels. On views of at most so many LARS gets so many times the rate: linear accuracy and F2 are better with it for
# every method of docs/results/with_a_resnet.md (28 pixels, B = 16, 6 and 30 epochs); SogCLR's authors took 13 times for CIFAR-10 (examples/recipes).
# AdamW's 1e-3 is of vision transformers; networks with BatchNorm take far more (docs/results/rates.md and with_a_resnet.md).
SMALL_VIEWS, SMALL_FACTORS = 96, {"lars": 3.0, "adamw": 30.0}
TUNED_SHARE = 0.1  # of the rule's learning rate, for an encoder that has weights already
TUNED_LAYER_DECAY = 0.75  # BEiT's
CLIP_SHARE = 0.01  # the same for a CLIP model: more of it forgets what the model knows
_DECAY = {"lars": 1e-6, "sgd": 1e-4, "adamw": 0.05}


def resolve_optim(
    config: TrainConfig, epochs: float, kind: str, patches: bool, weights: str | None, size: int
) -> OptimConfig:
    """Return the section with every open choice made.

    LARS is of networks with BatchNorm: it lets vision transformers collapse, and others learn less (docs/results/rates.md). High rates forget what
    weights know.

    Args:
        config: with its loss and the name of its model resolved.
        epochs: of the whole run.
        kind: of DATA, images or pairs.
        patches: whether the encoder is a vision transformer.
        weights: whose the encoder begins with, if any.
        size: of the views, pixels.

    Raises:
        BadInput: momentum for an optimizer that has none.
    """
    optim = config.optim
    tuned = weights is not None and (patches or kind == "images")
    by_batches = has_batchnorm(str(config.model.model)) is not False and not patches
    optimizer = optim.optimizer or ("lars" if by_batches and kind == "images" and not tuned else "adamw")
    if optimizer == "adamw" and optim.momentum != OptimConfig().momentum:
        raise BadInput(
            f"--momentum {optim.momentum:g} is of lars and sgd, and the optimizer is adamw; leave it out or give --optimizer lars or sgd"
        )
    small = begins_small(config, optimizer, kind, size)
    rule = learning_rate(optimizer, optim.lr_rule, config.run.batch_size * optim.accumulate, small)
    return replace(
        optim,
        optimizer=optimizer,
        lr=optim.lr or (rule * TUNED_SHARE if tuned and kind == "images" and optimizer == "adamw" else rule),
        layer_decay=optim.layer_decay or (TUNED_LAYER_DECAY if tuned else 1.0),
        gradient_scale=optim.gradient_scale or gradient_scale(config.loss, optimizer),
        weight_decay=weight_decay(optimizer) if optim.weight_decay is None else optim.weight_decay,
        warmup_epochs=warmup(epochs) if optim.warmup_epochs is None else optim.warmup_epochs,
    )


def begins_small(config: TrainConfig, optimizer: str, kind: str, size: int) -> bool:
    """Return whether an encoder begins from nothing on small views, which LARS takes a higher rate for, and AdamW if it has BatchNorm and no text beside it."""
    small = size <= SMALL_VIEWS and not config.begins_trained
    return small and (optimizer != "adamw" or (kind == "images" and has_batchnorm(str(config.model.model)) is True))


def learning_rate(optimizer: str, rule: str, batch_size: int, small: bool = False) -> float:
    """Return the peak learning rate: LARS 0.075 sqrt(B) or 0.3 B/256 (SimCLR, appendix B.1).

    Args:
        optimizer: lars, sgd or adamw.
        rule: auto, sqrt or linear; auto is sqrt, and knows of small views.
        batch_size: B, samples of an optimizer step.
        small: whether an encoder begins from nothing on views of at most `SMALL_VIEWS` pixels, as `begins_small` says.
    """
    share = batch_size / 256
    if rule == "linear":
        return _RATE_AT_256[optimizer]["linear"] * share
    return small_factor(optimizer, rule, small) * _RATE_AT_256[optimizer]["sqrt"] * math.sqrt(share)


def small_factor(optimizer: str, rule: str, small: bool) -> float:
    """Return what the rate is multiplied by for small views; args as of `learning_rate`."""
    return SMALL_FACTORS.get(optimizer, 1.0) if small and rule == "auto" else 1.0


def gradient_scale(loss: LossConfig, optimizer: str) -> float:
    """Return the factor of a loss's gradient, 1/tau of a global loss, whose value is tau times a softmax loss; 1 for AdamW, else.

    AdamW feels no factor. LARS adapts the step of matrices and filters to any scale, but not that of biases and normalisation, which would move by tau
    as much as with SimCLR's loss. Where a large batch leaves few steps this costs points (docs/results/flat_line.md).
    """
    of_tau = optimizer != "adamw" and estimator_of(loss.method, loss.estimator) is not None
    return 1 / (loss.temperature or 1.0) if of_tau else 1.0


def weight_decay(optimizer: str) -> float:
    """Return the weight decay that an optimizer, lars, sgd or adamw, has by default."""
    return _DECAY[optimizer]


def warmup(epochs: float) -> float:
    """Return the warm-up of a run of so many epochs: 10, or a tenth of it if that is less."""
    return min(10.0, epochs / 10)


def optimizer_words(optim: OptimConfig, batch_size: int, small: bool, epochs: float) -> str:
    """Return the words on a resolved section, with the rule that each value is by; none where it is by no rule.

    Args:
        optim: resolved.
        batch_size: B, samples of an optimizer step.
        small: as of `learning_rate`.
        epochs: of the whole run.
    """
    name, rate = str(optim.optimizer), optim.lr or 0.0
    rule = learning_rate(name, optim.lr_rule, batch_size, small)
    at_256 = _RATE_AT_256[name]["linear" if optim.lr_rule == "linear" else "sqrt"]
    formula = f"{at_256:g} B/256" if optim.lr_rule == "linear" else f"{at_256 / 16:g} sqrt(B)"
    if (factor := small_factor(name, optim.lr_rule, small)) != 1:
        formula = f"{factor:g} x {formula}: views of at most {SMALL_VIEWS} pixels"
    said = {rule: formula}
    for share, why in ((TUNED_SHARE, "pretrained"), (CLIP_SHARE, "a CLIP model")):
        said[rule * share] = f"{share:g} of the rule's: {why}"
    layers = f", times {optim.layer_decay:g} a layer down" if optim.layer_decay != 1 else ""
    decay = f" ({name}'s)" if optim.weight_decay == weight_decay(name) else ""
    usual = " (a tenth of the run, 10 at most)" if optim.warmup_epochs == warmup(epochs) else ""
    scale = f", the gradient times {optim.gradient_scale:.4g}" if optim.gradient_scale not in (None, 1.0) else ""
    return (
        f"{name}, lr {rate:.4g}{f' ({said[rate]})' if rate in said else ''}{layers}{scale}, "
        f"weight decay {optim.weight_decay:g}{decay}, {optim.warmup_epochs:g} warm-up epochs{usual}"
    )
