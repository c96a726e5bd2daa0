"""Accuracy against the batch size, at equal epochs: the mini-batch losses, SogCLR as the paper has it, and what is trained by default.

    python -m research.flat_line --data DIR [--fashion DIR] [--only NAME ...] [--device cpu] [--at-once 1] [--quick] [--report]

DIR has photographs of clothes, a folder a class in train/ and test/ (github.com/alexeygrigorev/clothing-dataset, CC0; here 4,961 of them, the shorter
side 128 pixels, the two parts by different contributors). The rate is the best of three for SimCLR at two batch sizes, on a seed that is not shown, and serves DCL and the
paper's SogCLR too: what is tuned is the rival. The default has what it chooses by itself. At the end what `sogclr inspect --advise` says of the batch size is set beside the best of all these runs. Every run is `sogclr.train` and `sogclr.evaluate`, and a line of
research/cache/flat_line.jsonl, so this can be stopped and started at will. Writes docs/results/flat_line.md, .csv and .png.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import pages
from sogclr.commands.advise import advise
from sogclr.data.manifest import Manifest

from .figures import dress, figure, save, style
from .measure import Cache
from .points import Point, cell, write_points
from .trainer_runs import DRAWINGS, FASHION, LARGER, PAPER, PHOTOGRAPHS, Job, Places, head, make, parser_of

BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)
FIRST = (8, 32, 128, 512)  # batch sizes that are run before the others
TUNED, TUNED_AT, TUNING_SEED, SEEDS = "SimCLR", (16, 256), 100, 3
FACTORS = (1.0, 4.0, 12.0)  # of LARS's 0.075 sqrt(B)
METHODS: dict[str, dict[str, Any]] = {
    "SimCLR": {"method": "simclr"},
    "DCL": {"method": "dcl"},
    "SogCLR, the paper's": PAPER,
}
DEFAULT = "sogclr's default"
EPOCHS = 12
DATA: dict[str, dict[str, Any]] = {
    PHOTOGRAPHS: {"image_size": 32},
    LARGER: {"image_size": 64},
    FASHION: {"image_size": 28},
    DRAWINGS: {"image_size": 32},
}
"""Data -> options of their runs."""
SHOWN = {"knn": "kNN, %", "linear": "linear, %", "few": "linear, ten labels a class, %"}


def job(data: str, method: str, batch: int, seed: int, factor: float | None) -> Job:
    """Return a run at a multiple of the paper's rate; None: at the rate that the trainer chooses."""
    options = {"model": "resnet10_mini", "epochs": EPOCHS, "batch_size": batch, "seed": seed} | DATA[data]
    if factor is not None:
        options |= {"optimizer": "lars", "lr": round(factor * 0.075 * math.sqrt(batch), 6)}
    return Job(data, options | METHODS.get(method, {}))


def tuning(data: str) -> list[Job]:
    """Return the runs by which the rates are chosen."""
    return [job(data, TUNED, b, TUNING_SEED, f) for b, f in itertools.product(TUNED_AT, FACTORS)]


def factor_of(cache: Cache, data: str) -> float:
    """Return the factor of the rate with the highest mean of kNN and linear accuracy over the batch sizes that were tuned."""

    def mean(factor: float) -> float:
        results = [cache.get(job(data, TUNED, b, TUNING_SEED, factor).config()) for b in TUNED_AT]
        return statistics.mean(r["knn"] + r["linear"] for r in results if r is not None)

    return max(FACTORS, key=mean)


def shown(cache: Cache, data: str) -> Iterator[tuple[str, int, float | None, list[Job]]]:
    """Yield method, batch size, factor of the rate and the runs of all seeds."""
    factors: dict[str, float | None] = dict.fromkeys(METHODS, factor_of(cache, data)) | {DEFAULT: None}
    for batch, (method, factor) in itertools.product(BATCHES, factors.items()):
        yield method, batch, factor, [job(data, method, batch, seed, factor) for seed in range(SEEDS)]


def found(cache: Cache, data: str) -> list[tuple[str, int, float | None, list[dict[str, float]]]]:
    """Return what `shown` yields, with the results that are there instead of the runs."""
    if any(cache.get(j.config()) is None for j in tuning(data)):
        return []
    rows = [
        (m, b, f, [r for j in jobs if (r := cache.get(j.config())) is not None]) for m, b, f, jobs in shown(cache, data)
    ]
    return [row for row in rows if row[3]]


# ------------------------------------------------------------------------------------------------------------- the advice
def advice(data: str) -> dict[str, str]:
    """Return what decides an advice."""
    return {"advice on": data}


def ask(cache: Cache, data: str, folder: Path) -> None:
    """Let the batch size be advised for this model, as `sogclr inspect DATA --advise` does, in two minutes; on a machine that does nothing else."""
    if cache.get(advice(data)) is not None:
        return
    begun, given = time.monotonic(), {"model": "resnet10_mini", **DATA[data]}
    images = len(Manifest.scan(folder / "train"))
    found = advise(folder / "train", "images", images, 2.0, lambda done, of: None, **given)
    about = {"seconds": time.monotonic() - begun, "machine": pages.where("cpu")}
    cache.put(advice(data), {"batch": found.batch_size, "rates": found.rates, **about})


