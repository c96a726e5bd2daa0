"""What `sogclr train` chooses by itself, each choice changed alone.

    python -m research.defaults --data DIR [--only NAME ...] [--rows NAME ...] [--seeds N] [--quick] [--report]

A small ResNet at B = 32 for 12 epochs, as it is trained by default, and with another learning rate, warm-up, weight decay, temperature, head or augmentation; seeds share
initialisation and order. The first seeds look for what may be better, the others confirm it. DIR as for research.flat_line; every run is a line of research/cache/defaults.jsonl.
Writes docs/results/defaults.md and .csv.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks import pages

from .extras import SHOWN
from .measure import Cache
from .paired import difference
from .points import Point, cell, write_points
from .trainer_runs import DRAWINGS, PHOTOGRAPHS, SCORES, Job, Places, head, make, parser_of

BATCH, EPOCHS, SEEDS, SCREENED = 32, 12, 6, 3
DATA: dict[str, dict[str, Any]] = {
    PHOTOGRAPHS: {"image_size": 32},
    DRAWINGS: {"image_size": 32},
}
DEFAULT = "the default"
RATE = 3 * 0.075 * math.sqrt(BATCH)
ROWS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "crops of 0.08 and more of the image (0.2)": {"augment": {"crop_scale": [0.08, 1.0]}},
    "crops of 0.4 and more": {"augment": {"crop_scale": [0.4, 1.0]}},
    "jitter twice as strong": {"augment": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.4, "hue": 0.2}},
    "jitter half as strong": {"augment": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.05}},
    "gray in none (0.2)": {"augment": {"gray": 0.0}},
    "blur in half (none)": {"augment": {"blur": 0.5}},
    "half the rate": {"lr": round(RATE / 2, 6)},
    "twice the rate": {"lr": round(2 * RATE, 6)},
    "weight decay 1e-4 (1e-6)": {"weight_decay": 1e-4},
    "weight decay 1e-3": {"weight_decay": 1e-3},
    "tau 0.2 (0.1)": {"temperature": 0.2},
    "tau 0.05": {"temperature": 0.05},
    "no warm-up (a tenth of the run)": {"warmup_epochs": 0.0},
    "a head of 3 layers (2)": {"head_layers": 3},
    "a head of 1,024 hidden (as wide as the encoder)": {"head_hidden": 1024},
    "a head of 32 (128)": {"head_dim": 32},
}
"""Row -> what it changes; in brackets what the default is."""


def job(data: str, row: str, seed: int) -> Job:
    """Return a run."""
    options = {"model": "resnet10_mini", "batch_size": BATCH, "epochs": EPOCHS} | DATA[data] | ROWS[row]
    return Job(data, options | {"seed": seed})


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    found = {
        (data, row): {s: r for s in range(SEEDS) if (r := cache.get(job(data, row, s).config())) is not None}
        for data in DATA
        for row in ROWS
    }
    text = [
        *head("What is chosen by default, changed one at a time", "research.defaults --data DIR", cache),
        f"resnet10_mini, B = {BATCH}, {EPOCHS} epochs of {' and '.join(DATA)}: the mean difference from the default over all data and seeds, paired, with its 95 % interval by Student's t. The first {SCREENED} seeds "
        f"looked through all rows (the first alone through some); of {len(ROWS) - 1} rows one or two lie outside of their interval by chance, so that a row has to hold on the other seeds.",
        "",
        f"| | seeds | pairs | {' | '.join(SHOWN.values())} |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]
    points: list[Point] = []
    for row in ROWS:
        for seeds, which in (
            (range(SCREENED), f"0 to {SCREENED - 1}"),
            (range(SCREENED, SEEDS), f"{SCREENED} to {SEEDS - 1}"),
        ):
            pairs = [
                (found[data, row][s], found[data, DEFAULT][s])
                for data in DATA
                for s in seeds
                if s in found[data, row] and s in found[data, DEFAULT]
            ]
            if row != DEFAULT and len(pairs) > 1:
                text.append(f"| {row} | {which} | {len(pairs)} | {' | '.join(difference(pairs, s) for s in SHOWN)} |")
    for data in DATA:
        if not any(found[data, row] for row in ROWS):
            continue
        text += ["", f"## {data[0].upper()}{data[1:]}", "", f"| | seeds | {' | '.join(SHOWN.values())} |"]
        text.append("|---" * (2 + len(SHOWN)) + "|")
        for row in (row for row in ROWS if found[data, row]):
            results = list(found[data, row].values())
            text.append(f"| {row} | {len(results)} | {' | '.join(cell([r[s] for r in results], 1) for s in SHOWN)} |")
            points += [
                Point(data, row, BATCH, EPOCHS, ROWS[row].get("lr"), s, [r[s] / 100 for r in results], ROWS[row])
                for s in SCORES
            ]
    write_points("defaults.csv", points)
    pages.write_page("defaults.md", "\n".join([*text, ""]))


def main() -> None:
    parser = parser_of(__doc__, DATA, SEEDS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="which rows")
    options = parser.parse_args()
    cache, places = Cache("defaults", options.quick), Places(options.data, options.fashion)
    if options.quick:
        jobs = [job(data, row, 0) for data in options.only for row in list(ROWS)[:2]]
        make([Job(j.data, j.options | {"epochs": 1}) for j in jobs], cache, places, options.device, options.at_once)
        return
    if not options.report:
        jobs = [job(data, row, s) for s in range(options.seeds) for data in options.only for row in options.rows]
        make(jobs, cache, places, options.device, options.at_once)
    report(cache)


if __name__ == "__main__":
    main()
