"""Claim 1 without the noise: every step is a whole pass over the data in batches of B, whose gradients are averaged.

    python -m research.whole_passes [--quick]

Averaging n/B batches leaves a mini-batch loss its bias and takes away most of its noise, so its floor shows in runs that can be
made here: SimCLR and DCL end at a stationary point of their own objective, which depends on B; SogCLR, with gamma falling
from 1 to T^(-1/2), goes on towards one of F2. Digits in 8 fixed views, Adam, T steps, cosine to 0. Every run is a line of
research/cache/whole_passes.jsonl. Writes docs/results/whole_passes.md, .png and .csv.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import pages

from .averages import cosine, mix
from .bias_floor import slope
from .figures import dress, figure, save, style
from .gradient_error import exact_gradient
from .many_runs import Job, ManyRuns, forward, share_of_peak
from .measure import Cache, exact
from .points import Point, write_points
from .problems import digits

METHODS = ("SimCLR", "DCL", "SogCLR")
BATCHES = (8, 32, 128)
STEPS = (100, 400, 1600)
SEEDS = (0, 1)
LR = 8e-3


class WholePasses(ManyRuns):
    """One run a (method, seed), a step a pass: the n/B batches of a pass are a dimension of their own, P."""

    def __init__(self, jobs: list[tuple[str, int]], batch: int, steps: int) -> None:
        super().__init__(digits(), [Job({"rule": "dcl"}, LR, seed) for _, seed in jobs], batch, steps)
        self.methods = [name for name, _ in jobs]
        self.log_u = torch.full((len(jobs), self.n), -math.inf)
        self.total, self.passes = steps, steps

    def whole_pass(self) -> tuple[Tensor, Tensor]:
        """Return index (R, P, B) and rows of the table (R, P, 2B): every image once, but for a remainder."""
        parts = []
        for k in range(self.steps_per_epoch):
            self.step = k  # of the pass: at 0 `next_batch` draws a new order
            parts.append(self.next_batch())
        return torch.stack([i for i, _ in parts], dim=1), torch.stack([r for _, r in parts], dim=1)

    def dz(self, z: Tensor, index: Tensor, share: float) -> Tensor:
        """Return the gradient of the mean over the batches, for unit rows (R, P, 2B, D) and ids (R, P, B)."""
        sim = z @ z.transpose(2, 3) / self.tau
        s_pos = sim[..., self.partner, torch.arange(2 * self.batch)]
        e = sim.exp_().masked_fill_(self.masked, 0.0) / (2 * self.batch - 2)
        log_g = e.sum(dim=3).log()
        nu, c = log_g.clone(), torch.ones_like(log_g)
        gamma = cosine(1.0, self.passes**-0.5, 1.0, share)
        for r, name in enumerate(self.methods):
            if name == "SimCLR":
                nu[r] = torch.logaddexp(log_g[r], s_pos[r] - math.log(2 * self.batch - 2))
                c[r] = torch.exp(log_g[r] - nu[r])
            elif name == "SogCLR":
                nu[r] = mix(self.log_u[r, index[r]].repeat(1, 2), log_g[r], gamma)
                a, b = nu[r].chunk(2, dim=1)
                self.log_u[r, index[r]] = torch.logaddexp(a, b) - math.log(2)
        w = torch.exp(-nu)
        push = (w[..., :, None] + w[..., None, :]).mul_(e) @ z
        pull = (c + c[..., self.partner])[..., None] * z[..., self.partner, :]
        return (push - pull) / (2 * self.batch * self.steps_per_epoch)

    def train(self) -> None:
        for done in range(self.passes):
            index, rows = self.whole_pass()
            for w in self.weights:
                w.grad.zero_()
            z = normalize(forward(self.weights, self.table[rows.flatten(1)]), dim=2)
            with torch.no_grad():
                shaped = z.detach().view(*rows.shape, -1)
                dz = self.dz(shaped, index, done / self.passes)
            z.backward(dz.view_as(z))
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * share_of_peak(done, self.passes)
            self.optimizer.step()


def key(name: str, batch: int, steps: int, seed: int) -> dict[str, Any]:
    return {"name": name, "batch": batch, "steps": steps, "seed": seed, "lr": LR}


def measure(cache: Cache, batch: int, steps: int, seeds: tuple[int, ...]) -> None:
    jobs = [(name, s) for name in METHODS for s in seeds if cache.get(key(name, batch, steps, s)) is None]
    if not jobs:
        return
    begun = time.monotonic()
    runs = WholePasses(jobs, batch, steps)
    runs.train()
    for r, (name, seed) in enumerate(jobs):
        f1, f2, _ = exact(runs.embeddings(r), runs.tau)
        norms = {f"gradient_{v}": float(exact_gradient(runs, r, v)[0].norm()) for v in ("F1", "F2")}
        result = {"F1": f1, "F2": f2, **norms, "seconds": (time.monotonic() - begun) / len(jobs)}
        cache.put(key(name, batch, steps, seed), result)
    print(f"B {batch}, {steps} passes: {time.monotonic() - begun:.0f} s", flush=True)


def values_of(cache: Cache, name: str, batch: int, steps: int, what: str) -> list[float]:
    """Return one metric of all seeds that were run."""
    return [r[what] for s in SEEDS if (r := cache.get(key(name, batch, steps, s))) is not None]


def mean(cache: Cache, name: str, batch: int, steps: int, what: str) -> tuple[float, float] | None:
    """Return mean and (population) standard deviation over the seeds; None where nothing was run."""
    values = values_of(cache, name, batch, steps, what)
    return (statistics.mean(values), statistics.pstdev(values)) if values else None


def points(cache: Cache) -> list[Point]:
    """Return what the figure and both tables show; a step is an epoch."""
    return [
        Point("digits", name, batch, steps, LR, what, values)
        for name in METHODS
        for batch in BATCHES
        for steps in STEPS
        for what in ("gradient_F1", "gradient_F2", "F1", "F2")
        if (values := values_of(cache, name, batch, steps, what))
    ]


def table(cache: Cache, what: str, label: str) -> list[str]:
    """Return a metric's table: a row a method and batch, a column a length, and for the gradient its slope."""
    rows = [
        "",
        f"{label} at the end:",
        "",
        "| method | B | " + " | ".join(f"T = {t}" for t in STEPS) + " | slope in T |",
        "|---|---:|" + "---:|" * (len(STEPS) + 1),
    ]
    for name in METHODS:
        for b in BATCHES:
            values = [mean(cache, name, b, t, what) for t in STEPS]
            cells = [f"{v[0]:.4f} ± {v[1]:.4f}" if v else "" for v in values]
            known = [(t, v[0]) for t, v in zip(STEPS, values, strict=True) if v]
            fitted = f"{slope(*map(list, zip(*known, strict=True))):.2f}" if what != "F2" and len(known) > 1 else ""
            rows.append(f"| {name} | {b} | {' | '.join(cells)} | {fitted} |")
    return rows


