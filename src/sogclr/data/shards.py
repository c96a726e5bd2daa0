"""Tar shards in the WebDataset layout: where each image lies in them and what its caption is, read once and remembered.

The files of one sample share a key, the name up to its first dot: `000042.jpg`, `000042.txt` (or `.json`, with a caption
under a usual name). Only headers and captions are read; an image is read from its shard when its turn comes, at its offset.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import BadInput
from ..files import atomic_write, cache_folder
from ..progress import ProgressCallback
from .images import IMAGE_SUFFIXES
from .listing import Listing, ListingBuilder
from .pair_columns import CAPTION_COLUMNS
from .tables import PairRows

_FORMAT = b"sogclr-shard-1"
_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("name", pa.large_string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("captions", pa.large_list(pa.large_string())),
        ("bad", pa.large_string()),
    ]
)
_CAPTION_BYTES = 1 << 20  # a longer text file is no caption


@dataclass
class _Sample:
    name: str | None = None
    offset: int = -1
    size: int = 0
    captions: list[str] | None = None
    bad: str | None = None
    """Why its caption cannot be used."""


def is_shards(path: Path) -> bool:
    """Return whether DATA is tar shards: a .tar file, a pattern of them, or a folder that holds some."""
    if path.suffix.lower() == ".tar":
        return True
    return path.is_dir() and any(p.suffix == ".tar" for p in path.iterdir())


def find_shards(data: str) -> list[Path]:
    """Return the .tar files that DATA means, sorted: one, those of a folder, or of a pattern as `shards/{000..099}.tar`."""
    place = Path(data)
    if place.is_dir():
        return sorted(p for p in place.rglob("*.tar") if p.is_file())
    if place.suffix == ".tar" and place.is_file():
        return [place]
    found = [Path(name) for pattern in _braces(data) for name in glob.glob(pattern)]
    return sorted(set(found))


def _braces(pattern: str) -> list[str]:
    """Return a00b, ..., a12b for `a{00..12}b`, as a shell does."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    return [
        p for k in numbers for p in _braces(pattern[: match.start()] + f"{k:0{len(first)}d}" + pattern[match.end() :])
    ]


def read_shards(shards: list[Path], root: Path, progress: ProgressCallback | None = None) -> tuple[Listing, PairRows]:
    """List the images of all shards, as `shard.tar/key.jpg` relative to `root`, and their captions.

    Args:
        shards: .tar files below `root`.
        root: a folder.
        progress: called with (shards read, shards to read).

    Returns:
        The images, and rows of (such a name, caption). An image without a caption has no row.

    Raises:
        BadInput: no image in any of them.
    """
    listing, rows = ListingBuilder(), PairRows()
    for number, shard in enumerate(shards, 1):
        relative = os.path.relpath(shard, root)
        mtime = os.stat(shard).st_mtime_ns
        for sample in _index(shard).to_pylist():
            if sample["name"] is None:
                rows.rejected.append((f"{relative}/{sample['key']}", sample["bad"] or "has no image"))
                continue
            name = f"{relative}/{sample['name']}"
            listing.add(name, sample["size"], mtime, offset=sample["offset"])
            if sample["bad"]:
                rows.rejected.append((name, sample["bad"]))
            else:
                rows.add(name, name, sample["captions"])
        if progress is not None:
            progress(number, len(shards))
    if not len(listing):
        raise BadInput(
            f"{len(shards)} tar shards in {root} hold no images; give shards with 000000.jpg, 000000.txt, ..."
        )
    return listing.sorted(), rows


# ------------------------------------------------------------------------------------------------------------ one shard
def _index(shard: Path) -> pa.Table:
    """Return one row a sample: from the cache, if the shard has the size and the time it had."""
    status = os.stat(shard)
    about = f"{os.path.realpath(shard)}\0{status.st_size}\0{status.st_mtime_ns}"
    path = cache_folder() / "shards" / f"{hashlib.sha256(os.fsencode(about)).hexdigest()[:32]}.arrow"
    with contextlib.suppress(OSError, pa.ArrowException), pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        if (table.schema.metadata or {}).get(b"format") == _FORMAT:
            return table
    table = _read(shard)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)
    return table


def _read(shard: Path) -> pa.Table:
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isfile():
                    _take(samples, tar, member)
    except (tarfile.TarError, EOFError, OSError) as error:
        samples[""] = _Sample(bad=f"the shard is damaged after {len(samples):,} samples ({error})")
    # a shard that was cut off lists its last member, whose bytes are not all there
    end = os.path.getsize(shard)
    rows: list[dict[str, Any]] = []
    for key, sample in samples.items():
        bad = sample.bad
        if sample.name is not None and sample.offset + sample.size > end:
            bad = "is truncated with its shard"
        elif sample.name is not None and bad is None and not sample.captions:
            bad = "has no caption"
        rows.append({"key": key, **vars(sample), "bad": bad})
    return pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({b"format": _FORMAT}))


def _take(samples: dict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    if not stem:
        return  # a hidden file
    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
    suffix = suffix.lower()
    if f".{suffix}" in IMAGE_SUFFIXES:
        sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size
    elif suffix in ("txt", "text", "caption", "json") and member.size <= _CAPTION_BYTES:
        file = tar.extractfile(member)
        try:
            found = _captions(file.read().decode("utf-8-sig") if file else "", suffix)
        except (UnicodeDecodeError, ValueError):
            sample.bad = f"has a .{suffix} that is not UTF-8" + (" JSON" if suffix == "json" else "")
            return
        sample.captions = [*(sample.captions or []), *found]


def _captions(text: str, suffix: str) -> list[str]:
    if suffix != "json":
        return [text.strip()]
    entry = json.loads(text)
    value: Any = next((entry[name] for name in CAPTION_COLUMNS if name in entry), []) if isinstance(entry, dict) else []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]
