"""What may beat gamma 0.9 with two views in the trainer, at equal rows through the encoder: python -m research.extras --data DIR [--only NAME ...]

Views, batches of neighbours and how much the positive counts, each with the global loss and, where it has it too, with SimCLR's: six seeds that share initialisation and
order, LARS at the rate that was best for SimCLR and SogCLR alike on photographs (research.flat_line). Rows through the encoder, steps and images seen are the same in
every row: four views of half as many images for half as many epochs. DIR as for research.flat_line; every run is a line of research/cache/extras.jsonl.
Writes docs/results/extras.md and .csv.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import pages

from .measure import Cache
from .paired import interval
from .points import Point, plus_minus, write_points
from .trainer_runs import DRAWINGS, FASHION, PAPER, PHOTOGRAPHS, SCORES, Job, Places, make, parser_of

BATCH, EPOCHS, SEEDS = 16, 12, 6
BASE = "SogCLR"
SIMCLR = {"method": "simclr"}
FOUR_VIEWS = {"views": 4, "batch_size": BATCH // 2, "epochs": EPOCHS // 2}
NEIGHBOURS = {"batches": "neighbours"}
ROWS: dict[str, dict[str, Any]] = {
    BASE: PAPER,
    "SimCLR": SIMCLR,
    "SogCLR, 4 views": PAPER | FOUR_VIEWS,
    "SimCLR, 4 views": SIMCLR | FOUR_VIEWS,
    "SogCLR, m = 30": PAPER | {"num_negatives": 30.0},
    "SogCLR, m = 150": PAPER | {"num_negatives": 150.0},
    "SimCLR, tau 0.05": SIMCLR | {"temperature": 0.05},
    "SogCLR, tau 0.05": PAPER | {"temperature": 0.05},
    "SogCLR, tau 0.05, m = 150": PAPER | {"temperature": 0.05, "num_negatives": 150.0},
    "SogCLR, 4 views, m = 30": PAPER | FOUR_VIEWS | {"num_negatives": 30.0},
    "SogCLR, neighbours": PAPER | NEIGHBOURS,
    "SimCLR, neighbours": SIMCLR | NEIGHBOURS,
}
"""Row -> options of `sogclr.train` beside the same of all."""
DATA: dict[str, dict[str, Any]] = {
    PHOTOGRAPHS: {"image_size": 32},
    FASHION: {"image_size": 28},
    DRAWINGS: {"image_size": 32},
}
SHOWN = {"knn": "kNN", "linear": "linear", "few": "linear, ten labels a class"}


def job(data: str, row: str, seed: int) -> Job:
    """Return a run."""
    same = {"model": "resnet10_mini", "optimizer": "lars", "lr": 1.2, "batch_size": BATCH, "epochs": EPOCHS}
    return Job(data, same | DATA[data] | ROWS[row] | {"seed": seed})


def found(cache: Cache, data: str) -> Iterator[tuple[str, dict[int, dict[str, float]]]]:
    """Yield rows with the results that are there, by seed."""
    for row in ROWS:
        by_seed = {s: r for s in range(SEEDS) if (r := cache.get(job(data, row, s).config())) is not None}
        if by_seed:
            yield row, by_seed


def against(rows: dict[str, dict[int, dict[str, float]]], row: str, score: str) -> str:
    """Return the mean paired difference from the base, with its 95 % interval."""
    seeds = rows[row].keys() & rows.get(BASE, {}).keys()
    if row == BASE or len(seeds) < 2:
        return ""
    mean, low, high = interval([rows[row][s][score] - rows[BASE][s][score] for s in sorted(seeds)])
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    text = [
        *pages.head(
            "Views, neighbours, the positive", "research.extras --data DIR", f"; {cache.hours:.1f} hours of all runs"
        ),
        f"resnet10_mini, {2 * BATCH} rows through the encoder a step, {EPOCHS} epochs of two views, LARS at 1.2, gamma 0.9, tau 0.1; mean ± standard deviation over seeds, and the mean "
        f"difference from {BASE} with two views, paired by seed, with its 95 % interval by Student's t. In percent.",
    ]
    points = []
    for data in DATA:
        rows = dict(found(cache, data))
        if not rows:
            continue
        text += [
            "",
            f"## {data[0].upper()}{data[1:]}",
            "",
            f"| | seeds | {' | '.join(f'{t} | difference' for t in SHOWN.values())} |",
            "|---" * (2 + 2 * len(SHOWN)) + "|",
        ]
        for row, by_seed in rows.items():
            cells = [c for s in SHOWN for c in (plus_minus([r[s] for r in by_seed.values()], 1), against(rows, row, s))]
            text.append(f"| {row} | {len(by_seed)} | {' | '.join(cells)} |")
            points += [
                Point(data, row, BATCH, EPOCHS, 1.2, s, [r[s] / 100 for r in by_seed.values()], ROWS[row])
                for s in SCORES
            ]
    write_points("extras.csv", points)
    pages.write_page("extras.md", "\n".join([*text, ""]))


def main() -> None:
    parser = parser_of(__doc__, DATA, SEEDS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="which rows")
    options = parser.parse_args()
    cache, places = Cache("extras", options.quick), Places(options.data, options.fashion)
    if options.quick:
        jobs = [job(data, BASE, 0) for data in options.only]
        make([Job(j.data, j.options | {"epochs": 1}) for j in jobs], cache, places, options.device, options.at_once)
        return
    for data in () if options.report else options.only:
        jobs = [job(data, row, seed) for seed in range(options.seeds) for row in options.rows]
        make(jobs, cache, places, options.device, options.at_once)
    report(cache)


if __name__ == "__main__":
    main()
