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
FACTORS = (1, 3, 10, 30)
METHODS = ("sogclr", "simclr")
MODELS: dict[str, dict[str, Any]] = {
    "test_vit": {"image_size": 64},
    "resnet10_mini": {"image_size": 32, "optimizer": "adamw"},
    "convnext_atto": {"image_size": 32, "optimizer": "adamw"},
    "vit_tiny_patch16_224": {"image_size": 64},
}
"""Encoder -> options of its runs."""
BATCHES = (16, 32, 256)


def job(model: str, batch: int, method: str, factor: float, seed: int) -> Job:
    """Return a run."""
    options = {"model": model, "batch_size": batch, "epochs": EPOCHS, "method": method, "seed": seed} | MODELS[model]
    return Job(PHOTOGRAPHS, options | {"lr": round(factor * 1e-3 * math.sqrt(batch / 256), 8)})


def cells() -> Iterator[tuple[str, int, str]]:
    """Yield encoder, batch size and method."""
    yield from itertools.product(MODELS, BATCHES, METHODS)


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    text = [
        *head("AdamW's rate for an encoder from nothing", "research.rates --data DIR", cache),
        f"{EPOCHS} epochs of photographs, weight decay 0.05, a tenth of the run as warm-up, then a cosine. The rate is a multiple of 1e-3 sqrt(B/256). Mean ± standard deviation over seeds where there are several.",
    ]
    points = []
    for score, title in SHOWN.items():
        text += [
            "",
            f"| {title}, % | B | loss | {' | '.join(f'x {f}' for f in FACTORS)} | seeds |",
            "|---" * (4 + len(FACTORS)) + "|",
        ]
        for model, batch, method in cells():
            found = {
                f: [r for s in range(SEEDS) if (r := cache.get(job(model, batch, method, f, s).config())) is not None]
                for f in FACTORS
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
    parser.add_argument("--factors", nargs="+", type=int, default=FACTORS, choices=FACTORS, help="of the rate")
    options = parser.parse_args()
    cache, places = Cache("rates", options.quick), Places(options.data, options.fashion)
    if options.quick:
        one = job("test_vit", 256, "sogclr", FACTORS[0], 0)
        make([Job(one.data, one.options | {"epochs": 1})], cache, places, options.device)
        return
    if not options.report:
        asked = (range(options.seeds), options.only, options.batches, options.methods, options.factors)
        jobs = [job(model, batch, method, f, seed) for seed, model, batch, method, f in itertools.product(*asked)]
        make(jobs, cache, places, options.device, options.at_once)
    report(cache)


if __name__ == "__main__":
    main()
