"""Paths of DATA, on this disk or remote, and what a table or list may name.

Nothing that a file says reaches the network: a URL in a table or list on this disk is refused, and one in a table that
was given by its own URL may name the same host or bucket alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from ..errors import BadImage, BadInput, RunFailed
from ..files import atomic_write, cache_folder, read_sealed, seal
from .remote import CONNECTIONS, RemotePath, Status, is_url

AnyPath = Path | RemotePath
MISSING = "does not exist"
TABLE_SUFFIXES = (".parquet", ".arrow")
"""Of files that may hold the bytes of images."""
COPY_SUFFIX = ".images"
"""Of a copy of the bytes of a table's images."""
_SHARD = re.compile(r".*?\.(?:tar|parquet|arrow)(?=/)", re.DOTALL)


def as_path(data: str | os.PathLike[str]) -> AnyPath:
    """Return DATA as a path: of this disk, also for `file://`, or remote for any other URL.

    Raises:
        BadInput: nothing, a pipe, which would run a program, or a chain of URLs.
    """
    text = os.fspath(data)
    if not text:  # an unset variable of a shell; Path("") would be the working folder
        raise BadInput("a path of DATA was empty; give a folder, a list, a table or a URL, or . for the working folder")
    if text.startswith("pipe:"):
        raise BadInput(f"{text} would run a program, and DATA is only read; give the files themselves, or their URL")
    if isinstance(data, RemotePath) or not is_url(text):
        return data if isinstance(data, RemotePath | Path) else Path(text)
    protocol = text.partition("://")[0].lower()
    if "::" in text:
        raise BadInput(f"{text} is a chain of URLs; give the URL of the files themselves")
    if protocol in ("file", "local"):
        return Path(url2pathname(urlsplit(text).path))
    return RemotePath(text.rstrip("/"))


def absolute(path: AnyPath) -> AnyPath:
    """Return an absolute path, normalised; a URL is one."""
    return path if isinstance(path, RemotePath) else Path(os.path.abspath(path))


def common_folder(paths: Sequence[AnyPath]) -> AnyPath:
    """Return the folder that all files lie below."""
    if not isinstance(paths[0], RemotePath):
        return Path(os.path.commonpath([path.parent for path in paths]))
    return RemotePath(posixpath.commonpath([str(path.parent) for path in paths]).replace(":/", "://", 1))


def identity(path: AnyPath) -> bytes:
    """Return what tells a path from all others: its real path, or its URL."""
    return os.fsencode(path.url if isinstance(path, RemotePath) else os.path.realpath(path))


def status_of(path: AnyPath) -> Status:
    """Return size and version of a file.

    Raises:
        OSError: there is none.
    """
    if isinstance(path, RemotePath):
        status = path.status()
        if status is None:
            raise FileNotFoundError(path.url)
        return status
    found = os.stat(path)
    return Status(found.st_size, found.st_mtime_ns)


def relative_url(text: str, root: str) -> str:
    """Return a path or URL of a table as it is stored, where it or the table's folder `root` is a URL."""
    if not is_url(root) or text.startswith("/"):
        return text  # `refusal` says why not
    if is_url(text):
        return text.removeprefix(f"{root}/")
    return posixpath.normpath(text)


def refusal(relative: str, root: AnyPath) -> str | None:
    """Return why a table or list in `root` may not name such a file; None where it may."""
    if not isinstance(root, RemotePath):
        return "is a URL in a file on this disk, which is not followed" if is_url(relative) else None
    if relative.startswith("/"):
        return f"is a path of this disk in a file of {root.origin}, which is not followed"
    if (root / relative).origin != root.origin:
        return f"is not in {root.origin} as the file that names it, and is not followed"
    return None


def statuses(names: list[str], root: RemotePath) -> list[Status | str]:
    """Return size and version of each file, or why it cannot be used; folders with several of them are listed whole."""
    reasons = [refusal(name, root) for name in names]
    places = [root / name for name, reason in zip(names, reasons, strict=True) if reason is None]
    folders = Counter(place.parent for place in places)
    several = [folder for folder, count in folders.items() if count > 3]
    alone = [place for place in places if folders[place.parent] <= 3]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        listed = dict(zip(several, pool.map(RemotePath.files_inside, several), strict=True))
        known = dict(zip(alone, pool.map(RemotePath.status, alone), strict=True))
    found = (listed[place.parent].get(place.name) if place.parent in listed else known[place] for place in places)
    return [next(found) or MISSING if reason is None else reason for reason in reasons]


