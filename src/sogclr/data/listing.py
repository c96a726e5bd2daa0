"""The image files of a folder or a list file, as columns: a million of them without a million Python objects."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadImage, BadInput
from .images import EMPTY, IMAGE_SUFFIXES

_FLUSH_EVERY = 1 << 16
_SUFFIXES_SHOWN = "JPEG, PNG, WebP, BMP, GIF, TIFF: " + " ".join(sorted(IMAGE_SUFFIXES))


@dataclass
class Listing:
    """Files in the order of their relative posix paths (by code point)."""

    relative: pa.LargeStringArray
    sizes: np.ndarray
    """int64 bytes."""
    mtimes: np.ndarray
    """int64 nanoseconds."""
    bad: dict[int, str] = field(default_factory=dict)
    """Row -> why it cannot be used, as far as the listing shows."""
    offsets: np.ndarray | None = None
    """int64: where each file begins in its tar shard, whose path is the part of `relative` up to `.tar`; None for plain files."""

    def file(self, root: Path, row: int) -> str | BinaryIO:
        """Where a file's bytes are."""
        return file_at(root, self.relative[row].as_py(), self.offsets, self.sizes, row)


def file_at(root: Path, relative: str, offsets: np.ndarray | None, sizes: np.ndarray, row: int) -> str | BinaryIO:
    """The path of a plain file, as text, since making a `Path` shows where images are small; the bytes of a member of a tar shard.

    Raises:
        BadImage: the shard is gone.
    """
    if offsets is None:
        return os.path.join(root, relative)
    shard = root / (relative[: relative.index(".tar/")] + ".tar")
    try:
        with open(shard, "rb") as file:
            file.seek(int(offsets[row]))
            return io.BytesIO(file.read(int(sizes[row])))
    except OSError:
        raise BadImage(f"its shard {shard.name} cannot be read") from None


def text_bytes(column: pa.LargeStringArray) -> memoryview:
    """The UTF-8 text of a column without nulls, end to end, where it lies: nothing becomes a Python object."""
    if not len(column):
        return memoryview(b"")
    _, offsets, text = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset :]
    return memoryview(text or b"")[bounds[0] : bounds[len(column)]]


class Columns:
    """Rows gathered a block at a time; only the current block is made of Python objects."""

    def __init__(self) -> None:
        self._blocks: list[pa.LargeStringArray] = []
        self._sizes: list[np.ndarray] = []
        self._mtimes: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        self._block: tuple[list[str], list[int], list[int], list[int]] = ([], [], [], [])
        self._bad: dict[str, str] = {}

    def add(self, relative: str, size: int, mtime: int, reason: str | None = None, offset: int = -1) -> None:
        names, sizes, mtimes, offsets = self._block
        if reason is None and size == 0:
            reason = EMPTY
        if not relative.isascii():
            shown = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if shown != relative:
                relative, reason = shown, "has a name that is not UTF-8; rename it"
        if reason is not None:
            self._bad[relative] = reason
        names.append(relative)
        sizes.append(size)
        mtimes.append(mtime)
        offsets.append(offset)
        if len(names) >= _FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        names, sizes, mtimes, offsets = self._block
        self._blocks.append(pa.array(names, type=pa.large_string()))
        self._sizes.append(np.array(sizes, dtype=np.int64))
        self._mtimes.append(np.array(mtimes, dtype=np.int64))
        self._offsets.append(np.array(offsets, dtype=np.int64))
        for column in self._block:
            column.clear()

    def sorted(self) -> Listing:
        self._flush()
        names = pa.chunked_array(self._blocks)
        self._blocks.clear()
        order = pc.sort_indices(names)
        relative = names.take(order).combine_chunks()
        if isinstance(relative, pa.ChunkedArray):
            relative = pa.concat_arrays(relative.chunks)
        rows = order.to_numpy()
        sizes, mtimes = np.concatenate(self._sizes)[rows], np.concatenate(self._mtimes)[rows]
        bad = {}
        if self._bad:
            where = pc.index_in(pa.array(list(self._bad), type=pa.large_string()), value_set=relative).to_pylist()
            bad = dict(sorted(zip(where, self._bad.values(), strict=True)))
        offsets = np.concatenate(self._offsets)[rows]
        return Listing(relative, sizes, mtimes, bad, offsets if (offsets >= 0).any() else None)


