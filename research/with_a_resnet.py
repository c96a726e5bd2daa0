"""The estimators in the real trainer: a small ResNet with BatchNorm on Fashion-MNIST, augmented anew every epoch.

    python -m research.with_a_resnet --data DIR [--quick] [--report]

4,000 training images (no labels) and 2,000 for the probes' test, batch 16, each run through `sogclr.train` and
`sogclr.evaluate`: with the optimizer and rate that the trainer chooses by itself, and at others. Fresh augmentations and
BatchNorm have no exact objective; F2 is that of the diagnosis at the end: a fixed part of the images, fixed views, frozen statistics. Every run is a
line of research/cache/with_a_resnet.jsonl. (boosted, memory and boosted memory were options of sogclr 0.1, which made the page's rows of
them; they are losses of `estimators.py` since.) Writes docs/results/with_a_resnet.md and .csv.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import sogclr
from benchmarks import pages
from sogclr import GlobalContrastiveLoss

from .estimators import BoostedAverage, MemoryContrastiveLoss
from .measure import Cache
from .points import Point, cell, write_points
from .problems import write_images
from .trainer_runs import PAPER

METHODS: dict[str, dict[str, Any]] = {
    "SimCLR": {"method": "simclr"},
    "DCL": {"method": "dcl"},
    "SogCLR 0.9": PAPER,
    "boosted memory": {"loss": "boosted memory"},
    "SogCLR cosine, whole": PAPER | {"gamma": 0.1, "gamma_schedule": "cosine-full"},
    "boosted": {"loss": "boosted"},
    "memory": {"loss": "memory"},
}
# of research alone: (samples, steps) -> the loss
LOSSES: dict[str, Callable[[int, int], GlobalContrastiveLoss]] = {
    "boosted": lambda n, steps: GlobalContrastiveLoss(n, estimator=BoostedAverage(n, steps)),
    "memory": lambda n, steps: MemoryContrastiveLoss(n, 128, 32 * SAME["batch_size"]),
    "boosted memory": lambda n, steps: MemoryContrastiveLoss(n, 128, 512, steps=steps),
}
# what the trainer chose by itself (LARS at 0.3 for this batch) until this page was made, LARS at the rate that it chooses since, and AdamW
SETTINGS: dict[str, dict[str, Any]] = {
    "its own": {"lr_rule": "sqrt"},
    "LARS, 0.9": {"optimizer": "lars", "lr": 0.9},
    "AdamW, 0.003": {"optimizer": "adamw", "lr": 3e-3},
    "AdamW, 0.01": {"optimizer": "adamw", "lr": 1e-2},
    "AdamW, 0.03": {"optimizer": "adamw", "lr": 3e-2},
}
# (epochs, methods, settings, seeds), in the order in which they are run
PLAN: list[tuple[int, tuple[str, ...], tuple[str, ...], int]] = [
    (6, tuple(METHODS), tuple(SETTINGS), 3),
    (30, ("SimCLR", "SogCLR 0.9", "boosted memory"), ("its own", "LARS, 0.9"), 2),
]
TRAIN, TEST = 4000, 2000
# of every run: options of `sogclr.train`
SAME: dict[str, Any] = {
    "model": "resnet10_mini",
    "image_size": 28,
    "batch_size": 16,
    "workers": 0,
    "threads": 1,
    "device": "cpu",
    "labels": "none",
    "quiet": True,
}
SCORES = ("knn_top1", "linear_top1", "linear_top1_10_per_class")
SHOWN = (*((k, 100, 2) for k in SCORES), ("F2", 1, 4))  # (name, factor, digits)


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--quick", action="store_true", help="200 images, one epoch, one seed, no page")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    options = parser.parse_args()
    cache = Cache("with_a_resnet", options.quick)
    if options.report:
        report(cache)
        return
    train, test = (200, 100) if options.quick else (TRAIN, TEST)
    plan = [(1, tuple(METHODS), ("its own",), 1)] if options.quick else PLAN
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", options.data, train, test)
        for epochs, methods, settings, seeds in plan:
            for method, setting, seed in itertools.product(methods, settings, range(seeds)):
                config = config_of(method, setting, seed, epochs, train, test)
                if cache.get(config) is None:
                    result = run(folder, METHODS[method] | SETTINGS[setting], seed, epochs, train)
                    print(epochs, method, setting, seed, result, flush=True)
                    cache.put(config, result)
    if not options.quick:
        report(cache)


def config_of(method: str, setting: str, seed: int, epochs: int, train: int, test: int) -> dict[str, Any]:
    """Return what decides a run."""
    config = {
        "method": method,
        "choice": METHODS[method],
        "lr": SETTINGS[setting].get("lr"),
        "seed": seed,
        "epochs": epochs,
        "train": train,
        "test": test,
        "diagnosed": True,
    }
    return config | ({"optimizer": "lars"} if SETTINGS[setting].get("optimizer") == "lars" else {})


def run(folder: Path, choice: dict[str, Any], seed: int, epochs: int, train: int) -> dict[str, float]:
    begun = time.monotonic()
    if "loss" in choice:
        choice = choice | {"loss": LOSSES[choice["loss"]](train, epochs * (train // SAME["batch_size"]))}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        every = {"epochs": epochs, "eval_every": epochs, "diagnose_every": epochs, "seed": seed}
        trained = sogclr.train(folder / "images", Path(out) / "run", **SAME, **every, **choice)
        seconds = time.monotonic() - begun
        scores = dict(sogclr.evaluate(trained.path, folder / "images", quiet=True))
        lines = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
        scores["F2"] = next(line["F2"] for line in lines if line["kind"] == "diagnosis")
    return {**{k: scores[k] for k in (*SCORES, "F2")}, "seconds": seconds}


def found(cache: Cache) -> Iterator[tuple[int, str, str, list[dict[str, float]]]]:
    """Yield epochs, method, setting and the results of all seeds that were run, in the plan's order."""
    for epochs, methods, settings, seeds in PLAN:
        for method, setting in itertools.product(methods, settings):
            configs = [config_of(method, setting, s, epochs, TRAIN, TEST) for s in range(seeds)]
            if results := [r for c in configs if (r := cache.get(c)) is not None]:
                yield epochs, method, setting, results


