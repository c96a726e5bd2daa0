"""A pretrained image encoder tuned on other images: what it gains on them, and what it loses where it came from.

    python -m research.adapt --data DIR [--quick] [--report]

DIR has photographs of clothes, a folder a class in train/ and test/ (github.com/alexeygrigorev/clothing-dataset, CC0; here 4,961 of them, the
shorter side 128 pixels, the two parts by different contributors). The other images are OpenMoji's; ImageNet's weights are those of
research.real_weights. All runs are `sogclr.train`, all scores `sogclr.evaluate`. Encoders that are pretrained here stay in
research/cache/adapt; every other run is a line of research/cache/adapt.jsonl. --quick: a step of each, no page. Writes
docs/results/adapt.md, .csv and .png.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch

import sogclr
from benchmarks import pages
from sogclr.commands.demo_pairs import write_emoji

from .figures import COLOURS, MARKERS, dress, figure, save
from .measure import Cache
from .paired import interval, with_interval
from .points import Point, plus_minus, write_points
from .real_weights import write_weights

GAIN, LOSS = 2.0, 0.5  # points of kNN that were asked for: gained on the target at least, lost on the source at most
SCORES = ("knn_top1", "linear_top1")


@dataclass(frozen=True)
class Setting:
    """Where an encoder comes from and what it is tuned on."""

    name: str
    title: str
    source: str  # a name of `images`
    target: str
    pretraining: int  # epochs on the source; 0: the weights are ImageNet's
    epochs: int  # on the target
    options: dict[str, Any]  # of `sogclr.train`
    methods: dict[str, int]  # of `METHODS` -> how many seeds

    def run(self, epochs: int, seed: int) -> dict[str, Any]:
        """Return options of `sogclr.train`."""
        return {"epochs": epochs, "eval_every": epochs, "seed": seed} | self.options | SAME


NOTHING = "SogCLR from nothing"
METHODS: dict[str, dict[str, Any]] = {
    "SogCLR": {},
    "SogCLR, not gently": {"optimizer": "lars", "layer_decay": 1.0, "batchnorm": "train"},
    "SogCLR, gently": {"optimizer": "adamw", "lr": 5e-5, "layer_decay": 0.75, "batchnorm": "frozen"},
    "SogCLR, last 2 stages": {"train_last": 2},
    NOTHING: {"init_from": None, "pretrained": None},
    "SimCLR": {"method": "simclr"},
}
"""Name -> options of `sogclr.train` beside the settings' own: all else is what the trainer chooses by itself."""
SAME: dict[str, Any] = {"workers": 0, "threads": 1, "device": "cpu", "labels": "none", "quiet": True}
SAME |= {"lr_rule": "sqrt", "gradient_scale": 1.0}  # what the trainer chose when the page was made
MINI = {"model": "resnet10_mini", "image_size": 64, "batch_size": 64, "precision": "bf16"}
LITE = {"model": "tf_efficientnet_lite0.in1k", "image_size": 96, "batch_size": 32, "precision": "fp32", "max_steps": 58}
SMALL = {**LITE, "image_size": 64, "max_steps": None}
PUBLISHED = {"SogCLR": 3, "SogCLR, not gently": 1, NOTHING: 1, "SimCLR": 1}  # runs of each
PARTS = {"SogCLR": 2, "SogCLR, last 2 stages": 1}
OWN = {"SogCLR": 3, "SogCLR, gently": 1, NOTHING: 1, "SimCLR": 1}
SETTINGS = (
    Setting("A", "from ImageNet to clothes", "fewer drawings", "clothes", 0, 1, LITE, PUBLISHED),
    Setting("B", "from drawings to clothes", "drawings", "clothes", 5, 3, MINI, OWN),
    Setting("C", "from ImageNet to small clothes", "fewer drawings", "clothes", 0, 3, SMALL, PARTS),
)

INTRODUCTION = f"""An encoder that was trained on some images is trained on others by `sogclr.train`, with what it chooses by itself but where the row says more. kNN
(k 20) and a linear probe on the test part: of the clothes that is photographs by other people. Asked for: at least {GAIN:g} points of kNN gained on the target, at
most {LOSS:g} lost where the encoder came from. Gains and changes are paired by seed (also pretraining's), with the 95 % interval of Student's t over the
seeds, not over images; ± is the seeds' standard deviation. Seconds are of one core, for training on the target alone.

Weights of `--pretrained` are tuned *gently*: AdamW at a tenth of its rate, times 0.75 a layer down, BatchNorm with the statistics that it came with. A run of
`--init-from`, and one from nothing, is trained *not gently*: LARS at its full rate, BatchNorm with the batches' statistics."""
ABOUT = {
    "A": "EfficientNet-Lite0 with ImageNet's weights by `--pretrained`, 96 pixels, B = 32, half an epoch (58 steps) on 3,711 photographs of clothes. ImageNet's images are "
    "not here: a neutral probe stands for where it came from, a quarter of OpenMoji's drawings and their categories, which neither training saw.",
    "B": "resnet10_mini, 64 pixels, B = 64: {pretraining} epochs on 2,929 of OpenMoji's drawings, then `--init-from` for {epochs} epochs on 3,711 photographs of clothes.",
    "C": "As A, at 64 pixels, where the weights, made for 224, know less, for {epochs} epochs.",
}
READING = """What was asked for holds for an encoder of one's own (B), which knew little of photographs: it gains 4 to 5 points on them, as much more than from nothing in
the same time, and loses no kNN where it came from. (The linear probe is lower there: in B by 3 points, less than what the seeds differ by; in C, which teaches
it on 712 drawings, by 20.) SimCLR does as well as SogCLR. ImageNet's weights (A, C) are kept, and that is all so far: half an epoch or three raise the
linear probe, and not kNN, which stays just below its start. With the rate and BatchNorm of a start from nothing they forget at once, which is why
`--pretrained` is tuned gently; a run's own encoder that is tuned so learns less and forgets more, which is why `--init-from` is not. Runs of a day, which is
what such weights are tuned for, were not made."""


