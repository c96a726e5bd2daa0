"""What a run writes about itself: `metrics.jsonl` and TensorBoard, at once."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..files import write_text
from ..run_folder import RunFolder


class MetricWriter:
    """Appends to the run's metrics. A run that goes on from step s first drops what was written after s.

    Times are kept apart, under `timing`: all else in a line is the same for a run that was stopped and resumed.
    """

    def __init__(self, run: RunFolder, step: int) -> None:
        rows = [row for row in run.metrics() if row["step"] <= step and row["kind"] != "end"]
        write_text(run.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(run.metrics_file, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self._board = SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None)

    def write(
        self,
        kind: str,
        step: int,
        epoch: float,
        values: dict[str, Any],
        timing: dict[str, float] | None = None,
    ) -> None:
        """One line. Numbers that are not finite are written as null, which JSON has."""
        row: dict[str, Any] = {"kind": kind, "step": step, "epoch": round(epoch, 6)}
        row |= {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        if timing is not None:
            row["timing"] = {k: round(v, 4) for k, v in timing.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in {**values, **(timing or {})}.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NullWriter:
    """What the processes write that are not the main one: nothing."""

    def write(self, *line: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Clock:
    """Where the time goes: images/s and the share spent waiting for data, since the last lap and without pauses."""

    def __init__(self, step: int) -> None:
        self.note = ""
        self._begun = self._lap = time.monotonic()
        self._wait = self._paused = 0.0
        self._step = step

    def waiting(self) -> Clock:
        return self

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._wait += time.monotonic() - self._entered

    def pause(self, seconds: float) -> None:
        """Time that was spent on something else than training."""
        self._paused += seconds

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def lap(self, step: int, images_a_step: int) -> dict[str, float]:
        now = time.monotonic()
        seconds = max(1e-9, now - self._lap - self._paused)
        values = {
            "seconds": now - self._begun,
            "images_per_s": (step - self._step) * images_a_step / seconds,
            "data_wait": min(1.0, self._wait / seconds),
        }
        self._lap, self._wait, self._paused, self._step = now, 0.0, 0.0, step
        return values
