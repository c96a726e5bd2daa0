"""Atomic writes, checksums, file locks, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput

_OF_PROCESS = re.compile(r"\.(\d+)(?:-[0-9a-f]+)?\.tmp")  # the end of a temporary file's name
_SEAL_BYTES = hashlib.sha256().digest_size


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write `path` all or nothing: a kill, a power cut or a full disk leaves the old file whole.

    The block writes to the temporary path that it is given. When it ends well, the data are flushed to the disk and the
    temporary file is renamed to `path`; when it fails, the temporary file is removed.

    Args:
        path: the file to write or replace.

    Yields:
        A hidden temporary path in the same folder, with the same suffix.

    Raises:
        OSError: the write failed; it names `path`.
    """
    temporary = _temporary(path.with_suffix(""), path.suffix)
    try:
        temporary.touch(exist_ok=False)  # nobody's link is followed
        mode = temporary.stat().st_mode  # as the umask has it; safetensors makes files that only their owner may read
        yield temporary
        flush(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
        flush(path.parent)  # which has the new name
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        raise
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors says that the disk is full
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path, suffix: str = "") -> Path:
    """Return a hidden name beside `path` that nobody can guess, and that says whose it is."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp{suffix}")


def flush(path: Path) -> None:
    """Bring what was written to a file, or what a folder lists, onto the disk, where a power cut leaves it."""
    if path.is_dir() and os.name != "posix":
        return  # there a folder cannot be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, as far as there are none, and bring their names onto the disk."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush(made.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files below `folder` that killed processes have left.

    Args:
        folder: of which this process writes nothing yet.
    """
    for path in folder.rglob(".*.tmp*"):
        owner = _OF_PROCESS.search(path.name)
        if owner is not None and path.is_file() and not _lives(int(owner[1])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Return whether there is another process of this number on this machine."""
    if process == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_new_folder(folder: Path) -> None:
    """Check that a folder can be made at `folder`, before the work that fills it begins.

    Raises:
        BadInput: it is a file or holds some, or the folder that it is to lie in does not exist.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise BadInput(f"--out {folder} is there and not empty; give a new folder, or remove it")
    if not folder.parent.is_dir():
        raise BadInput(f"there is no folder {folder.parent} for {folder.name}; make it, or give another --out")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write a new folder all or nothing: the block fills a temporary one, which gets the name when it ends well.

    Args:
        folder: new or empty.

    Yields:
        A hidden empty folder beside it.

    Raises:
        BadInput: as `check_new_folder`.
    """
    check_new_folder(folder)
    temporary = _temporary(folder)
    try:
        temporary.mkdir()
        yield temporary
        for weights in temporary.rglob("*.safetensors"):  # which safetensors makes for their owner alone
            weights.chmod(temporary.stat().st_mode & 0o666)
        if folder.is_dir():
            folder.rmdir()
        for written in [*temporary.rglob("*"), temporary]:
            flush(written)
        temporary.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def file_lock(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock while the block runs.

    The lock ends with the process, also by a kill, and child processes do not inherit it. On systems and file systems
    without such locks nothing is locked.

    Args:
        path: the lock file; removed when the block ends.
        what: what the holder does, for the error message of another process ("trains in runs/a").

    Raises:
        BadInput: another process holds the lock.
    """
    with open(path, "ab") as file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not a Unix
            pass
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BadInput(f"another process {what}; wait until it has ended, or stop it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, UTF-8, all or nothing."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def seal(path: Path) -> None:
    """Append to a file the SHA-256 of what it holds."""
    with open(path, "r+b") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)


def read_sealed(path: Path) -> memoryview:
    """Map what a file held before it was sealed.

    Raises:
        OSError: there is no such file.
        ValueError: it does not match its checksum, or has none.
    """
    with open(path, "rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    content = whole[:-_SEAL_BYTES]
    if hashlib.sha256(content).digest() != whole[-_SEAL_BYTES:]:
        raise ValueError(f"{path} does not match its own checksum")
    return content


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Check that a file can be written at `path`, before the work that fills it begins.

    Args:
        path: value of --out.
        suffixes: those allowed, with the dot.

    Raises:
        BadInput: `path` has another suffix, is a folder, or lies in a folder that does not exist or may not be written.
    """
    if path.suffix not in suffixes:
        raise BadInput(f"--out {path} ends in {path.suffix or 'nothing'!r}; give a name in {', '.join(suffixes)}")
    if path.is_dir():
        raise BadInput(f"--out {path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise BadInput(f"there is no folder {path.parent} for {path.name}; make it, or give another --out")
    if not os.access(path.parent, os.W_OK):
        raise BadInput(f"--out {path} lies in a folder that may not be written or is read-only; give another --out")


def check_folder(path: Path) -> None:
    """Check that a folder can be made at `path`, or written to, before work begins; it is left as it was.

    Raises:
        BadInput: it cannot be.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise BadInput(f"--out {path} cannot be written to ({error.strerror}); give another folder") from None
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


def cache_folder() -> Path:
    """Return $SOGCLR_CACHE, else $XDG_CACHE_HOME/sogclr, else ~/.cache/sogclr."""
    if own := os.environ.get("SOGCLR_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sogclr"
