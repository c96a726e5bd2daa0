"""How long ten million image-caption pairs take to list, and how much memory: python -m benchmarks.listing_pairs [--pairs N]

Makes N image names (hard links to one file, 1,000 a folder) in a temporary folder, and a table of them with a caption each,
no two alike. Each stage is a process of its own, so that its peak of memory is its own too: listing and saving, as at a
run's start; loading, as at a resume; and the first batch of an epoch. Writes docs/results/listing_pairs.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import pages
from .listing import make

BLOCK = 1 << 16
BATCH = 256


def name_of(k: int) -> str:
    return f"class_{k // 1_000:05d}/image_{k:08d}.jpg"


def caption_of(k: int) -> str:
    return f"a photograph of thing number {k} on a table, seen from the left in the evening"


def write_tables(root: Path, pairs: int) -> None:
    """Write the same rows as CSV and as Parquet."""
    schema = pa.schema({"image": pa.string(), "caption": pa.string()})
    with open(root / "pairs.csv", "w") as table, pq.ParquetWriter(root / "pairs.parquet", schema) as parquet:
        table.write("image,caption\n")
        for start in range(0, pairs, BLOCK):
            block = range(start, min(start + BLOCK, pairs))
            rows = [name_of(k) for k in block], [caption_of(k) for k in block]
            table.writelines(f'{name},"{caption}"\n' for name, caption in zip(*rows, strict=True))
            parquet.write_table(pa.table(dict(zip(schema.names, rows, strict=True)), schema))


@contextmanager
def stage(what: str) -> Iterator[Callable[[int], None]]:
    """Print one line: what, seconds, by how much memory grew at the peak, and by how much in the end without maps."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    resident, own, start = mib("VmRSS"), mib("RssAnon"), time.perf_counter()
    yield lambda count: print(end=f"{count}\t")
    print(what, time.perf_counter() - start, mib("VmHWM") - resident, mib("RssAnon") - own, sep="\t", flush=True)


def mib(what: str) -> float:
    """Return MiB of this process: `VmRSS` resident, `VmHWM` its peak, `RssAnon` what no file stands behind (maps can be dropped)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0]) / 1024


def measure(how: str, root: Path) -> None:
    """Measure the stages of one process: `csv`, `parquet` (listing and saving), or `load` and the epoch."""
    from sogclr.data.pairs import Pairs
    from sogclr.data.sampler import ResumableSampler

    Pairs.scan(small_table(root), check=False)  # imports and first use
    manifest, folder = root / "manifest.parquet", root / "saved"
    if how == "load":
        with stage("load") as counted:
            pairs = Pairs.load(manifest, folder)
            counted(len(pairs))
        with stage("epoch") as counted:
            sampler = ResumableSampler(pairs.usable, BATCH, seed=0)
            request = next(iter(sampler))
            counted(len(pairs))
        with stage("batch") as counted:
            texts = pairs.texts_of(pairs.second_ids[request.ids])
            names = [pairs.relative(k) for k in request.ids]
            counted(len(pairs) if len(texts) == len(names) == BATCH else 0)
        return
    with stage(f"scan {how}") as counted:
        pairs = Pairs.scan(root / f"pairs.{how}", check=False)
        counted(len(pairs))
    with stage(f"save {how}") as counted:
        pairs.save(manifest, folder)
        counted(len(pairs))


def small_table(root: Path) -> Path:
    path = root / "small.csv"
    path.write_text(f"image,caption\n{name_of(0)},one\n{name_of(1)},two\n")
    return path


LABELS = {
    "scan parquet": "listing, from Parquet: rows, a `stat` of every image, ids, fingerprint",
    "save parquet": "writing the run's copy",
    "scan csv": "listing, from CSV",
    "save csv": "writing the run's copy, again",
    "load": "loading the run's copy, as a resume does: maps, and checks the fingerprint",
    "epoch": "the first epoch's order",
    "batch": f"names and captions of the first batch of {BATCH}",
}


def table(lines: list[list[Any]], pairs: int) -> list[str]:
    out = [
        "| | seconds | µs a pair | peak memory grew by, MiB | of its own afterwards, MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for count, what, seconds, peak, left in lines:
        if int(count) != pairs:
            raise SystemExit(f"{what} found {count} pairs of {pairs}")
        out.append(
            f"| {LABELS[what]} | {float(seconds):.2f} | {float(seconds) / pairs * 1e6:.2f} | {float(peak):.0f} | {float(left):.0f} |"
        )
    return out


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--tables", nargs="+", choices=("parquet", "csv"), default=("parquet", "csv"))
    parser.add_argument("--measure", nargs=2, metavar=("HOW", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    n, lines, load = options.pairs, [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="listing-pairs-") as name:
        print(f"making {n:,} files ...", flush=True)
        make(Path(name), n)
        write_tables(Path(name), n)
        for how in (*options.tables, "load"):
            command = [sys.executable, "-m", "benchmarks.listing_pairs", "--measure", how, name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(output, flush=True)
            lines += [line.split("\t") for line in output.splitlines()]
        sizes = [(Path(name) / f).stat().st_size / 2**20 for f in ("pairs.csv", "pairs.parquet")]
        saved = sum(p.stat().st_size for p in (Path(name) / "saved").iterdir()) / 2**20
    text = (
        f"# Listing {n:,} image-caption pairs\n\n"
        f"`python -m benchmarks.listing_pairs --pairs {n} --tables {' '.join(options.tables)}` on {os.cpu_count()} CPU cores; every pair has an image and a caption "
        f"of its own. The tables are {sizes[0]:,.0f} MiB as CSV and {sizes[1]:,.0f} MiB as Parquet; the folders are warm in the "
        f"file system's cache; headers are not read. The load average before the run was {load:.1f}: seconds are of a machine "
        "shared with other programs as far as that is above 0.\n\n" + "\n".join(table(lines, n)) + "\n\n"
        f"Rows become columns of Arrow as they are read, {BLOCK:,} at a time; no list of all names or captions is ever "
        "made. Equal ones are found by sorting, one column after the other: at the peak the captions are there twice, as they came "
        "and sorted. The "
        f"run's copy ({saved:,.0f} MiB of images, pairs and captions beside the images' manifest in Parquet) is mapped into "
        "memory, not read; taking its fingerprints touches all of it once. "
        "The last column is memory that no file stands behind: the rest can be dropped and read again.\n"
    )
    pages.write_page("listing_pairs.md", text)


if __name__ == "__main__":
    main()
