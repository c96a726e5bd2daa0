"""Where the remembered normalizer earns its place: gamma against visits, speed of the weights, samples and temperature.

    python -m research.visits [--quick] [--report]

Digits in 8 fixed views, so that the exact objective is computed; B = 16, Adam, cosine to 0, every cell six seeds. gamma = 1 is the mini-batch's own normalizer
(DCL); below it u remembers. A visit is an epoch; the weights' speed is the learning rate, slowest where weights that are trained already are tuned, from exact
normalizers, as the trainer does. At the end of a run the stored u is compared with the exact g of its sample: its spread (noise) and its mean (lag: u is too large
while embeddings still spread). Every run is a line of research/cache/visits.jsonl. Writes docs/results/visits.md and .csv.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import pages
from sogclr.evaluation.knn import knn_predict
from sogclr.losses.functional import log_mean

from .many_runs import Job, ManyRuns
from .measure import Cache, exact, split
from .paired import interval
from .points import Point, write_points
from .problems import Problem, digits

GAMMAS = (1.0, 0.9, 0.5, 0.2, 0.1)
TUNING = 1e-4
"""Rate at which trained weights are tuned; the others are of starts from nothing."""
EPOCHS, RATES, SAMPLES, TAUS = (5, 20, 80), (TUNING, 1e-3, 4e-3), (360, 1797), (0.1, 0.05, 0.02)
SEEDS, BATCH = tuple(range(6)), 16
START_SEED, START_EPOCHS, START_RATE, START_TAU = 100, 20, 1e-3, 0.1
ABOUT = f"""Digits in 8 fixed views, B = {BATCH}, Adam with a cosine to 0, {len(SEEDS)} seeds. *From nothing* at the rates 0.001 and 0.004; *tuned* at {TUNING:g}, from the weights of {START_EPOCHS} epochs at tau {START_TAU} and gamma 1 and from
exact normalizers (`--warm-start exact`, as the trainer tunes). Exact F2, lower is better, of gamma 1; of the others the mean difference from it, paired by seed, bold where the 95 % interval by
Student's t is below 0. kNN accuracy of half of the digits by the other half, and its differences, bold where the interval is above 0. Then, of gamma 0.2 at the end: how far log u is above
log g (lag), and its standard deviation over the samples (noise); those of gamma 1 are one batch's."""
READING = """So u earns its place where the weights are trained already, and where the temperature is low. *Tuned*, every gamma below 1 is lower in every cell and at every temperature: by
0.002 to 0.009 at 0.1, by 0.018 to 0.036 at 0.05, and by 0.043 to 0.101 at 0.02, where, with 1,797 samples, the mini-batch's own normalizer hardly leaves its start; 0.5 is the lowest or nearly so. *From nothing* at 0.1 only 0.9 gains, a
little and not everywhere, and smaller ones lose what u lags behind by; at 0.05 and 0.02 every gamma gains from 20 epochs on, where there are more samples or faster weights earlier.

The reason is in the last columns. Of trained weights one batch of 16 has log g too low by 0.5, 2 and 6 at the three temperatures and off by a standard deviation of 1, 3 and 6, for the mean of a few heavy-tailed
terms mostly lacks the largest; u at gamma 0.2 comes within 0.1 of it in 80 epochs and is off by 0.3. gamma 0.9 is nowhere higher than gamma 1 by more than 0.003 and has most of the gain at the two low
temperatures. Accuracy does not follow: the kNN of gamma 0.9 lies within a point of gamma 1's, that of gamma 0.2 between 1.5 below and 1.8 above."""


def config_of(epochs: int, rate: float, samples: int, tau: float, gamma: float, seed: int) -> dict[str, Any]:
    """Return what decides a run."""
    return {"epochs": epochs, "lr": rate, "n": samples, "tau": tau, "gamma": gamma, "seed": seed, "batch": BATCH}


