"""Files under a URL (`s3://`, `gs://`, `hf://`, ...), read over fsspec: listed, and read whole or by ranges.

No connection is kept in an object: fsspec has one a process, so that reader processes open their own.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ..errors import BadInput, RunFailed

T = TypeVar("T")

BLOCK_BYTES = 4 << 20
"""How much of a table or shard is read at a time."""
HEAD_BYTES = 64 << 10
"""How much of an image is read for its header; more where that is not enough."""
CONNECTIONS = 16
"""Requests at the same time."""
_WAITS = (0.5, 2.0)  # seconds before a read is tried again
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[^:/]+)*://")
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "hf": "huggingface_hub",
    "oss": "ossfs",
}
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "sha256",
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)


def is_url(text: str) -> bool:
    """Return whether a text is a URL and no path."""
    return _URL.match(text) is not None


class Status(NamedTuple):
    """What is known of a file without reading it."""

    size: int
    """Bytes; -1 where unknown."""
    version: int
    """Another number for another content: a modification time in ns, or 63 bits of an ETag; 0 where there is neither."""


@dataclass(frozen=True)
class RemotePath:
    """A folder or file under a URL, with the part of `pathlib.Path`'s methods that reading needs."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    def __truediv__(self, relative: str) -> RemotePath:
        url = relative if is_url(relative) else f"{self.url}/{relative}"
        if ".." in relative:
            protocol, _, rest = url.partition("://")
            url = f"{protocol}://{posixpath.normpath(rest)}"
        return RemotePath(url)

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Return the end of the name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """Return the folder above; of a bucket itself."""
        above = self.url.rpartition("/")[0]
        return self if above.endswith("/") or not above else RemotePath(above)

    @property
    def origin(self) -> str:
        """Return protocol and host or bucket; of a model hub also the repository."""
        protocol, _, rest = self.url.partition("://")
        return f"{protocol.lower()}://{'/'.join(rest.split('/')[: 3 if protocol.lower() == 'hf' else 1])}"

    # ----------------------------------------------------------------------------------------------- what is there
    def is_file(self) -> bool:
        """Return whether there is a file of this name."""
        info = self._info()
        return info is not None and info["type"] != "directory"

    def is_dir(self) -> bool:
        """Return whether there is a folder, or anything below this name."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def exists(self) -> bool:
        """Return whether there is a file or folder."""
        return self._info() is not None

    def status(self) -> Status | None:
        """Return size and version; None where there is no such file."""
        info = self._info()
        return None if info is None or info["type"] == "directory" else _status(info)

    def iterdir(self) -> Iterator[RemotePath]:
        """Return what lies right in this folder."""
        return (self / name for name in self.files_inside(folders=True))

    def files_inside(self, folders: bool = False) -> dict[str, Status]:
        """Return the files that lie right in this folder, by their names; none where there is no such folder."""
        found: list[dict[str, Any]] = self._list(lambda files, path: files.ls(path, detail=True), [])
        kept = (info for info in found if folders or info["type"] != "directory")
        return {info["name"].rstrip("/").rpartition("/")[2]: _status(info) for info in kept}

    def find(self) -> dict[str, Status]:
        """Return all files below this folder, by their paths relative to it."""
        top = _filesystem(self)[1].rstrip("/") + "/"
        found: dict[str, Any] = self._list(lambda files, path: files.find(path, detail=True), {})
        return {name[len(top) :]: _status(info) for name, info in found.items() if name.startswith(top)}

    def glob(self) -> list[RemotePath]:
        """Return the files that this URL means as a pattern."""
        start = self.url.removesuffix(_filesystem(self)[1])
        names: list[str] = self._list(lambda files, path: files.glob(path), [])
        return [RemotePath(start + name) for name in names]

    def _info(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._list(lambda files, path: files.info(path), None)
        return found

    def _list(self, ask: Callable[[Any, str], T], nothing: T) -> T:
        """Ask what is there, past every cache; return `nothing` where there is no such thing.

        Raises:
            BadInput: it cannot be asked for.
        """
        files, path = _filesystem(self)
        try:
            files.invalidate_cache()
            return _tried(lambda: ask(files, path))
        except FileNotFoundError:
            return nothing
        except Exception as error:
            raise BadInput(
                f"{self} cannot be reached ({_in_words(error)}); check its name, the connection and the credentials"
            ) from None

    # ----------------------------------------------------------------------------------------------------- its bytes
    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """Return `size` bytes from `start` on; all of them without.

        Raises:
            FileNotFoundError: it is gone.
            RunFailed: the connection is lost, or it may not be read: credentials end, and the image is not bad for that.
        """
        files, path = _filesystem(self)
        end = None if size is None else start + size
        try:  # with a start: some ask for the size first otherwise
            content: bytes = _tried(lambda: files.cat_file(path, start=start, end=end))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise RunFailed(
                f"{self} cannot be read ({_in_words(error)}); go on when the connection and the credentials are good"
            ) from None
        return content

    def open(
        self, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> Any:
        """Open the file for reading, as `Path.open`; it is read in blocks."""
        status = self.status()
        if status is None:
            raise FileNotFoundError(self.url)
        file = self.window(0, status.size, BLOCK_BYTES)
        return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)

    def window(self, start: int, size: int, block: int = HEAD_BYTES) -> BinaryIO:
        """Return a part of the file as a file of its own, read in blocks when it is asked for.

        Args:
            start: where the part begins, bytes.
            size: of the part, bytes; -1 reads all of the file at once.
            block: how much is read at a time, bytes.
        """
        return io.BytesIO(self.read()) if size < 0 else io.BufferedReader(_Window(self, start, size), block)


class _Window(io.RawIOBase):
    def __init__(self, path: RemotePath, start: int, size: int) -> None:
        self._path, self._start, self._size, self._at = path, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        content = self._path.read(self._start + self._at, count)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


# -------------------------------------------------------------------------------------------------------------- fsspec
def _filesystem(path: RemotePath) -> tuple[Any, str]:
    """Return fsspec's file system of this process, and the path in it.

    Raises:
        BadInput: there is none for this protocol.
    """
    from fsspec.core import url_to_fs  # takes time that a run on local files need not spend

    protocol = path.url.partition("://")[0].lower()
    try:
        files, inside = url_to_fs(path.url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        remedy = f"run: pip install {package}" if package else " ".join(str(error).split())
        raise BadInput(f"{path} needs a package to read {protocol}:// and it is not installed; {remedy}") from None
    except Exception as error:
        raise BadInput(f"{path} cannot be opened ({_in_words(error)}); give a path or a URL such as s3://...") from None
    return files, inside


def _tried(call: Callable[[], T]) -> T:
    """Return what a call returns, and try it again after a failure that may pass."""
    for wait in _WAITS:
        try:
            return call()
        except _FINAL:
            raise
        except Exception as error:
            if "Credentials" in type(error).__name__:
                raise
            time.sleep(wait)
    return call()


def _status(info: dict[str, Any]) -> Status:
    version = next((info[name] for name in _VERSIONS if info.get(name)), None)
    digest = 0 if version is None else int.from_bytes(hashlib.sha256(str(version).encode()).digest()[:8], "big") >> 1
    size = info.get("size")
    return Status(-1 if size is None else int(size), digest)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
