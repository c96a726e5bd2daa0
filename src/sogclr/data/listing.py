"""The image files of a folder or a list file, as columns: a million of them without a million Python objects."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from .images import EMPTY, IMAGE_SUFFIXES
from .paths import MISSING, AnyPath, file_at, place_of, refusal, relative_url, statuses
from .remote import RemotePath, Status, is_url
from .text_columns import BLOCK, TextColumn

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
    """int64: where each file begins in its tar shard; None for plain files."""

    labels: pa.LargeStringArray | None = None
    """Classes that shards name, empty where they do not; None for plain files."""

    def head(self, root: AnyPath, row: int) -> str | BinaryIO:
        """Return where a file's bytes are; a remote one is read as far as it is asked for."""
        relative: str = self.relative[row].as_py()
        place, start = place_of(root, relative, self.offsets, self.mtimes, row)
        if isinstance(place, RemotePath):
            return place.window(start, int(self.sizes[row]))
        return file_at(root, relative, self.offsets, self.sizes, self.mtimes, row)


class ListingBuilder:
    """A listing that grows file by file, in any order, in little more memory than the names and numbers take."""

    def __init__(self) -> None:
        self._relative = TextColumn()
        self._sizes, self._mtimes, self._offsets = array("q"), array("q"), array("q")
        self._bad: dict[str, str] = {}
        self._labels = TextColumn()

    def __len__(self) -> int:
        return len(self._sizes)

    def add(
        self,
        relative: str,
        size: int,
        mtime: int,
        reason: str | None = None,
        offset: int = -1,
        label: str | None = None,
    ) -> None:
        """Add a file.

        Args:
            relative: its posix path.
            size: bytes; -1 where unknown.
            mtime: modification time, ns.
            reason: why it cannot be used, if so.
            offset: where it begins in its shard; -1 for a plain file.
            label: its class, where its shard names one.
        """
        if reason is None and size == 0:
            reason = EMPTY
        if not relative.isascii():
            shown = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if shown != relative:
                relative, reason = shown, "has a name that is not UTF-8; rename it"
        if reason is not None:
            self._bad[relative] = reason
        self._relative.append(relative)
        self._sizes.append(size)
        self._mtimes.append(mtime)
        self._offsets.append(offset)
        self._labels.append(label or "")

    def sorted(self) -> Listing:
        """Return all files in the order of their paths; nothing may be added any more."""
        names = pa.chunked_array(self._relative.blocks())
        del self._relative
        order = pc.sort_indices(names)
        relative = names.take(order).combine_chunks()
        if isinstance(relative, pa.ChunkedArray):
            relative = pa.concat_arrays(relative.chunks)
        rows = order.to_numpy()
        sizes, mtimes, offsets = (
            np.frombuffer(column, np.int64)[rows] for column in (self._sizes, self._mtimes, self._offsets)
        )
        bad = {}
        if self._bad:
            where = pc.index_in(pa.array(list(self._bad), type=pa.large_string()), value_set=relative).to_pylist()
            bad = dict(sorted(zip(where, self._bad.values(), strict=True)))
        labels = pa.chunked_array(self._labels.blocks()).take(order).combine_chunks()
        named = bool(pc.any(pc.greater(pc.binary_length(labels), 0)).as_py())
        return Listing(
            relative, sizes, mtimes, bad, offsets if (offsets >= 0).any() else None, labels if named else None
        )


# -------------------------------------------------------------------------------------------------------------- folder
def list_folder(root: AnyPath) -> Listing:
    """List every file below `root` with an image's suffix; hidden ones and `__MACOSX` are left out.

    Linked folders are followed, and each real folder is listed once (under its own name if it has one below `root`),
    so that loops end and no image is its own negative.

    Raises:
        BadInput: no image there, or a folder that may not be read.
    """
    listing = ListingBuilder()
    others = _add_remote(listing, root) if isinstance(root, RemotePath) else _add_folders(listing, root)
    if not len(listing):
        seen = f"; {others:,} other file{'s were' if others != 1 else ' was'} seen" if others else ""
        raise BadInput(f"{root} holds no images ({_SUFFIXES_SHOWN}){seen}; give a folder with image files")
    return listing.sorted()