def part_of(problem: Problem, samples: int) -> Problem:
    """Return the first so many samples."""
    return replace(
        problem, views=problem.views[:samples], clean=problem.clean[:samples], labels=problem.labels[:samples]
    )


def trained(problem: Problem) -> list[Tensor]:
    """Return the weights that are tuned: of a training by the mini-batch's own normalizer."""
    job = Job({"rule": "sogclr", "end": 1.0}, START_RATE, START_SEED)
    runs = ManyRuns(problem, [job], BATCH, START_EPOCHS, START_TAU)
    for _ in runs.run():
        pass
    return [w.detach() for w in runs.weights]


def begin_from(runs: ManyRuns, start: list[Tensor]) -> float:
    """Put the same weights into all runs, and exact normalizers beside them; return F2 there."""
    for w, begun in zip(runs.weights, start, strict=True):
        w.data.copy_(begun.expand_as(w))
    _, f2, log_g = exact(runs.embeddings(0), runs.tau)
    for _, rule in runs.rules:
        rule.log_u[:] = log_mean(log_g)
    return f2


def start_of(samples: int, tau: float) -> dict[str, Any]:
    """Return what decides where tuning begins."""
    return {"start": samples, "tau": tau, "epochs": START_EPOCHS, "seed": START_SEED}


def measure(cache: Cache, epochs: tuple[int, ...] = EPOCHS) -> None:
    """Make the runs that the cache lacks: those of one length, number of samples and temperature side by side."""
    whole = digits()
    starts: dict[int, list[Tensor]] = {}
    for length, samples, tau, tuned in itertools.product(epochs, SAMPLES, TAUS, (True, False)):
        rates = [r for r in RATES if (r == TUNING) == tuned]
        cells = [(r, g, s) for r, g, s in itertools.product(rates, GAMMAS, SEEDS)]
        missing = [c for c in cells if cache.get(config_of(length, c[0], samples, tau, c[1], c[2])) is None]
        if not missing:
            continue
        missing.sort(key=lambda c: (c[1], c[0]))
        jobs = [Job({"rule": "sogclr", "end": g}, r, s) for r, g, s in missing]
        begun = time.monotonic()
        problem = part_of(whole, samples)
        runs = ManyRuns(problem, jobs, BATCH, length, tau)
        if tuned:
            if samples not in starts:
                starts[samples] = trained(problem)
            cache.put(start_of(samples, tau), {"F2": begin_from(runs, starts[samples]), "seconds": 0.0})
        for _ in runs.run():
            pass
        seconds = (time.monotonic() - begun) / len(jobs)
        for k, (rate, gamma, seed) in enumerate(missing):
            _, f2, log_g = exact(runs.embeddings(k), tau)
            part, rule = next((p, r) for p, r in runs.rules if p.start <= k < p.stop)
            error = rule.log_u[k - part.start] - log_mean(log_g)
            error = error[torch.isfinite(error)]
            teach, test = split(problem.labels)
            x, classes = runs.features(k).numpy(), int(problem.labels.max()) + 1
            guess = knn_predict(x[teach], problem.labels[teach], x[test], num_classes=classes)
            knn = 100 * float((guess == problem.labels[test]).mean())
            found = {"F2": f2, "knn": knn, "lag": float(error.mean()), "noise": float(error.std()), "seconds": seconds}
            cache.put(config_of(length, rate, samples, tau, gamma, seed), found)
        print(
            f"{length} epochs, n {samples}, tau {tau}, {'tuned' if tuned else 'from nothing'}: {time.monotonic() - begun:.0f} s",
            flush=True,
        )


def row_of(cache: Cache, epochs: int, rate: float, samples: int, tau: float) -> dict[float, list[dict[str, Any]]]:
    """Return the results of each gamma, by seed."""
    found = {g: [cache.get(config_of(epochs, rate, samples, tau, g, s)) for s in SEEDS] for g in GAMMAS}
    return {g: [r for r in results if r is not None] for g, results in found.items()}


