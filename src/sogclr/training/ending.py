"""What a run writes of its weights: checkpoints, the files that it ends with, and a line on what they are worth."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..evaluation.worth import worth_of_run
from ..files import flush
from ..run_folder import RunFolder, load_checkpoint, save_checkpoint
from .divergence import check_weights
from .parts import Parts
from .task import Task


def write_checkpoint(state: dict[str, Any], parts: Parts, best: bool) -> None:
    """Write a checkpoint of a state that is finite.

    Args:
        state: of the trainer.
        parts: of the trainer.
        best: whether it is the best so far too.

    Raises:
        RunFailed: it is not finite, or the disk is full.
    """
    check_weights(state, parts)
    save_checkpoint(parts.run, state, parts.keep, best)


def write_trained(model: nn.Module, task: Task, run: RunFolder) -> None:
    """Write the files of the encoder, which mark the run as finished: of the last weights, or of the best on held-out data.

    Args:
        model: with the last weights; afterwards it has those that were written.
        task: writes the files of its model, which this is.
        run: with all its checkpoints.
    """
    if run.keeps_best():
        model.load_state_dict(load_checkpoint(run.best_checkpoint)["model"])
    for path in (run.metrics_file, run.checkpoints):
        flush(path)  # before what marks the run as finished: nobody looks at them again then
    task.finish(run)


def worth_of_training(task: Task, run: RunFolder) -> str | None:
    """Return a line on what training did to the scores; None of a run that knew nothing at its start."""
    return worth_of_run(run.metrics(), run.path, task.scored, run.keeps_best())
