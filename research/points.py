"""The numbers behind a page of results: a CSV beside it, a row a point and metric."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import pages

COLUMNS = ("problem", "method", "settings", "batch", "epochs", "lr", "metric", "mean", "sd", "n")


@dataclass(frozen=True)
class Point:
    """One metric at one point of a figure or in one row of a table.

    Attributes:
        problem: the data.
        method: its name on the page.
        batch: batch size B.
        epochs: passes over the data.
        lr: the learning rate that was chosen; None where the trainer chose it.
        metric: what was measured; accuracies and recalls are fractions of 1.
        values: one a run.
        settings: all else that decides the runs.
    """

    problem: str
    method: str
    batch: int
    epochs: int
    lr: float | None
    metric: str
    values: Sequence[float]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> tuple[Any, ...]:
        """Return the point as a row of `COLUMNS`, sd that of a sample (n - 1) and empty for a single run."""
        settings = " ".join(f"{key}={value}" for key, value in self.settings.items())
        lr = "" if self.lr is None else f"{self.lr:g}"
        mean, sd = mean_sd(self.values)
        n = len(self.values)
        spread = f"{sd:.8g}" if n > 1 else ""
        return self.problem, self.method, settings, self.batch, self.epochs, lr, self.metric, f"{mean:.8g}", spread, n


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of a sample; the latter is 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def plus_minus(values: Sequence[float], digits: int) -> str:
    """Return `mean ± standard deviation`, both with so many decimals."""
    mean, sd = mean_sd(values)
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def cell(values: Sequence[float], digits: int) -> str:
    """Return the mean and, of several values, the standard deviation."""
    return plus_minus(values, digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def write_points(name: str, points: Iterable[Point]) -> Path:
    """Write docs/results/NAME, the CSV that lies beside a page, and return its path."""
    path = pages.RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(point.row() for point in points)
    return path