def _add_remote(listing: ListingBuilder, root: RemotePath) -> int:
    """Add the images below a URL, and return how many other files are there."""
    others = 0
    for relative, status in root.find().items():
        if any(part[:1] == "." or part == "__MACOSX" for part in relative.split("/")):
            continue
        if relative[relative.rfind(".") :].lower() in IMAGE_SUFFIXES:
            listing.add(relative, *status)
        else:
            others += 1
    return others


def _add_folders(listing: ListingBuilder, root: Path) -> int:
    """Add the images below a folder, and return how many other files are there."""
    others = 0
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
                listing.add(prefix + name, *_examine(entry))
            else:
                others += 1
        folders.extend(sorted(inside, reverse=True))
    return others


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
    """Return size in bytes, modification time in ns, and why the entry cannot be read, if so."""
    try:
        status = entry.stat()
    except OSError:
        return -1, 0, "is a broken link" if entry.is_symlink() else "no longer exists"
    if not stat.S_ISREG(status.st_mode):
        return -1, 0, "is no regular file"
    return status.st_size, status.st_mtime_ns, None


# ------------------------------------------------------------------------------------------------- list file or column
def list_file(path: AnyPath) -> Listing:
    """List the files that a text file names: one path a line, relative to its folder or absolute; # starts a comment line.

    Raises:
        BadInput: not UTF-8 text, no paths, missing or repeated files.
    """
    root, texts = path.parent, list[str]()
    if not path.is_file():
        raise BadInput(f"{path} is no regular file; give a folder of images, or a .txt file with one path a line")
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                text = line.strip()
                if text and not text.startswith("#"):
                    texts.append(text)
    except UnicodeDecodeError:
        raise BadInput(f"{path} is no UTF-8 text; give a list file with one path a line") from None
    if not texts:
        raise BadInput(f"{path} names no files; give one path a line, relative to {root} or absolute")
    builder, missing = ListingBuilder(), list[str]()
    names = [relative_to(text, str(root)) for text in texts]
    for text, relative, found in zip(texts, names, _examine_all(names, root), strict=True):
        if found == MISSING:
            missing.append(text)
        elif isinstance(found, str):
            builder.add(relative, -1, 0, found)
        else:
            builder.add(relative, *found)
    if missing:
        raise BadInput(
            f"{len(missing):,} of the {len(texts):,} files named in {path} do not exist (first: {first_few(missing)}); "
            f"restore them or take them off the list"
        )
    listing = builder.sorted()
    counts = pc.value_counts(listing.relative)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise BadInput(
            f"{path} names {len(repeated):,} files more than once (first: {first_few(repeated[:3].to_pylist())}); "
            f"name each once"
        )
    return listing


def list_paths(names: pa.LargeStringArray, root: AnyPath) -> Listing:
    """List the files of a column of paths, sorted and all different; what cannot be used is listed as bad."""
    sizes, mtimes, bad = np.full(len(names), -1), np.zeros(len(names), np.int64), dict[int, str]()
    block = len(names) if isinstance(root, RemotePath) else BLOCK  # remote folders are listed once
    for start in range(0, len(names), block):
        for row, found in enumerate(_examine_all(names.slice(start, block).to_pylist(), root), start):
            if isinstance(found, str):
                bad[row] = found
                continue
            sizes[row], mtimes[row] = found
            if not found.size:
                bad[row] = EMPTY
    return Listing(names, sizes, mtimes, bad)


def _examine_all(names: list[str], root: AnyPath) -> Iterable[Status | str]:
    """Return size and version of each file that a table or list names, or why it cannot be used."""
    if isinstance(root, RemotePath):
        return statuses(names, root)
    return (_examine_path(name, root) for name in names)


def _examine_path(relative: str, root: Path) -> Status | str:
    try:
        status = os.stat(os.path.join(root, relative))
    except (OSError, ValueError):
        return refusal(relative, root) or MISSING
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    return Status(status.st_size, status.st_mtime_ns)


def relative_to(text: str, root: str) -> str:
    """Return a path as it is stored: relative to the folder `root` where it lies below it, else as given; normalised."""
    if is_url(text) or is_url(root):
        return relative_url(text, root)
    if not os.path.isabs(text):
        return os.path.normpath(text)
    inside = os.path.relpath(text, root)
    return os.path.normpath(text) if inside.startswith("..") else inside


def first_few(names: list[str], most: int = 3) -> str:
    """Return the first names of a list, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
