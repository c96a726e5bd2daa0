"""Files that cannot be read: how many a run may have, and the list of them that it writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import write_text
from .source import Source


def write_bad_files(path: str | os.PathLike[str], rows: Iterable[tuple[str, str]]) -> None:
    """Write one `relative path<TAB>reason` a line, sorted, each path once; control characters in names are escaped."""
    escape = {code: f"\\x{code:02x}" for code in range(32)}
    lines = [f"{name.translate(escape)}\t{reason.translate(escape)}\n" for name, reason in dict(rows).items()]
    write_text(Path(path), "".join(sorted(lines)))


def write_bad_files_beside(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write the list of what has no row in the output `path` beside it; without any, remove that of an older output."""
    beside = bad_files_beside(path)
    beside.unlink(missing_ok=True)
    if rows:
        write_bad_files(beside, rows)


def bad_files_beside(path: Path) -> Path:
    """Return where the list of what has no row in the output `path` is."""
    return path.with_name(f"{path.name}.bad_files.txt")


def read_bad_files(path: Path) -> list[tuple[str, str]]:
    """Return the (relative path, reason) lines of `bad_files.txt`; none where there is no such file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(name, reason) for name, _, reason in (line.partition("\t") for line in lines) if name]


def too_many_bad(source: Source, bad: dict[int, str], most: float) -> str | None:
    """Return a sentence where too many files cannot be read, or rows cannot be used; else None.

    Args:
        source: what is trained on.
        bad: id -> reason, of samples that cannot be read.
        most: the largest fraction of these, and of rows that are no sample, that a run may have.
    """
    lost, total = len(bad) + len(source.rejected), len(source) + len(source.rejected)
    if lost <= most * total:
        return None
    named = [*source.rejected[:3], *((source.relative(i), reason) for i, reason in sorted(bad.items())[:3])]
    first = ", ".join(f"{name} ({reason})" for name, reason in named[:3])
    return (
        f"{lost:,} of {total:,} {source.kind} cannot be read, more than --max-bad {most:.1%}, first: {first}; "
        "see `sogclr inspect DATA --decode`, remove them, or raise --max-bad"
    )
