"""How long a million files take to list, and how much memory: python benchmarks/listing.py [--files N]

Makes N image names (hard links to one file, 1,000 a folder) in a temporary folder, scans them twice without reading
headers, beside a bare `os.scandir` walk with one `stat` a file as the floor. Writes docs/results/listing.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent.parent / "docs" / "results" / "listing.md"
PER_FOLDER = 1_000


def make(root: Path, files: int) -> None:
    """Hard links, a new original every 10,000 because file systems limit links to one file."""
    original = root
    for k in range(files):
        folder = root / f"class_{k // PER_FOLDER:05d}"
        if k % PER_FOLDER == 0:
            folder.mkdir()
        name = folder / f"image_{k:08d}.jpg"
        if k % 10_000 == 0:
            name.write_bytes(b"\xff\xd8\xff")
            original = name
        else:
            os.link(original, name)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def walk(root: Path) -> int:
    """The floor: every name and its size, nothing kept."""
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
    """In a process of its own, so that the peak of memory is its own too."""
    from sogclr.data.manifest import Manifest
    from sogclr.data.sampler import ResumableSampler

    before = peak_mib()
    for _ in range(2):
        start = time.perf_counter()
        found = walk(root) if how == "walk" else Manifest.scan(root, check=False)
        seconds = time.perf_counter() - start
        print(found if how == "walk" else len(found), seconds, peak_mib() - before)  # type: ignore[arg-type]
    if how == "scan":
        for epoch in range(2):
            start = time.perf_counter()
            sampler = ResumableSampler(found.usable, 256, 0, epoch * (len(found) // 256))  # type: ignore[union-attr]
            next(iter(sampler))
            print(len(found), time.perf_counter() - start, peak_mib() - before)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        for how, label in (("walk", "bare os.scandir walk with stat"), ("scan", "Manifest.scan(check=False)")):
            command = [sys.executable, __file__, "--measure", how, name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            turns = ("first", "second", "start of an epoch", "start of the next")[: 4 if how == "scan" else 2]
            for turn, line in zip(turns, output.splitlines(), strict=True):
                count, seconds, growth = line.split()
                if int(count) != options.files:
                    raise SystemExit(f"{label} found {count} files of {options.files}")
                rows.append((f"{label}, {turn}", float(seconds), float(growth)))
    table = ["| | seconds | µs a file | peak memory grew by, MiB |", "|---|---:|---:|---:|"]
    table += [f"| {label} | {s:.2f} | {s / options.files * 1e6:.2f} | {g:.0f} |" for label, s, g in rows]
    text = (
        f"# Listing {options.files:,} files\n\n"
        f"`python benchmarks/listing.py --files {options.files}` on {os.cpu_count()} CPU cores, one process; names of the "
        f"form `class_00000/image_00000000.jpg`; the folder is warm in the file system's cache.\n\n"
        + "\n".join(table)
        + "\n\n"
        "`Manifest.scan` keeps the relative path, size and modification time of each file in columns, sorts them and "
        "takes the fingerprint. The bare walk keeps nothing. The second scan is as the first in the same process: "
        "memory that the first needed is used again. The start of an epoch draws its order and gives the first batch of 256.\n"
    )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
