"""A ResNet-50 trained for 100 epochs on photographs at several batch sizes, on a GPU: python -m research.resnet50 --data DIR

DIR as for research.flat_line. The global loss, the positive beside 150 negatives, 128 pixels, LARS at three times 0.075 sqrt(B), side by side on one device; scores on the test part.
Every run is a line of research/cache/resnet50.jsonl, also one that a limit of time (--minutes) ended: with the online scores up to there. Writes
docs/results/resnet50.md. With --quick a ResNet-18 on 32 pixels for an epoch, and no page.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import sogclr
from benchmarks import pages
from sogclr.errors import Interrupted
from sogclr.run_folder import RunFolder

from .measure import Cache

BATCHES = (32, 128, 512)
EPOCHS, EVERY = 100, 20
SAME: dict[str, Any] = {"method": "sogclr", "num_negatives": 150.0, "optimizer": "lars", "workers": 2, "quiet": True}
BIG: dict[str, Any] = {"model": "resnet50", "image_size": 128, "epochs": EPOCHS, "eval_every": EVERY}
QUICK: dict[str, Any] = {"model": "resnet18", "image_size": 32, "epochs": 1, "eval_every": 1}
SCORES = {"knn_top1": "kNN, %", "linear_top1": "linear, %", "linear_top1_10_per_class": "linear, ten labels a class, %"}


def config_of(batch: int, size: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a run."""
    return {"batch_size": batch, "lr": round(3 * 0.075 * math.sqrt(batch), 4)} | SAME | size


def run(data: Path, config: dict[str, Any], device: str, until: float) -> dict[str, Any]:
    """Train until the end or until a time, and return the scores, those during the run by epoch, and the seconds."""
    begun = time.monotonic()

    def watch(row: dict[str, Any]) -> None:
        if time.time() > until:
            raise Interrupted("the time is over")

    with tempfile.TemporaryDirectory() as folder:
        out, scores = Path(folder) / "run", {}
        try:
            sogclr.train(data / "train", out, device=device, on_metrics=watch, **config)
            seconds = time.monotonic() - begun
            found = sogclr.evaluate(out, data, device=device, quiet=True)
            scores = {name: 100 * found[name] for name in SCORES}
        except Interrupted:
            seconds = time.monotonic() - begun
        rows = RunFolder(out).metrics()
    online = {round(row["epoch"]): 100 * row["knn_top1"] for row in rows if row["kind"] == "eval"}
    return {"scores": scores, "online": online, "epochs": rows[-1]["epoch"], "seconds": seconds}


def report(cache: Cache) -> None:
    """Write the page from the runs of the cache."""
    done = {b: r for b in BATCHES if (r := cache.get(config_of(b, BIG))) is not None}
    machine = cache.get({"machine": True}) or {"name": "not known"}
    marks = range(EVERY, EPOCHS + 1, EVERY)
    text = [
        "# A ResNet-50 on photographs, on a GPU",
        "",
        "`python -m research.resnet50 --data DIR`",
        "",
        f"Machine: {machine['name']}.",
        "",
        f"resnet50 from nothing, 128 pixels, {EPOCHS} epochs of 3,711 photographs of clothes, the positive beside 150 negatives, LARS at three times 0.075 sqrt(B), one seed, the runs side by side "
        "on one card. On the test part (1,250 photographs by other people, which resolve about 1.4 points):",
        "",
        f"| B | epochs | {' | '.join(SCORES.values())} | minutes |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for batch, result in done.items():
        cells = [f"{result['scores'][name]:.1f}" if result["scores"] else "" for name in SCORES]
        text.append(f"| {batch} | {result['epochs']:.0f} | {' | '.join(cells)} | {result['seconds'] / 60:.1f} |")
    text += [
        "",
        "kNN online, on a part of the training images:",
        "",
        f"| B | {' | '.join(f'epoch {m}' for m in marks)} |",
        "|---" * (len(marks) + 1) + "|",
    ]
    for batch, result in done.items():
        cells = [
            f"{v:.1f}" if (v := result["online"].get(str(m), result["online"].get(m))) is not None else ""
            for m in marks
        ]
        text.append(f"| {batch} | {' | '.join(cells)} |")
    text += [
        "",
        "A run that has no scores was ended by the limit of time. A small batch waits for the host, which launches some 3,000 kernels a step ([gpu.md](gpu.md)).",
        "",
    ]
    pages.write_page("resnet50.md", "\n".join(text))


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=60, help="after which a run is ended")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    options = parser.parse_args()
    cache, size = Cache("resnet50", options.quick), QUICK if options.quick else BIG
    if not options.report:
        missing = [c for b in BATCHES if cache.get(c := config_of(b, size)) is None]
        until = time.time() + 60 * options.minutes
        with ProcessPoolExecutor(len(BATCHES), multiprocessing.get_context("spawn")) as pool:
            for config, done in [(c, pool.submit(run, options.data, c, options.device, until)) for c in missing]:
                cache.put(config, done.result())
        if options.device == "cuda":
            import torch

            cache.put({"machine": True}, {"name": f"{torch.cuda.get_device_name()}, {pages.host('')}", "seconds": 0})
    if not options.quick:
        report(cache)


if __name__ == "__main__":
    main()
