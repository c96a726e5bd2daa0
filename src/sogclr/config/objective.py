"""The sections of a configuration on the loss and on the optimizer. No torch here: `sogclr --help` must not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from .methods import ESTIMATORS, METHODS, check_options
from .ranges import NameIn, Range, check_fields

Optimizer = Literal["lars", "adamw", "sgd"]
TemperatureMode = Literal["constant", "per-sample", "global"]
GammaSchedule = Literal["constant", "cosine", "cosine-full", "adaptive"]
Convention = Literal["per_view", "per_sample"]
KeySchedule = Literal["constant", "cosine"]
LearningRateRule = Literal["auto", "sqrt", "linear"]
WarmStart = Literal["exact", "ema", "none"]

_methods, _estimators = NameIn(METHODS), NameIn(ESTIMATORS)


def _names(choices: Callable[[], type], text: str) -> object:
    """Return what the parser of the command line is to know of an option that takes names of a table."""

    def default(shown: str) -> str:
        return "(default: " + shown.strip("[']") + ")"  # tyro shows a list of one

    return arg(constructor_factory=choices, help=text, help_behavior_hint=default)


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    title: ClassVar[str] = "loss"

    method: Annotated[str, _methods, _names(_methods.literal, f"The loss. {_methods.help()}.")] = "sogclr"
    """The loss, a row of `METHODS`."""
    temperature: Annotated[float | None, Range(0, above=True, note="0.1 is the paper's")] = None
    """tau, greater than 0; where it is learned, the first value. 0.1, or that of the model of --clip, when left out."""
    temperature_mode: TemperatureMode | None = None
    """Whether tau is learned. constant, or per-sample (isogclr), when left out."""
    rho: Annotated[float, Range(0)] = 0.3
    """What a learned temperature aims at: the divergence of the negatives' weights from uniform."""
    temperature_lr: Annotated[float | None, Range(0, above=True)] = None
    """Learning rate of tau: 0.01 (per-sample) or 2e-4 (global) when left out."""
    gamma: Annotated[float | None, Range(0, 1, above=True, note="it is the weight of the new estimate")] = None
    """Weight of the new estimate in the moving average, in (0, 1], 0.9 when left out; with a cosine schedule, the value it ends at."""
    gamma_schedule: GammaSchedule | None = None
    """cosine: from 1 to gamma over the first half of the run; cosine-full: over all of it; adaptive: sigmoid(alpha + log u)."""
    alpha: float = -4.0
    """Of the adaptive gamma, which is a half where log u = -alpha."""
    bias: float | None = None
    """siglip: the first bias; -10, or that of the model of --clip, when left out."""
    convention: Convention | None = None
    """How the two views share one normalizer in a moving average; per_view when left out."""
    num_negatives: Annotated[
        float | None, Range(0, above=True, infinite=True, note="255 is a batch of 256, inf leaves the positive out")
    ] = None
    """Put the positive in the denominator beside so many negatives, as the softmax loss of a batch with that many does, at any batch size. The fewer, the less an anchor counts that has won. inf, the positive is not there, as in the paper, when left out."""
    estimator: Annotated[
        str | None,
        _estimators,
        _names(
            _estimators.literal_or_none,
            "Where the normalizer comes from; moving-average, or neural (neuclip), when left out. "
            f"{_estimators.help()}.",
        ),
    ] = None
    """Where the normalizer comes from, a row of `ESTIMATORS`; the method's own when left out."""
    queue: Annotated[int | None, Range(1)] = None
    """moco: keys that are kept; 4096 when left out."""
    prototypes: Annotated[int, Range(1)] = 1024
    """Of the neural normalizer."""
    prototype_lr: Annotated[float, Range(0, above=True)] = 1e-3
    """Learning rate of the prototypes."""
    key_momentum: Annotated[float, Range(0, 1, below=True)] = 0.99
    """moco: momentum of the key encoder."""
    key_schedule: KeySchedule = "constant"
    """moco: cosine lets the momentum rise to 1 by the end."""
    symmetric: bool = False
    """moco: both views are queries."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_options(vars(self), {f.name: f.default for f in fields(self)})


@dataclass(frozen=True)
class OptimConfig:
    """How it is minimised."""

    title: ClassVar[str] = "optimizer"

    optimizer: Optimizer | None = None
    """lars, or adamw for pairs, encoders without BatchNorm, such as vision transformers, and weights of --pretrained, when left out."""
    lr: Annotated[float | None, Range(0, above=True)] = None
    """Peak learning rate; from --lr-rule when left out, a tenth of it for images and weights of --pretrained, a hundredth with --clip."""
    lr_rule: LearningRateRule = "auto"
    """LARS: sqrt is 0.075 sqrt(B), linear 0.3 B/256; auto is sqrt, three times that for an encoder from nothing on views of at most 96 pixels, and thirty times for adamw and an encoder with BatchNorm on images alone."""
    weight_decay: Annotated[float | None, Range(0)] = None
    """1e-6 (lars), 1e-4 (sgd) or 0.05 (adamw) when left out; never on biases and normalisation."""
    layer_decay: Annotated[
        float | None, Range(0, 1, above=True, note="it is the factor from a layer to the one below")
    ] = None
    """Factor of the learning rate from each layer of the image encoder to the one below; 1, or 0.75 for weights of --pretrained (on pairs, of a vision transformer), when left out."""
    momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Of lars and sgd."""
    warmup_epochs: Annotated[float | None, Range(0)] = None
    """10, or a tenth of the run if that is less, when left out; then a cosine to 0."""
    warm_start: WarmStart | None = None
    """What is right before weights move: exact, each normalizer from a pass over the data, then still steps; ema: still steps alone; none. exact for pairs with --init-from, --clip, or weights for every tower (of 200,000 pairs at most on a CPU, 5 million on a GPU), else none, when left out."""
    still_steps: Annotated[int | None, Range(0)] = None
    """First steps of a warm start, at learning rate 0: they fill the optimizer's moments. A fiftieth of the run, at most 30, of adamw (ema: an epoch, at most half the run), when left out."""
    gradient_scale: Annotated[float | None, Range(0, above=True)] = None
    """Factor of the loss's gradient. A global loss is tau times a softmax loss: with lars and sgd 1/tau, which makes it as large as theirs, when left out; else 1. Biases and normalisation under lars feel it, and all under sgd."""
    clip_grad: Annotated[float | None, Range(0, above=True)] = None
    """Largest norm of the gradient."""
    accumulate: Annotated[int, Range(1)] = 1
    """Batches per optimizer step. It averages gradients; it adds no negatives, and SogCLR does not need it to."""
    micro_batch: Annotated[int | None, Range(2)] = None
    """Encode so many views (or pairs) at a time, each twice, to save memory. The loss still sees the whole batch; only BatchNorm's statistics are the micro-batch's."""

    def __post_init__(self) -> None:
        check_fields(self)
