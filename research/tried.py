"""All that was tried to pass SogCLR at a small batch: digits, B = 16.

    python -m research.tried [--quick] [--report]

tried.toml has the rules and which lengths, rates and seeds of each were run. A run is a line of research/cache/tried.jsonl; those that
small_batch.py has made are not made again. Writes docs/results/tried.md and .csv: exact F2 and linear accuracy at the rate with the
lowest mean F2 among those that were run (0.001 to 0.016; most rules at 0.008 alone).
"""

from __future__ import annotations

import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import pages

from .many_runs import Job
from .measure import Cache, ensure
from .points import Point, plus_minus, write_points
from .problems import digits

BATCH = 16
LENGTHS = (30, 100, 300)  # epochs


@dataclass(frozen=True)
class Trial:
    """A rule that was tried: its name on the page, what it was expected to do, the rule as rules.py has it, and its runs."""

    what: str
    why: str
    rule: dict[str, Any]
    runs: list[dict[str, Any]]  # epochs, rates, seeds


def trials() -> list[Trial]:
    """Return all that was tried, in the page's order."""
    table = tomllib.loads(Path(__file__).with_name("tried.toml").read_text(encoding="utf-8"))
    return [Trial(**entry) for entry in table["tried"]]


def best(cache: Cache, rule: dict[str, Any], epochs: int) -> tuple[float, list[dict[str, float]]] | None:
    """Return the rate with the lowest mean F2 and the results of its seeds; None where nothing was run."""
    by_rate: dict[float, list[dict[str, float]]] = {}
    for entry in cache.found.values():
        c = entry["config"]
        if c["rule"] == rule and c["epochs"] == epochs and c["batch"] == BATCH and c["strength"] == 1.0:
            by_rate.setdefault(c["lr"], []).append(entry["result"])
    if not by_rate:
        return None
    return min(by_rate.items(), key=lambda entry: statistics.mean(r["F2"] for r in entry[1]))


def cells(results: list[dict[str, float]]) -> str:
    """Return `F2 ± sd | linear %`."""
    linear = statistics.mean(100 * r["linear"] for r in results)
    return f"{plus_minus([r['F2'] for r in results], 4)} | {linear:.1f}"


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    rows = [
        "| what | why | F2, 30 epochs | linear | F2, 100 | linear | F2, 300 | linear |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    points = []
    for trial in trials():
        found = {epochs: best(cache, trial.rule, epochs) for epochs in LENGTHS}
        shown = " | ".join(cells(f[1]) if f else " | " for f in found.values())
        rows.append(f"| {trial.what} | {trial.why} | {shown} |")
        points += [
            Point("digits", trial.what, BATCH, epochs, f[0], what, [r[what] for r in f[1]], trial.rule)
            for epochs, f in found.items()
            if f is not None
            for what in ("F1", "F2", "linear", "knn", "linear10")
        ]
    write_points("tried.csv", points)
    text = [
        *pages.head("All that was tried", "research.tried"),
        f"Digits, n = 1,797, B = {BATCH}, 8 fixed views; lower F2 is better; linear accuracy in %; two or three seeds; rates from 0.001 to 0.016, most rules at 0.008 alone. Why: what it was expected to do. "
        "Blank: not run, as the other lengths had told enough.",
        "",
        *rows,
        "",
    ]
    pages.write_page("tried.md", "\n".join(text))


def jobs_of(epochs: int) -> list[Job]:
    """Return all runs of one length."""
    return [
        Job(trial.rule, lr, seed)
        for trial in trials()
        for runs in trial.runs
        if runs["epochs"] == epochs
        for lr in runs["rates"]
        for seed in range(runs["seeds"])
    ]


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="two rules, 2 epochs, no page")
    parser.add_argument("--report", action="store_true", help="only page and CSV, from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("tried", options.quick)
    if options.quick:
        ensure(cache, digits(), [Job(trial.rule, 8e-3, 0) for trial in trials()[-2:]], BATCH, 2)
        print(*cache.found.values(), sep="\n")
        return
    for key, entry in Cache("digits").found.items():  # small_batch's, of which some are these
        cache.found.setdefault(key, entry)
    for epochs in () if options.report else LENGTHS:
        ensure(cache, digits(), jobs_of(epochs), BATCH, epochs, at_once=12)
    report(cache)


if __name__ == "__main__":
    main()
