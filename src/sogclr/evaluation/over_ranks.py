"""Features that all ranks compute together, each some of the batches: the very batches, and so the numbers, of one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .. import processes
from ..data.manifest import Manifest
from ..embedding import ImageEncoder, Progress, compute_features
from ..towers import TEXTS_AT_ONCE, TwoTower

BATCH = 64  # images: so that a small sample keeps several ranks busy


def features_over_ranks(
    encoder: ImageEncoder,
    manifest: Manifest,
    ids: np.ndarray,
    *,
    batch_size: int = BATCH,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """`compute_features` with batch k on rank k modulo their number, and the whole result on all of them.

    Args:
        ids: int64 (m,), ascending.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": device, "progress": progress}
    if processes.world_size() == 1:
        return compute_features(encoder, manifest, ids, **how)
    own = ids[np.arange(len(ids)) // batch_size % processes.world_size() == processes.rank()]
    parts = processes.everyones(compute_features(encoder, manifest, own, **how))
    features, kept = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    order = np.argsort(kept, kind="stable")
    return features[order], kept[order], sorted(entry for part in parts for entry in part[2])


def texts_over_ranks(towers: TwoTower, texts: list[str]) -> torch.Tensor:
    """`TwoTower.encode_texts`, (N, D), likewise."""
    ranks = processes.world_size()
    if ranks == 1:
        return towers.encode_texts(texts)
    chunks = [texts[k : k + TEXTS_AT_ONCE] for k in range(0, len(texts), TEXTS_AT_ONCE)]
    own = [towers.encode_texts(chunk).cpu().numpy() for chunk in chunks[processes.rank() :: ranks]]
    parts = processes.everyones(own)
    rows = [parts[k % ranks][k // ranks] for k in range(len(chunks))]
    return torch.from_numpy(np.concatenate(rows)).to(towers.device)


def same_buffers(model: nn.Module) -> None:
    """Give all ranks the main one's buffers: BatchNorm's running statistics are each rank's own on the CPU."""
    for buffer in model.buffers():
        processes.from_main(buffer)