# -------------------------------------------------------------------------------------------------------------- folder
def list_folder(root: Path) -> Listing:
    """Every file below `root` with an image's suffix; hidden ones and `__MACOSX` are left out.

    Linked folders are followed, and each real folder is listed once (under its own name if it has one below `root`),
    so that loops end and no image is its own negative.

    Raises:
        BadInput: no image there, or a folder that may not be read.
    """
    columns, others, found = Columns(), 0, False
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        if not folders:  # links wait until every real folder has been listed under its own name
            links.sort(reverse=True)
            folders.append(links.pop())
        folder = folders.pop()
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        prefix, inside = f"{folder}/" if folder else "", list[str]()
        for entry in _entries(root, folder):
            name = entry.name
            if name[0] == ".":
                continue
            if _is_folder(entry):
                if name != "__MACOSX":
                    (links if entry.is_symlink() else inside).append(prefix + name)
            elif name[name.rfind(".") :].lower() in IMAGE_SUFFIXES:
                columns.add(prefix + name, *_examine(entry))
                found = True
            else:
                others += 1
        folders.extend(sorted(inside, reverse=True))
    if not found:
        seen_others = f"; {others:,} other file{'s were' if others != 1 else ' was'} seen" if others else ""
        raise BadInput(f"{root} holds no images ({_SUFFIXES_SHOWN}){seen_others}; give a folder with image files")
    return columns.sorted()


def _entries(root: Path, folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(root / folder) as entries:
            yield from entries
    except PermissionError:
        raise BadInput(
            f"folder {root / folder} may not be read (permission denied); allow it or leave it out"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _examine(entry: os.DirEntry[str]) -> tuple[int, int, str | None]:
    """Size in bytes, modification time in ns, and why the entry cannot be read, if so."""
    try:
        status = entry.stat()
    except OSError:
        return -1, 0, "is a broken link" if entry.is_symlink() else "no longer exists"
    if not stat.S_ISREG(status.st_mode):
        return -1, 0, "is no regular file"
    return status.st_size, status.st_mtime_ns, None


# ----------------------------------------------------------------------------------------------------------- list file
def list_file(path: Path) -> Listing:
    """The files named in a text file: one path a line, relative to its folder or absolute; # starts a comment line.

    Raises:
        BadInput: not UTF-8 text, no paths, missing or repeated files.
    """
    columns, missing, root = Columns(), [], str(path.parent)
    count = 0
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for line in lines:
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                count += 1
                relative = relative_to(text, root)
                try:
                    status = os.stat(os.path.join(root, relative))
                except (OSError, ValueError):
                    missing.append(text)
                    continue
                regular = stat.S_ISREG(status.st_mode)
                columns.add(relative, status.st_size, status.st_mtime_ns, None if regular else "is no regular file")
    except UnicodeDecodeError:
        raise BadInput(f"{path} is no UTF-8 text; give a list file with one path a line") from None
    if not count:
        raise BadInput(f"{path} names no files; give one path a line, relative to {root} or absolute")
    if missing:
        raise BadInput(
            f"{len(missing):,} of the {count:,} files named in {path} do not exist (first: {first_few(missing)}); "
            f"restore them or take them off the list"
        )
    listing = columns.sorted()
    counts = pc.value_counts(listing.relative)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise BadInput(
            f"{path} names {len(repeated):,} files more than once (first: {first_few(repeated[:3].to_pylist())}); "
            f"name each once"
        )
    return listing


def relative_to(text: str, root: str) -> str:
    """The path as stored: relative to the list's folder where it lies below it, else as given, normalised."""
    if not os.path.isabs(text):
        return os.path.normpath(text)
    inside = os.path.relpath(text, root)
    return os.path.normpath(text) if inside.startswith("..") else inside


def first_few(names: list[str], most: int = 3) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
