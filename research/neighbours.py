"""Batches of neighbours for pairs, in the trainer: recall of held-out pairs beside that of random batches, and of a large batch.

    python -m research.neighbours [--seeds N] [--quick] [--report]

The quarter of WordNet's definitions and words that `sogclr demo` takes, through `sogclr.train` and `sogclr.evaluate` at B = 32, with CLIP's loss and with SogCLR. The rate of each is one of
four, chosen with a seed and held-out pairs that are not shown. A run is a line of research/cache/neighbours.jsonl and is never done twice: stop and start at will. --quick: two epochs
of a hundredth. Writes docs/results/neighbours.md and .csv.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import sogclr
from benchmarks import pages
from sogclr.data.wordnet import HELD_OUT, find_wordnet, read_wordnet, split_synsets

from .measure import Cache
from .paired import difference
from .points import Point, cell, write_points
from .trainer_runs import SAME, head
from .tune_data import write_table

BATCH, LARGE, EPOCHS, EVERY = 32, 512, 4, 4
SEEDS, RATE_SEED = 6, 100
RATES = {BATCH: (5e-4, 1e-3, 2e-3, 4e-3), LARGE: (1e-3, 2e-3, 4e-3, 8e-3)}
NEIGHBOURS = {"batches": "neighbours"}
LARGE_CLIP = f"CLIP, B = {LARGE}"
ROWS: dict[str, dict[str, Any]] = {
    "CLIP": {"method": "clip"},
    "CLIP, neighbours": {"method": "clip"} | NEIGHBOURS,
    LARGE_CLIP: {"method": "clip", "batch_size": LARGE},
    "SogCLR": {"method": "sogclr"},
    "SogCLR, neighbours": {"method": "sogclr"} | NEIGHBOURS,
    "SogCLR, gamma 0.2": {"method": "sogclr", "gamma": 0.2},
    "SogCLR, gamma 0.2, neighbours": {"method": "sogclr", "gamma": 0.2} | NEIGHBOURS,
}
"""Row -> options of `sogclr.train`; B = 32 but where they say otherwise."""
COMPARED = (
    ("CLIP, neighbours", "CLIP"),
    ("SogCLR, neighbours", "SogCLR"),
    ("SogCLR, gamma 0.2, neighbours", "SogCLR, gamma 0.2"),
    ("SogCLR", "CLIP"),
    ("SogCLR, neighbours", "CLIP, neighbours"),
    ("SogCLR", LARGE_CLIP),
    ("SogCLR, neighbours", LARGE_CLIP),
)
COLUMNS = "definition,word"
TEXTS = {"columns": COLUMNS, "temperature": 0.07, "text_layers": 0, "text_width": 128, "text_length": 32}
SCORES = ("query_to_document_r1", "document_to_query_r1")


def tables(folder: Path, every: int, choosing: bool) -> dict[str, Path]:
    """Write the pairs of each so-many-th synset and those held out, or the same of other pairs, to choose by; return the tables."""
    parts = split_synsets(read_wordnet(find_wordnet()))
    if choosing:
        parts = split_synsets(parts["train"], HELD_OUT)
    rows = {"train": parts["train"][::every], "test": parts["test"]}
    heads = tuple(COLUMNS.split(","))
    return {
        name: write_table(folder / f"{name}.csv", (heads[0], heads[1]), [(s.definition, s.word) for s in part])
        for name, part in rows.items()
    }


def batch_of(row: str) -> int:
    """Return a row's batch size."""
    return int(ROWS[row].get("batch_size", BATCH))


def config_of(row: str, lr: float, seed: int) -> dict[str, Any]:
    """Return what decides a run."""
    about = {"data": "a quarter of WordNet", "epochs": EPOCHS, "lr": lr, "seed": seed}
    return about | TEXTS | ROWS[row]


def rate(cache: Cache, row: str) -> float | None:
    """Return the rate with the highest recall of the seed that is not shown; None before all have been run. That of gamma 0.2 is that of 0.9."""
    own = row.replace(", gamma 0.2", "")
    found = {lr: cache.get(config_of(own, lr, RATE_SEED)) for lr in RATES[batch_of(own)]}
    scores = {lr: result["recall"] for lr, result in found.items() if result is not None}
    return max(scores, key=scores.__getitem__) if len(scores) == len(found) else None