def draw(cache: Cache) -> None:
    """Write the figure: the gradient's norm against B and T, and F2 against T."""
    fig, axes = figure(3, 1)
    for k, name in enumerate(METHODS):
        last = [(b, v) for b in BATCHES if (v := mean(cache, name, b, STEPS[-1], "gradient_F2"))]
        fitted = slope([b for b, _ in last], [v[0] for _, v in last])
        lines = [(axes[0][0], f"{name} (slope {fitted:.2f})", last)]
        for axis, what in ((axes[0][1], "gradient_F2"), (axes[0][2], "F2")):
            along = [(t, v) for t in STEPS if (v := mean(cache, name, BATCHES[0], t, what))]
            lines.append((axis, name, along))
        for axis, label, found in lines:
            axis.errorbar(
                [x for x, _ in found], [v[0] for _, v in found], [v[1] for _, v in found], label=label, **style(k)
            )
    norm, steps = "norm of the exact gradient of F2", "steps T, a pass each"
    dress(axes[0][0], "batch size B", norm, f"T = {STEPS[-1]}", BATCHES, base=10, log_y=True)
    dress(axes[0][1], steps, norm, f"B = {BATCHES[0]}", STEPS, base=10, log_y=True)
    dress(axes[0][2], steps, "exact F2", f"B = {BATCHES[0]}", STEPS, base=10)
    for axis in axes[0]:
        axis.legend(fontsize=7)
    save(fig, "whole_passes.png")


def report(cache: Cache) -> None:
    """Write page, figure and CSV from the runs of the cache."""
    draw(cache)
    write_points("whole_passes.csv", points(cache))
    more = f"; {cache.hours:.2f} hours"
    text = [
        *pages.head("The floor of a mini-batch loss, without the noise", "research.whole_passes", more),
        f"Digits, 8 fixed views, {len(SEEDS)} seeds, Adam at {LR:g}, cosine to 0. A step averages the gradients of all n/B batches of a pass: the bias of a batch "
        "of B stays, most of the noise goes. SogCLR's γ falls from 1 to T^(−1/2).",
        "",
        "![Exact gradient norm against B and T, and F2 against T](whole_passes.png)",
        *table(cache, "gradient_F2", "Norm of the exact gradient of F2"),
        *table(cache, "F2", "Exact F2"),
        "",
    ]
    pages.write_page("whole_passes.md", "\n".join(text))


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="B = 32, 10 passes, one seed, no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("whole_passes", options.quick)
    if options.quick:
        measure(cache, 32, 10, (0,))
        print(*cache.found.values(), sep="\n")
        return
    for steps in STEPS:
        for batch in BATCHES:
            measure(cache, batch, steps, SEEDS)
    report(cache)


if __name__ == "__main__":
    main()
