"""WordNet, 113,659 pairs of texts: recall at a batch of 32 and at 1,024, and where remembering begins to pay.

    python -m research.wordnet [--quick] [--report]

Pairs: a definition and the words that it defines (sogclr.data.wordnet); 4,000 are held out. The towers are bags of
features (text_pairs.py). Each method's rate is one of four, chosen with a seed that is not shown, on 4,000 other pairs that
are held out of the training then. A run is a line of research/cache/wordnet.jsonl and is never done twice: stop and
start at will. --quick: 4,000 pairs, one epoch, one seed, one rate and no page. --report: only the page, from what is
there. Writes docs/results/wordnet.md, .png and .csv.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from benchmarks import pages
from sogclr.data.wordnet import Synset, find_wordnet, read_wordnet, split_synsets

from .many_runs import Job
from .measure import Cache
from .text_pairs import ROWS, TAU, WIDTH, TextProblem, run, text_problem

SEEDS, RATE_SEED = (0, 1, 2), 100
SMALL, LARGE = 32, 1024
EPOCHS, RATE_EPOCHS = (4, 12, 30), 4
METHODS: dict[str, dict[str, Any]] = {
    "CLIP": {"rule": "clip"},
    "SogCLR, gamma 1": {"rule": "sogclr", "end": 1.0},  # nothing is remembered: what leaving out the positive does
    "SogCLR, gamma 0.9": {"rule": "sogclr", "end": 0.9},
    "SogCLR, gamma 0.5": {"rule": "sogclr", "end": 0.5},
    "SogCLR, gamma 0.2": {"rule": "sogclr", "end": 0.2},
    "SogCLR, gamma cosine": {"rule": "sogclr", "start": 1.0, "end": 0.2},
}
OURS = "SogCLR, gamma 0.9"
LINES = (("CLIP", SMALL), (OURS, SMALL), ("CLIP", LARGE), (OURS, LARGE), ("SogCLR, gamma 1", SMALL))
MORE_GAMMAS = tuple((name, SMALL) for name in tuple(METHODS)[3:])
# (epochs, lines, seeds), in the order in which they are run
PLAN: list[tuple[int, tuple[tuple[str, int], ...], tuple[int, ...]]] = [
    (12, LINES, SEEDS),
    (30, LINES, SEEDS[:1]),
    (4, LINES, SEEDS),
    (12, MORE_GAMMAS, SEEDS[:1]),
    (4, MORE_GAMMAS, SEEDS[:1]),
    (30, MORE_GAMMAS, SEEDS[:1]),
    (30, LINES, SEEDS[1:]),
]


def grid(batch: int) -> tuple[float, ...]:
    """Return learning rates, a factor of 2 apart, as sqrt(B); the same for every method."""
    return tuple(round(base * (batch / 32) ** 0.5, 6) for base in (1e-3, 2e-3, 4e-3, 8e-3))


# -------------------------------------------------------------------------------------------------------------- the runs
def config_of(rule: dict[str, Any], batch: int, epochs: int, lr: float, seed: int) -> dict[str, Any]:
    """Return what decides a run."""
    about = f"wordnet 3.0, words and pieces of 3 letters, {ROWS} rows, width {WIDTH}, tau {TAU}"
    return {"problem": about, "rule": rule, "batch": batch, "epochs": epochs, "lr": lr, "seed": seed}


class Runs:
    """The runs of a plan: the problem that is shown, and the one that rates are chosen on."""

    def __init__(self, cache: Cache, synsets: list[Synset], held_out: int) -> None:
        self.cache, self.held_out = cache, held_out
        self.parts = split_synsets(synsets, held_out)
        self.problems: dict[bool, TextProblem] = {}

    def problem(self, choosing: bool) -> TextProblem:
        if choosing not in self.problems:
            parts = split_synsets(self.parts["train"], self.held_out) if choosing else self.parts
            self.problems = {choosing: text_problem(parts["train"], parts["test"])}
        return self.problems[choosing]

    def ensure(self, name: str, batch: int, epochs: int, lr: float, seed: int) -> None:
        """Do a run that the cache lacks."""
        rule, choosing = METHODS[name], seed == RATE_SEED
        config = config_of(rule, batch, epochs, lr, seed)
        if self.cache.get(config) is None:
            begun = time.process_time()
            result = run(self.problem(choosing), Job(rule, lr, seed), batch, epochs, not choosing)
            self.cache.put(config, result | {"seconds": time.process_time() - begun})
            score = (result["test_definition_to_word_r1"] + result["test_word_to_definition_r1"]) / 2
            print(f"{name}, B {batch}, {epochs} epochs, rate {lr:g}, seed {seed}: {score:.4f}", flush=True)


def both_ways(result: dict[str, float], metric: str = "r1") -> float:
    """Return the mean of the two directions, of the held-out pairs."""
    return (result[f"test_definition_to_word_{metric}"] + result[f"test_word_to_definition_{metric}"]) / 2


def rate_of(cache: Cache, name: str, batch: int) -> float | None:
    """Return the rate with the best recall of the seed that is not shown; None before all four have been run.

    All gammas take that of 0.9.
    """
    rule = METHODS[name if name == "CLIP" else OURS]
    found = {lr: cache.get(config_of(rule, batch, RATE_EPOCHS, lr, RATE_SEED)) for lr in grid(batch)}
    scores = {lr: both_ways(result) for lr, result in found.items() if result is not None}
    return max(scores, key=lambda lr: scores[lr]) if len(scores) == len(found) else None


def measure(runs: Runs) -> None:
    """Do what the cache lacks: first the rates, then what is shown."""
    for name, batch in LINES[:4]:
        for lr in grid(batch):
            runs.ensure(name, batch, RATE_EPOCHS, lr, RATE_SEED)
    for epochs, lines, seeds in PLAN:
        for seed, (name, batch) in itertools.product(seeds, lines):
            lr = rate_of(runs.cache, name, batch)
            assert lr is not None
            runs.ensure(name, batch, epochs, lr, seed)


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("wordnet", options.quick)
    measure(Runs(cache, read_wordnet(find_wordnet()), 4000))


if __name__ == "__main__":
    main()