def advised(cache: Cache) -> list[str]:
    """Return a table of the default at the batch size that is advised, beside the best batch size and loss of all."""
    lines = []
    for data in DATA:
        rows, said = found(cache, data), cache.get(advice(data))
        scores = {score: {(m, b): statistics.mean(r[score] for r in rs) for m, b, _, rs in rows} for score in SHOWN}
        if said is None or (DEFAULT, said["batch"]) not in scores["knn"]:
            continue
        cells = []
        for of in scores.values():
            best = max(of, key=of.__getitem__)
            mine = of[DEFAULT, said["batch"]]
            cells.append(f"{mine:.1f} | {of[best]:.1f} ({best[0]}, {best[1]:,}) | {mine - of[best]:+.1f}")
        lines.append(f"| {data} | {said['batch']} | {len(rows)} | {' | '.join(cells)} |")
    if not lines:
        return []
    head_cells = " | ".join(f"{title} | best | difference" for title in SHOWN.values())
    return [
        "## What is advised",
        "",
        "`sogclr inspect DATA --advise` looks for the smallest batch that is nearly as fast as the fastest. The default at that batch, beside the best mean of all batch sizes and losses above, which is the "
        "best of so many means with a standard deviation of 1 to 2 points a run, and so too high by 1 point or more.",
        "",
        f"| data | advised B | means | {head_cells} |",
        "|---" * (3 + 3 * len(SHOWN)) + "|",
        *lines,
        "",
    ]


# --------------------------------------------------------------------------------------------------------------- the page
def draw(cache: Cache) -> None:
    """Draw kNN and linear accuracy against the batch size, a row of panels for each data set."""
    drawn = [(data, rows) for data in DATA if (rows := found(cache, data))]
    fig, axes = figure(2, len(drawn))
    for panels, (data, rows) in zip(axes, drawn, strict=True):
        for axis, score in zip(panels, ("knn", "linear"), strict=True):
            for k, method in enumerate((*METHODS, DEFAULT)):
                mine = [(b, [r[score] for r in results]) for m, b, _, results in rows if m == method]
                if not mine:
                    continue
                means = [statistics.mean(values) for _, values in mine]
                spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in mine]
                axis.errorbar([b for b, _ in mine], means, yerr=spread, label=method, **style(k))
            dress(axis, "batch size", SHOWN[score], f"{data}, {EPOCHS} epochs", BATCHES, base=2)
    axes[0][0].legend(fontsize=8)
    save(fig, "flat_line.png")


def section(cache: Cache, data: str) -> list[str]:
    """Return a data set's tables, one a score, methods by batch size."""
    rows = found(cache, data)
    lines = [f"## {data[0].upper()}{data[1:]}", ""]
    for score, title in SHOWN.items():
        lines += [
            f"| {title} | rate | {' | '.join(f'B = {b:,}' for b in BATCHES)} |",
            "|---" * (len(BATCHES) + 2) + "|",
        ]
        for method in (*METHODS, DEFAULT):
            mine = {b: (f, results) for m, b, f, results in rows if m == method}
            if not mine:
                continue
            factor = next((f for f, _ in mine.values()), None)
            cells = [cell([r[score] for r in mine[b][1]], 1) if b in mine else "" for b in BATCHES]
            lines.append(f"| {method} | {'its own' if factor is None else f'x {factor:g}'} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def report(cache: Cache) -> None:
    """Write page, figure and CSV from the runs of the cache."""
    points = [
        Point(data, method, batch, EPOCHS, None, score, [r[score] / 100 for r in results], {"rate": factor})
        for data in DATA
        for method, batch, factor, results in found(cache, data)
        for score in SHOWN
    ]
    write_points("flat_line.csv", points)
    draw(cache)
    text = [
        *head("Accuracy against the batch size", "research.flat_line --data DIR", cache),
        f"resnet10_mini, {EPOCHS} epochs at every batch size, mean ± standard deviation over seeds where there are several. The rate is a multiple of LARS's 0.075 sqrt(B), the best of "
        f"{', '.join(f'{f:g}' for f in FACTORS)} for {TUNED} at B = {TUNED_AT[0]} and {TUNED_AT[1]} by kNN and linear accuracy, on a seed that is not shown; it serves all three losses. The "
        "default is `sogclr train DATA --out RUN` with this model and batch size, and nothing tuned.",
        "",
        "![accuracy against the batch size](flat_line.png)",
        "",
        *(line for data in DATA if found(cache, data) for line in section(cache, data)),
        *advised(cache),
    ]
    pages.write_page("flat_line.md", "\n".join(text))


def main() -> None:
    parser = parser_of(__doc__, DATA, SEEDS)
    parser.add_argument("--methods", nargs="+", default=[*METHODS, DEFAULT], choices=[*METHODS, DEFAULT])
    options = parser.parse_args()
    cache = Cache("flat_line", options.quick)
    places = Places(options.data, options.fashion)
    if options.quick:
        jobs = [job(data, method, 256, 0, None) for data in options.only for method in ("SimCLR", DEFAULT)]
        make([Job(j.data, j.options | {"epochs": 1}) for j in jobs], cache, places, options.device, options.at_once)
        return
    for data in () if options.report else options.only:
        make(tuning(data), cache, places, options.device, options.at_once)
        rows = [row for row in shown(cache, data) if row[0] in options.methods]
        order = [((seed, b not in FIRST), j) for _, b, _, jobs in rows for seed, j in enumerate(jobs)]
        wanted = [j for _, j in sorted(order, key=lambda pair: pair[0]) if j.options["seed"] < options.seeds]
        make(wanted, cache, places, options.device, options.at_once)
    for data in () if options.report else options.only:
        ask(cache, data, places.folder(data))
    report(cache)


if __name__ == "__main__":
    main()
