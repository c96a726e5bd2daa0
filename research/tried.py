"""All that was tried to pass SogCLR at a small batch: digits, B = 16, from benchmarks/cache/tried.jsonl.

    python benchmarks/tried.py [--run EPOCHS]

Without --run the table of what has been run, with it first what is missing at so many epochs (rate 0.008, two seeds).
Writes docs/results/tried.md: exact F2 and linear accuracy at the rate with the lowest mean F2 among those that were run
(0.001 to 0.016; most rules at 0.008 alone).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from figures import host, write_page
from many_runs import Job
from measure import Cache, ensure
from problems import digits

RESULT = Path(__file__).parent.parent / "docs" / "results" / "tried.md"
COSINE = {"start": 1.0, "end": 0.1}
LONG = {"rule": "defensive", "end": 0.1}  # u with a small gamma from the start, a mixture of its own
OWN = {
    "rule": "defensive",
    **COSINE,
    "b_end": 0.1,
}  # gamma and mixture fall together: SogCLR, cosine over the whole run
Q = {"rule": "queue", "size": 512}
HALVES = {**Q, "end": 1.0}
MEM = {**Q, **COSINE, "auto": 3.0, "feed": False}  # a memory beside a nu of the batch alone
FADE = {**Q, **COSINE, "feed": False, "fade": 1.0}
TRIED: list[tuple[str, str, dict[str, Any]]] = [
    ("SimCLR", "reference", {"rule": "simclr"}),
    ("DCL", "reference", {"rule": "dcl"}),
    ("SogCLR, gamma 0.9", "reference: the paper", {"rule": "sogclr", "end": 0.9}),
    ("SogCLR, gamma 0.5", "reference", {"rule": "sogclr", "end": 0.5}),
    ("SogCLR, cosine to 0.1, half the run", "reference: FastCLIP", {"rule": "sogclr", **COSINE, "over": 0.5}),
    ("SogCLR, cosine to 0.3, whole run", "noise falls with the rate, so bias should fall with it", {"rule": "sogclr", "start": 1.0, "end": 0.3, "over": 1.0}),
    ("SogCLR, cosine to 0.1, whole run", "the same, less bias at the end", {"rule": "sogclr", **COSINE, "over": 1.0}),
    ("long memory, mixture 1 to 0.1", "weight bounded by 1/beta while the noise of u falls with gamma", {**LONG, "b_end": 0.1}),
    ("long memory, mixture 0.1, drift of the batch", "one scalar takes out the common lag of u", {**LONG, "b_start": 0.1, "b_end": 0.1, "drift": "batch"}),
    ("shrinkage", "empirical Bayes: weight of ĝ from the covariance of the two views' ĝ/u", {"rule": "shrink"}),
    ("balanced, long memory, mixture 1 to 0.1", "the attraction carries the weight too: noise multiplies a small difference", {**LONG, "b_end": 0.1, "balance": 1.0}),
    ("balanced, long memory, mixture 0.1", "the same without a schedule", {**LONG, "b_start": 0.1, "b_end": 0.1, "balance": 1.0}),
    ("balanced, mixture and gamma 0.3", "the same, less memory", {"rule": "defensive", "end": 0.3, "b_start": 0.3, "b_end": 0.3, "balance": 1.0}),
    ("balanced, drift of the batch", "balanced needs no drift correction; does it harm?", {**LONG, "b_end": 0.1, "drift": "batch", "balance": 1.0}),
    ("balanced, mixture 0.1, drift of the batch", "the same without a schedule", {**LONG, "b_start": 0.1, "b_end": 0.1, "drift": "batch", "balance": 1.0}),
    ("balanced", "gamma and mixture fall together", {**OWN, "balance": 1.0}),
    ("balanced by half", "coefficient 1/2 of the control variate", {**OWN, "balance": 0.5}),
    ("balanced, to 0.03", "less bias at the end", {"rule": "defensive", "start": 1.0, "end": 0.03, "b_end": 0.03, "balance": 1.0}),
    ("balanced, batch's weight one", "self-normalised over all anchors", {**OWN, "balance": 1.0, "self_norm": 1.0}),
    ("queue feeds nu", "ĝ of nu from 512 more negatives", {**HALVES}),
    ("queue feeds nu, balanced, cosine", "both", {**Q, **COSINE, "balance": 1.0}),
    ("half a memory, share 1/2", "cross-batch memory: the queue pushes anchors only", {**HALVES, "lam": 0.5, "lam_start": 0.5, "half": True}),
    ("memory, share 1/2", "both halves of the gradient from the queue", {**HALVES, "lam": 0.5, "lam_start": 0.5}),
    ("memory, share 0.3", "the batch, which is not late, has the greater part", {**HALVES, "lam": 0.3, "lam_start": 0.3}),
    ("memory, share 0.7", "the queue has", {**HALVES, "lam": 0.7, "lam_start": 0.7}),
    ("memory, share K/(K+m)", "each negative counts alike", {**HALVES, "lam": 1.0, "lam_start": 1.0, "rel": True}),
    ("memory, share K/(K+m), K 128", "the same, less late", {**HALVES, "size": 128, "lam": 1.0, "lam_start": 1.0, "rel": True}),
    ("memory, share K/(K+m), mean of the push from the batch", "the queue may not move the batch's mean", {**HALVES, "lam": 1.0, "lam_start": 1.0, "rel": True, "center": True}),
    ("memory, share 0 to 1/2", "lateness falls with the rate", {**HALVES, "lam": 0.5}),
    ("memory, share 0 to 1/2, gamma 0.5", "and an average", {**Q, "end": 0.5, "lam": 0.5}),
    ("memory, share 0 to 0.8, balanced, cosine", "all together", {**Q, **COSINE, "lam": 0.8, "lam_start": 0.0, "balance": 1.0}),
    ("memory, share 0.3 to 0.7", "lateness falls with the rate", {**HALVES, "lam": 0.7, "lam_start": 0.3}),
    ("memory, share 0.3 to 0.7, gamma cosine", "and an average", {**Q, **COSINE, "lam": 0.7, "lam_start": 0.3}),
    ("memory, share 0.3 to 0.9", "more at the end", {**HALVES, "lam": 0.9, "lam_start": 0.3}),
    ("memory, share 1/2, balanced", "noise times a small difference", {**HALVES, "lam": 0.5, "lam_start": 0.5, "balance": 1.0}),
    ("memory, share 1/2, weight one", "self-normalised over batch and queue in these shares", {**HALVES, "lam": 0.5, "lam_start": 0.5, "match": True}),
    ("memory, rho", "share from the lateness that is measured, rho K/(K+m)", {**HALVES, "auto": 1.0}),
    ("memory, rho²", "the same, more careful", {**HALVES, "auto": 2.0}),
    ("memory, rho³ (`--estimator memory`)", "the same", {**HALVES, "auto": 3.0}),
    ("memory, rho⁵", "the same", {**HALVES, "auto": 5.0}),
    ("memory, rho³, K 256", "less late", {**HALVES, "size": 256, "auto": 3.0}),
    ("memory, rho³, K 1024", "more negatives", {**HALVES, "size": 1024, "auto": 3.0}),
    ("memory, rho³, half", "is it the second half?", {**HALVES, "auto": 3.0, "half": True}),
    ("memory, rho³, nu of the queue alone", "is it the smaller nu of a late queue?", {**HALVES, "auto": 3.0, "alone": True}),
    ("DCL, repulsion 1.3 to 1", "is it a repulsion that starts stronger?", {"rule": "dcl", "boost": 1.3}),
    ("DCL, repulsion 1.6 to 1", "the same", {"rule": "dcl", "boost": 1.6}),
    ("DCL, repulsion 2 to 1", "the same", {"rule": "dcl", "boost": 2.0}),
    ("boosted: SogCLR whole run, repulsion 1.3 to 1", "without the mini-batch's bias", {**OWN, "boost": 1.3}),
    ("boosted: 1.6 to 1 (`--estimator boosted`)", "the same", {**OWN, "boost": 1.6}),
    ("boosted: 2 to 1", "the same", {**OWN, "boost": 2.0}),
    ("boosted: 2.5 to 1", "the same", {**OWN, "boost": 2.5}),
    ("boosted: 1.3 to 1, balanced by half", "both", {**OWN, "boost": 1.3, "balance": 0.5}),
    ("memory, rho³, repulsion 1.3 to 1", "both", {**HALVES, "auto": 3.0, "boost": 1.3}),
    ("queue feeds nu, cosine", "less variance of ĝ, and an average", {**Q, **COSINE}),
    ("queue feeds nu, cosine, repulsion 1.6 to 1", "with the boost", {**Q, **COSINE, "boost": 1.6}),
    ("queue feeds nu, repulsion 1.6 to 1", "the same without an average", {**HALVES, "boost": 1.6}),
    ("memory, rising share", "the queue is the less late the smaller the rate", {**HALVES, "auto": 3.0, "ramp": True}),
    ("memory, rising share, repulsion 1.6 to 1", "and a boost", {**HALVES, "auto": 3.0, "ramp": True, "boost": 1.6}),
    ("memory, rising share, repulsion 1.6 to 1, cosine", "and an average", {**Q, **COSINE, "auto": 3.0, "ramp": True, "boost": 1.6}),
    ("memory, rising share, repulsion 1.3 to 1, cosine", "less boost", {**Q, **COSINE, "auto": 3.0, "ramp": True, "boost": 1.3}),
    ("memory, rho, rising share, repulsion 1.3 to 1", "more queue", {**HALVES, "auto": 1.0, "ramp": True, "boost": 1.3}),
    ("memory, nu of the batch", "a late queue's nu is too small", {**HALVES, "auto": 3.0, "feed": False}),
    ("memory, nu of the batch, cosine", "and an average", MEM),
    ("memory, nu of the batch, repulsion 1.3 to 1", "and a boost", {**HALVES, "auto": 3.0, "feed": False, "boost": 1.3}),
    ("memory, nu of the batch, cosine, repulsion 1.3 to 1", "both", {**MEM, "boost": 1.3}),
    ("memory, nu of the batch, cosine, repulsion 1.6 to 1", "both", {**MEM, "boost": 1.6}),
    ("memory, nu of the batch, rising share, repulsion 1.6 to 1", "without an average", {**HALVES, "auto": 3.0, "feed": False, "ramp": True, "boost": 1.6}),
    ("memory, nu of the batch, cosine, rising share, repulsion 1.3 to 1", "all three", {**MEM, "ramp": True, "boost": 1.3}),
    ("the same, 1.6 to 1 (`--estimator boosted-memory`)", "more boost", {**MEM, "ramp": True, "boost": 1.6}),
    ("the same, 2 to 1", "more boost", {**MEM, "ramp": True, "boost": 2.0}),
    ("boosted-memory, rho²", "less careful with the queue", {**MEM, "auto": 2.0, "ramp": True, "boost": 1.6}),
    ("boosted-memory, rho", "the same", {**MEM, "auto": 1.0, "ramp": True, "boost": 1.6}),
    ("boosted-memory, gamma to 0.3", "more of the batch", {**MEM, "end": 0.3, "ramp": True, "boost": 1.6}),
    ("boosted-memory, K 256", "less late", {**MEM, "size": 256, "ramp": True, "boost": 1.6}),
    ("boosted-memory, K 1024", "more negatives", {**MEM, "size": 1024, "ramp": True, "boost": 1.6}),
    ("boosted-memory, repulsion 1", "is it the memory or the boost?", {**MEM, "ramp": True}),
    ("the same, rho²", "less careful with the queue", {**MEM, "auto": 2.0, "ramp": True}),
    ("the same, balanced", "less noise", {**MEM, "ramp": True, "balance": 1.0}),
    ("the same, balanced by half", "less noise", {**MEM, "ramp": True, "balance": 0.5}),
    ("SimCLR to SogCLR", "the positive in the denominator fades out: SimCLR's weights of the anchors in short runs", FADE),
    ("SimCLR to SogCLR, memory with a rising share", "and the memory", {**FADE, "auto": 3.0, "ramp": True}),
    ("SimCLR to SogCLR, repulsion 1.3 to 1", "and a boost", {**FADE, "boost": 1.3}),
    ("SimCLR to SogCLR, memory with a rising share, repulsion 1.3 to 1", "all", {**FADE, "auto": 3.0, "ramp": True, "boost": 1.3}),
    ("the positive twice in the denominator, fading, memory with a rising share", "more of it", {**FADE, "fade": 2.0, "auto": 3.0, "ramp": True}),
]  # fmt: skip


def best(cache: Cache, rule: dict[str, Any], epochs: int) -> str:
    """`F2 ± sd, linear %` at the best rate, or nothing."""
    by_rate: dict[float, list[dict[str, float]]] = {}
    for entry in cache.found.values():
        c = entry["config"]
        if c["rule"] == rule and c["epochs"] == epochs and c["batch"] == 16 and c["strength"] == 1.0:
            by_rate.setdefault(c["lr"], []).append(entry["result"])
    if not by_rate:
        return " | "
    found = min(by_rate.values(), key=lambda rs: statistics.mean(r["F2"] for r in rs))
    f2, linear = [r["F2"] for r in found], [100 * r["linear"] for r in found]
    return (
        f"{statistics.mean(f2):.4f} ± {statistics.stdev(f2) if len(f2) > 1 else 0:.4f} | {statistics.mean(linear):.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=int, metavar="EPOCHS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("tried")
    if options.run:
        ensure(
            cache, digits(), [Job(rule, 8e-3, s) for _, _, rule in TRIED for s in (0, 1)], 16, options.run, at_once=12
        )
    for key, entry in Cache("digits").found.items():
        cache.found.setdefault(key, entry)
    rows = [
        "| what | why | F2, 30 epochs | linear | F2, 100 | linear | F2, 300 | linear |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {name} | {why} | {' | '.join(best(cache, rule, e) for e in (30, 100, 300))} |" for name, why, rule in TRIED
    ]
    text = ["# All that was tried", "", "`python benchmarks/tried.py`", "", f"Machine: {host()}.", "", "Digits, n = 1,797, B = 16, 8 fixed views; lower F2 is better; linear accuracy in %; two or three seeds; rates from 0.001 to 0.016, most rules at 0.008 alone. Why: what it was expected to do. "
            "Blank: not run, as the other lengths had told enough.", "", *rows, ""]  # fmt: skip
    write_page(RESULT, "\n".join(text))


if __name__ == "__main__":
    main()
