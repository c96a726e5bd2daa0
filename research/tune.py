"""Tune what is trained already, at a batch of 32: does it get worse first, and is it as good as CLIP's loss at 256?

    python -m research.tune --data DIR [--only NAME ...] [--quick] [--report]

DIR has train/ and test/ of the photographs of clothes, a folder a class. Each adaptation starts from two towers that
tune_starts.py trains here, once, and goes through `sogclr.train`, scored on held-out pairs before the first step and after
every epoch. Rates are chosen with a seed and held-out pairs that are not shown. A run is a line of research/cache/tune.jsonl
and is never done twice: stop and start at will. --only: some of the adaptations. --quick: one seed, one epoch, one rate and
no page. --report: only the page. (The page's row of exact normalizers every epoch is of sogclr 0.1, which had an option for it.) Writes docs/results/tune.md, .png and .csv.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import sogclr
from benchmarks import pages
from sogclr.files import cache_folder

from .figures import dress, figure, save, style
from .measure import Cache
from .paired import with_interval
from .points import Point, mean_sd, write_points
from .tune_data import clothes
from .tune_starts import ADAPTATIONS, SAME

SEEDS, RATE_SEED = (0, 1, 2, 3, 4), 100
SMALL, LARGE = 32, 256


# name -> batch and options; the first is the default but for its rate
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "SogCLR, exact u, warm Adam": (SMALL, {"warm_start": "exact"}),
    "SogCLR, cold": (SMALL, {"warm_start": "none"}),
    "CLIP's loss": (SMALL, {"method": "clip", "warm_start": "none"}),
    "CLIP's loss, B 256": (LARGE, {"method": "clip", "warm_start": "none"}),
    "SogCLR, exact u, warm Adam, the default's rate": (SMALL, {"warm_start": "exact", "lr": None}),
    "SogCLR, exact u, 30 steps at rate 0": (SMALL, {"warm_start": "exact", "still_steps": 30}),
    "SogCLR, ema": (SMALL, {"warm_start": "ema"}),
    "SogCLR, gamma 1": (SMALL, {"gamma": 1.0, "warm_start": "none"}),
    "SogCLR, gamma 0.2, exact u": (SMALL, {"warm_start": "exact", "gamma": 0.2}),
    "SogCLR, gamma 0.2, cold": (SMALL, {"gamma": 0.2, "warm_start": "none"}),
}
OURS, COLD, CLIP, LARGE_CLIP = tuple(WAYS)[:4]
UNREMEMBERED = "SogCLR, gamma 1"
OWN_RATE = (OURS, CLIP, LARGE_CLIP)  # all others have that of ours
BESIDE, MORE_SEEDS = ("wordnet",), SEEDS[:3]  # where what comes after the first six is run too, and how often


# -------------------------------------------------------------------------------------------------------------- the runs
def rates_of(name: str, way: str) -> tuple[float, ...]:
    return ADAPTATIONS[name].rates[WAYS[way][0]]


def config_of(name: str, way: str, lr: float, seed: int, epochs: int) -> dict[str, Any]:
    """Return what decides a run."""
    one = ADAPTATIONS[name]
    start = {"epochs": one.epochs_before, "options": one.options}
    return {"adaptation": name, "start": start, "way": WAYS[way], "lr": lr, "seed": seed, "epochs": epochs}


def tune(
    name: str, start: Path, tables: dict[str, Path], way: str, lr: float, seed: int, epochs: int
) -> dict[str, Any]:
    """Tune once, and return the mean score before the first step and after each epoch, and the seconds."""
    one, (batch, options) = ADAPTATIONS[name], WAYS[way]
    held_out = tables["validation" if seed == RATE_SEED else "test"]
    given = {one.begin_with: str(start), "validation": str(held_out), "eval_every": 1, "save_every": 10**6}
    given |= {"batch_size": batch, "lr": lr, "seed": seed, "epochs": epochs, **one.options, **options, **SAME}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = sogclr.train(tables["train"], Path(folder) / "run", **given)
        rows = [row for row in run.metrics() if row["kind"] == "eval"]
    curve = [sum(row[score] for score in one.scores) / len(one.scores) for row in rows]
    return {"curve": curve, "seconds": time.monotonic() - begun}


class Runs:
    """What is there of an adaptation's runs, and how the others are done."""

    def __init__(self, cache: Cache, name: str, data: Path | None = None, quick: bool = False) -> None:
        self.cache, self.name, self.one, self.quick = cache, name, ADAPTATIONS[name], quick
        self.epochs = 1 if quick else self.one.epochs
        of = self.one.begins_as or name
        folder = cache_folder() / f"tune-{of}{'-quick' if quick else ''}"
        self.tables, self.start = {}, folder
        if data is not None:
            self.tables = clothes(folder, data) if of == "clothes" else self.one.tables(folder)
            self.start = self.one.start(folder, self.tables, 1 if quick else self.one.epochs_before)

    def get(self, way: str, lr: float, seed: int) -> dict[str, Any] | None:
        return self.cache.get(config_of(self.name, way, lr, seed, self.epochs))

    def ensure(self, way: str, lr: float, seed: int) -> None:
        """Do a run that the cache lacks."""
        if self.get(way, lr, seed) is None:
            result = tune(self.name, self.start, self.tables, way, lr, seed, self.epochs)
            self.cache.put(config_of(self.name, way, lr, seed, self.epochs), result)
            curve = " ".join(f"{100 * value:.1f}" for value in result["curve"])
            print(f"{self.name}, {way}, lr {lr:g}, seed {seed}: {curve}; {result['seconds']:.0f} s", flush=True)

    def rate(self, way: str) -> float | None:
        """Return the rate with the best last score of the seed that is not shown; None before all have been run."""
        own = way if way in OWN_RATE else OURS
        found = {lr: self.get(own, lr, RATE_SEED) for lr in rates_of(self.name, own)}
        scores = {lr: result["curve"][-1] for lr, result in found.items() if result is not None}
        return max(scores, key=lambda lr: scores[lr]) if len(scores) == len(found) else None

    def measure(self) -> None:
        """Do what the cache lacks: rates, then what is claimed, then what is beside."""
        if self.quick:
            for way in WAYS:
                self.ensure(way, rates_of(self.name, way)[1], 0)
            return
        for way in OWN_RATE:
            for lr in rates_of(self.name, way):
                self.ensure(way, lr, RATE_SEED)
        first = (*OWN_RATE, COLD, UNREMEMBERED) if self.one.begins_as else tuple(WAYS)[:6]
        for seed, way in itertools.product(SEEDS, WAYS):
            lr = self.rate(way)
            if lr is not None and (way in first or (self.name in BESIDE and seed in MORE_SEEDS)):
                self.ensure(way, lr, seed)

    def curves(self, way: str) -> dict[int, list[float]]:
        """Return seed -> the scores in percent, at the chosen rate, as far as they have been run."""
        lr = self.rate(way)
        results = {} if lr is None else {seed: self.get(way, lr, seed) for seed in SEEDS}
        return {seed: [100 * v for v in result["curve"]] for seed, result in results.items() if result is not None}


