"""Where the remembered normalizer earns its place: gamma against visits, speed of the weights, samples and temperature.

    python -m research.visits [--quick] [--report]

Digits in 8 fixed views, so that the exact objective is computed; B = 16, Adam, cosine to 0, every cell two seeds. gamma = 1 is the mini-batch's own normalizer
(DCL); below it u remembers. A visit is an epoch; the weights' speed is the learning rate. At the end of a run the stored u is compared with the exact g of its sample:
its spread (noise) and its mean (lag: u is too large while embeddings still spread). Every run is a line of research/cache/visits.jsonl. Writes
docs/results/visits.md and .csv.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks import pages
from sogclr.losses.functional import log_mean

from .many_runs import Job, ManyRuns
from .measure import Cache, exact
from .points import Point, write_points
from .problems import Problem, digits

GAMMAS = (1.0, 0.9, 0.5, 0.2, 0.1)
EPOCHS, RATES, SAMPLES, TAUS, SEEDS, BATCH = (5, 20, 80), (1e-3, 4e-3), (360, 1797), (0.1, 0.05), (0, 1), 16
READING = """So it is the temperature that decides. At 0.1 a batch of 16 estimates log g well enough: 0.9 gains a little or nothing, and smaller gammas lose what u lags behind by, most where
the weights move fast and visits are few. At 0.05 one batch's log g is off by a standard deviation of 1 to 4 and too low on average by as much (the logarithm of a mean of few,
heavy-tailed terms), while u at gamma 0.2 is off by 0.2 to 0.5 with a lag near nothing: then every gamma below 1 gains from 20 visits on, at both numbers of samples and both rates, 0.9 most
or nearly so, and it gains at 5 visits already where there are more samples or faster weights. At 80 visits 0.5 is as good as 0.9 or better: slow changes let u remember more."""


def config_of(epochs: int, rate: float, samples: int, tau: float, gamma: float, seed: int) -> dict[str, Any]:
    """Return what decides a run."""
    return {"epochs": epochs, "lr": rate, "n": samples, "tau": tau, "gamma": gamma, "seed": seed, "batch": BATCH}


def part_of(problem: Problem, samples: int) -> Problem:
    """Return the first so many samples."""
    return replace(
        problem, views=problem.views[:samples], clean=problem.clean[:samples], labels=problem.labels[:samples]
    )


def measure(cache: Cache, epochs: tuple[int, ...] = EPOCHS) -> None:
    """Make the runs that the cache lacks: those of one length, number of samples and temperature side by side."""
    whole = digits()
    for length, samples, tau in itertools.product(epochs, SAMPLES, TAUS):
        cells = [(r, g, s) for r, g, s in itertools.product(RATES, GAMMAS, SEEDS)]
        missing = [c for c in cells if cache.get(config_of(length, c[0], samples, tau, c[1], c[2])) is None]
        if not missing:
            continue
        missing.sort(key=lambda c: (c[1], c[0]))
        jobs = [Job({"rule": "sogclr", "end": g}, r, s) for r, g, s in missing]
        begun = time.monotonic()
        runs = ManyRuns(part_of(whole, samples), jobs, BATCH, length, tau)
        for _ in runs.run():
            pass
        seconds = (time.monotonic() - begun) / len(jobs)
        for k, (rate, gamma, seed) in enumerate(missing):
            _, f2, log_g = exact(runs.embeddings(k), tau)
            part, rule = next((p, r) for p, r in runs.rules if p.start <= k < p.stop)
            error = rule.log_u[k - part.start] - log_mean(log_g)
            error = error[torch.isfinite(error)]
            found = {"F2": f2, "lag": float(error.mean()), "noise": float(error.std()), "seconds": seconds}
            cache.put(config_of(length, rate, samples, tau, gamma, seed), found)
        print(f"{length} epochs, n {samples}, tau {tau}: {time.monotonic() - begun:.0f} s", flush=True)


def row_of(cache: Cache, epochs: int, rate: float, samples: int, tau: float) -> dict[float, list[dict[str, Any]]]:
    """Return the results of each gamma, by seed."""
    found = {g: [cache.get(config_of(epochs, rate, samples, tau, g, s)) for s in SEEDS] for g in GAMMAS}
    return {g: [r for r in results if r is not None] for g, results in found.items()}


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    text = [
        *pages.head(
            "Where the remembered normalizer earns its place", "research.visits", f"; {60 * cache.hours:.0f} minutes"
        ),
        f"Digits in 8 fixed views, B = {BATCH}, Adam, mean of {len(SEEDS)} seeds. Exact F2, lower is better, of gamma 1; of the others the difference from it, by seed: the lowest bold, where it is "
        f"below gamma 1 in every seed. Then, of gamma 0.2 at the end: how far log u is above log g (lag), and its standard deviation over the samples (noise); those of gamma 1 are one batch's.",
        "",
        f"| n | tau | rate | epochs | F2, gamma 1 | {' | '.join(f'{g:g}' for g in GAMMAS[1:])} | lag, 0.2 | noise, 0.2 | lag, 1 | noise, 1 |",
        "|---" * (9 + len(GAMMAS) - 1) + "|",
    ]
    points, wins = [], []
    for samples, tau, rate, epochs in itertools.product(SAMPLES, TAUS, RATES, EPOCHS):
        row = row_of(cache, epochs, rate, samples, tau)
        if any(len(r) < len(SEEDS) for r in row.values()):
            continue
        base = [r["F2"] for r in row[1.0]]
        gaps = {g: [r["F2"] - b for r, b in zip(row[g], base, strict=True)] for g in GAMMAS[1:]}
        best = min(gaps, key=lambda g: statistics.mean(gaps[g]))
        clear = max(gaps[best]) < 0
        wins.append((samples, tau, rate, epochs, best if clear else None))
        shown = [f"{statistics.mean(v):+.4f}" for v in gaps.values()]
        shown = [f"**{s}**" if clear and g == best else s for g, s in zip(gaps, shown, strict=True)]
        tail = [f"{statistics.mean(r[k] for r in row[g]):+.3f}" for g in (0.2, 1.0) for k in ("lag", "noise")]
        text.append(
            f"| {samples:,} | {tau} | {rate} | {epochs} | {statistics.mean(base):.4f} | {' | '.join(shown + tail)} |"
        )
        points += [
            Point("digits", f"gamma {g:g}", BATCH, epochs, rate, k, [r[k] for r in row[g]], {"n": samples, "tau": tau})
            for g in GAMMAS
            for k in ("F2", "lag", "noise")
        ]
    for epochs in EPOCHS:
        of_length = [w for w in wins if w[3] == epochs]
        won = [w for w in of_length if w[4] is not None]
        text += [
            "",
            f"At {epochs} epochs some gamma below 1 is lower in every seed in {len(won)} of {len(of_length)} cells.",
        ]
    text += ["", READING]
    write_points("visits.csv", points)
    pages.write_page("visits.md", "\n".join([*text, ""]))


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one epoch, no page")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("visits", options.quick)
    if options.quick:
        measure(cache, (1,))
        return
    if not options.report:
        measure(cache)
    report(cache)


if __name__ == "__main__":
    main()
