"""Files that cannot be read: how many a run may have, and the list of them that it writes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..files import write_text
from .source import Source


def write_bad_files(path: str | os.PathLike[str], rows: Iterable[tuple[str, str]]) -> None:
    """One `relative path<TAB>reason` a line, sorted, each path once; control characters in names are escaped."""
    escape = {code: f"\\x{code:02x}" for code in range(32)}
    lines = [f"{name.translate(escape)}\t{reason.translate(escape)}\n" for name, reason in dict(rows).items()]
    write_text(Path(path), "".join(sorted(lines)))


def read_bad_files(path: Path) -> list[tuple[str, str]]:
    """The (relative path, reason) lines of `bad_files.txt`; empty when there is none."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(name, reason) for name, _, reason in (line.partition("\t") for line in lines) if name]


def too_many_bad(manifest: Source, bad: dict[int, str], most: float) -> str | None:
    """The sentence for a data set with too many files that cannot be read, or rows that cannot be used; else None."""
    lost, total = len(bad) + len(manifest.rejected), len(manifest) + len(manifest.rejected)
    if lost <= most * total:
        return None
    named = [*manifest.rejected[:3], *((manifest.relative(i), reason) for i, reason in sorted(bad.items())[:3])]
    first = ", ".join(f"{name} ({reason})" for name, reason in named[:3])
    return (
        f"{lost:,} of {total:,} {manifest.kind} cannot be read, more than --max-bad {most:.1%}, first: {first}; "
        "see `sogclr inspect DATA --decode`, remove them, or raise --max-bad"
    )