# -------------------------------------------------------------------------------------------------------------- the page
def table(runs: Runs) -> list[str]:
    """Return a table, one row a way."""
    heads = ("way", "B", "rate", "start", "lowest", "end", "end − start", "end − CLIP's loss at 256", "seeds")
    rows = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    large = runs.curves(LARGE_CLIP)
    for way, (batch, _) in WAYS.items():
        curves = runs.curves(way)
        if not curves:
            continue
        start, end = (mean_sd([curve[k] for curve in curves.values()])[0] for k in (0, -1))
        lowest = min(min(curve[1:]) - curve[0] for curve in curves.values())
        gain = with_interval([curve[-1] - curve[0] for curve in curves.values()])
        both = sorted(curves.keys() & large.keys())
        ahead = with_interval([curves[s][-1] - large[s][-1] for s in both]) if both and way != LARGE_CLIP else ""
        rate = "" if "lr" in WAYS[way][1] else f"{runs.rate(way):.2g}"
        cells = [way, str(batch), rate, f"{start:.2f}", f"{lowest:+.2f}", f"{end:.2f}", gain, ahead]
        rows.append(f"| {' | '.join(cells)} | {len(curves)} |")
    return rows


def of_memory(runs: Runs) -> list[str]:
    """Return a line on what the remembered normalizer is worth, where it was run without."""
    ours, without = runs.curves(OURS), runs.curves(UNREMEMBERED)
    gaps = [ours[s][-1] - without[s][-1] for s in sorted(ours.keys() & without.keys())]
    return (
        []
        if not gaps
        else ["", f"With gamma 0.9 it ends {with_interval(gaps)} points above gamma 1, {len(gaps)} seeds."]
    )


