"""The options of `train` as keyword arguments, for type checkers and editors: `**options: Unpack[TrainOptions]`."""

from __future__ import annotations

from typing import TypedDict

from .objective import Convention, GammaSchedule, KeySchedule, LearningRateRule, Optimizer, TemperatureMode, WarmStart
from .schema import Batches, BatchNorm, Logger, Pooling, Precision, RecipeName


class TrainOptions(TypedDict, total=False):
    """Every option but DATA, `out` and `model`, which `train` takes by themselves; the fields of `schema` say what each does."""

    # Data
    validation: str | None
    labels: str
    image_size: int | None
    views: int
    crops: str | None
    recipe: RecipeName
    background: str
    max_bad: float
    workers: int | None
    cache: str

    # Model
    pretrained: str | None
    clip: str | None
    init_from: str | None
    freeze: bool
    train_last: int | None
    batchnorm: BatchNorm
    head_layers: int
    head_hidden: int | None
    head_dim: int

    # Loss
    method: str
    temperature: float | None
    temperature_mode: TemperatureMode | None
    rho: float
    temperature_lr: float | None
    gamma: float | None
    gamma_schedule: GammaSchedule | None
    alpha: float
    bias: float | None
    convention: Convention | None
    num_negatives: float | None
    estimator: str | None
    queue: int | None
    prototypes: int
    prototype_lr: float
    key_momentum: float
    key_schedule: KeySchedule
    symmetric: bool

    # Optimization
    optimizer: Optimizer | None
    lr: float | None
    lr_rule: LearningRateRule
    weight_decay: float | None
    layer_decay: float | None
    momentum: float
    warmup_epochs: float | None
    warm_start: WarmStart | None
    still_steps: int | None
    gradient_scale: float | None
    clip_grad: float | None
    accumulate: int
    micro_batch: int | None

    # Run
    epochs: int
    max_steps: int | None
    batch_size: int
    batches: Batches
    seed: int
    device: str
    precision: Precision
    channels_last: bool
    compile: bool
    threads: int | None
    log_every: int | None
    eval_every: int | None
    diagnose_every: int | None
    save_every: int | None
    keep: int
    shard_state: bool
    logger: Logger

    # Pairs
    columns: str | None
    image_column: str | None
    caption_column: str | None
    shared_tower: bool
    share_negatives: bool
    known_pairs: bool
    text_model: str | None
    pooling: Pooling | None
    query_prompt: str
    document_prompt: str
    text_width: int
    text_layers: int
    text_length: int
    vocab_size: int
    image_rate: float
    text_rate: float
