"""AdamW's learning rate for encoders from nothing: which multiple of 1e-3 sqrt(B/256) fits, by encoder and batch size.

    python -m research.rates --data DIR [--only NAME ...] [--seeds N] [--quick] [--report]

Vision transformers and convolutional networks, by the default's loss and by SimCLR's, for 12 epochs of photographs of clothes. DIR as for research.flat_line; every run is a line of
research/cache/rates.jsonl. Writes docs/results/rates.md and .csv.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from benchmarks import pages

from .extras import SHOWN
from .measure import Cache
from .points import Point, cell, write_points
from .trainer_runs import PHOTOGRAPHS, Job, Places, head, make, parser_of

EPOCHS, SEEDS = 12, 3
LARS = "LARS, its own rate"
FACTORS: dict[str, float | None] = {"x 1": 1, "x 3": 3, "x 10": 10, "x 30": 30, LARS: None}
"""Column -> multiple of the rate."""
METHODS = ("sogclr", "simclr")
MODELS: dict[str, dict[str, Any]] = {
    "test_vit": {"image_size": 64},
    "resnet10_mini": {"image_size": 32, "optimizer": "adamw"},
    "convnext_atto": {"image_size": 32, "optimizer": "adamw"},
    "vit_tiny_patch16_224": {"image_size": 64},
}
"""Encoder -> options of its runs."""
BATCHES = (16, 32, 256)


def job(model: str, batch: int, method: str, factor: float | None, seed: int) -> Job:
    """Return a run by AdamW at a multiple of the rate; None: by LARS, at the rate that the trainer chooses."""
    options = {"model": model, "batch_size": batch, "epochs": EPOCHS, "method": method, "seed": seed} | MODELS[model]
    if factor is None:
        return Job(PHOTOGRAPHS, options | {"optimizer": "lars"})
    return Job(PHOTOGRAPHS, options | {"lr": round(factor * 1e-3 * math.sqrt(batch / 256), 8)})


def cells() -> Iterator[tuple[str, int, str]]:
    """Yield encoder, batch size and method."""
    yield from itertools.product(MODELS, BATCHES, METHODS)


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    text = [
        *head("AdamW's rate for an encoder from nothing", "research.rates --data DIR", cache),
        f"{EPOCHS} epochs of photographs, weight decay 0.05, a tenth of the run as warm-up, then a cosine. The rate is a multiple of 1e-3 sqrt(B/256); beside it what LARS does at the rate that the trainer chooses. Mean ± standard deviation over seeds where there are several.",
    ]
    points = []
    for score, title in SHOWN.items():
        text += [
            "",
            f"| {title}, % | B | loss | {' | '.join(FACTORS)} | seeds |",
            "|---" * (4 + len(FACTORS)) + "|",
        ]
        for model, batch, method in cells():
            found = {
                f: [r for s in range(SEEDS) if (r := cache.get(job(model, batch, method, f, s).config())) is not None]
                for f in FACTORS.values()
            }
            if not any(found.values()):
                continue
            shown = [cell([r[score] for r in rs], 1) if rs else "" for rs in found.values()]
            text.append(f"| {model} | {batch} | {method} | {' | '.join(shown)} | {max(map(len, found.values()))} |")
            points += [
                Point(PHOTOGRAPHS, method, batch, EPOCHS, f, score, [r[score] / 100 for r in rs], {"model": model})
                for f, rs in found.items()
                if rs
            ]
    write_points("rates.csv", points)
    pages.write_page("rates.md", "\n".join([*text, ""]))


def main() -> None:
    parser = parser_of(__doc__, MODELS, SEEDS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, choices=BATCHES, help="which batch sizes")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="which losses")
    parser.add_argument("--columns", nargs="+", default=list(FACTORS), choices=list(FACTORS), help="of the page")
    options = parser.parse_args()
    cache, places = Cache("rates", options.quick), Places(options.data, options.fashion)
    if options.quick:
        one = job("test_vit", 256, "sogclr", FACTORS["x 1"], 0)
        make([Job(one.data, one.options | {"epochs": 1})], cache, places, options.device)
        return
    if not options.report:
        factors = [FACTORS[column] for column in options.columns]
        asked = (range(options.seeds), options.only, options.batches, options.methods, factors)
        jobs = [job(model, batch, method, f, seed) for seed, model, batch, method, f in itertools.product(*asked)]
        make(jobs, cache, places, options.device, options.at_once)
    report(cache)


if __name__ == "__main__":
    main()