def gain(row: dict[float, list[dict[str, Any]]], gamma: float, metric: str) -> tuple[float, float, float]:
    """Return the mean difference of a gamma from gamma 1, and the ends of its 95 % interval."""
    return interval([r[metric] - base[metric] for r, base in zip(row[gamma], row[1.0], strict=True)])


def summary(rows: dict[tuple[int, float, float, int], dict[float, list[dict[str, Any]]]]) -> list[str]:
    """Return a table of where each gamma below 1 is lower in F2, over the numbers of samples and of epochs."""
    lines = ["| tau | weights | " + " | ".join(f"gamma {g:g}" for g in GAMMAS[1:]) + " | the least and the most |"]
    lines.append("|---" * (len(GAMMAS) + 2) + "|")
    for tau, tuned in itertools.product(TAUS, (False, True)):
        mine = [row for (_, t, rate, _), row in rows.items() if t == tau and (rate == TUNING) == tuned]
        if not mine:
            continue
        found = {g: [gain(row, g, "F2") for row in mine] for g in GAMMAS[1:]}
        cells = [
            f"lower in {sum(high < 0 for *_, high in gains)}, higher in {sum(low > 0 for _, low, _ in gains)} of {len(mine)}"
            for gains in found.values()
        ]
        means = [mean for gains in found.values() for mean, *_ in gains]
        kind = "tuned" if tuned else "from nothing"
        lines.append(f"| {tau} | {kind} | {' | '.join(cells)} | {max(means):+.4f} to {min(means):+.4f} |")
    return lines


def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    cells = itertools.product(SAMPLES, TAUS, RATES, EPOCHS)
    rows = {(n, tau, rate, epochs): row_of(cache, epochs, rate, n, tau) for n, tau, rate, epochs in cells}
    rows = {cell: row for cell, row in rows.items() if all(len(r) == len(SEEDS) for r in row.values())}
    text = [
        *pages.head(
            "Where the remembered normalizer earns its place", "research.visits", f"; {60 * cache.hours:.0f} minutes"
        ),
        ABOUT,
        "",
        "F2 where tuning begins: "
        + "; ".join(
            f"{n:,} samples, {tau}: {r['F2']:.3f}"
            for n in SAMPLES
            for tau in TAUS
            if (r := cache.get(start_of(n, tau)))
        )
        + ".",
        "",
        *summary(rows),
        "",
        READING,
        "",
        f"| n | tau | rate | epochs | F2, gamma 1 | {' | '.join(f'{g:g}' for g in GAMMAS[1:])} | kNN, gamma 1, % | 0.9 | 0.2 | lag, 0.2 | noise, 0.2 | lag, 1 | noise, 1 |",
        "|---" * (12 + len(GAMMAS) - 1) + "|",
    ]
    points = []
    for (samples, tau, rate, epochs), row in rows.items():
        shown = []
        for g, metric in [*((g, "F2") for g in GAMMAS[1:]), (0.9, "knn"), (0.2, "knn")]:
            mean, low, high = gain(row, g, metric)
            number = f"{mean:+.4f}" if metric == "F2" else f"{mean:+.1f}"
            shown.append(f"**{number}**" if (high < 0 if metric == "F2" else low > 0) else number)
        shown.insert(len(GAMMAS) - 1, f"{statistics.mean(r['knn'] for r in row[1.0]):.1f}")
        tail = [f"{statistics.mean(r[k] for r in row[g]):+.3f}" for g in (0.2, 1.0) for k in ("lag", "noise")]
        base = statistics.mean(r["F2"] for r in row[1.0])
        named = f"{rate:g}{', tuned' if rate == TUNING else ''}"
        text.append(f"| {samples:,} | {tau} | {named} | {epochs} | {base:.4f} | {' | '.join(shown + tail)} |")
        points += [
            Point("digits", f"gamma {g:g}", BATCH, epochs, rate, k, [r[k] for r in row[g]], {"n": samples, "tau": tau})
            for g in GAMMAS
            for k in ("F2", "knn", "lag", "noise")
        ]
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
