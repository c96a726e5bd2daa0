"""What may beat gamma 0.9 with two views in the trainer, at equal rows through the encoder.

    python -m research.extras --data DIR [--only NAME ...] [--models NAME ...] [--batches B ...] [--rows NAME ...] [--seeds N]

Views, batches of neighbours and how much the positive counts, each with the global loss and, where it has it too, with SimCLR's: six seeds that share initialisation and
order. A ResNet has LARS at the rate that was best for SimCLR and SogCLR alike on photographs (research.flat_line), a vision transformer what the trainer chooses. Rows
through the encoder, steps and images seen are the same in every row: four views of half as many images for half as many epochs; but with four crops of half the side, which cost as much as one more
view, there are two thirds of the epochs. DIR as for research.flat_line; every run
is a line of research/cache/extras.jsonl. Writes docs/results/extras.md and .csv.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import pages

from .measure import Cache
from .paired import difference
from .points import Point, cell, write_points
from .trainer_runs import DRAWINGS, FASHION, LARGER, PAPER, PHOTOGRAPHS, SCORES, Job, Places, head, make, parser_of

BATCHES, EPOCHS, SEEDS = (16, 32), 12, 6
BASE, SCALED, BESIDE = "SogCLR, the paper's", "SogCLR, the gradient scaled", "SogCLR, scaled, m = 150"
OURS = {"method": "sogclr"}
SIMCLR = {"method": "simclr"}
FOUR_VIEWS = {"views": 4}
CROPS = "2x32,4x16"  # cost three views
NEIGHBOURS = {"batches": "neighbours"}
ROWS: dict[str, dict[str, Any]] = {
    BASE: PAPER,
    "SimCLR": SIMCLR,
    SCALED: OURS,
    BESIDE: OURS | {"num_negatives": 150.0},
    "SogCLR, scaled, m = 30": OURS | {"num_negatives": 30.0},
    "SogCLR, scaled, 4 views": OURS | FOUR_VIEWS,
    "SimCLR, 4 views": SIMCLR | FOUR_VIEWS,
    "SogCLR, scaled, 2 views and 4 crops": OURS | {"crops": CROPS},
    "SimCLR, 2 views and 4 crops": SIMCLR | {"crops": CROPS},
    "SogCLR, scaled, neighbours": OURS | NEIGHBOURS,
    "SimCLR, neighbours": SIMCLR | NEIGHBOURS,
    "SogCLR, scaled, tau 0.05": OURS | {"temperature": 0.05},
    "SimCLR, tau 0.05": SIMCLR | {"temperature": 0.05},
}
"""Row -> options of `sogclr.train` beside the same of all."""
DATA: dict[str, dict[str, Any]] = {
    PHOTOGRAPHS: {"image_size": 32},
    LARGER: {"image_size": 64},
    FASHION: {"image_size": 28},
    DRAWINGS: {"image_size": 32},
}
RESNET, VIT, SMALL_VIT = "resnet10_mini", "vit_tiny_patch16_224", "test_vit"
BY_ADAMW = "64 pixels, AdamW at the trainer's rate"
MODELS = {
    RESNET: "LARS at 0.3 sqrt(B)",
    VIT: f"5.5 million weights, {BY_ADAMW}",
    SMALL_VIT: f"A vision transformer of 0.3 million weights, {BY_ADAMW}",
}
"""Model -> what is said of its training."""
COMPARED = (
    (SCALED, BASE),
    (BESIDE, SCALED),
    (BESIDE, BASE),
    ("SimCLR", SCALED),
    ("SimCLR", BASE),
    *(
        (f"{loss}, {extra}", loss if loss == "SimCLR" else SCALED)
        for extra in ("4 views", "2 views and 4 crops", "neighbours")
        for loss in ("SogCLR, scaled", "SimCLR")
    ),
)
"""Rows whose difference is shown over the batch sizes together."""
SHOWN = {"knn": "kNN", "linear": "linear", "few": "linear, ten labels a class"}


@dataclass(frozen=True)
class Case:
    """What is the same in the rows of a table.

    Attributes:
        data: a key of `DATA`.
        model: a key of `MODELS`.
        batch: batch size B of two views.
    """

    data: str
    model: str
    batch: int

    def job(self, row: str, seed: int) -> Job:
        """Return a run."""
        options = {"model": self.model, "batch_size": self.batch, "epochs": EPOCHS} | DATA[self.data] | ROWS[row]
        if self.model == RESNET:
            options |= {"optimizer": "lars", "lr": round(0.3 * math.sqrt(self.batch), 6)}
        else:
            options["image_size"] = 64
        if "views" in options:
            options |= {"batch_size": self.batch // 2, "epochs": EPOCHS // 2}
        if "crops" in options:
            del options["image_size"]
            options["epochs"] = 2 * EPOCHS // 3
        return Job(self.data, options | {"seed": seed})


def found(cache: Cache, case: Case) -> Iterator[tuple[str, dict[int, dict[str, float]]]]:
    """Yield rows with the results that are there, by seed."""
    for row in ROWS:
        by_seed = {s: r for s in range(SEEDS) if (r := cache.get(case.job(row, s).config())) is not None}
        if by_seed:
            yield row, by_seed


def against(rows: dict[str, dict[int, dict[str, float]]], row: str, score: str) -> str:
    """Return the mean paired difference from the base, with its 95 % interval."""
    seeds = rows[row].keys() & rows.get(BASE, {}).keys()
    if row == BASE or len(seeds) < 2:
        return ""
    return difference([(rows[row][s], rows[BASE][s]) for s in sorted(seeds)], score)


def together(cache: Cache) -> list[str]:
    """Return a table of differences over all batch sizes, paired by batch size and seed."""
    lines = [
        "",
        "## Batch sizes together",
        "",
        f"| | | less | pairs | {' | '.join(SHOWN.values())} |",
        "|---" * (4 + len(SHOWN)) + "|",
    ]
    for data, model in itertools.product(DATA, MODELS):
        of_batch = [dict(found(cache, Case(data, model, batch))) for batch in BATCHES]
        for row, base in COMPARED:
            pairs = [
                (r[row][s], r[base][s]) for r in of_batch if {row, base} <= r.keys() for s in r[row].keys() & r[base]
            ]
            if len(pairs) < 3:
                continue
            cells = [difference(pairs, s) for s in SHOWN]
            lines.append(f"| {data}, {model} | {row} | {base} | {len(pairs)} | {' | '.join(cells)} |")
    return lines


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    text = [
        *head("Views, neighbours, the positive", "research.extras --data DIR", cache),
        f"2 B rows through the encoder a step, {EPOCHS} epochs of two views, gamma 0.9, tau 0.1; mean ± standard deviation over seeds, and the mean difference from {BASE} with two "
        "views, paired by seed, with its 95 % interval by Student's t. In percent.",
    ]
    points = []
    for case in (Case(*c) for c in itertools.product(DATA, MODELS, BATCHES)):
        rows = dict(found(cache, case))
        if not rows:
            continue
        text += [
            "",
            f"## {case.data[0].upper()}{case.data[1:]}, {case.model}, B = {case.batch}",
            "",
            f"{MODELS[case.model]}.",
            "",
            f"| | seeds | {' | '.join(f'{t} | difference' for t in SHOWN.values())} |",
            "|---" * (2 + 2 * len(SHOWN)) + "|",
        ]
        for row, by_seed in rows.items():
            cells = [c for s in SHOWN for c in (cell([r[s] for r in by_seed.values()], 1), against(rows, row, s))]
            text.append(f"| {row} | {len(by_seed)} | {' | '.join(cells)} |")
            points += [
                Point(
                    case.data,
                    row,
                    case.batch,
                    EPOCHS,
                    case.job(row, 0).options.get("lr"),
                    s,
                    [r[s] / 100 for r in by_seed.values()],
                    {"model": case.model} | ROWS[row],
                )
                for s in SCORES
            ]
    text += together(cache)
    write_points("extras.csv", points)
    pages.write_page("extras.md", "\n".join([*text, ""]))


def main() -> None:
    parser = parser_of(__doc__, DATA, SEEDS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="which rows")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="which encoders")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, choices=BATCHES, help="which batch sizes")
    options = parser.parse_args()
    cache, places = Cache("extras", options.quick), Places(options.data, options.fashion)
    if options.quick:
        jobs = [Case(data, RESNET, BATCHES[0]).job(BASE, 0) for data in options.only]
        make([Job(j.data, j.options | {"epochs": 1}) for j in jobs], cache, places, options.device, options.at_once)
        return
    if not options.report:
        cases = [Case(*c) for c in itertools.product(options.only, options.models, options.batches)]
        jobs = [c.job(row, seed) for seed in range(options.seeds) for c in cases for row in options.rows]
        make(jobs, cache, places, options.device, options.at_once)
    report(cache)


if __name__ == "__main__":
    main()
