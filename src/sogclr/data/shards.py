"""Files that hold many images: where each image lies in them and what its caption or class is, read once and remembered.

Tar shards in the WebDataset layout: the files of one sample share a key, the name up to its first dot: `000042.jpg`,
`000042.txt` (or `.json`, with a caption under a usual name), `000042.cls`. Only headers and texts are read; an image is read
from its shard when its turn comes, at its offset. Of Parquet and Arrow files see `table_images`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from ..errors import BadInput
from ..files import atomic_write, cache_folder, read_sealed, seal
from ..progress import ProgressCallback
from .images import IMAGE_SUFFIXES, NOT_NOW, may_pass
from .listing import Listing, ListingBuilder, relative_to
from .pair_columns import CAPTION_COLUMNS
from .paths import TABLE_SUFFIXES, AnyPath, as_path, identity, is_unpacked, status_of, unpacked_file
from .remote import RemotePath
from .table_images import has_captions, has_images, unpack
from .tables import PairRows

_FORMAT = b"sogclr-shard-2"
_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("name", pa.large_string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("captions", pa.large_list(pa.large_string())),
        ("label", pa.large_string()),
        ("bad", pa.large_string()),
    ]
)
_NO_CAPTION, _NO_TEXT = "has no caption", "that is not UTF-8"
_CAPTION_BYTES = 1 << 20  # a longer text file is no caption


@dataclass
class _Sample:
    name: str | None = None
    offset: int = -1
    size: int = 0
    captions: list[str] | None = None
    label: str | None = None
    bad: str | None = None
    """Why its caption cannot be used."""


def samples_in(data: AnyPath) -> Literal["pairs", "images"] | None:
    """Return what the samples of DATA are, if it is shards: a file, a pattern, or a folder that holds some; else None."""
    tar = data.suffix.lower() == ".tar"
    shards = find_shards(data) if tar or data.suffix in TABLE_SUFFIXES or data.is_dir() else []
    if not shards:
        return "pairs" if tar else None  # pairs say what is missing
    if shards[0].suffix in TABLE_SUFFIXES:
        return "pairs" if has_captions(shards[0]) else "images"
    rows = _index(shards[0]).to_pylist()
    texts = any(row["captions"] or _NO_TEXT in (row["bad"] or "") for row in rows)
    return "images" if any(row["name"] for row in rows) and not texts else "pairs"


def find_shards(data: str | os.PathLike[str]) -> list[AnyPath]:
    """Return the files that DATA means, sorted: one, those of a folder, or of a pattern as `shards/{000..099}.tar`.

    Of a folder the .tar files; else the Arrow files of a data set that was saved there; else Parquet files with images.

    Raises:
        BadInput: a folder's Parquet files are the parts of a data set, for training and others.
    """
    place, found = as_path(data), list[AnyPath]()
    if place.is_dir():
        found = _inside(place)
    elif place.suffix in (".tar", *TABLE_SUFFIXES) and place.is_file():
        found = [place]
    elif isinstance(place, RemotePath):
        found = [path for pattern in _braces(str(place)) for path in RemotePath(pattern).glob()]
    else:
        found = [Path(name) for pattern in _braces(str(place)) for name in glob.glob(pattern)]
    found = sorted({path for path in found if isinstance(path, RemotePath) or path.is_file()}, key=str)
    if not found or found[0].suffix not in TABLE_SUFFIXES:
        return found
    if not has_images(found[0]):
        return []
    parts = sorted({path.name.partition("-")[0] for path in found if "-of-" in path.name})
    if len(parts) > 1:
        raise BadInput(
            f"{data} holds the parts {', '.join(parts)} of a data set; give the files of one: '{found[0].parent}/"
            f"{parts[-1]}-*{found[0].suffix}'"
        )
    return found


def _inside(folder: AnyPath) -> list[AnyPath]:
    names = [path.name for path in folder.iterdir()]
    if any(name.endswith(".tar") for name in names):
        pattern = "*.tar"
    elif "state.json" in names or "dataset_dict.json" in names:
        pattern = "data-*.arrow"
    else:
        return [folder / name for name in names if name.endswith(".parquet")]
    if not isinstance(folder, RemotePath):
        return [*folder.rglob(pattern)]
    return [folder / name for name in folder.find() if fnmatch(name.rpartition("/")[2], pattern)]


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


def read_shards(
    shards: list[AnyPath], root: AnyPath, progress: ProgressCallback | None = None
) -> tuple[Listing, PairRows]:
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
        relative = relative_to(str(shard), str(root))
        mtime = status_of(shard).version
        for sample in _index(shard).to_pylist():
            if sample["name"] is None:
                rows.rejected.append((f"{relative}/{sample['key']}", sample["bad"] or "has no image"))
                continue
            name = f"{relative}/{sample['name']}"
            listing.add(name, sample["size"], mtime, offset=sample["offset"], label=sample["label"])
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


def list_shards(shards: list[AnyPath], root: AnyPath) -> Listing:
    """List the images of all shards, as `read_shards`, whether or not they have captions.

    Raises:
        BadInput: no image in any of them.
    """
    listing = ListingBuilder()
    for shard in shards:
        relative, mtime = relative_to(str(shard), str(root)), status_of(shard).version
        for sample in _index(shard).to_pylist():
            bad = None if sample["bad"] == _NO_CAPTION else sample["bad"]
            if sample["name"] is not None or bad is not None:
                name = f"{relative}/{sample['name'] or sample['key']}"
                listing.add(name, sample["size"], mtime, bad, max(0, sample["offset"]), sample["label"])
    if not len(listing):
        raise BadInput(f"{len(shards)} files in {root} hold no images; give shards with 000000.jpg, 000001.jpg, ...")
    return listing.sorted()


# ------------------------------------------------------------------------------------------------------------ one shard
def _index(shard: AnyPath) -> pa.Table:
    """Return one row a sample: from the cache, if the shard has the size and the time it had."""
    status = status_of(shard)
    about = identity(shard) + f"\0{status.size}\0{status.version}".encode()
    path = cache_folder() / "shards" / f"{hashlib.sha256(about).hexdigest()[:32]}.arrow"
    with contextlib.suppress(OSError, ValueError, pa.ArrowException):
        table = pa.ipc.open_file(pa.BufferReader(read_sealed(path))).read_all()
        whole = shard.suffix not in TABLE_SUFFIXES or is_unpacked(unpacked_file(shard, status.version))
        if whole and (table.schema.metadata or {}).get(b"format") == _FORMAT:
            return table
    rows = unpack(shard) if shard.suffix in TABLE_SUFFIXES else _read(shard, status.size)
    table = pa.Table.from_pylist([*rows], schema=_SCHEMA.with_metadata({b"format": _FORMAT}))
    if any(may_pass(reason) for reason in table["bad"].drop_null().to_pylist()):
        return table
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            with pa.ipc.new_file(str(temporary), table.schema) as writer:
                writer.write_table(table)
            seal(temporary)
    return table


def _read(shard: AnyPath, size: int) -> Iterator[dict[str, Any]]:
    samples: dict[str, _Sample] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    _take(samples, tar, member, size)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
        passing = isinstance(error, OSError) and error.errno is not None
        what = NOT_NOW if passing else "the shard is damaged"
        samples[""] = _Sample(bad=f"{what} after {len(samples):,} samples ({error})")
    # a shard that was cut off lists its last member, whose bytes are not all there
    for key, sample in samples.items():
        bad = sample.bad
        if sample.name is not None and sample.offset + sample.size > size:
            bad = "is truncated with its shard"
        elif sample.name is not None and bad is None and not sample.captions:
            bad = _NO_CAPTION
        yield {"key": key, **vars(sample), "bad": bad}


def _take(samples: dict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> None:
    whole = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    folder, _, name = whole.rpartition("/")
    stem, _, suffix = name.partition(".")
    if not stem:
        return  # a hidden file
    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
    suffix = suffix.lower()
    if f".{suffix}" in IMAGE_SUFFIXES:
        sample.name, sample.offset, sample.size = whole, member.offset_data, min(max(member.size, 0), most)
    elif suffix == "cls" and member.size <= _CAPTION_BYTES:
        file = tar.extractfile(member)
        sample.label = file.read().decode("utf-8", "replace").strip() if file else None
    elif suffix in ("txt", "text", "caption", "json") and member.size <= _CAPTION_BYTES:
        file = tar.extractfile(member)
        try:
            found = _captions(file.read().decode("utf-8-sig") if file else "", suffix)
        except (ValueError, RecursionError):
            sample.bad = f"has a .{suffix} {_NO_TEXT}" + (" JSON" if suffix == "json" else "")
            return
        sample.captions = [*(sample.captions or []), *found]


def _captions(text: str, suffix: str) -> list[str]:
    """Return the captions in a text file, or in one of JSON, which may hold halves of characters."""
    if suffix != "json":
        return [text.strip()]
    entry = json.loads(text)
    value: Any = next((entry[name] for name in CAPTION_COLUMNS if name in entry), []) if isinstance(entry, dict) else []
    return [str(v).encode("utf-8", "replace").decode() for v in (value if isinstance(value, list) else [value])]
