"""All that a trainer is made of, as values of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.source import Source
from ..hardware import Precision
from ..losses.contrastive import ContrastiveLoss
from ..progress import Progress
from ..run_folder import RunFolder
from .own.parts import OwnLoss
from .task import Task

OnMetrics = Callable[[dict[str, Any]], None]
"""Called with each row of `metrics.jsonl`."""


@dataclass
class Parts:
    """What `build` makes of a configuration, and a `Trainer` trains."""

    run: RunFolder
    source: Source
    task: Task
    model: nn.Module
    """On `device`."""
    loss: ContrastiveLoss | OwnLoss
    """On `device`."""
    optimizer: torch.optim.Optimizer
    """Of the model. Each group's `LR_SCALE` multiplies the learning rate."""
    loss_optimizers: list[torch.optim.Optimizer]
    """Of what the loss itself learns, at constant rates."""
    learning_rate: Callable[[int], float]
    """Step, 0-based -> the learning rate of that step."""
    peak_learning_rate: float
    progress: Progress
    on_metrics: Sequence[OnMetrics]

    # ------------------------------------------------------------------------------------------------ how steps are made
    device: torch.device
    precision: Precision
    """fp32, bf16 or fp16."""
    seed: int
    threads: int
    """Torch threads of this process."""
    compile: bool
    """Whether the model is compiled."""
    shard_state: bool
    """Whether the ranks divide the normalizers among them."""
    batch_size: int
    """Samples of a batch, of all ranks together."""
    accumulate: int
    """Batches of a step."""
    micro_batch: int | None
    """Rows that are encoded at a time; None for all."""
    gradient_scale: float
    """Factor of the loss's gradient."""
    clip_grad: float | None
    """Largest norm of the model's gradient."""

    # ------------------------------------------------------------------------------------------------ when what is done
    total_steps: int
    steps_per_epoch: int
    log_every: int
    """Steps."""
    eval_every: int
    """Steps."""
    diagnose_every: int | None
    """Steps; None for never."""
    save_every: int
    """Steps."""
    keep: int
    """Last checkpoints that are kept, beside the best."""
    exact_start: bool
    """Whether the loss's normalizers are set to their exact values before the first step."""
    max_bad: float
    """Largest share of unreadable samples."""
    learned_temperature: bool
    """Whether the temperature is a metric."""
