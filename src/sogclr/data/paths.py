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
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from ..errors import BadImage, BadInput
from ..files import cache_folder
from .remote import CONNECTIONS, RemotePath, Status, is_url

AnyPath = Path | RemotePath
MISSING = "does not exist"
TABLE_SUFFIXES = (".parquet", ".arrow")
"""Of files that may hold the bytes of images."""
_SHARD = re.compile(r".*?\.(?:tar|parquet|arrow)(?=/)", re.DOTALL)


def as_path(data: str | os.PathLike[str]) -> AnyPath:
    """Return DATA as a path: of this disk, also for `file://`, or remote for any other URL.

    Raises:
        BadInput: a pipe, which would run a program, or a chain of URLs.
    """
    text = os.fspath(data)
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
    return cache_folder() / "unpacked" / f"{hashlib.sha256(about).hexdigest()[:32]}.images"


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
        RunFailed: the connection is lost.
    """
    if offsets is None and not isinstance(root, RemotePath):
        return os.path.join(root, relative)
    place, start = place_of(root, relative, offsets, mtimes, row)
    try:
        if isinstance(place, RemotePath):
            return io.BytesIO(place.read(start, None if offsets is None else int(sizes[row])))
        with open(place, "rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(int(sizes[row])))
    except OSError:
        if offsets is not None:
            raise BadImage(f"its shard {place.name} cannot be read") from None
        raise BadImage("no longer exists") from None
