"""Paired differences, with intervals over seeds and over held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from .points import mean_sd

STUDENT = {2: 12.706, 3: 4.303}  # 97.5 % quantiles of Student's t for so many seeds


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % interval, by Student's t."""
    mean, sd = mean_sd(values)
    half = stats.t.ppf(0.975, len(values) - 1) * sd / math.sqrt(len(values))
    return mean, mean - half, mean + half


def with_interval(values: list[float], digits: int = 2) -> str:
    """Return `+0.42 (+0.10 to +0.74)`: a mean and its 95 % interval, both with so many decimals; of one value itself."""
    if len(values) < 2:
        return f"{values[0]:+.{digits}f}"
    mean, low, high = interval(values)
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def difference(pairs: Sequence[tuple[dict[str, float], dict[str, float]]], score: str) -> str:
    """Return the mean of what the first result of each pair has more of a score, with its 95 % interval."""
    return with_interval([a[score] - b[score] for a, b in pairs], 1)


def recall_difference(
    ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]
) -> tuple[int, float, float, float]:
    """Return seeds, mean difference of held-out recall in points, and half its 95 % interval over seeds and over pairs.

    Over seeds: Student's, of the differences by seed (the same first table and order of pairs), NaN for one seed. Over
    pairs: 1.96 standard errors of the mean over the held-out pairs of each one's difference, the seeds' mean.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    by_seed = [100 * (ours[seed]["test_r1"] - theirs[seed]["test_r1"]) for seed in seeds]
    mean, sd = mean_sd(by_seed)
    of_seeds = STUDENT[len(seeds)] * sd / len(seeds) ** 0.5 if len(seeds) > 1 else math.nan
    hits = np.array([[[int(c) for c in results[s]["test_hits"]] for s in seeds] for results in (ours, theirs)])
    by_pair = 100 * (hits[0] - hits[1]).mean(axis=0) / 2
    return len(seeds), mean, of_seeds, 1.96 * by_pair.std(ddof=1) / len(by_pair) ** 0.5


def verdict(mean: float, half: float, least: float) -> str:
    """Return whether a difference is at least so many points, as far as its interval tells."""
    if math.isnan(half) or abs(mean - least) <= half:
        return f"{'as expected' if mean >= least else 'less'}, within the interval"
    return "yes" if mean > least else "no"
