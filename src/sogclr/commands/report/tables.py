"""The tables of the report: scores, configuration, time, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from ...config.methods import ESTIMATORS, METHODS, options_of
from ...config.objective import LossConfig
from ...evaluation.scores import SCORES
from ...progress import clock
from .run_summary import RunSummary, scores_of

ROWS_SHOWN = 20  # of files, and of steps


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    caption: str
    rows: list[list[str]]
    head: list[str]
    """Titles of the columns; empty where there are none."""


def score_text(key: str, value: float) -> str:
    """Return a value as it is shown: a fraction in percent, all else with three digits."""
    return f"{100 * value:.1f}%" if SCORES[key].fraction else f"{value:.3g}".replace("-", "−")


def score_table(caption: str, columns: Sequence[tuple[str, Mapping[str, object]]]) -> Table | None:
    """Return scores, each with its spread where one is known, a row a score; None without any.

    Args:
        caption: of the table.
        columns: (title, values by key) of what was scored.
    """
    found = [(values, scores_of(values)) for _, values in columns]
    keys = [key for key in SCORES if any(key in scores for _, scores in found)]
    rows = [[SCORES[key].title, *(_with_spread(key, *both) for both in found)] for key in keys]
    return Table(caption, rows, ["score", *(title for title, _ in columns)]) if rows else None


def _with_spread(key: str, values: Mapping[str, object], scores: Mapping[str, float]) -> str:
    if key not in scores:
        return "–"
    spread = values.get(f"{key}_std")
    return score_text(key, scores[key]) + (f" ± {score_text(key, spread)}" if isinstance(spread, float) else "")


def configuration(summary: RunSummary) -> list[Table]:
    """Return how long everything took, and all that was chosen, a table a section."""
    sections = ((name, with_effect(summary, name)) for name in summary.config)
    return [Table("time", _times(summary), [])] + [_pairs(name, rows.items()) for name, rows in sections if rows]


def with_effect(summary: RunSummary, name: str) -> dict[str, object]:
    """Return the options of a section that do something in this run: those of its method and its kind of data."""
    section = summary.config[name]
    if name == "pairs" and summary.unit == "images":
        return {}
    if name == "loss" and (method := str(section.get("method"))) in METHODS:
        estimator = str(section["estimator"]) if section.get("estimator") in ESTIMATORS else None
        idle = {f.name for f in fields(LossConfig)} - {"method", *options_of(method, estimator)}
        idle |= {"rho", "temperature_lr"} if section.get("temperature_mode") == "constant" else set()
        idle |= set() if section.get("gamma_schedule") == "adaptive" else {"alpha"}
        section = {key: value for key, value in section.items() if key not in idle}
    return section


def file_tables(summary: RunSummary) -> list[Table]:
    """Return the first skipped steps and the first unreadable files, as far as there are any."""
    steps = [[str(row.get("step")), str(row.get("reason"))] for row in summary.skipped]
    files = [[name, reason] for name, reason in summary.bad_files]
    first = f", the first {ROWS_SHOWN}" if len(files) > ROWS_SHOWN else ""
    found = [
        Table(f"skipped steps, without a finite gradient: {len(steps):,}", steps[:ROWS_SHOWN], ["step", "reason"]),
        Table(
            f"files that could not be read and were skipped: {len(files):,}{first}",
            files[:ROWS_SHOWN],
            ["file", "reason"],
        ),
    ]
    return [table for table in found if table.rows]


def _pairs(name: str, values: Iterable[tuple[str, object]]) -> Table:
    return Table(name, [[key, shown_value(value)] for key, value in values], [])


def shown_value(value: object) -> str:
    """Return a value of the configuration as it is shown."""
    if isinstance(value, list):
        return ", ".join(shown_value(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _times(summary: RunSummary) -> list[list[str]]:
    seconds, rate, wait = summary.seconds(), summary.per_second(), summary.data_wait()
    crops, views = summary.get("data", "crops"), summary.get("data", "views") or 2
    views = f", {crops or ('two' if views == 2 else views)} views each" if summary.unit == "images" else ""
    return [
        ["training, in all", clock(seconds) if seconds else "not timed"],
        ["of it, online evaluation", clock(summary.evaluation_seconds())],
        [f"{summary.unit} per second", f"{rate:,.0f} (median{views})" if rate else "not timed"],
        ["waiting for data", f"{wait:.1%} of the training steps’ time" if wait is not None else "not timed"],
        ["skipped steps", f"{len(summary.skipped):,}"],
        ["unreadable files", f"{len(summary.bad_files):,}"],
    ]
