"""Runs of `sogclr.train` on images, scored by `sogclr.evaluate`, several side by side: for pages that compare settings.

Data are photographs of clothes (`--data DIR`, with train/ and test/, a folder a class), Fashion-MNIST and OpenMoji's drawings.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sogclr
from benchmarks import pages
from sogclr.commands.demo_pairs import write_emoji
from sogclr.config.toml import to_toml
from sogclr.files import atomic_folder, cache_folder

from .measure import Cache
from .problems import write_images

PAPER: dict[str, Any] = {"method": "sogclr", "gamma": 0.9, "num_negatives": math.inf, "gradient_scale": 1.0}
"""SogCLR as the paper has it, whatever the trainer's default is."""
PHOTOGRAPHS, FASHION, DRAWINGS = "photographs", "Fashion-MNIST", "drawings"
LARGER = "photographs at 64 pixels"
FASHION_IMAGES = (4000, 2000)  # for training and for the test
SCORES = {"knn": "knn_top1", "linear": "linear_top1", "few": "linear_top1_10_per_class"}
"""Name in a result -> name of `sogclr.evaluate`; in percent."""
SAME: dict[str, Any] = {"workers": 0, "threads": 1, "labels": "none", "quiet": True}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        data: `PHOTOGRAPHS`, `LARGER` (the same ones), `FASHION` or `DRAWINGS`.
        options: of `sogclr.train`, the seed among them; `augment` is the table of a configuration file.
    """

    data: str
    options: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """Return what decides the run."""
        return {"data": self.data, **self.options}


@dataclass(frozen=True)
class Places:
    """Where images lie.

    Attributes:
        photographs: a folder with train/ and test/.
        fashion: a folder with Fashion-MNIST's idx files.
    """

    photographs: Path | None
    fashion: Path

    def folder(self, data: str) -> Path:
        """Return the folder with the parts of a data set, which is written first where it has to be."""
        if data == DRAWINGS:
            return write_emoji()[0]
        if data == FASHION:
            return self._write_fashion()
        if self.photographs is None:
            raise SystemExit("the photographs are needed: give --data DIR")
        return self.photographs

    def _write_fashion(self) -> Path:
        folder = cache_folder() / "fashion-{}-{}".format(*FASHION_IMAGES)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(folder) as temporary:
                write_images(temporary, self.fashion, *FASHION_IMAGES)
        return folder


def parser_of(about: str | None, data: Iterable[str], seeds: int) -> argparse.ArgumentParser:
    """Return a parser of what such pages have in common.

    Args:
        about: the script's docstring.
        data: the names of the data sets.
        seeds: of the whole page.
    """
    parser = pages.parser(about)
    parser.add_argument("--data", type=Path, help="photographs of clothes")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--only", nargs="+", default=list(data), choices=list(data), help="which data")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many of them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--quick", action="store_true", help="one epoch of a run or two, no page")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    return parser


def train_and_score(
    folder: Path, options: dict[str, Any], device: str, averages: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Train on one part of a folder, and return scores on the other, in percent, the seconds it took, and on what.

    Args:
        folder: with the two parts.
        options: of `sogclr.train`.
        device: to train on.
        averages: name -> file of an encoder that the run leaves in its folder, which is scored too, in `averages`.
    """
    torch.set_num_threads(1)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        given = {"eval_every": options["epochs"], "device": device, **options, **SAME}
        if "augment" in given:
            given["config"] = Path(out) / "augment.toml"
            given["config"].write_text(to_toml({"augment": given.pop("augment")}), encoding="utf-8")
        run = sogclr.train(folder / "train", Path(out) / "run", **given)
        found = _score(run.path, folder, device)
        if averages:
            found["averages"] = {name: _score(run.path / file, folder, device) for name, file in averages.items()}
    return found | {"seconds": time.monotonic() - begun, "machine": pages.where(device)}


def _score(encoder: Path, folder: Path, device: str) -> dict[str, Any]:
    scores = sogclr.evaluate(encoder, folder, device=device, workers=0, quiet=True)
    return {k: 100 * scores[name] for k, name in SCORES.items()}


def head(title: str, module: str, cache: Cache) -> list[str]:
    """Return a page's first lines, with the hours of all runs and what they were made on."""
    machines = sorted({str(entry["result"]["machine"]) for entry in cache.found.values()})
    return [
        f"# {title}",
        "",
        f"`python -m {module}`",
        "",
        f"{cache.hours:.1f} hours of runs, on {'; '.join(machines)}.",
        "",
    ]


def make(
    jobs: Iterable[Job],
    cache: Cache,
    places: Places,
    device: str = "cpu",
    at_once: int = 1,
    run: Callable[[Path, dict[str, Any], str], dict[str, Any]] = train_and_score,
) -> None:
    """Make the runs that the cache lacks, in their order, so many at once; each is kept as soon as it is done.

    Args:
        jobs: the runs.
        cache: of their results.
        places: where images lie.
        device: to train on.
        at_once: how many side by side.
        run: trains and scores: folder, options, device -> result.
    """
    missing = [job for job in {str(j.config()): j for j in jobs}.values() if cache.get(job.config()) is None]
    folders = {data: places.folder(data) for data in {job.data for job in missing}}
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        waiting = {pool.submit(run, folders[j.data], j.options, device): j for j in missing}
        try:
            for k, done in enumerate(as_completed(waiting)):
                job, result = waiting[done], done.result()
                cache.put(job.config(), result)
                shown = ", ".join(f"{name} {result[name]:.1f}" for name in SCORES)
                print(f"{k + 1} of {len(missing)}: {job.config()}: {shown}, {result['seconds']:.0f} s", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone, were it killed: else a run would go on whose result nobody takes."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
