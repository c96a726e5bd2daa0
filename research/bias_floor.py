"""Claim 1: a mini-batch loss has a floor that falls with B and not with T; a global one goes on falling.

    python -m research.bias_floor [--quick]

Digits in 8 fixed views. Each run ends with its learning rate at 0, so the noise of the gradient is averaged out and what
is left of the exact gradient of F is the method's own bias and what training has not finished. Also the gap between F1
and F2 against the strength of the augmentation. Writes docs/results/bias_floor.md, .png and .csv.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks import pages

from .figures import dress, figure, save, style
from .gradient_error import exact_gradient
from .many_runs import Job, ManyRuns
from .measure import Cache, exact
from .points import Point, write_points
from .problems import digits

LR = {8: 4e-3, 32: 8e-3, 128: 1.6e-2}
EPOCHS = (30, 100, 300)
STRENGTHS = (0.25, 0.5, 1.0, 1.5)


def methods(batch: int) -> dict[str, dict[str, Any]]:
    return {
        "SimCLR": {"rule": "simclr"},
        "SogCLR cosine, whole": {"rule": "sogclr", "start": 1.0, "end": 0.1, "over": 1.0},
        "boosted": {"rule": "defensive", "start": 1.0, "end": 0.1, "b_end": 0.1, "boost": 1.6},
    }


def measure(
    cache: Cache, batch: int, epochs: int, seeds: tuple[int, ...], strength: float = 1.0, names: tuple[str, ...] = ()
) -> None:
    """Run every method at one batch, length and strength, and keep the exact values at the end."""
    names = names or tuple(methods(batch))
    jobs = [(name, s) for name in names for s in seeds if cache.get(key(name, batch, epochs, s, strength)) is None]
    if not jobs:
        return
    begun = time.monotonic()
    runs = ManyRuns(digits(strength=strength), [Job(methods(batch)[n], LR[batch], s) for n, s in jobs], batch, epochs)
    for _ in runs.run():
        pass
    for r, (name, seed) in enumerate(jobs):
        f1, f2, _ = exact(runs.embeddings(r), runs.tau)
        norms = {f"gradient_{v}": float(exact_gradient(runs, r, v)[0].norm()) for v in ("F1", "F2")}
        cache.put(
            key(name, batch, epochs, seed, strength),
            {"F1": f1, "F2": f2, **norms, "seconds": (time.monotonic() - begun) / len(jobs)},
        )
    print(f"B {batch}, {epochs} epochs, strength {strength}: {time.monotonic() - begun:.0f} s", flush=True)


def key(name: str, batch: int, epochs: int, seed: int, strength: float) -> dict[str, Any]:
    return {"name": name, "batch": batch, "epochs": epochs, "seed": seed, "strength": strength, "lr": LR[batch]}


def values_of(
    cache: Cache, name: str, batch: int, epochs: int, seeds: tuple[int, ...], what: str, strength: float = 1.0
) -> list[float]:
    """Return one metric of all seeds that were run."""
    return [r[what] for s in seeds if (r := cache.get(key(name, batch, epochs, s, strength))) is not None]


def mean(
    cache: Cache, name: str, batch: int, epochs: int, seeds: tuple[int, ...], what: str, strength: float = 1.0
) -> tuple[float, float]:
    """Return mean and (population) standard deviation over the seeds."""
    values = values_of(cache, name, batch, epochs, seeds, what, strength)
    return statistics.mean(values), statistics.pstdev(values)


def points(cache: Cache, seeds: tuple[int, ...]) -> list[Point]:
    """Return what the figure and both tables show."""
    places = [(name, batch, epochs, 1.0) for name in methods(8) for batch in LR for epochs in EPOCHS]
    places += [("SogCLR cosine, whole", 32, 30, strength) for strength in STRENGTHS if strength != 1.0]
    return [
        Point("digits", name, batch, epochs, LR[batch], what, values, methods(batch)[name] | {"strength": strength})
        for name, batch, epochs, strength in places
        for what in ("gradient_F1", "gradient_F2", "F1", "F2")
        if (values := values_of(cache, name, batch, epochs, seeds, what, strength))
    ]


def slope(x: list[float], y: list[float]) -> float:
    """Return the slope of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(cache: Cache, seeds: tuple[int, ...]) -> None:
    """Write the figure: the gradient's norm against B and T, and F2 above the best run against T."""
    fig, axes = figure(3, 1)
    best = min(mean(cache, n, b, EPOCHS[-1], seeds, "F2")[0] for b in LR for n in methods(b))
    for k, name in enumerate(methods(8)):
        m, sd = zip(*(mean(cache, name, b, EPOCHS[-1], seeds, "gradient_F1") for b in LR), strict=True)
        axes[0][0].errorbar(list(LR), m, sd, label=f"{name} (slope {slope(list(LR), list(m)):.2f})", **style(k))
        m, sd = zip(*(mean(cache, name, 8, e, seeds, "gradient_F1") for e in EPOCHS), strict=True)
        axes[0][1].errorbar(EPOCHS, m, sd, label=name, **style(k))
        m, sd = zip(*(mean(cache, name, 8, e, seeds, "F2") for e in EPOCHS), strict=True)
        axes[0][2].errorbar(EPOCHS, [v - best for v in m], sd, label=name, **style(k))
    norm = "norm of the exact gradient of F1"
    dress(axes[0][0], "batch size B", norm, f"{EPOCHS[-1]} epochs", list(LR), base=10, log_y=True)
    dress(axes[0][1], "epochs", norm, "B = 8", EPOCHS, base=10, log_y=True)
    dress(axes[0][2], "epochs", "F2 above the best run", "B = 8", EPOCHS, base=10, log_y=True)
    for axis in axes[0]:
        axis.legend(fontsize=7)
    save(fig, "bias_floor.png")


