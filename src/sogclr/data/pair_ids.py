"""From rows of paths and texts to ids: of the different things, and of the hard negatives of the different pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from .listing import relative_to
from .text_columns import TextColumn, column_of, unique_texts

NO_NEGATIVES = np.empty((2, 0), np.int64)


def number_things(columns: list[TextColumn], root: str | None = None) -> tuple[pa.LargeStringArray, list[np.ndarray]]:
    """Return the different values of some columns, sorted, and the places of each column's rows among them.

    Args:
        columns: they are let go of.
        root: for paths of files: the folder that they are relative to.
    """
    blocks, ends = [], np.cumsum([len(column) for column in columns])
    for column in columns:
        blocks += column.blocks()
    if root is not None:
        for k, block in enumerate(blocks):  # only the current block is made of Python objects
            blocks[k] = column_of([relative_to(name, root) for name in block.to_pylist()])
    if not len(ends) or not ends[-1]:
        return column_of([]), [np.empty(0, np.int64) for _ in columns]
    values, places = unique_texts(blocks)
    return values, np.split(places, ends[:-1])


def number_negatives(
    key: np.ndarray, different: np.ndarray, base: int, rows: np.ndarray, texts: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return the hard negatives (2, k) of the different pairs, each once, and how many were contradicted by a pair.

    Args:
        key: int64 (rows,), first thing x base + second thing.
        different: the same of each pair once, sorted.
        base: number of second things.
        rows: int64 (h,), the row of each hard negative.
        texts: int64 (h,), its text.
    """
    if not len(rows):
        return NO_NEGATIVES, 0
    match = np.isin(key[rows] // base * base + texts, different)
    pairs = np.searchsorted(different, key[rows[~match]])
    found = np.unique(np.stack([pairs, texts[~match]]), axis=1)
    return found, int(match.sum())
