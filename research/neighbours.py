"""Batches of neighbours for pairs, in the trainer: recall of held-out pairs beside that of random batches.

    python -m research.neighbours [--only NAME ...] [--seeds N] [--quick] [--report]

WordNet's definitions and words, a quarter of them and all, and emoji with their names, each through `sogclr.train` and `sogclr.evaluate` at B = 32, with CLIP's loss and with
SogCLR. The rate of each of the four is one of four, chosen on a quarter of WordNet with a seed and held-out pairs that are not shown; the emoji have the demo's. A run is a line of
research/cache/neighbours.jsonl and is never done twice: stop and start at will. --quick: two epochs of a hundredth. Writes docs/results/neighbours.md and .csv.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sogclr
from benchmarks import pages
from sogclr.data.wordnet import HELD_OUT, find_wordnet, read_wordnet, split_synsets
from sogclr.files import cache_folder

from .extras import difference
from .measure import Cache
from .points import Point, cell, write_points
from .trainer_runs import SAME, head
from .tune_data import emoji, write_table

BATCH, LARGE, SEEDS, RATE_SEED = 32, 512, 6, 100
RATES = {BATCH: (5e-4, 1e-3, 2e-3, 4e-3), LARGE: (1e-3, 2e-3, 4e-3, 8e-3)}
LARGE_CLIP = f"CLIP, B = {LARGE}"
NEIGHBOURS = {"batches": "neighbours"}
ROWS: dict[str, dict[str, Any]] = {
    "CLIP": {"method": "clip"},
    "CLIP, neighbours": {"method": "clip"} | NEIGHBOURS,
    LARGE_CLIP: {"method": "clip", "batch_size": LARGE},
    "SogCLR": {"method": "sogclr"},
    "SogCLR, neighbours": {"method": "sogclr"} | NEIGHBOURS,
    "SogCLR, gamma 0.2": {"method": "sogclr", "gamma": 0.2},
    "SogCLR, gamma 0.2, neighbours": {"method": "sogclr", "gamma": 0.2} | NEIGHBOURS,
}
"""Row -> options of `sogclr.train` beside the data's; B = 32 but where they say otherwise."""
COMPARED = (
    ("CLIP, neighbours", "CLIP"),
    ("SogCLR, neighbours", "SogCLR"),
    ("SogCLR, gamma 0.2, neighbours", "SogCLR, gamma 0.2"),
    ("SogCLR", "CLIP"),
    ("SogCLR, neighbours", "CLIP, neighbours"),
    ("SogCLR", LARGE_CLIP),
    ("SogCLR, neighbours", LARGE_CLIP),
)
TEXTS = {"columns": "definition,word", "temperature": 0.07, "text_layers": 0, "text_width": 128, "text_length": 32}
EMOJI = {"model": "resnet10_mini", "image_size": 64, "temperature": 0.1, "text_width": 128, "text_layers": 2}


def wordnet(folder: Path, every: int, choosing: bool = False) -> dict[str, Path]:
    """Write the pairs of each so-many-th synset and those held out, or the same of other pairs, to choose by; return the tables."""
    parts = split_synsets(read_wordnet(find_wordnet()))
    if choosing:
        parts = split_synsets(parts["train"], HELD_OUT)
    rows = {"train": parts["train"][::every], "test": parts["test"]}
    return {
        name: write_table(folder / f"{name}.csv", ("definition", "word"), [(s.definition, s.word) for s in part])
        for name, part in rows.items()
    }


@dataclass(frozen=True)
class Data:
    """Pairs, and how they are trained on.

    Attributes:
        tables: writes `train` and `test` into a folder.
        epochs: passes over them.
        options: of `sogclr.train`.
        scores: whose mean is shown.
        lr: the rate; None: the one that was chosen.
    """

    tables: Callable[[Path], dict[str, Path]]
    epochs: int
    options: dict[str, Any]
    scores: tuple[str, str]
    lr: float | None = None


OF_TEXTS, OF_IMAGES = ("query_to_document_r1", "document_to_query_r1"), ("image_to_text_r1", "text_to_image_r1")
QUARTER = "a quarter of WordNet"
DATA = {
    QUARTER: Data(lambda folder: wordnet(folder, 4), 4, TEXTS, OF_TEXTS),
    "WordNet": Data(lambda folder: wordnet(folder, 1), 4, TEXTS, OF_TEXTS),
    "emoji with names": Data(emoji, 24, EMOJI, OF_IMAGES, 2e-3),
}


def batch_of(row: str) -> int:
    """Return a row's batch size."""
    return int(ROWS[row].get("batch_size", BATCH))


def rates_of(row: str) -> tuple[float, ...]:
    """Return the rates that a row's is chosen of."""
    return RATES[batch_of(row)]


