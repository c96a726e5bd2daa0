"""Columns of many millions of texts, in little more memory than the texts take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BLOCK = 1 << 16


def column_of(texts: list[str]) -> pa.LargeStringArray:
    """A column without the room to grow that Arrow leaves when it builds one, up to half of it; a copy has none."""
    return pa.concat_arrays([pa.array(texts, pa.large_string())])


def distinct(blocks: list[pa.LargeStringArray]) -> tuple[pa.LargeStringArray, np.ndarray]:
    """The different texts of a column, sorted by code point, and the place of each row's among them.

    By sorting and comparing neighbours: exact, and without a table of hashes. The memory is the texts as they came and
    as they are sorted, and 16 bytes a row.

    Args:
        blocks: the column, at least one row, no nulls. The list is emptied: its texts are let go of as soon as they can be.

    Returns:
        large_string (m,) and int64 (n,).
    """
    give_back()
    rows = pa.concat_arrays(blocks)
    blocks.clear()
    give_back()
    order = pc.sort_indices(rows).to_numpy()
    places, different, count = np.empty(len(rows), np.int64), [], 0
    before = pa.scalar(None, rows.type)
    for start in range(0, len(rows), _BLOCK):
        block = order[start : start + _BLOCK]
        texts = rows.take(pa.array(block))
        new = np.append(texts[0] != before, pc.not_equal(texts[1:], texts[:-1]))
        places[block] = np.cumsum(new) + (count - 1)
        different.append(texts.filter(pa.array(new)))
        count, before = count + len(different[-1]), texts[-1]
    del rows, texts, order, block
    give_back()
    return pa.concat_arrays(different), places


def give_back() -> None:
    """What has been let go of goes back to the system: Arrow would keep it for columns of that size to come."""
    pa.default_memory_pool().release_unused()
