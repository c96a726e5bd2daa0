"""A run that has diverged fails, before anything is written that looks like a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import RunFailed
from ..evaluation.scores import select, selector
from .parts import Parts

SKIPS_IN_A_ROW = 10  # this many steps without a finite gradient, and the run stops


def diverged(what: str, parts: Parts) -> RunFailed:
    """Return the failure of a run, with advice.

    Args:
        what: what was seen.
        parts: of the trainer.
    """
    rate = f"(now {parts.peak_learning_rate:.4g})"
    first = parts.run.checkpoint_files()[:1]
    again = f"; `sogclr resume {parts.run.path} --lr X --clip-grad 1` goes on from its last checkpoint" if first else ""
    return RunFailed(
        f"{what}; lower --lr {rate}, add --clip-grad 1, raise --temperature or use --precision fp32{again}"
    )


def check_skips(in_a_row: int, step: int, reason: str, parts: Parts) -> None:
    """Check that not too many steps in a row were skipped, nor all of a run.

    Raises:
        RunFailed: they were.
    """
    if in_a_row >= min(SKIPS_IN_A_ROW, parts.total_steps):
        raise diverged(f"{in_a_row} steps in a row had no finite gradient, the last at step {step}: {reason}", parts)


def check_scores(scores: Mapping[str, float], step: int, parts: Parts) -> None:
    """Check that the score that selects is a number.

    Raises:
        RunFailed: it is none: features are not finite.
    """
    if math.isnan(select(scores)):
        raise diverged(
            f"{selector(scores).key} is no number at step {step:,}, for the features are not finite: "
            "the run has diverged and this state is not written",
            parts,
        )


def check_weights(state: Mapping[str, Any], parts: Parts) -> None:
    """Check that the weights and the loss's state in a checkpoint are numbers; of a normalizer -inf is one, before its first visit.

    Raises:
        RunFailed: some are not.
    """
    for part, wrong in (("model", _not_finite), ("loss", torch.isnan)):
        for name, value in state[part].items():
            if isinstance(value, Tensor) and value.is_floating_point() and wrong(value).any():
                raise diverged(
                    f"{part} {name} is not finite at step {state['step']:,}: the run has diverged and this state is not written",
                    parts,
                )


def _not_finite(values: Tensor) -> Tensor:
    return ~torch.isfinite(values)