# ----------------------------------------------------------------------------------------------------- an image's bytes
def unpacked_file(path: AnyPath, version: int) -> Path:
    """Return where the bytes of a table's images are copied to."""
    about = identity(path) + f"\0{version}".encode()
    return cache_folder() / "unpacked" / f"{hashlib.sha256(about).hexdigest()[:32]}{COPY_SUFFIX}"


def write_checksums(copy: Path, table: np.ndarray) -> None:
    """Write the checksums of a table's images beside the copy of their bytes.

    Args:
        copy: of the bytes.
        table: int64 (2, n): where each begins there, ascending, and its CRC-32.
    """
    with atomic_write(_checksums_file(copy)) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, table)
        seal(temporary)


def is_unpacked(copy: Path) -> bool:
    """Return whether a table's images are copied, with their checksums."""
    return copy.exists() and _checksums(copy) is not None


def _checksums_file(copy: Path) -> Path:
    return copy.with_suffix(".checksums")


def _checksums(copy: Path) -> np.ndarray | None:
    """Return what `write_checksums` wrote; None where it is damaged, or the copy is of an earlier version."""
    try:
        return _read_checksums(_checksums_file(copy))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)  # of one pass over a data set
def _read_checksums(path: Path) -> np.ndarray:
    found: np.ndarray = np.load(io.BytesIO(read_sealed(path)))
    return found


def _check_copied(copy: Path, start: int, content: bytes, shard: AnyPath) -> None:
    """Check the bytes of an image that were copied from a table.

    Raises:
        RunFailed: they are damaged; the copy is removed, and made anew by the next command.
    """
    known = _checksums(copy)
    if known is None:
        return
    place = int(np.searchsorted(known[0], start))
    if place == known.shape[1] or known[:, place].tolist() != [start, zlib.crc32(content)]:
        copy.unlink(missing_ok=True)
        raise RunFailed(
            f"the copy of the images of {shard} in the cache was damaged, and is removed ({copy}); "
            "go on with the same command, or `sogclr resume`, which makes it anew"
        )


def place_of(
    root: AnyPath, relative: str, offsets: np.ndarray | None, mtimes: np.ndarray, row: int
) -> tuple[AnyPath, int]:
    """Return the file that an image's bytes are in, and where they begin."""
    if offsets is None:
        return root / relative, 0
    match = _SHARD.match(relative)
    if match is None:
        raise BadImage("is in no shard")
    shard = root / match[0]
    if shard.suffix in TABLE_SUFFIXES:
        shard = unpacked_file(shard, int(mtimes[row]))
    return shard, int(offsets[row])


def file_at(
    root: AnyPath, relative: str, offsets: np.ndarray | None, sizes: np.ndarray, mtimes: np.ndarray, row: int
) -> str | BinaryIO:
    """Return where a file's bytes are: its path, or its own bytes where it is remote or lies in a shard.

    Args:
        root: the folder that `relative` is relative to.
        relative: the file's path; of a member of a shard, that of the shard, a slash and the member's name.
        offsets: int64 (n,), where each file begins in its shard; None for plain files.
        sizes: int64 (n,), bytes.
        mtimes: int64 (n,), the versions of the files or of their shards.
        row: which of them.

    Returns:
        Plain files: the path as text, since making a `Path` takes time that shows where images are small.

    Raises:
        BadImage: the shard, or the remote file, is gone.
        RunFailed: the connection is lost, or the copy of a table's images is damaged.
    """
    if offsets is None and not isinstance(root, RemotePath):
        return os.path.join(root, relative)
    place, start = place_of(root, relative, offsets, mtimes, row)
    try:
        if isinstance(place, RemotePath):
            return io.BytesIO(place.read(start, None if offsets is None else int(sizes[row])))
        with open(place, "rb") as file:
            file.seek(start)
            content = file.read(int(sizes[row]))
    except OSError:
        if offsets is not None:
            raise BadImage(f"its shard {place.name} cannot be read") from None
        raise BadImage("no longer exists") from None
    if offsets is not None and place.suffix == COPY_SUFFIX:
        _check_copied(place, start, content, root / relative.rpartition("/")[0])
    return io.BytesIO(content)