def rates_table(runs: Runs) -> list[str]:
    """Return a table of the last score by rate, of the seed that rates are chosen with."""
    rows = [f"| way | B | {' | '.join(f'rate {k}' for k in '1234')} |", "|---|---:|---|---|---|---|"]
    for way in OWN_RATE:
        found = {lr: runs.get(way, lr, RATE_SEED) for lr in rates_of(runs.name, way)}
        cells = [f"{lr:g}: {100 * result['curve'][-1]:.2f}" for lr, result in found.items() if result is not None]
        rows.append(f"| {way} | {WAYS[way][0]} | {' | '.join(cells)} |")
    return rows


def points(all_runs: list[Runs]) -> list[Point]:
    """Return the last scores of all that was measured at the chosen rates."""
    made = []
    for runs, way in itertools.product(all_runs, WAYS):
        if curves := runs.curves(way):
            ends = [curve[-1] / 100 for curve in curves.values()]
            about = {"seeds": sorted(curves), **WAYS[way][1]}
            made.append(Point(runs.name, way, WAYS[way][0], runs.epochs, runs.rate(way), "score", ends, about))
    return made


def panels(all_runs: list[Runs]) -> None:
    """Draw each adaptation's scores against epochs, the mean of the seeds."""
    fig, axes = figure(len(all_runs))
    for axis, runs in zip(axes[0], all_runs, strict=False):
        for k, way in enumerate(tuple(WAYS)[:4]):
            curves = list(runs.curves(way).values())
            if curves:
                spread = [mean_sd(list(values)) for values in zip(*curves, strict=True)]
                means, sds = zip(*spread, strict=True)
                axis.errorbar(range(len(means)), means, sds, label=way, **style(k))
        dress(axis, "epochs", f"{runs.name}: held-out score, %", ticks=tuple(range(0, runs.epochs + 1)))
    axes[0][0].legend(fontsize=7)
    save(fig, "tune.png")


def report(cache: Cache) -> None:
    all_runs = [Runs(cache, name) for name in ADAPTATIONS]
    panels(all_runs)
    write_points("tune.csv", points(all_runs))
    lines = [
        *pages.head("Tuning what is trained already", "research.tune --data DIR", ", shared with other work"),
        ABOUT,
        "![Held-out scores before, during and after tuning](tune.png)",
        "",
    ]
    for runs in all_runs:
        lines += [
            f"## {runs.one.title[0].upper()}{runs.one.title[1:]}",
            "",
            *table(runs),
            *of_memory(runs),
            "",
            *rates_table(runs),
            "",
        ]
    pages.write_page("tune.md", "\n".join([*lines, TRUST]))