class Runs:
    """What is there, and how the rest is made."""

    def __init__(self, cache: Cache, quick: bool = False) -> None:
        self.cache, self.quick = cache, quick

    def config(self, data: str, row: str, lr: float, seed: int) -> dict[str, Any]:
        """Return what decides a run."""
        one = DATA[data]
        return {"data": data, "epochs": one.epochs, "lr": lr, "seed": seed, **one.options, **ROWS[row]}

    def get(self, data: str, row: str, seed: int) -> dict[str, float] | None:
        """Return a run's result at its row's rate, if it is there."""
        lr = DATA[data].lr or self.rate(row)
        return None if lr is None else self.cache.get(self.config(data, row, lr, seed))

    def rate(self, row: str) -> float | None:
        """Return the rate with the highest recall of the seed that is not shown; None before all have been run."""
        own = row.replace(", gamma 0.2", "")
        found = {lr: self.cache.get(self.config(QUARTER, own, lr, RATE_SEED)) for lr in rates_of(own)}
        scores = {lr: result["recall"] for lr, result in found.items() if result is not None}
        return max(scores, key=scores.__getitem__) if len(scores) == len(found) else None

    def ensure(self, data: str, row: str, lr: float, seed: int) -> None:
        """Make a run that the cache lacks."""
        config = self.config(data, row, lr, seed)
        if self.cache.get(config) is not None:
            return
        one, begun = DATA[data], time.monotonic()
        epochs, every = (2, 400) if self.quick else (one.epochs, 4)
        with tempfile.TemporaryDirectory() as made:
            place = Path(made)
            if seed == RATE_SEED or self.quick:
                tables = wordnet(place, every, choosing=True)
            else:
                tables = one.tables(cache_folder() / f"neighbours-{data.replace(' ', '-')}")
            options = {"batch_size": BATCH, "lr": lr, "seed": seed, "eval_every": 1000, **one.options, **ROWS[row]}
            run = sogclr.train(tables["train"], place / "run", epochs=epochs, **options, **SAME)
            about = {"columns": one.options["columns"]} if "columns" in one.options else {}
            scores = sogclr.evaluate(run.path, tables["test"], quiet=True, **about)
        found: dict[str, Any] = {"recall": 100 * statistics.mean(scores[name] for name in one.scores)}
        found |= {"seconds": time.monotonic() - begun, "machine": pages.where("cpu")}
        self.cache.put(config, found)
        print(f"{data}, {row}, lr {lr:g}, seed {seed}: {found['recall']:.2f}, {found['seconds']:.0f} s", flush=True)

    def measure(self, only: list[str], seeds: int) -> None:
        """Make what the cache lacks: the rates, then all rows of a seed."""
        for row in (row for row in ROWS if "gamma" not in row):
            for lr in rates_of(row):
                self.ensure(QUARTER, row, lr, RATE_SEED)
        for data in only:
            for seed in range(seeds):
                for row in ROWS:
                    lr = DATA[data].lr or self.rate(row)
                    assert lr is not None
                    self.ensure(data, row, lr, seed)


def report(runs: Runs) -> None:
    """Write page and CSV from the runs of the cache."""
    text = [
        *head("Batches of neighbours, for pairs", "research.neighbours", runs.cache),
        ABOUT,
        "",
        "| recall at 1, % | rate | " + " | ".join(f"{data}, {one.epochs} epochs" for data, one in DATA.items()) + " |",
        "|---" * (2 + len(DATA)) + "|",
    ]
    found = {
        (data, row): {s: r for s in range(SEEDS) if (r := runs.get(data, row, s)) is not None}
        for data in DATA
        for row in ROWS
    }
    points = []
    for row in ROWS:
        cells = []
        for data, one in DATA.items():
            values = [r["recall"] for r in found[data, row].values()]
            cells.append(f"{cell(values, 1)} ({len(values)})" if values else "")
            if values:
                lr = one.lr or runs.rate(row)
                points.append(
                    Point(data, row, batch_of(row), one.epochs, lr, "recall", [v / 100 for v in values], ROWS[row])
                )
        text.append(f"| {row} | {runs.rate(row):g} | {' | '.join(cells)} |")
    text += ["", "| more, points | than | " + " | ".join(DATA) + " |", "|---" * (2 + len(DATA)) + "|"]
    for more, less in COMPARED:
        cells = []
        for data in DATA:
            ours, theirs = found[data, more], found[data, less]
            pairs = [(ours[s], theirs[s]) for s in sorted(ours.keys() & theirs.keys())]
            cells.append(difference(pairs, "recall") if len(pairs) > 1 else "")
        text.append(f"| {more} | {less} | {' | '.join(cells)} |")
    write_points("neighbours.csv", points)
    pages.write_page("neighbours.md", "\n".join([*text, ""]))


ABOUT = f"""Held-out recall at 1, the mean of both ways, at B = {BATCH} and of one at {LARGE}: of 4,000 definitions and words, and of 859 emoji and names. Mean ± standard deviation over seeds (how many), and the mean difference
with its 95 % interval by Student's t, paired by seed. The rate is the best of {", ".join(f"{lr:g}" for lr in RATES[BATCH])} (twice these at {LARGE}) on {QUARTER} with a seed and held-out pairs that are not shown; that of gamma 0.2 is that of
0.9, and the emoji have the demo's for all. Batches are of neighbours from the second epoch on (`--batches neighbours`)."""


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(DATA), default=list(DATA), help="which data")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many of them")
    parser.add_argument("--quick", action="store_true", help="two epochs of a hundredth, no page")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(Cache("neighbours", options.quick), options.quick)
    if options.quick:
        for row in ("CLIP, neighbours", "SogCLR, neighbours"):
            runs.ensure(QUARTER, row, rates_of(row)[1], 0)
        return
    if not options.report:
        runs.measure(options.only, options.seeds)
    report(runs)


if __name__ == "__main__":
    main()
