"""Texts alone, to be embedded or searched: a text a line, or one column of a table."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from .pair_columns import ColumnNames
from .tables import BadRow, clean_cell, is_image_name, is_table, read_cells
from .text_columns import TextColumn, text_bytes

_LOOKED_AT = 64  # lines that say what a .txt file holds


class Texts:
    """The texts of a file, in its order. The id of a text is its row or line, counted from 0.

    Args:
        source: the file.
        texts: (n,), with single spaces.
        usable: int64 (n,), the id of each, ascending.
        rejected: (where, reason) of the rows without a text.

    Attributes:
        fingerprint: SHA-256 over ids and texts.
    """

    kind = "texts"

    def __init__(
        self, source: Path, texts: pa.LargeStringArray, usable: np.ndarray, rejected: list[tuple[str, str]]
    ) -> None:
        self.source, self.texts, self.usable, self.rejected = source, texts, usable, rejected
        digest = hashlib.sha256(np.ascontiguousarray(usable, "<i8").data)
        digest.update(np.ascontiguousarray(pc.binary_length(texts).to_numpy(), "<i8").data)
        digest.update(text_bytes(texts))
        self.fingerprint = digest.hexdigest()

    @classmethod
    def read(cls, path: Path, column: str = "text") -> Texts:
        """Read the texts of one column of a table, or the lines of any other file.

        Args:
            path: a CSV, TSV, JSONL or Parquet file; any other has a text a line.
            column: of a table.

        Raises:
            BadInput: no such file or column, or not a single text.
        """
        if not path.is_file():
            raise BadInput(f"there is no file {path}; give a .txt file with a text a line, or a table")
        texts, rows, rejected = TextColumn(), array("q"), list[tuple[str, str]]()
        if is_table(path):
            cells = read_cells(path, ColumnNames(only=column), rejected)
        else:
            cells, column = _lines(path), "text"
        for where, value in islice(cells, 1, None):  # after the columns
            row = len(texts) + len(rejected)  # what the reader could not use is a row too
            try:
                text = clean_cell(value, "texts", column)
            except BadRow as error:
                rejected.append((where, str(error)))
                continue
            texts.append(text)
            rows.append(row)
        if not rows:
            first = f" (first: {rejected[0][0]} {rejected[0][1]})" if rejected else ""
            raise BadInput(f"{path} holds no text{first}; give another file or column")
        return cls(path, pa.concat_arrays(texts.blocks()), np.frombuffer(rows, np.int64), rejected)

    def __len__(self) -> int:
        return len(self.usable)

    def relatives(self, ids: np.ndarray) -> list[str]:
        """Return the texts of some ids, int64 (k,)."""
        found: list[str] = self.texts.take(pa.array(np.searchsorted(self.usable, ids))).to_pylist()
        return found


def holds_lines_of_text(path: Path) -> bool:
    """Return whether a .txt file has a text a line: it lists images if most of its lines end as their names do, or are files."""
    if path.suffix.lower() != ".txt" or not path.is_file():
        return False
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        head = [line.strip() for line in islice(file, _LOOKED_AT)]
    lines = [line for line in head if line and not line.startswith("#")]
    images = sum(is_image_name(line) or _is_file(path.parent / line) for line in lines)
    return bool(lines) and 2 * images <= len(lines)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is too long for a name, or has a null in it
        return False


def _lines(path: Path) -> Iterator[Any]:
    """Yield nothing, where a table has its columns, and then the lines."""
    yield None
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            yield f"{path.name}:{number}", line