def tables(cache: Cache, seeds: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Return the table of the gradient's norm, and that of F1 and F2 against the strength of the augmentation."""
    norms = [
        "| method | B | " + " | ".join(f"{e} epochs" for e in EPOCHS) + " | slope in T |",
        "|---|---:|" + "---:|" * (len(EPOCHS) + 1),
    ]
    for name in methods(8):
        for b in LR:
            means = [mean(cache, name, b, e, seeds, "gradient_F1")[0] for e in EPOCHS]
            cells = " | ".join(f"{m:.4f}" for m in means)
            norms.append(f"| {name} | {b} | {cells} | {slope(list(EPOCHS), means):.2f} |")
    gap = ["| strength of augmentation | F1 | F2 | F2 − F1 |", "|---:|---:|---:|---:|"]
    for s in STRENGTHS:
        f1, f2 = (mean(cache, "SogCLR cosine, whole", 32, 30, seeds, w, s)[0] for w in ("F1", "F2"))
        gap.append(f"| {s} | {f1:.4f} | {f2:.4f} | {f2 - f1:.4f} |")
    return norms, gap


def report(cache: Cache, seeds: tuple[int, ...]) -> None:
    """Write page, figure and CSV from the runs of the cache."""
    draw(cache, seeds)
    write_points("bias_floor.csv", points(cache, seeds))
    norms, gap = tables(cache, seeds)
    rates = ", ".join(f"{b}: {lr:g}" for b, lr in LR.items())
    text = [
        *pages.head("The floor of a mini-batch loss", "research.bias_floor", f"; {cache.hours:.2f} hours"),
        f"Digits, 8 fixed views, {len(seeds)} seeds, one learning rate a batch size ({rates}), cosine to 0.",
        "",
        "![Exact gradient norm against B and T, and F2 against T](bias_floor.png)",
        "",
        "Norm of the exact gradient of F1 at the end:",
        "",
        *norms,
        "",
        "F1 and F2 of SogCLR (B 32, 30 epochs) against the strength of the augmentation:",
        "",
        *gap,
        "",
    ]
    pages.write_page("bias_floor.md", "\n".join(text))


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="5 epochs, one seed, no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("bias_floor", options.quick)
    if options.quick:
        measure(cache, 32, 5, (0,))
        print(*cache.found.values(), sep="\n")
        return
    seeds = (0, 1)
    for strength in STRENGTHS:
        measure(cache, 32, 30, seeds, strength, ("SogCLR cosine, whole",))
    for epochs in EPOCHS:
        for batch in LR:
            measure(cache, batch, epochs, seeds)
    report(cache, seeds)


if __name__ == "__main__":
    main()
