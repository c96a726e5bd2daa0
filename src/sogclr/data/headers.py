"""Header checks of many image files, remembered in the user's cache folder by path, size and modification time."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import BadImage
from ..files import atomic_write, cache_folder, read_sealed, seal
from ..progress import ProgressCallback
from .images import NOT_NOW, may_pass, name_mismatch, read_header, warnings_off
from .listing import Listing
from .paths import AnyPath, identity
from .remote import CONNECTIONS, RemotePath

_VERSION = b"sogclr-headers-1"
_SCHEMA = pa.schema(
    [
        ("relative", pa.large_string()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bad", pa.string()),
        ("note", pa.string()),
    ]
)
_AT_A_TIME = 256
_Found = tuple[int, int, int, str | None, str | None]  # row, width, height, bad, note


@dataclass
class Checked:
    """What the headers say, aligned with a listing; width 0 where a file was not checked or is bad."""

    widths: np.ndarray
    heights: np.ndarray
    bad: dict[int, str]
    notes: dict[int, str]


def check_headers(
    root: AnyPath,
    listing: Listing,
    *,
    at_most: int | None = None,
    cache: bool = True,
    progress: ProgressCallback | None = None,
) -> Checked:
    """Read the header of every listed file that the cache does not know; none of them when they are more than `at_most`.

    Args:
        root: the folder that the listing is relative to.
        listing: the files.
        at_most: how many; None sets no limit.
        cache: whether to use and keep the header cache.
        progress: called with (files done, files to do).
    """
    n = len(listing.relative)
    checked = Checked(np.zeros(n, np.int32), np.zeros(n, np.int32), dict(listing.bad), {})
    known = _fill_from_cache(_cache_file(root), listing, checked) if cache else np.zeros(n, bool)
    known[list(listing.bad)] = True  # no need to open what the listing has ruled out
    todo = np.flatnonzero(~known)
    if at_most is not None and len(todo) > at_most:
        return checked
    if len(todo):
        _read(root, listing, todo, checked, progress)
        if cache:
            _write_cache(_cache_file(root), listing, checked)
    checked.bad = dict(sorted(checked.bad.items()))
    checked.notes = dict(sorted(checked.notes.items()))
    return checked


def _read(
    root: AnyPath,
    listing: Listing,
    todo: np.ndarray,
    checked: Checked,
    progress: ProgressCallback | None,
) -> None:
    def examine(rows: np.ndarray) -> list[_Found]:
        found: list[_Found] = []
        for row, relative in zip(rows.tolist(), listing.relative.take(pa.array(rows)).to_pylist(), strict=True):
            try:
                header = read_header(listing.head(root, row))
            except BadImage as error:
                passing = str(error).startswith(NOT_NOW)  # not proven bad: it is read when its turn comes
                note = f"{error} and is tried again when its turn comes" if passing else None
                found.append((row, 0, 0, None if passing else str(error), note))
            else:
                note = name_mismatch(header.format, relative)
                found.append((row, header.width, header.height, None, note))
        return found

    done, remote = 0, isinstance(root, RemotePath)
    at_a_time, threads = (16, CONNECTIONS) if remote else (_AT_A_TIME, 8)
    blocks = np.split(todo, range(at_a_time, len(todo), at_a_time))
    with warnings_off, ThreadPoolExecutor(min(threads, len(todo))) as pool:
        for found in pool.map(examine, blocks) if remote else _mapped(pool, examine, blocks):
            for row, width, height, bad, note in found:
                checked.widths[row], checked.heights[row] = width, height
                if bad is not None:
                    checked.bad[row] = bad
                if note is not None:
                    checked.notes[row] = note
            done += len(found)
            if progress is not None:
                progress(done, len(todo))


def _mapped(
    pool: ThreadPoolExecutor, examine: Callable[[np.ndarray], list[_Found]], blocks: list[np.ndarray]
) -> Iterator[list[_Found]]:
    """Yield `examine` of each block in order, in threads only where the first one mostly waited for the disk.

    Parsing is Python and takes turns: on a warm disk eight threads were five times slower than one.
    """
    wall, busy = time.perf_counter(), time.thread_time()
    yield examine(blocks[0])
    waiting = time.thread_time() - busy < 0.3 * (time.perf_counter() - wall)
    yield from (pool.map if waiting else map)(examine, blocks[1:])


# ---- cache
def _cache_file(root: AnyPath) -> Path:
    name = hashlib.sha256(identity(root)).hexdigest()[:32]
    return cache_folder() / "headers" / f"{name}.parquet"


def _fill_from_cache(path: Path, listing: Listing, checked: Checked) -> np.ndarray:
    """Fill in what is known and unchanged, and return which rows, bool (n,); a cache that cannot be read counts as empty."""
    known = np.zeros(len(listing.relative), bool)
    try:
        table = pq.read_table(pa.BufferReader(read_sealed(path)))
        if (table.schema.metadata or {}).get(b"format") != _VERSION or not table.schema.equals(_SCHEMA):
            return known
        table = table.combine_chunks()
    except (OSError, ValueError, pa.ArrowException):
        return known
    where = pc.index_in(listing.relative, value_set=table["relative"])
    rows = np.flatnonzero(where.is_valid().to_numpy(zero_copy_only=False))
    there = where.drop_null().to_numpy()
    same_size = table["size"].to_numpy()[there] == listing.sizes[rows]
    same = same_size & (table["mtime"].to_numpy()[there] == listing.mtimes[rows])
    rows, there = rows[same], there[same]
    known[rows] = True
    checked.widths[rows] = table["width"].to_numpy()[there]
    checked.heights[rows] = table["height"].to_numpy()[there]
    for name, kept in (("bad", checked.bad), ("note", checked.notes)):
        texts = table[name].take(pa.array(there))
        for k in np.flatnonzero(texts.is_valid().to_numpy()).tolist():
            kept[int(rows[k])] = texts[k].as_py()
    return known


def _write_cache(path: Path, listing: Listing, checked: Checked) -> None:
    """Write what is known, if that is possible; otherwise the next scan takes more time, and nothing else is lost."""
    n = len(listing.relative)
    # Only what the bytes themselves prove is kept: a broken link, a right or a disk may be mended without a new size or date.
    proven = checked.widths > 0
    proven[[row for row, reason in checked.bad.items() if row not in listing.bad and not may_pass(reason)]] = True
    keep = np.flatnonzero(proven)
    columns = [
        listing.relative,
        pa.array(listing.sizes),
        pa.array(listing.mtimes),
        pa.array(checked.widths),
        pa.array(checked.heights),
        sparse_text(checked.bad, n),
        sparse_text(checked.notes, n),
    ]
    table = pa.table(columns, schema=_SCHEMA.with_metadata({b"format": _VERSION})).take(pa.array(keep))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            pq.write_table(table, temporary)
            seal(temporary)


def sparse_text(texts: dict[int, str], n: int) -> pa.StringArray:
    """Return a column of n rows that is null but for the given ones."""
    rows = np.full(n, -1, dtype=np.int64)
    rows[list(texts)] = np.arange(len(texts))
    picks = pa.array(rows, mask=rows < 0)
    return pa.array(list(texts.values()), type=pa.string()).take(picks)
