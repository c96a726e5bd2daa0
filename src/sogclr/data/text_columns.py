"""Columns of many millions of texts, in little more memory than the texts take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BLOCK = 1 << 16
"""Texts that are Python objects at a time."""


class TextColumn:
    """A column that grows text by text; all but the current block are Arrow's."""

    def __init__(self) -> None:
        self._blocks: list[pa.LargeStringArray] = []
        self._current: list[str] = []

    def __len__(self) -> int:
        return sum(map(len, self._blocks)) + len(self._current)

    def append(self, text: str) -> None:
        """Add a row."""
        self._current.append(text)
        if len(self._current) >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        self._blocks.append(column_of(self._current))
        self._current.clear()

    def blocks(self) -> list[pa.LargeStringArray]:
        """Return all rows, in at least one block, and let go of them."""
        self._flush()
        blocks, self._blocks = self._blocks, []
        return blocks


def column_of(texts: list[str]) -> pa.LargeStringArray:
    """Return a column of texts, copied once: Arrow builds one with up to half of it as room to grow."""
    return pa.concat_arrays([pa.array(texts, pa.large_string())])


def text_bytes(column: pa.LargeStringArray) -> memoryview:
    """Return the UTF-8 text of a column without nulls, end to end, where it lies: nothing becomes a Python object."""
    if not len(column):
        return memoryview(b"")
    _, offsets, text = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset :]
    return memoryview(text or b"")[bounds[0] : bounds[len(column)]]


def unique_texts(blocks: list[pa.LargeStringArray]) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Return the different texts of a column, sorted by code point, and the place of each row's among them.

    By sorting and comparing neighbours: exact, and without a table of hashes. The memory is the texts as they came and
    as they are sorted, and 16 bytes a row.

    Args:
        blocks: the column, at least one row, no nulls. The list is emptied: its texts are let go of as soon as they can be.

    Returns:
        large_string (m,) and int64 (n,).
    """
    release_memory()
    rows = pa.concat_arrays(blocks)
    blocks.clear()
    release_memory()
    order = pc.sort_indices(rows).to_numpy()
    places, different, count = np.empty(len(rows), np.int64), [], 0
    before = pa.scalar(None, rows.type)
    for start in range(0, len(rows), BLOCK):
        block = order[start : start + BLOCK]
        texts = rows.take(pa.array(block))
        new = np.append(texts[0] != before, pc.not_equal(texts[1:], texts[:-1]))
        places[block] = np.cumsum(new) + (count - 1)
        different.append(texts.filter(pa.array(new)))
        count, before = count + len(different[-1]), texts[-1]
    del rows, texts, order, block
    release_memory()
    return pa.concat_arrays(different), places


def release_memory() -> None:
    """Return unused memory to the system: Arrow would keep it for columns of that size to come."""
    pa.default_memory_pool().release_unused()
