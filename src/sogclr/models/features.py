"""Features of a data set by a frozen encoder, on one rank or on many."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed
from ..data.augment import Augmentation
from ..data.loader import evaluation_loader, training_loader
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..errors import BadInput
from ..progress import ProgressCallback
from ..run_folder import RunFolder
from .encoder import EncoderInfo, load_encoder
from .two_tower import TEXTS_AT_ONCE, TwoTower


class ImageEncoder(Protocol):
    """What features are computed with: `models.Encoder`, or anything with these three."""

    info: EncoderInfo
    num_features: int
    """D."""

    def encode(self, crops: Tensor, /) -> Tensor:
        """uint8 (N, S, S, 3) -> (N, D)."""


@torch.inference_mode()
def compute_features(
    encoder: ImageEncoder,
    manifest: Manifest,
    ids: np.ndarray,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: ProgressCallback | None = None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """Features of the central crops of some images.

    Args:
        encoder: on `device`, in evaluation mode.
        ids: int64 (m,), ids of the manifest.
        progress: called with (images done, images to do).

    Returns:
        float32 (k, D) features, int64 (k,) ids in the given order, and (id, reason) of the m - k that cannot be read.
    """
    device = torch.device(device)
    loader = evaluation_loader(
        manifest, ids, encoder.info.image_size, crop_fraction=encoder.info.crop_fraction,
        background=encoder.info.background, batch_size=batch_size, workers=workers,
    )  # fmt: skip
    features = [np.empty((0, encoder.num_features), dtype=np.float32)]
    kept = [np.empty(0, dtype=np.int64)]
    bad: list[tuple[int, str]] = []
    for step, batch in enumerate(loader, 1):
        bad += batch.bad
        if len(batch.index):
            found = encoder.encode(batch.crops[0].to(device, non_blocking=True))
            features.append(found.float().cpu().numpy())
            kept.append(batch.index.numpy())
        if progress is not None:
            progress(min(step * batch_size, len(ids)), len(ids))
    return np.concatenate(features), np.concatenate(kept), bad


@torch.inference_mode()
def compute_views(
    encoder: ImageEncoder,
    manifest: Manifest,
    ids: np.ndarray,
    augment: Augmentation,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Features of two random views of the same images, float32 (m, D) each, row i of both from one image.

    Args:
        encoder: callable on normalised images (N, 3, S, S), on `device`, in evaluation mode.
        ids: at least 2; some are left out where their number is no multiple of the batch.
    """
    batch_size = min(batch_size, len(ids))
    loader = training_loader(
        manifest, ids, augment.recipe, augment.image_size, batch_size, augment.seed, background=encoder.info.background
    )
    pairs: list[list[Tensor]] = []
    for _ in range(len(ids) // batch_size):
        drawn = next(loader)
        crops = drawn.crops.to(device)
        views = [augment(crops[view], drawn.index.numpy(), 0, view) for view in (0, 1)]
        pairs.append([encoder(x).float() for x in views])  # type: ignore[operator]
    return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])


def load_image_encoder(run_or_file: str | os.PathLike[str], device: str | torch.device) -> Any:
    """What images of a run are embedded with: both towers' common space for a run on pairs, else the backbone.

    Raises:
        BadInput: no such run or file, or it is not finished.
    """
    if Path(run_or_file).is_dir() and RunFolder(run_or_file).holds_pairs():
        from .two_tower import load_two_tower

        return load_two_tower(run_or_file, device)
    return load_encoder(run_or_file, device)


def nothing_readable(manifest: Manifest, bad: list[tuple[int, str]]) -> BadInput:
    """The error for images none of which can be read."""
    first = f"{manifest.relative(bad[0][0])} {bad[0][1]}"
    return BadInput(f"none of the {len(bad):,} images in {manifest.root} can be read (first: {first}); give others")


BATCH = 64  # images: so that a small sample keeps several ranks busy


def features_over_ranks(
    encoder: ImageEncoder,
    manifest: Manifest,
    ids: np.ndarray,
    *,
    batch_size: int = BATCH,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: ProgressCallback | None = None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """`compute_features` with batch k on rank k modulo their number, and the whole result on all of them.

    Args:
        ids: int64 (m,), ascending.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": device, "progress": progress}
    if distributed.world_size() == 1:
        return compute_features(encoder, manifest, ids, **how)
    own = ids[np.arange(len(ids)) // batch_size % distributed.world_size() == distributed.rank()]
    parts = distributed.all_gather_object(compute_features(encoder, manifest, own, **how))
    features, kept = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    order = np.argsort(kept, kind="stable")
    return features[order], kept[order], sorted(entry for part in parts for entry in part[2])


def texts_over_ranks(towers: TwoTower, texts: list[str]) -> torch.Tensor:
    """`TwoTower.encode_texts`, (N, D), likewise."""
    ranks = distributed.world_size()
    if ranks == 1:
        return towers.encode_texts(texts)
    chunks = [texts[k : k + TEXTS_AT_ONCE] for k in range(0, len(texts), TEXTS_AT_ONCE)]
    own = [towers.encode_texts(chunk).cpu().numpy() for chunk in chunks[distributed.rank() :: ranks]]
    parts = distributed.all_gather_object(own)
    rows = [parts[k % ranks][k // ranks] for k in range(len(chunks))]
    return torch.from_numpy(np.concatenate(rows)).to(towers.device)


@dataclass(frozen=True)
class PairFeatures:
    """Embeddings of the different images and the different captions of some image-caption pairs."""

    images: Tensor
    """(n, D) unit rows, on the device."""
    texts: Tensor
    """(m, D) unit rows, on the device."""
    image_ids: np.ndarray
    """int64 (n,), ascending ids of the manifest."""
    image_rows: np.ndarray
    """int64 (p,), each pair's row of `images`."""
    text_rows: np.ndarray
    """int64 (p,), each pair's row of `texts`."""
    bad: list[tuple[int, str]]
    """(id, reason) of the images that cannot be read; their pairs are left out."""


def pair_features(
    towers: TwoTower,
    pairs: Pairs,
    rows: np.ndarray,
    *,
    workers: int,
    device: torch.device,
    batch_size: int = BATCH,
    progress: ProgressCallback | None = None,
) -> PairFeatures:
    """Embed the images and captions of some pairs, over all ranks, with the whole result on each.

    Args:
        towers: on `device`, in evaluation mode.
        pairs: what the rows are of.
        rows: int64 (p,), ids of pairs.
        workers: processes that read images.
        device: where the towers are.
        batch_size: images at a time on a rank.
        progress: called with (images done, images to do).

    Raises:
        BadInput: none of the images can be read.
    """
    image_ids, text_ids = pairs.image_ids[rows], pairs.text_ids[rows]
    features, kept, bad = features_over_ranks(
        towers,
        pairs.images,
        np.unique(image_ids),
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )
    if not len(kept):
        raise BadInput(
            f"none of the {len(bad):,} images of {pairs.source} can be read (first: {bad[0][1]}); give others"
        )
    readable = np.isin(image_ids, kept)
    image_ids, text_ids = image_ids[readable], text_ids[readable]
    captions = np.unique(text_ids)
    texts = texts_over_ranks(towers, pairs.captions_of(captions))
    image_rows, text_rows = np.searchsorted(kept, image_ids), np.searchsorted(captions, text_ids)
    return PairFeatures(torch.from_numpy(features).to(device), texts, kept, image_rows, text_rows, bad)


def same_buffers(model: nn.Module) -> None:
    """Give all ranks the main one's buffers: BatchNorm's running statistics are each rank's own on the CPU."""
    for buffer in model.buffers():
        distributed.broadcast(buffer)
