"""Does what lowers F2 depend on how strong the augmentation is? Digits at B = 16, 30 epochs, views from mild to violent.

    python -m research.strength [--quick]

The harness of small_batch.py (no normalisation layers, exact F2 over 8 fixed views), three seeds, two rates. Every run is a
line of research/cache/strength.jsonl. Writes docs/results/strength.md, .png and .csv.
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import pages

from .figures import dress, figure, save, style
from .many_runs import Job
from .measure import Cache, config_of, ensure
from .points import Point, plus_minus, write_points
from .problems import digits
from .small_batch import METHODS, rule_of

NAMES = ("SimCLR", "DCL", "SogCLR 0.9", "SogCLR cosine, whole", "boosted", "memory", "boosted memory")
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
RATES = (4e-3, 8e-3)
SEEDS = (0, 1, 2)
BATCH, EPOCHS = 16, 30


def best(cache: Cache, name: str, strength: float) -> tuple[float, list[dict[str, Any]]]:
    """Return the rate with the lower mean F2, and the results of its seeds."""
    by_rate = {}
    for lr in RATES:
        jobs = [Job(rule_of(name, BATCH), lr, seed) for seed in SEEDS]
        found = [cache.get(config_of("digits", job, BATCH, EPOCHS, strength)) for job in jobs]
        by_rate[lr] = [r for r in found if r is not None]
    return min(by_rate.items(), key=lambda entry: mean(r["F2"] for r in entry[1]))


def points(cache: Cache) -> list[Point]:
    """Return what the figure and the table show."""
    made = []
    for name in NAMES:
        for strength in STRENGTHS:
            lr, results = best(cache, name, strength)
            settings = rule_of(name, BATCH) | {"strength": strength}
            made += [
                Point("digits", name, BATCH, EPOCHS, lr, what, [r[what] for r in results], settings)
                for what in ("F1", "F2", "linear", "knn", "linear10")
            ]
    return made


def report(cache: Cache) -> None:
    """Write page, figure and CSV from the runs of the cache."""
    write_points("strength.csv", points(cache))
    fig, axes = figure(2)
    head = " | ".join(f"{s:g}: F2 | kNN, %" for s in STRENGTHS)
    rows = [f"| method | {head} |", "|---|" + "---:|" * (2 * len(STRENGTHS))]
    for k, name in enumerate(NAMES):
        found = [best(cache, name, s)[1] for s in STRENGTHS]
        f2, knn = ([[scale * r[key] for r in results] for results in found] for key, scale in (("F2", 1), ("knn", 100)))
        cells = [f"{plus_minus(a, 4)} | {plus_minus(b, 1)}" for a, b in zip(f2, knn, strict=True)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        for axis, values in zip(axes[0], (f2, knn), strict=True):
            axis.errorbar(STRENGTHS, [mean(v) for v in values], [stdev(v) for v in values], label=name, **style(k))
    for axis, label in zip(axes[0], ("exact F2 (lower is better)", "kNN accuracy, %"), strict=True):
        dress(axis, "strength of the augmentation", label)
    axes[0][0].legend(fontsize=7)
    save(fig, "strength.png")
    more = f"; {cache.hours:.2f} hours"
    text = [
        *pages.head("F2 and accuracy against the strength of the augmentation", "research.strength", more),
        f"Digits, B = {BATCH}, {EPOCHS} epochs, 8 fixed views whose rotation, shift, zoom, contrast and noise are multiplied by the strength; encoders without "
        f"normalisation layers; mean ± standard deviation over {len(SEEDS)} seeds, at the rate of two with the lower mean F2. The probes see the images "
        "themselves. An encoder that maps all images to one point has F2 = 0.",
        "",
        "![F2 and kNN accuracy](strength.png)",
        "",
        *rows,
        "",
    ]
    pages.write_page("strength.md", "\n".join(text))


def main() -> None:
    parser = pages.parser(__doc__)
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
