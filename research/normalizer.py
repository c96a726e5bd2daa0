"""Claim 3, the estimator: error of nu, and bias and noise of the gradient it gives, against B, n and training time.

    python -m research.normalizer [--quick]

scikit-learn's digits in 8 fixed views. SogCLR with gamma falling from 1 to 0.1 drives the training (Adam, B as stated);
every estimator watches the same batches of the same weights and keeps its own state. After a tenth, a half and all of the
training the weights are held, and nu and the gradient of many batches are compared with log g and the gradient of F2 over
the whole data set. Writes docs/results/normalizer.md, .png and .csv.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks import pages

from .figures import dress, figure, save, style
from .gradient_error import gradient_error
from .many_runs import Job, ManyRuns
from .measure import Cache
from .points import Point, write_points
from .problems import digits
from .rules import build_rule

DRIVER: dict[str, Any] = {"rule": "sogclr", "start": 1.0, "end": 0.1, "over": 1.0}
MARKS = (0.1, 0.5, 1.0)
LR = 8e-3


def estimators(batch: int) -> dict[str, dict[str, Any]]:
    """Return what is compared; the queues hold 16 batches of both views."""
    return {
        "mini-batch (DCL)": {"rule": "dcl"},
        "SogCLR 0.9": {"rule": "sogclr", "end": 0.9},
        "SogCLR 0.5": {"rule": "sogclr", "end": 0.5},
        "SogCLR 0.1": {"rule": "sogclr", "end": 0.1},
        "SogCLR cosine, whole": DRIVER,
        "SCENT": {"rule": "scent", "alpha": -1.0},
        "queue-fed average 0.5": {"rule": "queue", "size": 32 * batch, "end": 0.5},
        "balanced": {"rule": "defensive", "start": 1.0, "end": 0.1, "b_end": 0.1, "balance": 1.0},
        "memory": {"rule": "queue", "size": 32 * batch, "end": 1.0, "auto": 3.0},
    }


def measure(cache: Cache, n: int, batch: int, epochs: int, batches: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return {mark: {estimator: {quantity: [per seed]}}}, from the cache if it is there."""
    config = {
        "n": n,
        "batch": batch,
        "epochs": epochs,
        "batches": batches,
        "seeds": list(seeds),
        "rules": estimators(batch),
    }
    found = cache.get(config)
    if found is not None:
        return found
    begun = time.monotonic()
    problem = digits()
    problem = replace(problem, views=problem.views[:n], clean=problem.clean[:n], labels=problem.labels[:n])
    runs = ManyRuns(problem, [Job(DRIVER, LR, s) for s in seeds], batch, epochs)
    watchers = {name: build_rule(spec, len(seeds), runs.n, batch, runs.tau) for name, spec in estimators(batch).items()}
    runs.watchers = [(slice(0, len(seeds)), rule) for rule in watchers.values()]
    result: dict[str, Any] = {}
    for mark in runs.run(MARKS):
        result[str(mark)] = gradient_error(runs, watchers, batches)
        print(f"n {n}, B {batch}, {mark:.0%} of the training, {time.monotonic() - begun:.0f} s", flush=True)
    result["seconds"] = time.monotonic() - begun
    cache.put(config, result)
    return result


QUANTITIES = {
    "nu_rmse": "RMSE of nu against log g",
    "bias": "gradient's bias / |exact|",
    "noise": "gradient's noise / |exact|",
}
Results = dict[tuple[int, int], dict[str, Any]]  # (n, B) -> what `measure` returns


def points(results: Results, epochs: int) -> list[Point]:
    """Return what the figure and the tables show; `n` and `done`, the share of the training, are settings."""
    return [
        Point("digits", name, b, epochs, LR, what, result[str(mark)][name][what], rule | {"samples": n, "done": mark})
        for (n, b), result in sorted(results.items())
        for name, rule in estimators(b).items()
        for mark in MARKS
        for what in (*QUANTITIES, "cosine")
    ]


def draw(results: Results) -> None:
    """Write the figure: each quantity at the end of the training against B."""
    largest = max(n for n, _ in results)
    sizes = sorted(b for n, b in results if n == largest)
    fig, axes = figure(3, 1)
    for axis, (quantity, label) in zip(axes[0], QUANTITIES.items(), strict=True):
        for k, name in enumerate(estimators(32)):
            values = [results[largest, b]["1.0"][name][quantity] for b in sizes]
            means, sds = [statistics.mean(v) for v in values], [statistics.pstdev(v) for v in values]
            axis.errorbar(sizes, means, sds, label=name, **style(k))
        dress(axis, "batch size B", label, ticks=sizes, base=2, log_y=True)
    axes[0][0].legend(fontsize=6)
    save(fig, "normalizer.png")


def table(result: dict[str, Any], n: int, b: int) -> list[str]:
    """Return a section: a row an estimator, three columns a mark of the training."""
    heads = " | ".join(f"{q}, {float(m):.0%}" for m in map(str, MARKS) for q in ("RMSE ν", "bias", "noise"))
    rows = [f"## n = {n}, B = {b}", "", f"| estimator | {heads} |", "|---|" + "---:|" * 9]
    for name in estimators(b):
        cells = [f"{statistics.mean(result[str(m)][name][q]):.3f}" for m in MARKS for q in QUANTITIES]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return [*rows, ""]


def report(results: Results, epochs: int, batches: int, seeds: tuple[int, ...]) -> None:
    """Write page, figure and CSV."""
    draw(results)
    write_points("normalizer.csv", points(results, epochs))
    hours = sum(r["seconds"] for r in results.values()) / 3600
    text = [
        *pages.head(
            "Normalizer and gradient against their exact values", "research.normalizer", f"; {hours:.2f} hours"
        ),
        f"Digits, 8 fixed views, {epochs} epochs, {len(seeds)} seeds, {batches} batches a point; the mean over the seeds. Bias: norm of (mean "
        "gradient − exact gradient of F2), what chance leaves removed; noise: root mean square of (gradient − its mean); both divided by the norm "
        "of the exact gradient. Near the end that norm is small, so compare rows, not columns. At the frozen weights each estimator answers from "
        "the state that it had, so a late state shows as an error; a queue is held too, so that what is particular to the K embeddings in it counts as bias.",
        "",
        "![Error of nu, bias and noise at the end of the training](normalizer.png)",
        "",
    ]
    for (n, b), result in sorted(results.items()):
        text += table(result, n, b)
    pages.write_page("normalizer.md", "\n".join(text))


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one small point, no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("normalizer", options.quick)
    if options.quick:
        print(measure(cache, 200, 16, 4, 20, (0, 1))["1.0"]["memory"])
        return
    epochs, batches, seeds = 40, 120, (0, 1)
    points = [(1797, 32), (1797, 8), (1797, 128), (450, 32)]
    report({(n, b): measure(cache, n, b, epochs, batches, seeds) for n, b in points}, epochs, batches, seeds)


if __name__ == "__main__":
    main()
