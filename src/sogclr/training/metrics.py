"""The metrics of a run: `metrics.jsonl`, written at once, and the means and times that go there."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..files import write_text
from ..run_folder import RunFolder
from .parts import OnMetrics

NORM = "grad_norm"
LARGEST = "weight_max"  # the statistic of which the largest is shown; of all others the mean


class Writer(Protocol):
    """Where the lines of a run's metrics go."""

    def write(
        self, kind: str, step: int, epoch: float, values: dict[str, Any], timing: dict[str, float] | None = None
    ) -> None:
        """Write one line."""
        ...

    def close(self) -> None:
        """Close what is open: nothing is written afterwards."""
        ...


class MetricWriter:
    """Appends to the run's metrics. A run that goes on from step s first drops what was written after s.

    Times are kept apart, under `timing`: all else in a line is the same for a run that was stopped and resumed.

    Args:
        run: the run's folder.
        step: s.
        on_metrics: called with each line, as a dict of its own.
    """

    def __init__(self, run: RunFolder, step: int, on_metrics: Sequence[OnMetrics] = ()) -> None:
        # before the first step a run scores its start, again where it was stopped there
        rows = [row for row in run.metrics() if step and row["step"] <= step and row["kind"] != "end"]
        write_text(run.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(run.metrics_file, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self._on_metrics = on_metrics

    def write(
        self, kind: str, step: int, epoch: float, values: dict[str, Any], timing: dict[str, float] | None = None
    ) -> None:
        """Write one line. Numbers that are not finite are written as null, which JSON has.

        Args:
            kind: train, eval, diagnosis, skipped or end.
            step: steps done.
            epoch: epochs done.
            values: name -> what JSON can say.
            timing: name -> seconds or rates, which differ from run to run.
        """
        row: dict[str, Any] = {"kind": kind, "step": step, "epoch": round(epoch, 6)}
        row |= {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        if timing is not None:
            row["timing"] = {k: round(v, 4) for k, v in timing.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for tell in self._on_metrics:
            tell(json.loads(json.dumps(row)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class NullWriter:
    """A writer that writes nothing, for all ranks but the main one."""

    def write(
        self, kind: str, step: int, epoch: float, values: dict[str, Any], timing: dict[str, float] | None = None
    ) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Do nothing."""


class Meters:
    """Means of the statistics of the steps that were taken since the last line, summed on the device.

    Args:
        names: of the loss's statistics, whose means are shown.
        device: where they are summed.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names, self.device = (*names, NORM), device
        self.sums = torch.zeros(len(self.names), device=device)
        self.largest = torch.zeros((), device=device)

    def add(self, statistics: list[dict[str, Tensor]], norm: Tensor, ok: Tensor) -> None:
        """Add a step of one or more batches.

        Args:
            statistics: of each batch.
            norm: () norm of the gradient.
            ok: () bool: elsewhere nothing is added.
        """
        rows = [torch.stack([*(s[name] for name in self.names[:-1]), norm]) for s in statistics]
        self.sums = torch.where(ok, self.sums + torch.stack(rows).mean(dim=0), self.sums)
        largest = torch.stack([self.largest, *(s[LARGEST] for s in statistics if LARGEST in s)]).max()
        self.largest = torch.where(ok, largest, self.largest)

    def means(self, count: int) -> dict[str, float]:
        """Return the mean of each statistic over `count` steps; an empty dict for 0."""
        return dict(zip(self.names, (self.sums / count).tolist(), strict=True)) if count else {}

    def reset(self) -> None:
        """Set all sums to zero, for the next line."""
        self.sums.zero_()
        self.largest = torch.zeros((), device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums."""
        return {"sums": self.sums, LARGEST: self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the sums."""
        self.sums.copy_(state["sums"])
        self.largest = state[LARGEST].to(self.device)


class Clock:
    """Where the time goes: images/s and the share spent waiting for data, since the last lap and without pauses."""

    def __init__(self, step: int) -> None:
        self.note = ""
        self._begun = self._lap = time.monotonic()
        self._wait = self._paused = 0.0
        self._step = step

    def waiting(self) -> Clock:
        """Return a context in which time is spent waiting for data."""
        return self

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._wait += time.monotonic() - self._entered

    def pause(self, seconds: float) -> None:
        """Subtract from the current lap seconds that were spent on something else than training."""
        self._paused += seconds

    def total(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._begun

    def lap(self, step: int, images_a_step: int) -> dict[str, float]:
        """Return `seconds`, `images_per_s` and `data_wait` (a fraction) at this step, and begin the next lap."""
        now = time.monotonic()
        seconds = max(1e-9, now - self._lap - self._paused)
        values = {
            "seconds": now - self._begun,
            "images_per_s": (step - self._step) * images_a_step / seconds,
            "data_wait": min(1.0, self._wait / seconds),
        }
        self._lap, self._wait, self._paused, self._step = now, 0.0, 0.0, step
        return values
