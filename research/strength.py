"""Does what lowers F2 depend on how strong the augmentation is? Digits at B = 16, 30 epochs, views from mild to violent.

    python benchmarks/strength.py [--quick]

The harness of small_batch.py (no normalisation layers, exact F2 over 8 fixed views), three seeds, two rates. Every run is a
line of benchmarks/cache/strength.jsonl. Writes docs/results/strength.md and .png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from figures import figure, host, save, style, write_page
from many_runs import Job
from measure import Cache, config_of, ensure
from problems import digits
from small_batch import METHODS, rule_of

RESULT = Path(__file__).parent.parent / "docs" / "results" / "strength.md"
NAMES = ("SimCLR", "DCL", "SogCLR 0.9", "SogCLR cosine, whole", "boosted", "memory", "boosted memory")
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
RATES = (4e-3, 8e-3)
SEEDS = (0, 1, 2)
BATCH, EPOCHS = 16, 30


def best(cache: Cache, name: str, strength: float) -> list[dict[str, Any]]:
    """The results of the seeds at the rate with the lower mean F2."""
    by_rate = []
    for lr in RATES:
        jobs = [Job(rule_of(name, BATCH), lr, seed) for seed in SEEDS]
        found = [cache.get(config_of("digits", job, BATCH, EPOCHS, strength)) for job in jobs]
        by_rate.append([r for r in found if r is not None])
    return min(by_rate, key=lambda results: mean(r["F2"] for r in results))


def report(cache: Cache) -> None:
    fig, axes = figure(2)
    head = " | ".join(f"{s:g}: F2 | kNN, %" for s in STRENGTHS)
    rows = [f"| method | {head} |", "|---|" + "---:|" * (2 * len(STRENGTHS))]
    for k, name in enumerate(NAMES):
        found = [best(cache, name, s) for s in STRENGTHS]
        f2, knn = ([[scale * r[key] for r in results] for results in found] for key, scale in (("F2", 1), ("knn", 100)))
        cells = [
            f"{mean(a):.4f} ± {stdev(a):.4f} | {mean(b):.1f} ± {stdev(b):.1f}" for a, b in zip(f2, knn, strict=True)
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        for axis, values in zip(axes[0], (f2, knn), strict=True):
            axis.errorbar(STRENGTHS, [mean(v) for v in values], [stdev(v) for v in values], label=name, **style(k))
    for axis, label in zip(axes[0], ("exact F2 (lower is better)", "kNN accuracy, %"), strict=True):
        axis.set_xlabel("strength of the augmentation")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    save(fig, RESULT.with_suffix(".png"))
    text = [
        "# F2 and accuracy against the strength of the augmentation", "", "`python benchmarks/strength.py`", "", f"Machine: {host()}; {cache.hours:.2f} hours.", "",
        f"Digits, B = {BATCH}, {EPOCHS} epochs, 8 fixed views whose rotation, shift, zoom, contrast and noise are multiplied by the strength; encoders without "
        f"normalisation layers; mean ± standard deviation over {len(SEEDS)} seeds, at the rate of two with the lower mean F2. The probes see the images "
        "themselves. An encoder that maps all images to one point has F2 = 0.", "", "![F2 and kNN accuracy](strength.png)", "", *rows, "",
    ]  # fmt: skip
    write_page(RESULT, "\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="strength 1, one seed, one rate, 2 epochs, no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("strength", options.quick)
    if options.quick:
        ensure(cache, digits(), [Job(METHODS[n], 8e-3, 0) for n in NAMES[:2]], BATCH, 2)
        print(*cache.found.values(), sep="\n")
        return
    for strength in STRENGTHS:
        jobs = [Job(rule_of(n, BATCH), lr, s) for n in NAMES for lr in RATES for s in SEEDS]
        ensure(cache, digits(strength=strength), jobs, BATCH, EPOCHS, strength)
    report(cache)


if __name__ == "__main__":
    main()
