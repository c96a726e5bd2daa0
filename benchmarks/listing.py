"""How long a million files take to list and an epoch of them to start, and how much memory: python -m benchmarks.listing

Makes N image names (hard links to small JPEGs, 1,000 a folder) in a temporary folder and scans them without reading
headers, each start in a process of its own, beside a bare `os.scandir` walk with one `stat` a file as the floor. Then
the start of an epoch: its order alone, and a training loader's first batch. Writes docs/results/listing.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from . import pages

PER_FOLDER = 1_000
BATCH = 256
LABELS = {
    "walk": ["bare `os.scandir` walk with `stat`"],
    "scan": ["`Manifest.scan(check=False)`, first start"],
    "start": [
        "the same, second start",
        "the first epoch's order",
        "the next epoch's order",
        f"first batch of {BATCH} of a training loader, read in this process",
        "the same with 2 workers, their start included",
    ],
}


def make(root: Path, files: int) -> None:
    """Write N images as hard links, a new original every 10,000 because file systems limit links to one file."""
    original = root
    for k in range(files):
        folder = root / f"class_{k // PER_FOLDER:05d}"
        if k % PER_FOLDER == 0:
            folder.mkdir()
        name = folder / f"image_{k:08d}.jpg"
        if k % 10_000 == 0:
            Image.new("RGB", (32, 32), (k % 251, 90, 40)).save(name)
            original = name
        else:
            os.link(original, name)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def walk(root: Path) -> int:
    """Return how many files there are, looking at every name and size and keeping nothing: the floor."""
    count, waiting = 0, [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    entry.stat()
                    count += 1
    return count


def measure(how: str, root: Path) -> None:
    """Print one line a stage, seconds and the peak so far; called in a process of its own, so that the peak is its own too."""
    from sogclr.data.loader import training_loader
    from sogclr.data.manifest import Manifest
    from sogclr.data.recipe import RECIPES
    from sogclr.data.sampler import ResumableSampler

    before = peak_mib()

    def timed(make: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = make()
        print(time.perf_counter() - start, peak_mib() - before, sep="\t", flush=True)
        return made

    if how == "walk":
        timed(lambda: walk(root))
        return
    manifest = timed(lambda: Manifest.scan(root, check=False))
    if how == "scan":
        return
    steps = len(manifest) // BATCH
    timed(lambda: next(iter(ResumableSampler(manifest.usable, BATCH, seed=0))))
    timed(lambda: next(iter(ResumableSampler(manifest.usable, BATCH, seed=0, start_step=steps))))
    for workers in (0, 2):
        loader = training_loader(manifest, manifest.usable, RECIPES["simclr"], 32, BATCH, seed=0, workers=workers)
        first = timed(lambda loader=loader: next(loader))
        if len(first.index) != BATCH:
            raise SystemExit(f"the first batch holds {len(first.index)} images of {BATCH}")


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2, metavar=("HOW", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="listing-") as name:
        print(f"making {options.files:,} files ...", flush=True)
        make(Path(name), options.files)
        for how, labels in LABELS.items():
            command = [sys.executable, "-m", "benchmarks.listing", "--measure", how, name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(output, flush=True)
            for label, line in zip(labels, output.splitlines(), strict=True):
                seconds, growth = line.split()
                rows.append((label, float(seconds), float(growth)))
    table = ["| | seconds | µs a file | peak memory grew by, MiB |", "|---|---:|---:|---:|"]
    table += [f"| {label} | {s:.2f} | {s / options.files * 1e6:.2f} | {g:.0f} |" for label, s, g in rows]
    text = (
        f"# Listing {options.files:,} files\n\n"
        f"`python -m benchmarks.listing --files {options.files}` on {os.cpu_count()} CPU cores; names of the "
        f"form `class_00000/image_00000000.jpg`; the folder is warm in the file system's cache.\n\n"
        + "\n".join(table)
        + "\n\n"
        "`Manifest.scan` keeps the relative path, size and modification time of each file in columns, sorts them and "
        "takes the fingerprint. The bare walk keeps nothing. Each start is a process of its own; all rows from the second start "
        "on are one process, whose peak of memory is the highest so far.\n"
    )
    pages.write_page("listing.md", text)


if __name__ == "__main__":
    main()