def ensure(cache: Cache, row: str, lr: float, seed: int) -> None:
    """Make a run that the cache lacks."""
    config, begun = config_of(row, lr, seed), time.monotonic()
    if cache.get(config) is not None:
        return
    epochs, every = (2, 400) if cache.quick else (EPOCHS, EVERY)
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        of = tables(place, every, seed == RATE_SEED)
        options: dict[str, Any] = {"batch_size": BATCH, "lr": lr, "seed": seed, "eval_every": 1000}
        run = sogclr.train(of["train"], place / "run", epochs=epochs, **options | TEXTS | ROWS[row], **SAME)
        scores = sogclr.evaluate(run.path, of["test"], columns=COLUMNS, quiet=True)
    found: dict[str, Any] = {"recall": 100 * statistics.mean(scores[name] for name in SCORES)}
    cache.put(config, found | {"seconds": time.monotonic() - begun, "machine": pages.where("cpu")})
    print(f"{row}, lr {lr:g}, seed {seed}: {found['recall']:.2f}, {time.monotonic() - begun:.0f} s", flush=True)


def measure(cache: Cache, seeds: int) -> None:
    """Make what the cache lacks: the rates, then all rows of a seed."""
    for row in (row for row in ROWS if "gamma" not in row):
        for lr in RATES[batch_of(row)]:
            ensure(cache, row, lr, RATE_SEED)
    for seed in range(seeds):
        for row in ROWS:
            if (lr := rate(cache, row)) is not None:
                ensure(cache, row, lr, seed)


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    text = [
        *head("Batches of neighbours, for pairs", "research.neighbours", cache),
        ABOUT,
        "",
        "| | rate | recall at 1, % | seeds |",
        "|---|---|---|---|",
    ]
    found: dict[str, dict[int, dict[str, float]]] = {}
    points = []
    for row in ROWS:
        lr = rate(cache, row)
        results = {} if lr is None else {s: cache.get(config_of(row, lr, s)) for s in range(SEEDS)}
        found[row] = {s: r for s, r in results.items() if r is not None}
        if values := [r["recall"] for r in found[row].values()]:
            text.append(f"| {row} | {lr:g} | {cell(values, 1)} | {len(values)} |")
            fractions = [v / 100 for v in values]
            points.append(Point("WordNet", row, batch_of(row), EPOCHS, lr, "recall", fractions, ROWS[row]))
    text += ["", "| more, points | than | |", "|---|---|---|"]
    for more, less in COMPARED:
        seeds = sorted(found[more].keys() & found[less].keys())
        if len(seeds) > 1:
            pairs = [(found[more][s], found[less][s]) for s in seeds]
            text.append(f"| {more} | {less} | {difference(pairs, 'recall')} |")
    write_points("neighbours.csv", points)
    pages.write_page("neighbours.md", "\n".join([*text, ""]))


ABOUT = f"""A quarter of WordNet's definitions and words, {EPOCHS} epochs at B = {BATCH}, and at {LARGE} where the row says so; recall at 1 among 4,000 definitions and words that were held out, the mean of both ways. Mean ± standard deviation over seeds, and
mean differences, paired by seed, with 95 % intervals by Student's t. The rate is the best of four (0.0005 to 0.004, at {LARGE} twice these) with a seed and held-out pairs that are not shown; that of gamma 0.2 is
that of 0.9. From the second epoch on batches are of neighbours (`--batches neighbours`)."""


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many of them")
    parser.add_argument("--quick", action="store_true", help="two epochs of a hundredth, no page")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("neighbours", options.quick)
    if options.quick:
        for row in ("CLIP, neighbours", "SogCLR, neighbours"):
            ensure(cache, row, RATES[BATCH][1], 0)
        return
    if not options.report:
        measure(cache, options.seeds)
    report(cache)


if __name__ == "__main__":
    main()
