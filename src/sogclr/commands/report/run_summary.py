"""What a run's own files say of it: configuration, progress, scores, time. No image is opened here."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from ...config.methods import ESTIMATORS, METHODS
from ...config.toml import split_weights_names
from ...data.bad_files import read_bad_files
from ...evaluation.scores import SCORES
from ...evaluation.worth import worth_of_run
from ...run_folder import RunFolder


@dataclass(frozen=True)
class RunSummary:
    """A run in plain numbers."""

    run: RunFolder
    config: dict[str, dict[str, object]]
    """The sections of `config.toml`."""
    rows: list[dict[str, object]]
    """The lines of `metrics.jsonl`."""
    evaluation: dict[str, object] | None
    """`eval.json`, if there is one that can be read."""
    bad_files: list[tuple[str, str]]
    """(relative path, reason)."""

    @classmethod
    def read(cls, run: RunFolder) -> RunSummary:
        """Read what a run's files say; all but its configuration may be missing.

        Args:
            run: an existing one.

        Raises:
            BadInput: the configuration cannot be read.
        """
        rows = [row for row in run.metrics() if isinstance(row, dict)]
        config = {name: section for name, section in run.config_table().items() if isinstance(section, dict)}
        return cls(run, config, rows, _read_json(run.eval_file), read_bad_files(run.bad_file))

    def get(self, section: str, key: str) -> object:
        """Return one value of the configuration, or None."""
        return self.config.get(section, {}).get(key)

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return self.run.path.resolve().name

    @property
    def finished(self) -> bool:
        """Return whether the run has written its encoder, or both of them."""
        return self.run.finished

    @property
    def unit(self) -> str:
        """Return what the run is on, in the plural: images or pairs."""
        return "pairs" if self.run.holds_pairs() else "images"

    @property
    def step(self) -> int:
        """Return the last step that was logged or saved."""
        saved = [int(p.stem.removeprefix("step-")) for p in self.run.checkpoint_files() if p.stem[5:].isdecimal()]
        return max([int(_number(row.get("step"))) for row in self.rows] + saved, default=0)

    @property
    def epoch(self) -> float:
        """Return the epochs done, as far as they were logged."""
        return max((_number(row.get("epoch")) for row in self.rows), default=0.0)

    @property
    def skipped(self) -> list[dict[str, object]]:
        """Return the lines of the steps that had no finite gradient."""
        return [row for row in self.rows if row.get("kind") == "skipped"]

    @property
    def method(self) -> str:
        """Return the loss in a few words."""
        loss = self.config.get("loss", {})
        method, name = str(loss.get("method", "unknown")), loss.get("estimator")
        row = METHODS.get(method)
        if row and row.estimator is None:
            return row.title
        words = [row.title if row else method]
        if loss.get("temperature_mode") == "global":
            words.append("learned temperature")
        estimator = ESTIMATORS.get(str(name))
        if title := estimator.title if estimator else name:
            words.append(str(title))  # an estimator of an older version goes by its name
        if "gamma" in (estimator.options if estimator else loss):
            words.append(_gamma_words(loss))
        if _finite(count := loss.get("num_negatives")):
            words.append(f"positive beside {count:,g} negatives")
        return ", ".join(words)

    def series(self, kind: str, key: str) -> list[tuple[float, float]]:
        """Return (epoch, value) of the lines of a kind that hold a finite number under `key`."""
        values = [(row.get("epoch"), row.get(key)) for row in self.rows if row.get("kind") == kind]
        return [(float(epoch), float(value)) for epoch, value in values if _finite(epoch) and _finite(value)]

    def online_scores(self) -> dict[str, float]:
        """Return the last value of each online score, in the order of `SCORES`."""
        found = {key: self.series("eval", key) for key in SCORES}
        return {key: points[-1][1] for key, points in found.items() if points}

    def evaluations(self) -> list[tuple[str, dict[str, object]]]:
        """Return the tables of `eval.json` that hold scores, (name, table): this run's encoder first, then the baselines."""
        if not self.evaluation:
            return []
        tables: list[tuple[str, object]] = [("this encoder", self.evaluation)]
        baselines = self.evaluation.get("baselines")
        if isinstance(baselines, dict):
            tables += [(name.replace("_", " "), table) for name, table in baselines.items()]
        return [(name, table) for name, table in tables if isinstance(table, dict) and scores_of(table)]

    @property
    def scored(self) -> str:
        """Return what the online scores are of, in the plural."""
        return f"{'training' if self.get('data', 'validation') is None else 'validation'} {self.unit}"

    @property
    def worth(self) -> str | None:
        """Return whether training was worth it, in words: by `eval.json`, else by the online scores; None without a start."""
        found = (self.evaluation or {}).get("worth")
        return (
            found
            if isinstance(found, str)
            else worth_of_run(self.rows, self.run.path, self.scored, self.run.keeps_best())
        )

    def seconds(self) -> float | None:
        """Return the time spent training, over all the processes that the run took; None when nothing was timed."""
        ends = self._timings("end", "seconds")
        if ends:
            return ends[-1]
        total, last = 0.0, 0.0
        for now in self._timings("train", "seconds"):
            if now < last:  # the count starts again in a process that resumes
                total += last
            last = now
        return total + last or None

    def per_second(self) -> float | None:
        """Return the median over the logged stretches; without evaluation and saving."""
        rates = self._timings("train", "images_per_s")
        return statistics.median(rates) if rates else None

    def data_wait(self) -> float | None:
        """Return the mean share of training time spent waiting for images."""
        shares = self._timings("train", "data_wait")
        return statistics.fmean(shares) if shares else None

    def evaluation_seconds(self) -> float:
        """Return the time spent in online evaluation."""
        return sum(self._timings("eval", "seconds"))

    def _timings(self, kind: str, key: str) -> list[float]:
        """Return the finite numbers under `key` in the timings of the lines of a kind."""
        timings = [row.get("timing") for row in self.rows if row.get("kind") == kind]
        values = [timing.get(key) for timing in timings if isinstance(timing, dict)]
        return [float(value) for value in values if _finite(value)]

    def commands(self) -> list[tuple[str, str]]:
        """Return (what for, command line) to make this run, its scores and its report again."""
        run, data = shlex.quote(str(self.run.path)), shlex.quote(str(self.get("data", "data") or "DATA"))
        again = shlex.quote(f"{self.run.path}-again")
        _, named = split_weights_names(self.config)  # which a file alone may not say
        said = "".join(f" --{option} {shlex.quote(name)}" for option, name in named.items())
        lines = [("train again", f"sogclr train --config {shlex.quote(str(self.run.config_file))}{said} --out {again}")]
        if not self.finished:
            lines.insert(0, ("finish this run", f"sogclr resume {run}"))
        return [*lines, ("score", f"sogclr eval {run} {data} --baselines"), ("this page", f"sogclr report {run}")]


def scores_of(table: Mapping[str, object]) -> dict[str, float]:
    """Return the known scores in a table, in the order of `SCORES`."""
    values = [(key, table.get(key)) for key in SCORES]
    return {key: float(value) for key, value in values if _finite(value)}


def _gamma_words(loss: dict[str, object]) -> str:
    if loss.get("gamma_schedule") == "adaptive":
        return f"γ adaptive (α {loss.get('alpha', '?')})"
    schedule = "1\u00a0→\u00a0" if str(loss.get("gamma_schedule")).startswith("cosine") else ""
    return f"γ\u00a0{schedule}{loss.get('gamma', '?')}"


def _read_json(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: object) -> float:
    return value if _finite(value) else 0


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
