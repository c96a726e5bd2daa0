"""The nearest rows to a query: by looking at all of them, or among very many by an index of faiss that is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..files import atomic_write, cache_folder, read_sealed, seal

EXACT_AT_MOST = 1_000_000
"""Rows of a file that are all compared with the query; above it faiss is used where it is installed."""
CHUNK = 1 << 18  # rows at a time
ROWS_PER_LIST = 64  # from which each of the index's lists is trained


class Index(Protocol):
    """Unit rows, ready to be searched."""

    width: int
    """Numbers in a row."""

    def nearest(self, query: Tensor, top: int) -> tuple[list[float], list[int]]:
        """Return the cosines with a unit vector (D,) and the places of the `top` nearest rows, best first."""
        ...


class ExactIndex:
    """All rows, in memory.

    Args:
        rows: floating (n, D).

    Attributes:
        rows: float32 (n, D), of unit length.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.width = functional.normalize(rows.float(), dim=1), rows.shape[1]

    def nearest(self, query: Tensor, top: int) -> tuple[list[float], list[int]]:
        """Return the cosines and places of the `top` nearest rows, best first."""
        scores, places = [], []
        for start in range(0, len(self.rows), CHUNK):
            chunk = self.rows[start : start + CHUNK]
            score, where = (chunk @ query.to(self.rows)).topk(min(top, len(chunk)))
            scores.append(score)
            places.append(where + start)
        score, where = torch.cat(scores).topk(min(top, len(self.rows)))
        return score.tolist(), torch.cat(places)[where].tolist()


class FaissIndex:
    """An inverted file of faiss, from the disk: the rows nearest to the query's own lists are looked at.

    Args:
        inner: as faiss has read it.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.width = inner, int(inner.d)
        inner.nprobe = max(16, inner.nlist // 16)

    def nearest(self, query: Tensor, top: int) -> tuple[list[float], list[int]]:
        """Return the cosines and places of about the `top` nearest rows, best first."""
        scores, places = self.inner.search(query.float().cpu().numpy()[None], min(top, self.inner.ntotal))
        found = places[0] >= 0  # fewer than `top` where the lists hold fewer
        return scores[0][found].tolist(), places[0][found].tolist()


def open_index(
    file: Path, count: int, rows: Callable[[], np.ndarray], info: Callable[[str], None] | None = None
) -> Index:
    """Return an index of a file of embeddings; one of faiss is built the first time and kept in the cache folder.

    Args:
        file: of the embeddings; another size or time of change makes another index.
        count: n, its rows.
        rows: reads them, floating (n, D).
        info: is told what the user should know, in a line.
    """
    if count > EXACT_AT_MOST:
        try:
            import faiss
        except ImportError:
            if info is not None:
                info(f"index     all {count:,} rows are compared; `pip install 'sogclr[faiss]'` makes this faster")
        else:
            return FaissIndex(_kept(faiss, file, rows, info))
    return ExactIndex(torch.from_numpy(rows()))


def _kept(faiss: Any, file: Path, rows: Callable[[], np.ndarray], info: Callable[[str], None] | None) -> Any:
    """Return the index of a file from the cache folder, where it is built unless it is there."""
    status, place = os.stat(file), hashlib.sha256(os.fsencode(os.path.abspath(file))).hexdigest()[:16]
    folder = cache_folder() / "search"
    kept = folder / f"{place}-{status.st_size:x}-{status.st_mtime_ns:x}.faiss"
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # damaged: as if it were not there
        read_sealed(kept)
        return faiss.read_index(str(kept), faiss.IO_FLAG_MMAP)
    if info is not None:
        info(f"index     is built once, and kept in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        faiss.write_index(_build(faiss, rows()), str(temporary))
        seal(temporary)
    for other in folder.glob(f"{place}-*.faiss"):
        if other != kept:
            other.unlink()
    return faiss.read_index(str(kept), faiss.IO_FLAG_MMAP)


def _build(faiss: Any, rows: np.ndarray) -> Any:
    def unit(some: np.ndarray) -> np.ndarray:
        return functional.normalize(torch.from_numpy(some).float(), dim=1).numpy()

    count, width = rows.shape
    lists = max(1, min(int(4 * count**0.5), count // ROWS_PER_LIST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(unit(rows[np.linspace(0, count - 1, min(count, lists * ROWS_PER_LIST)).astype(np.int64)]))
    for start in range(0, count, CHUNK):
        index.add(unit(rows[start : start + CHUNK]))
    return index
