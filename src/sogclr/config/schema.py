"""The configuration of a run: one tree of small frozen dataclasses. No torch here: `sogclr --help` must not wait for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, arg

from ..errors import BadInput
from .methods import AVERAGES, METHODS, OF_AVERAGES


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise BadInput(message)


def _require_finite(section: Any) -> None:
    for name, value in vars(section).items():
        finite = not isinstance(value, float) or math.isfinite(value)
        _require(finite, f"--{name.replace('_', '-')} must be a finite number and was {value}")


@dataclass(frozen=True)
class DataConfig:
    """What to train on, and where the run goes."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """Images: a folder (its train/ part, if it has one) or a .txt list. Image-caption pairs: CSV, TSV, JSONL, Parquet, or tar shards."""
    out: str
    """The run's folder; it must not hold another run."""
    labels: str = "auto"
    """Used for evaluation only: auto, folder, none, or a CSV file of path,label."""
    image_size: int | None = None
    """Side of the views, pixels. Chosen from the images (32, 64, 96 or 224) when left out."""
    recipe: Literal["auto", "simclr", "small", "character", "caption"] = "auto"
    """Augmentation: auto is simclr, below 96 pixels small, and for pairs caption. Single values: the [recipe] table of a configuration file."""
    background: str = "white"
    """What transparent pixels are laid on: a colour name or #rrggbb."""
    max_bad: float = 0.01
    """The largest share of unreadable images; above it the run stops."""
    workers: int | None = None
    """Processes that read images (0: none). Chosen from the cores when left out."""
    cache: str = "auto"
    """Decoded images that `sogclr cache` made: auto reads them where there are some; none; or full, or the side, to require them."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(
            self.image_size is None or self.image_size >= 8,
            f"--image-size must be 8 or more and was {self.image_size}",
        )
        _require(
            self.cache in ("auto", "none", "full") or (self.cache.isdecimal() and int(self.cache) > 0),
            f"--cache must be auto, none, full or the side of `sogclr cache --side`, and was {self.cache}",
        )
        _require(0.0 <= self.max_bad < 1.0, f"--max-bad is a share from 0 up to 1 and was {self.max_bad}")
        _require(self.workers is None or self.workers >= 0, f"--workers must be 0 or more and was {self.workers}")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained."""

    model: str | None = None
    """Any timm name, or resnet18_small, resnet50_small, resnet10_mini. Chosen by the image size when left out."""
    pretrained: str | None = None
    """Weights of the same timm model to start from, a local file."""
    init_from: str | None = None
    """A run to start from: its weights, and its normalizers for the images that both runs have."""
    head_layers: int = 2
    """Layers of the projection head."""
    head_hidden: int | None = None
    """Hidden width of the projection head; the encoder's width when left out."""
    head_dim: int = 128
    """Width of the embeddings that the loss compares."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(self.head_layers in (2, 3), f"--head-layers must be 2 or 3 and was {self.head_layers}")
        _require(self.head_dim >= 2, f"--head-dim must be 2 or more and was {self.head_dim}")
        _require(
            self.head_hidden is None or self.head_hidden >= 1,
            f"--head-hidden must be 1 or more and was {self.head_hidden}",
        )
        _require(
            self.pretrained is None or self.init_from is None,
            "--pretrained and --init-from both give the first weights; keep one of them",
        )


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    method: Literal["sogclr", "isogclr", "scent", "neuclip", "simclr", "dcl", "moco", "clip", "siglip"] = "sogclr"
    """sogclr: the global contrastive loss; isogclr, scent and neuclip are its settings below. The others are baselines: simclr, dcl and moco for images, clip and siglip for pairs."""
    temperature: float = 0.1
    """tau, greater than 0; where it is learned, the first value."""
    temperature_mode: Literal["constant", "per-sample", "global"] | None = None
    """Whether tau is learned. constant, or per-sample (isogclr), when left out."""
    rho: float = 0.3
    """What a learned temperature aims at: the divergence of the negatives' weights from uniform."""
    temperature_lr: float | None = None
    """Learning rate of tau: 0.01 (per-sample) or 2e-4 (global) when left out."""
    gamma: float | None = None
    """Weight of the new estimate in the moving average, in (0, 1], 0.9 when left out; with a cosine schedule, the value it ends at."""
    gamma_schedule: Literal["constant", "cosine", "cosine-full", "adaptive"] | None = None
    """cosine: from 1 to gamma over the first half of the run; cosine-full: over all of it; adaptive: sigmoid(alpha + log u)."""
    alpha: float = -4.0
    """Of the adaptive gamma, which is a half where log u = -alpha."""
    convention: Literal["per_view", "per_sample"] | None = None
    """How the two views share one normalizer in a moving average; per_view when left out."""
    balanced: bool = False
    """Weigh an anchor's attraction as its repulsion is weighed: less noise at a small gamma."""
    estimator: (
        Literal[
            "moving-average",
            "boosted",
            "mini-batch",
            "dictionary",
            "queue-average",
            "neural",
            "memory",
            "boosted-memory",
        ]
        | None
    ) = None
    """Where the normalizer comes from. moving-average, or neural (neuclip), when left out. boosted is a moving average with schedules of its own, for gamma and for the repulsion; memory takes the negatives too from a queue, with both halves of the gradient; boosted-memory is both. These three take no gamma."""
    queue: int | None = None
    """Embeddings that are kept, for moco and the estimators dictionary, queue-average, memory and boosted-memory; of pairs, so many of each tower. When left out 4096; or 32 times the batch size (memory) or 512 (boosted-memory), of pairs half of these."""
    prototypes: int = 1024
    """Of the neural normalizer."""
    prototype_lr: float = 1e-3
    """Learning rate of the prototypes."""
    key_momentum: float = 0.99
    """moco: momentum of the key encoder."""
    key_schedule: Literal["constant", "cosine"] = "constant"
    """moco: cosine lets the momentum rise to 1 by the end."""
    symmetric: bool = False
    """moco: both views are queries."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(
            self.temperature > 0,
            f"--temperature must be greater than 0 and was {self.temperature}; 0.1 is the paper's",
        )
        _require(
            self.gamma is None or 0 < self.gamma <= 1,
            f"--gamma must be in (0, 1] and was {self.gamma}; it is the weight of the new estimate",
        )
        _require(self.rho >= 0, f"--rho must be 0 or more and was {self.rho}")
        for name in ("temperature_lr", "prototype_lr"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"--{name.replace('_', '-')} must be greater than 0 and was {value}")
        for name in ("queue", "prototypes"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name} must be 1 or more and was {value}")
        _require(0 <= self.key_momentum < 1, f"--key-momentum must be from 0 up to 1 and was {self.key_momentum}")
        _require(
            self.estimator is None or "estimator" in METHODS[self.method],
            f"--estimator {self.estimator} does not go with --method {self.method}, which has a normalizer of its own; "
            "use --method sogclr",
        )
        _require(
            self.method != "scent" or self.estimator in (None, *AVERAGES),
            f"--estimator {self.estimator} does not go with --method scent, which is an adaptive gamma; give one of "
            f"{', '.join(AVERAGES)}, or --method sogclr",
        )
        estimator = self.estimator or METHODS[self.method].get("estimator")
        with_what = f"estimator {estimator}" if self.estimator else f"method {self.method}"
        for name, takers in OF_AVERAGES.items():
            value = getattr(self, name)
            _require(
                value is None or estimator in takers,
                f"--{name.replace('_', '-')} {value} does not go with --{with_what}, which has no such average; leave it out",
            )
        memory = self.estimator in ("memory", "boosted-memory")
        _require(
            not self.balanced or ("estimator" in METHODS[self.method] and not memory),
            f"--balanced does not go with --{with_what}; leave it out",
        )
        modes = {"clip": (None, "constant", "global"), "siglip": (None, "constant")}.get(self.method)
        _require(
            modes is None or self.temperature_mode in modes,
            f"--temperature-mode {self.temperature_mode} does not go with --method {self.method}, "
            + (
                "which learns one at most; give global"
                if self.method == "clip"
                else "which always learns its own scale; leave it out"
            ),
        )
        learned = self.method == "isogclr" or self.temperature_mode not in (None, "constant")
        _require(
            not (memory and learned),
            f"--estimator {self.estimator} needs a constant temperature; leave --temperature-mode out and use --method sogclr",
        )


@dataclass(frozen=True)
class OptimConfig:
    """How it is minimised."""

    optimizer: Literal["lars", "adamw", "sgd"] | None = None
    """lars, or adamw for pairs, when left out."""
    lr: float | None = None
    """Peak learning rate; from --lr-rule when left out."""
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    """LARS: 0.075 sqrt(B), or 0.3 B/256."""
    weight_decay: float | None = None
    """1e-6 (lars), 1e-4 (sgd) or 0.05 (adamw) when left out; never on biases and normalisation."""
    momentum: float = 0.9
    warmup_epochs: float | None = None
    """10, or a tenth of the run if that is less, when left out; then a cosine to 0."""
    clip_grad: float | None = None
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Batches per optimizer step. It averages gradients; it adds no negatives, and SogCLR does not need it to."""
    micro_batch: int | None = None
    """Encode so many views (or pairs) at a time, each twice, to save memory. The loss still sees the whole batch; only BatchNorm's statistics are the micro-batch's."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(self.lr is None or self.lr > 0, f"--lr must be greater than 0 and was {self.lr}")
        _require(
            self.weight_decay is None or self.weight_decay >= 0,
            f"--weight-decay must be 0 or more and was {self.weight_decay}",
        )
        _require(0 <= self.momentum < 1, f"--momentum must be from 0 up to 1 and was {self.momentum}")
        _require(
            self.warmup_epochs is None or self.warmup_epochs >= 0,
            f"--warmup-epochs must be 0 or more and was {self.warmup_epochs}",
        )
        _require(
            self.clip_grad is None or self.clip_grad > 0,
            f"--clip-grad must be greater than 0 and was {self.clip_grad}",
        )
        _require(self.accumulate >= 1, f"--accumulate must be 1 or more and was {self.accumulate}")
        _require(
            self.micro_batch is None or self.micro_batch >= 2,
            f"--micro-batch must be 2 or more and was {self.micro_batch}",
        )


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and what is written down."""

    epochs: int = 100
    max_steps: int | None = None
    """Stop after this many steps, if that is sooner than --epochs."""
    batch_size: int = 256
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware has it (a GPU, or a CPU with bf16 instructions), otherwise fp32."""
    channels_last: bool = True
    compile: bool = False
    """torch.compile the model."""
    threads: int | None = None
    """Torch threads of the training process. Chosen from the cores when left out."""
    log_every: int | None = None
    """Steps between two lines of metrics.jsonl; about ten an epoch when left out."""
    eval_every: int | None = None
    """Epochs between two online evaluations; a tenth of the run when left out."""
    diagnose_every: int | None = None
    """Epochs between two diagnoses: bias and variance of the gradient and the normalizer's error, on a fixed part of the images. Never when left out."""
    save_every: int | None = None
    """Steps between two checkpoints; an epoch, but from 200 to 1000 steps, when left out."""
    keep: int = 2
    """How many of the last checkpoints are kept, beside the best."""
    shard_state: bool = False
    """On several processes, divide the normalizers among them by id: for hundreds of millions of samples."""
    logger: Literal["none", "wandb", "mlflow", "trackio"] = "none"
    """Where the metrics go beside metrics.jsonl: an experiment tracker, which is installed on its own."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(
            self.batch_size != 1,
            "--batch-size was 1, and contrastive learning needs other images as negatives; use 2 or more",
        )
        for name in (
            "epochs",
            "max_steps",
            "batch_size",
            "threads",
            "log_every",
            "eval_every",
            "diagnose_every",
            "save_every",
            "keep",
        ):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name.replace('_', '-')} must be 1 or more and was {value}")
        _require(
            not (self.shard_state and self.diagnose_every),
            "--diagnose-every needs all normalizers on the main process and --shard-state divides them; leave one out",
        )
        _require(0 <= self.seed < 2**32, f"--seed must be from 0 to {2**32 - 1} and was {self.seed}")


@dataclass(frozen=True)
class PairsConfig:
    """For image-caption pairs: the columns, and the text tower."""

    image_column: str | None = None
    """Column of the images' paths; found by its name when left out."""
    caption_column: str | None = None
    """Column of the captions; found by its name when left out."""
    text_model: str | None = None
    """A Hugging Face text encoder: a local folder, or an installed package. A small transformer of our own when left out."""
    text_width: int = 256
    """Width of that transformer."""
    text_layers: int = 4
    """Its layers."""
    text_length: int = 64
    """Most tokens of a caption; the rest is cut off."""
    vocab_size: int = 8192
    """Most tokens of the tokenizer that is trained on the captions."""
    image_rate: float = 1.0
    """Share of the learning rate that the image encoder gets; 0 freezes it, and its features are computed once."""
    text_rate: float = 1.0
    """The same for the text encoder."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(
            self.text_width >= 32 and self.text_width % max(1, self.text_width // 64) == 0,
            f"--text-width must be a multiple of 64, or from 32 to 127, and was {self.text_width}",
        )
        _require(self.text_layers >= 1, f"--text-layers must be 1 or more and was {self.text_layers}")
        _require(self.text_length >= 4, f"--text-length must be 4 or more and was {self.text_length}")
        _require(self.vocab_size >= 300, f"--vocab-size must be 300 or more and was {self.vocab_size}")
        for name in ("image_rate", "text_rate"):
            value = getattr(self, name)
            _require(0 <= value <= 100, f"--{name.replace('_', '-')} is a share of --lr from 0 up and was {value}")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. `None` means 'chosen when the run starts'; the saved copy has no `None` of that kind."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    recipe: Annotated[dict[str, Any], Suppress] = field(default_factory=dict)
    """Fields of `Recipe` that differ from the one named by data.recipe; all of them in the saved copy."""
