"""Which steps were taken: the device's answers, kept until the run waits for it anyway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepOutcome:
    """On one step."""

    step: int
    """Its number, 0-based."""
    ids: list[Tensor]
    """This rank's, on the host: (B,) of each of its batches."""
    reason: str
    """Why it was skipped, if it was."""
    taken: Tensor
    """() bool, on the device."""
    expected: Tensor
    """() bool: whether a gradient that overflows is no news, since float16's scale can still be lowered."""


class StepOutcomes:
    """Those that nobody has asked for yet, in the steps' order."""

    def __init__(self) -> None:
        self._pending: list[StepOutcome] = []

    def add(self, verdict: StepOutcome) -> None:
        self._pending.append(verdict)

    def settle(self) -> Iterator[tuple[StepOutcome, bool, bool]]:
        """Each with its two answers, which are then forgotten; this waits for the device, once for all of them."""
        pending, self._pending = self._pending, []
        if pending:
            answers = torch.stack([answer for v in pending for answer in (v.taken, v.expected)]).view(-1, 2).tolist()
            yield from ((v, taken, expected) for v, (taken, expected) in zip(pending, answers, strict=True))
