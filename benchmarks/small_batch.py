"""Claim 2, small batch does no harm: final F2 and accuracy against B, every method with its rate tuned by the same grid.

python benchmarks/small_batch.py [--quick] [--problem digits fashion openmoji] [--data DIR] [--emoji DIR]

Small encoders without normalisation layers on real images with a finite set of augmentations (see problems.py and
many_runs.py), so that F2 is exact. Every run is a line of benchmarks/cache/<problem>.jsonl and is never done twice.
`--data`: the idx files of Fashion-MNIST (Debian's package dataset-fashion-mnist). `--emoji`: a folder a group of 32x32
PNG files. Writes docs/results/small_batch.md and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from figures import STYLE, figure, host, save
from many_runs import Job
from measure import Cache, config_of, ensure
from problems import Problem, digits, emoji, fashion

RESULT = Path(__file__).parent.parent / "docs" / "results" / "small_batch.md"
SEEDS = (0, 1, 2)

METHODS: dict[str, dict[str, Any]] = {
    "SimCLR": {"rule": "simclr"},
    "DCL": {"rule": "dcl"},
    "SogCLR 0.9": {"rule": "sogclr", "end": 0.9},
    "SogCLR 0.5": {"rule": "sogclr", "end": 0.5},
    "SogCLR cosine half": {"rule": "sogclr", "start": 1.0, "end": 0.1, "over": 0.5},
    "SogCLR cosine whole": {"rule": "sogclr", "start": 1.0, "end": 0.1, "over": 1.0},
}
MINI_BATCH = ("SimCLR", "DCL")  # these also run at the batches where they are said to need no help


def grid(batch: int) -> tuple[float, ...]:
    """Three learning rates, a factor of 2 apart, around sqrt(B) scaling; the same for every method."""
    middle = 8e-3 if batch <= 64 else 1.6e-2
    return (middle / 2, middle, middle * 2)


def tuned(cache: Cache, problem: str, rule: dict[str, Any], batch: int, epochs: int) -> tuple[float, list[dict[str, float]]] | None:
    """The rate with the lowest mean F2, and the results of its seeds; None where runs are missing."""
    found = {}
    for lr in grid(batch):
        results = [cache.get(config_of(problem, Job(rule, lr, s), batch, epochs)) for s in SEEDS]
        results = [r for r in results if r is not None]
        if results:
            found[lr] = results
    if not found:
        return None
    best = min(found, key=lambda lr: statistics.mean(r["F2"] for r in found[lr]))
    return best, found[best]