def points(cache: Cache) -> list[Point]:
    """Return what the table shows."""
    made = []
    for epochs, method, setting, results in found(cache):
        options = METHODS[method] | SETTINGS[setting]
        settings = {key: value for key, value in options.items() if key != "lr"}
        made += [
            Point("fashion", method, 16, epochs, options.get("lr"), what, [r[what] for r in results], settings)
            for what, _, _ in SHOWN
        ]
    return made


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    write_points("with_a_resnet.csv", points(cache))
    more = f"; {cache.hours:.2f} hours"
    text = [
        *pages.head("The estimators in the trainer, with a ResNet", "research.with_a_resnet", more),
        f"resnet10_mini, {TRAIN:,} images of Fashion-MNIST, batch 16, {TEST:,} test images: with the optimizer and rate that the trainer of "
        "sogclr 0.1 chose by itself (LARS, 0.3), and at others, about a factor of 3 apart. Mean ± standard deviation over seeds.",
        "",
    ]
    for epochs, rows in itertools.groupby(found(cache), key=lambda row: row[0]):
        text += [
            f"## {epochs} epochs",
            "",
            "| method | optimizer, rate | kNN, % | linear, % | linear, 10 labels a class, % | F2, diagnosed | seeds |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for _, method, setting, results in rows:
            cells = [cell([scale * r[k] for r in results], digits) for k, scale, digits in SHOWN]
            text.append(f"| {method} | {setting} | {' | '.join(cells)} | {len(results)} |")
        text.append("")
    pages.write_page("with_a_resnet.md", "\n".join(text))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
