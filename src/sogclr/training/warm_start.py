"""A warm start: what the loss and the optimizer remember is right before the first weight moves (TuneCLIP, arXiv 2601.09859).

Weights that know something are made worse at first by a cold start: normalizers of a first batch weigh every anchor wrongly,
and Adam's first steps are as long whatever the gradient. So a pass over the data sets the normalizers to their exact values,
and the first steps are made at learning rate 0.
"""

from __future__ import annotations

import time
from dataclasses import replace

from torch import nn

from ..config.objective import OptimConfig, WarmStart
from ..config.schema import TrainConfig
from ..data.pairs import Pairs
from ..data.source import Source
from ..errors import BadInput
from ..evaluation.warm_start import keeps_normalizers
from ..progress import Progress, clock
from .task import Task

STILL_STEPS, STILL_SHARE = 30, 50  # at most, and of the run, where they fill Adam's moments alone: one in fifty
EXACT_ON_CPU, EXACT_ON_GPU = (
    200_000,
    5_000_000,
)  # samples at most for an exact pass by default, whose time grows as their square


def usual_warm_start(config: TrainConfig, source: Source, device: str) -> WarmStart:
    """Return the warm start of a run that names none: exact, on pairs whose first embeddings mean something and where a pass takes minutes.

    They do if they are another run's, a CLIP model's, or from weights for every tower. A pass compares all with all. On images
    alone a run from another's weights gained a point less kNN with it than with the normalizers that it takes over.

    Args:
        config: with its first weights resolved.
        source: what is trained on.
        device: of the run.
    """
    if not isinstance(source, Pairs):
        return "none"
    given = {"images": config.model.pretrained, "texts": config.pairs.text_model}
    of_towers = all(given[kind] is not None for kind in source.kinds)
    known = config.model.init_from is not None or config.model.clip is not None or of_towers
    most = EXACT_ON_CPU if device == "cpu" else EXACT_ON_GPU
    return "exact" if known and len(source) <= most else "none"


def resolve_warm_start(optim: OptimConfig, usual: WarmStart, total: int, steps_per_epoch: int) -> OptimConfig:
    """Return the section with the choices on a warm start made.

    Args:
        optim: whose other choices do not matter.
        usual: what is chosen where it was left open.
        total: steps of the run.
        steps_per_epoch: of them, in an epoch.

    Raises:
        BadInput: still steps without a warm start, a warm start without anything in it, or nothing but still steps.
    """
    chosen, still = optim.warm_start or usual, optim.still_steps
    if chosen == "none":
        if still:
            raise BadInput(
                f"--still-steps {still} is a part of a warm start, and this run has none; give --warm-start exact or ema"
            )
        return replace(optim, warm_start=chosen, still_steps=0)
    if chosen == "ema" and still == 0:
        raise BadInput("--warm-start ema is still steps alone and --still-steps is 0; give --warm-start none instead")
    if still is None:
        of_adam = 0 if optim.optimizer in ("lars", "sgd") else min(STILL_STEPS, total // STILL_SHARE)
        still = min(steps_per_epoch, total // 2) if chosen == "ema" else of_adam
    if still >= total:
        raise BadInput(f"all {total:,} steps of the run would be --still-steps {still:,}; give fewer or more --epochs")
    return replace(optim, warm_start=chosen, still_steps=still)


def warm_start_lines(optim: OptimConfig, loss: nn.Module) -> list[str]:
    """Return the line on the warm start of a resolved run; none where there is none."""
    words = []
    if optim.warm_start == "exact":
        words.append("exact normalizers" if keeps_normalizers(loss) else "no exact normalizers, as the loss keeps none")
    if optim.still_steps:
        words.append(f"{optim.still_steps:,} steps at rate 0")
    return [f"warm      {', '.join(words)}"] if words else []


def exact_pass(task: Task, progress: Progress) -> float:
    """Set the loss's normalizers to their exact values, say so, and return the seconds that it took; all ranks call together."""
    begun = time.monotonic()
    task.set_exact_normalizers(progress)
    seconds = time.monotonic() - begun
    progress.info(f"exact normalizers of all {task.things} in {clock(seconds)}")
    return seconds
