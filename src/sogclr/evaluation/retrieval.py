"""Retrieval between images and texts: exact recall both ways, where an image may have several captions and a caption several images.

A query counts as answered at K when ANY of its matches is among its K most similar candidates. A candidate that is just
as similar as the best match counts as before it, so that embeddings that have all collapsed to one point score nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AT = (1, 5, 10)
_TILE = 1 << 24  # similarities at a time


def retrieval(images: Tensor, texts: Tensor, image_rows: np.ndarray, text_rows: np.ndarray) -> dict[str, float]:
    """Return recall at 1, 5 and 10, both ways, and the median rank of the best match (1 is first).

    Args:
        images: (n, D) unit rows.
        texts: (m, D) unit rows.
        image_rows: int64 (p,), each pair's row of `images`; every row is in a pair.
        text_rows: int64 (p,), each pair's row of `texts`; every row is in a pair.

    Returns:
        `image_to_text_r1` ... `text_to_image_r10` (fractions), `image_to_text_median_rank`, `text_to_image_median_rank`.
    """
    found: dict[str, float] = {}
    ways = {
        "image_to_text": (images, texts, image_rows, text_rows),
        "text_to_image": (texts, images, text_rows, image_rows),
    }
    for name, (queries, candidates, of_query, of_candidate) in ways.items():
        rank = ranks(queries, candidates, of_query, of_candidate)
        found |= {f"{name}_r{k}": float((rank < k).mean()) for k in AT}
        found[f"{name}_median_rank"] = float(np.median(rank)) + 1
    return found


def ranks(queries: Tensor, candidates: Tensor, query_rows: np.ndarray, candidate_rows: np.ndarray) -> np.ndarray:
    """Count the wrong candidates that are at least as similar to each query as its best match.

    Args:
        queries: (q, D) unit rows.
        candidates: (m, D) unit rows.
        query_rows: int64 (p,), each pair's row of `queries`.
        candidate_rows: int64 (p,), each pair's row of `candidates`.

    Returns:
        int64 (q,), 0 where the best match comes first.
    """
    rows, matches = np.divmod(np.unique(query_rows * len(candidates) + candidate_rows), len(candidates))
    found = np.empty(len(queries), dtype=np.int64)
    step = max(1, _TILE // max(1, len(candidates)))
    for start in range(0, len(queries), step):
        stop = min(start + step, len(queries))
        first, last = np.searchsorted(rows, [start, stop])
        row = torch.from_numpy(rows[first:last] - start).to(queries.device)
        match = torch.from_numpy(matches[first:last]).to(queries.device)
        sim = queries[start:stop] @ candidates.T
        right = sim[row, match]
        best = torch.full((stop - start,), -torch.inf, device=sim.device, dtype=sim.dtype)
        best = best.scatter_reduce(0, row, right, "amax")
        ahead = (sim >= best[:, None]).sum(dim=1)
        own = torch.zeros_like(ahead).index_add(0, row, (right >= best[row]).long())
        found[start:stop] = (ahead - own).cpu().numpy()
    return found


def chance(query_rows: np.ndarray, candidates: int) -> dict[int, float]:
    """Return the recall at each K of random embeddings.

    It is the mean over queries of 1 - C(m - c, K) / C(m, K), with c matches among m candidates.
    """
    _, counts = np.unique(query_rows, return_counts=True)
    found = {}
    for k in AT:
        missed = np.ones(len(counts))
        for j in range(min(k, candidates)):
            missed *= np.maximum(candidates - counts - j, 0) / (candidates - j)
        found[k] = float(1 - missed.mean())
    return found


def chance_scores(image_rows: np.ndarray, text_rows: np.ndarray) -> dict[str, float]:
    """Return the recalls of random embeddings under the keys of `retrieval`."""
    images, texts = len(np.unique(image_rows)), len(np.unique(text_rows))
    return {f"image_to_text_r{k}": v for k, v in chance(image_rows, texts).items()} | {
        f"text_to_image_r{k}": v for k, v in chance(text_rows, images).items()
    }