# ------------------------------------------------------------------------------------------------------------- the images
def images(name: str, data: Path) -> Path:
    """Return where images lie: clothes, or all drawings, or a quarter of them."""
    return data if name == "clothes" else write_emoji(every=1 if name == "drawings" else 4)[0]


# --------------------------------------------------------------------------------------------------------------- the runs
class Runs:
    """The runs of one place.

    Args:
        data: photographs of clothes.
        folder: for the runs that others start from.
        steps: the longest run; None where its epochs say it.
    """

    def __init__(self, data: Path, folder: Path, steps: int | None = None) -> None:
        self.data, self.folder, self.steps = data, folder, steps
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, setting: Setting, seed: int) -> Path:
        """Return the run that others start from, which is made first where there is none."""
        epochs = setting.pretraining
        run = self.folder / f"{setting.name}-{epochs}-{seed if epochs else 0}"
        if (run / "encoder.safetensors").is_file():
            return run
        shutil.rmtree(run, ignore_errors=True)
        if epochs:
            self.train(setting, setting.source, run, setting.run(epochs, seed))
            return run
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            write_weights(weights := Path(folder) / "lite0.safetensors")
            # one step in which the encoder is frozen: it is written as it came
            first = {"pretrained": str(weights), "freeze": True, "max_steps": 1}
            self.train(setting, setting.target, run, setting.run(1, seed) | first)
        return run

    def train(self, setting: Setting, where: str, out: Path, options: dict[str, Any]) -> float:
        """Train, and return the processor seconds."""
        begun = time.process_time()
        sogclr.train(images(where, self.data), out, **(options | ({"max_steps": self.steps} if self.steps else {})))
        return time.process_time() - begun

    def scores(self, setting: Setting, run: Path) -> dict[str, dict[str, float]]:
        """Return the scores of a run on the target and on the source, in percent."""
        found = {}
        for what in ("target", "source"):
            where = images(getattr(setting, what), self.data)
            scores = sogclr.evaluate(run, where, device="cpu", workers=0, quiet=True)
            found[what] = {name: 100 * scores[name] for name in SCORES}
        return found

    def start(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Return the scores of the encoder that the others start from."""
        begun = time.process_time()
        return self.scores(setting, self.begin(setting, seed)) | {"seconds": time.process_time() - begun}

    def tune(self, setting: Setting, method: str, seed: int) -> dict[str, Any]:
        """Return the scores after training on the target."""
        first = self.begin(setting, seed)
        start = {"init_from": str(first)} if setting.pretraining else {"pretrained": str(first / "encoder.safetensors")}
        options = setting.run(setting.epochs, seed) | start | METHODS[method]
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            seconds = self.train(setting, setting.target, Path(out) / "run", options)
            return self.scores(setting, Path(out) / "run") | {"seconds": seconds}


def config_of(setting: Setting, method: str, seed: int) -> dict[str, Any]:
    """Return what decides a run."""
    decides = {k: v for k, v in vars(setting).items() if k not in ("title", "methods")}
    seed = 0 if method == "start" and not setting.pretraining else seed
    return decides | {"method": method, "choice": METHODS.get(method), "seed": seed}


def plan(setting: Setting) -> Iterator[tuple[str, int]]:
    """Yield methods and seeds: the starts, then the product's own choice, then the others."""
    for method, seeds in ({"start": max(setting.methods.values())} | setting.methods).items():
        yield from ((method, seed) for seed in range(seeds))


def measure(runs: Runs, cache: Cache, settings: list[Setting]) -> None:
    """Make the runs that the cache lacks."""
    for setting in settings:
        for method, seed in plan(setting):
            config = config_of(setting, method, seed)
            if cache.get(config) is None:
                result = runs.start(setting, seed) if method == "start" else runs.tune(setting, method, seed)
                cache.put(config, result)
                print(setting.name, method, seed, result, flush=True)


# --------------------------------------------------------------------------------------------------------------- the page
Rows = dict[str, dict[int, dict[str, Any]]]  # name -> seed -> result


def rows_of(cache: Cache, setting: Setting) -> Rows:
    """Return the results that are there; a start that is the same for all seeds stands for each."""
    rows: Rows = {}
    for method, seed in plan(setting):
        if (result := cache.get(config_of(setting, method, seed))) is not None:
            rows.setdefault(method, {})[seed] = result
    return rows


def changes(rows: Rows, name: str, what: str) -> list[float]:
    """Return what kNN is above that of the start, in points, seed by seed."""
    return [
        r[what]["knn_top1"] - rows["start"][k][what]["knn_top1"] for k, r in rows[name].items() if k in rows["start"]
    ]


def verdict(rows: Rows, name: str) -> str:
    """Return whether a row gains what was asked for, and loses no more."""
    words = []
    for what, asked, title in (("target", GAIN, "gain"), ("source", -LOSS, "loss")):
        values = changes(rows, name, what)
        mean, low, high = interval(values) if len(values) > 1 else (values[0], -inf, inf)
        unsure = "" if not low < asked <= high else ", one run" if len(values) == 1 else ", within the interval"
        words.append(f"{title} {'met' if mean >= asked else 'missed'}{unsure}")
    return "; ".join(words)


def section(setting: Setting, rows: Rows) -> list[str]:
    """Return a setting's table, with what was asked for."""
    text = [
        f"## {setting.name}: {setting.title}",
        "",
        ABOUT[setting.name].format_map(vars(setting)),
        "",
        "| encoder | seeds | kNN on the target, % | linear | kNN where it came from, % | linear | seconds | gain | change where it came from | asked for |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, by_seed in rows.items():
        one = name == "start" and not setting.pretraining  # the same for all seeds
        results = list(by_seed.values())[: 1 if one else None]
        cells = [plus_minus([r[w][s] for r in results], 1) for w in ("target", "source") for s in SCORES]
        cells = [c.removesuffix(" ± 0.0") if len(results) == 1 else c for c in cells]
        seconds = statistics.mean(r["seconds"] for r in results)
        moved = [with_interval(changes(rows, name, what), 1) for what in ("target", "source")]
        cells += [""] * 3 if name == "start" else [f"{seconds:.0f}", *moved]
        cells.append("" if name in ("start", NOTHING) else verdict(rows, name))
        text.append(f"| {name} | {len(results)} | {' | '.join(cells)} |")
    return [*text, ""]


def draw(found: list[tuple[Setting, Rows]]) -> None:
    """Draw what is gained on the target against what is lost on the source: a point a run; the start is at 0."""
    fig, axes = figure(len(found))
    for axis, (setting, rows) in zip(axes[0], found, strict=True):
        for k, name in enumerate(METHODS):
            if name in rows and name != NOTHING:
                looks = {"color": COLOURS[k], "marker": MARKERS[k], "label": name}
                axis.scatter(changes(rows, name, "source"), changes(rows, name, "target"), **looks)
        axis.scatter(0, 0, color="0.4", marker="+", label="start")
        axis.axhline(GAIN, color="0.6", linestyle=":")
        axis.axvline(-LOSS, color="0.6", linestyle=":")
        axis.legend(fontsize=8)
        dress(axis, "change of kNN where it came from, points", "gain of kNN on the target, points", setting.title)
    save(fig, "adapt.png")


def report(cache: Cache) -> None:
    """Write page, figure and CSV from the runs of the cache."""
    found = [(setting, rows) for setting in SETTINGS if len(rows := rows_of(cache, setting)) > 1]
    points = [
        Point(s.name, name, s.options["batch_size"], s.epochs, None, f"{what} {k}", [r[what][k] / 100 for r in results])
        for s, rows in found
        for name, results in ((name, list(by_seed.values())) for name, by_seed in rows.items())
        for what, k in itertools.product(("target", "source"), SCORES)
    ]
    write_points("adapt.csv", points)
    draw(found)
    more = f", shared with other work; {60 * cache.hours:.0f} minutes of processor time"
    head = pages.head("A pretrained encoder, tuned on other images", "research.adapt --data DIR", more)
    sections = [line for setting, rows in found for line in section(setting, rows)]
    pages.write_page(
        "adapt.md", "\n".join([*head, INTRODUCTION, "", "![gain and loss](adapt.png)", "", *sections, READING, ""])
    )


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data", type=Path, help="photographs of clothes")
    parser.add_argument("--settings", nargs="+", default=list(ABOUT), choices=list(ABOUT), help="which are run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache("adapt", options.quick)
    if options.data is None and not options.report:
        parser.error("--data is needed for the runs")
    settings = [s for s in SETTINGS if s.name in options.settings]
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            measure(
                Runs(options.data, Path(folder), steps=1),
                cache,
                [replace(s, methods=dict.fromkeys(s.methods, 1)) for s in settings],
            )
        return
    if not options.report:
        measure(Runs(options.data, cache.path.with_suffix("")), cache, settings)
    report(cache)


if __name__ == "__main__":
    main()
