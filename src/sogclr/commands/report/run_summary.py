"""What a run's own files say of it: configuration, progress, scores, time. No image is opened here."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.methods import ESTIMATORS, METHODS
from ...data.bad_files import read_bad_files
from ...evaluation.scores import SCORES
from ...run_folder import RunFolder


@dataclass(frozen=True)
class RunSummary:
    """A run in plain numbers."""

    run: RunFolder
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    evaluation: dict[str, Any] | None
    """`eval.json`, if there is one that can be read."""
    bad_files: list[tuple[str, str]]
    """(relative path, reason)."""

    @classmethod
    def read(cls, run: RunFolder) -> RunSummary:
        """Raises BadInput when the configuration cannot be read; all else may be missing."""
        rows = [row for row in run.metrics() if isinstance(row, dict)]
        return cls(run, run.config_table(), rows, _read_json(run.eval_file), read_bad_files(run.bad_file))

    def get(self, section: str, key: str) -> Any:
        """One value of the configuration, or None."""
        return self.config.get(section, {}).get(key)

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def finished(self) -> bool:
        return self.run.encoder_file.is_file()

    @property
    def step(self) -> int:
        """The last step that was logged or saved."""
        saved = [int(p.stem.removeprefix("step-")) for p in self.run.checkpoint_files() if p.stem[5:].isdecimal()]
        return max([int(row.get("step", 0)) for row in self.rows] + saved, default=0)

    @property
    def epoch(self) -> float:
        """Epochs done, as far as they were logged."""
        return max((float(row.get("epoch", 0)) for row in self.rows), default=0.0)

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The steps that had no finite gradient."""
        return [row for row in self.rows if row.get("kind") == "skipped"]

    @property
    def method(self) -> str:
        """The loss in a few words."""
        loss = self.config.get("loss", {})
        method, estimator = str(loss.get("method", "unknown")), ESTIMATORS.get(str(loss.get("estimator")))
        row = METHODS.get(method)
        if row and row.estimator is None:
            return row.title
        words = [row.title if row else method]
        if loss.get("temperature_mode") == "global":
            words.append("learned temperature")
        if estimator and estimator.title:
            words.append(estimator.title)
        if not estimator or "gamma" in estimator.options:
            words.append(_gamma_words(loss))
        return ", ".join(words)

    def series(self, kind: str, key: str) -> list[tuple[float, float]]:
        """(epoch, value) of the lines that hold a finite number under `key`."""
        rows = [row for row in self.rows if row.get("kind") == kind and _finite(row.get("epoch"))]
        return [(float(row["epoch"]), float(row[key])) for row in rows if _finite(row.get(key))]

    def online_scores(self) -> dict[str, float]:
        """The last value of each online score, in the order of `SCORES`."""
        found = {key: self.series("eval", key) for key in SCORES}
        return {key: points[-1][1] for key, points in found.items() if points}

    def evaluations(self) -> list[tuple[str, dict[str, float]]]:
        """The rows of `eval.json`: this run's encoder first, then the baselines."""
        if not self.evaluation:
            return []
        tables = [("this encoder", self.evaluation)]
        baselines = self.evaluation.get("baselines")
        if isinstance(baselines, dict):
            tables += [(name.replace("_", " "), table) for name, table in baselines.items()]
        scored = [(name, scores_of(table)) for name, table in tables if isinstance(table, dict)]
        return [(name, scores) for name, scores in scored if scores]

    # ------------------------------------------------------------------------------------------------------------ time
    def seconds(self) -> float | None:
        """Time spent training, over all the processes that the run took; None when nothing was timed."""
        ends = [t["seconds"] for t in self._timings("end") if "seconds" in t]
        if ends:
            return float(ends[-1])
        total, last = 0.0, 0.0
        for timing in self._timings("train"):
            now = float(timing.get("seconds", last))
            if now < last:  # the count starts again in a process that resumes
                total += last
            last = now
        return total + last or None

    def images_per_second(self) -> float | None:
        """Median over the logged stretches; without evaluation and saving."""
        rates = [t["images_per_s"] for t in self._timings("train") if _finite(t.get("images_per_s"))]
        return statistics.median(rates) if rates else None

    def data_wait(self) -> float | None:
        """Mean share of training time spent waiting for images."""
        shares = [t["data_wait"] for t in self._timings("train") if _finite(t.get("data_wait"))]
        return statistics.fmean(shares) if shares else None

    def evaluation_seconds(self) -> float:
        """Time spent in online evaluation."""
        return sum(float(t.get("seconds", 0)) for t in self._timings("eval"))

    def _timings(self, kind: str) -> list[dict[str, Any]]:
        found = [row.get("timing") for row in self.rows if row.get("kind") == kind]
        return [t for t in found if isinstance(t, dict)]

    # -------------------------------------------------------------------------------------------------------- commands
    def commands(self) -> list[tuple[str, str]]:
        """(what for, command line) to make this run, its scores and its report again."""
        run, data = shlex.quote(str(self.run.path)), shlex.quote(str(self.get("data", "data") or "DATA"))
        again = shlex.quote(f"{self.run.path}-again")
        lines = [("train again", f"sogclr train --config {shlex.quote(str(self.run.config_file))} --out {again}")]
        if not self.finished:
            lines.insert(0, ("finish this run", f"sogclr resume {run}"))
        return [*lines, ("score", f"sogclr eval {run} {data} --baselines"), ("this page", f"sogclr report {run}")]


def scores_of(table: dict[str, Any]) -> dict[str, float]:
    """The known scores in a table, in the order of `SCORES`."""
    return {key: float(table[key]) for key in SCORES if _finite(table.get(key))}


def _gamma_words(loss: dict[str, Any]) -> str:
    if loss.get("gamma_schedule") == "adaptive":
        return f"γ adaptive (α {loss.get('alpha', '?')})"
    schedule = "1\u00a0→\u00a0" if str(loss.get("gamma_schedule")).startswith("cosine") else ""
    return f"γ\u00a0{schedule}{loss.get('gamma', '?')}"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