ABOUT = """
Three pairs of towers are trained here from nothing by CLIP's loss at a large batch, then tuned by `sogclr train` on pairs of the same or another kind,
and scored on held-out pairs (`--validation`) before the first step and after every epoch.

- **emoji**: a CLIP of 0.5 million weights in Hugging Face's format (64 pixels, patches of 16, two transformers of 3 layers, 64 wide), trained on 2,508 of OpenMoji's
  drawings as black lines, exported by `--format hugging-face`, and tuned by `--clip` for 6 epochs on the same emoji in colour; 859 others are the test.
- **clothes**: the same, trained on 1,341 photographs of clothes with a sentence for their class, tuned for 6 epochs on 1,898 others; 1,250 photographs
  by other people are the test. Image→text recall at 1 among the 14 sentences is zero-shot accuracy.
- **wordnet**: two bags of tokens, 128 wide, trained on 20,000 of WordNet's definitions and words at B = 512, tuned by `--init-from` on the same pairs for 2 epochs; 4,000 others are the test.

The temperature is the start's, 0.07; the last two tune at 0.02, nearer to where CLIP's models stand (0.01). **Rate**: the best of four by the last score, with a seed and held-out pairs that are not shown; all of SogCLR's rows have that of the first. gamma
is 0.9 but where the row says more. *Exact u, warm Adam* is what `--clip` and `--init-from` do by themselves (`--warm-start exact`); *cold* is `--warm-start none`.
CLIP's loss has no warm start. All have a tenth of the run as warm-up, then a cosine.

- **start**, **end**: the mean over seeds of the held-out score, %. **lowest**: the lowest that any seed's score, after any epoch, lay above or below its start, in points.
- Differences are paired by seed, with the 95 % interval of Student's t over seeds; over the held-out pairs there is another uncertainty, alike for all ways.
"""
TRUST = """
## What it says

- **Never worse than the start, at tau 0.07.** Tuned as `--clip` and `--init-from` do by themselves, no seed's score fell by more than 0.2 points below its start after any epoch, at the best rate or at the default's own. CLIP's loss at
  its own best rates fell below at B = 32 on all three, and at 256 on the clothes; a cold start of SogCLR did once, on the emoji. At tau 0.02 the rate that was chosen on WordNet, the highest of four, falls 0.5 below after the first of two epochs.
- **B = 32 is enough.** SogCLR at 32 ends above CLIP's loss at 256 on all three, each at the best of its four rates, in equal epochs. A batch of 256 makes an eighth of the steps: on the emoji and the clothes CLIP's
  loss at 32 is above itself at 256 too (on the emoji level with SogCLR), so there negatives are not what limits it; on WordNet they are, and CLIP's loss gains nothing at either batch.
- **A warm start makes little difference here.** From a cold u and a cold Adam the same rates end within the intervals of exact ones: the first visit sets u to the batch's own
  value, and the rate's warm-up is slow enough for Adam. Steps at rate 0 cost a short run what they are of it: 30 of them 0.4 points on the emoji, a whole epoch (ema) half of WordNet's gain; so they are a fiftieth
  of the run at most by default. Exact normalizers every epoch, gamma 1 and gamma 0.2 (from an exact u or a cold one) end where gamma 0.9 does, at tau 0.07.
- **At tau 0.02 it matters most**, near to where CLIP's models stand. There the positive in the denominator and a batch's own normalizer cost CLIP's loss its gain: on WordNet no rate and neither batch is above the start, where SogCLR at 32 gains
  0.4 (0.7 from a cold u); on the clothes CLIP's loss first falls below its start at its best rates, by up to 6.6 points at 32 and 5.6 at 256 in the worst seed, and ends 1.5 (at 32) and 4.0 points (at 256) behind SogCLR, which is above the start after every epoch.
  What is remembered adds 0.9 points on the clothes (gamma 0.9 against gamma 1), so that of the 1.5 over CLIP's loss at 32 the positive out of the denominator is 0.6, and of the 4.0 over 256 most; and it adds nothing on WordNet's two epochs, of which still steps take a part (0.3 points behind; from a cold u level). These starts were trained at 0.07, so a part of the fall is the change of temperature, which is the same for both losses.
- **The rate of `--clip`** (1e-5 at B = 256) is made for models a thousand times as large, and leaves these small ones nearly where they were.

## How far to trust this

Models of 0.4 to 2.1 million weights, not yet good at their tasks, on small data; a real CLIP was not to be had here. Rates are chosen on one seed; on the emoji and WordNet some chosen ones stand at the end of
their grid. Each adaptation has one start: the intervals say nothing of other starts. Evaluations are an epoch apart, and a dip between them is not seen. The test of the clothes has 1,250 photographs, that
of the emoji 859, with standard errors of 1.4 and 0.6 points, which pairing takes out of the differences only in part.
"""


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of the photographs")
    parser.add_argument("--only", nargs="+", choices=tuple(ADAPTATIONS), default=tuple(ADAPTATIONS))
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, one rate, and no page")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    options = parser.parse_args()
    cache = Cache("tune", options.quick)
    if not options.report:
        for name in options.only:
            Runs(cache, name, options.data or Path(), options.quick).measure()
    if not options.quick:
        report(cache)


if __name__ == "__main__":
    main()
