"""Features of a data set by a frozen encoder, on one rank or on many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed
from ..data.augment import Augmentation
from ..data.loader import evaluation_loader, training_loader
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..errors import BadInput
from ..progress import ProgressCallback, part_of
from .encoder import EncoderInfo
from .two_tower import TEXTS_AT_ONCE, TextTower, TwoTower, TwoTowerModel

PROJECTED = 8192  # features of a frozen backbone that are projected at a time
BATCH = 64  # images: small, so that a sample of a few hundred keeps several ranks busy

Features = tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]
"""float32 (k, D) features, int64 (k,) ids of the readable images, (id, reason) of those that cannot be read."""


class ImageEncoder(Protocol):
    """Images -> features: an `Encoder`, or anything with these members."""

    info: EncoderInfo
    """Name and preprocessing."""
    num_features: int
    """Width D of the features."""

    def encode(self, crops: Tensor, /) -> Tensor:
        """Return the features (N, D) of uint8 crops (N, S, S, 3)."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the features (N, D) of normalised images (N, 3, S, S)."""
        ...


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
) -> Features:
    """Compute the features of the central crops of some images.

    Args:
        encoder: on `device`, in evaluation mode.
        manifest: where the images are.
        ids: int64 (m,), ids of the manifest.
        batch_size: images.
        workers: reader processes; 0 reads in this one.
        device: where the encoder is.
        progress: called with (images done, images to do).

    Returns:
        Float32 (k, D) features, int64 (k,) ids in the given order, and (id, reason) of the m - k that cannot be read.
    """
    device = torch.device(device)
    loader = evaluation_loader(
        manifest,
        ids,
        encoder.info.image_size,
        crop_fraction=encoder.info.crop_fraction,
        interpolation=encoder.info.interpolation,
        squash=encoder.info.squash,
        background=encoder.info.background,
        batch_size=batch_size,
        workers=workers,
    )
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
    """Compute the features of two random views of each image.

    Args:
        encoder: on `device`, in evaluation mode.
        manifest: where the images are.
        ids: int64 (m,), 2 or more.
        augment: draws the views.
        batch_size: images; a last batch that is not full is left out.
        device: where the encoder is.

    Returns:
        Float32 (k, D) each; row i of both is of one image.
    """
    batch_size = min(batch_size, len(ids))
    loader = training_loader(
        manifest, ids, augment.recipe, augment.image_size, batch_size, augment.seed, background=encoder.info.background
    )
    views: list[list[Tensor]] = []
    for _ in range(len(ids) // batch_size):
        batch = next(loader)
        crops = batch.crops.to(device)
        views.append([encoder(augment(crops[v], batch.index.numpy(), 0, v)).float() for v in (0, 1)])
    return torch.cat([v[0] for v in views]), torch.cat([v[1] for v in views])


def nothing_readable(manifest: Manifest, bad: list[tuple[int, str]]) -> BadInput:
    """Return the error for a data set without a readable image.

    Args:
        manifest: where the images are.
        bad: (id, reason) of each of them.
    """
    first = f"{manifest.relative(bad[0][0])} {bad[0][1]}"
    return BadInput(f"none of the {len(bad):,} images in {manifest.root} can be read (first: {first}); give others")


def features_over_ranks(
    encoder: ImageEncoder,
    manifest: Manifest,
    ids: np.ndarray,
    *,
    batch_size: int = BATCH,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: ProgressCallback | None = None,
) -> Features:
    """Compute features as `compute_features` does, batch k on rank k modulo the number of ranks; gather them on all.

    Args:
        encoder: on `device`, in evaluation mode.
        manifest: where the images are.
        ids: int64 (m,), ascending, the same on all ranks.
        batch_size: images.
        workers: reader processes of each rank.
        device: where the encoder is.
        progress: called with (images done, images to do) of this rank.

    Returns:
        What `compute_features` returns, the same on all ranks.
    """
    rank, ranks = distributed.shard()
    own = ids[np.arange(len(ids)) // batch_size % ranks == rank]
    computed = compute_features(
        encoder, manifest, own, batch_size=batch_size, workers=workers, device=device, progress=progress
    )
    if ranks == 1:
        return computed
    parts = distributed.all_gather_object(computed)
    features, kept = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    order = np.argsort(kept, kind="stable")
    return features[order], kept[order], sorted(entry for part in parts for entry in part[2])


def texts_over_ranks(tower: TextTower, texts: list[str], progress: ProgressCallback | None = None) -> torch.Tensor:
    """Encode texts as `TextTower.encode` does, chunk k on rank k modulo the number of ranks; gather them on all.

    Args:
        tower: in evaluation mode.
        texts: N of them, one or more.
        progress: called with (chunks done, chunks to do) of this rank.

    Returns:
        Float32 (N, D) unit rows, on the tower's device.
    """
    rank, ranks = distributed.shard()
    chunks = [texts[k : k + TEXTS_AT_ONCE] for k in range(0, len(texts), TEXTS_AT_ONCE)]
    found = []
    for chunk in chunks[rank::ranks]:
        found.append(tower.encode(chunk))
        if progress is not None:
            progress(len(found), len(chunks[rank::ranks]))
    if ranks == 1:
        return torch.cat(found)
    own = [part.cpu().numpy() for part in found]
    parts = distributed.all_gather_object(own)
    rows = [parts[k % ranks][k // ranks] for k in range(len(chunks))]
    return torch.from_numpy(np.concatenate(rows)).to(tower.device)


@dataclass(frozen=True)
class PairFeatures:
    """Embeddings of the different things of both columns of some pairs."""

    first: Tensor
    """(n, D) unit rows, on the device."""
    second: Tensor
    """(m, D) unit rows, on the device."""
    first_ids: np.ndarray
    """int64 (n,), ascending ids of the first column's things."""
    first_rows: np.ndarray
    """int64 (p,), each pair's row of `first`."""
    second_rows: np.ndarray
    """int64 (p,), each pair's row of `second`."""
    bad: list[tuple[int, str]]
    """(id, reason) of the images that cannot be read; their pairs are left out."""
    second_ids: np.ndarray
    """int64 (m,), ascending ids of the second column's things."""


@torch.inference_mode()
def project_features(
    model: TwoTowerModel,
    column: int,
    features: np.ndarray,
    ids: np.ndarray,
    device: torch.device,
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Return the unit rows (k, D), float32, of things of a column from the features (n, F) of its frozen backbone."""
    found = []
    for start in range(0, len(ids), PROJECTED):
        rows = torch.from_numpy(features[ids[start : start + PROJECTED]]).to(device)
        found.append(nn.functional.normalize(model.project(rows, column).float(), dim=1))
        if progress is not None:
            progress(min(start + PROJECTED, len(ids)), len(ids))
    return torch.cat(found)


def pair_features(
    towers: TwoTower,
    pairs: Pairs,
    rows: np.ndarray,
    *,
    workers: int,
    device: torch.device,
    batch_size: int = BATCH,
    progress: ProgressCallback | None = None,
    frozen: Mapping[int, np.ndarray] | None = None,
) -> PairFeatures:
    """Embed both sides of some pairs, over all ranks, with the whole result on each.

    Args:
        towers: on `device`, in evaluation mode.
        pairs: what the rows are of.
        rows: int64 (p,), ids of pairs.
        workers: processes that read images.
        device: where the towers are.
        batch_size: images at a time on a rank.
        progress: called with (things done, things to do), of both columns.
        frozen: column -> features of its things by a backbone that is frozen, which are projected; NaN for what has none.

    Raises:
        BadInput: none of the images can be read.
    """
    counts = [len(np.unique(pairs.ids(column)[rows])) for column in (0, 1)]
    embedded: list[Tensor] = []
    kept: list[np.ndarray] = []
    bad: list[tuple[int, str]] = []
    for column, tower in enumerate(towers.towers):
        ids = np.unique(pairs.ids(column)[rows])
        report = part_of(progress, counts[0] * column, counts[column], sum(counts))
        if frozen is not None and column in frozen:
            ids = ids[np.isfinite(frozen[column][ids, 0])]
            embedded.append(project_features(towers.model, column, frozen[column], ids, device, report))
        elif isinstance(tower, TextTower):
            embedded.append(texts_over_ranks(tower, pairs.texts_of(ids), report))
        else:
            found, ids, unreadable = features_over_ranks(
                tower, pairs.images, ids, batch_size=batch_size, workers=workers, device=device, progress=report
            )
            embedded.append(torch.from_numpy(found).to(device))
            bad += unreadable
        kept.append(ids)
    readable = rows[np.isin(pairs.first_ids[rows], kept[0]) & np.isin(pairs.second_ids[rows], kept[1])]
    if not len(readable):
        raise BadInput(
            f"none of the {len(bad):,} images of {pairs.source} can be read (first: {bad[0][1]}); give others"
        )
    # things of which no pair is left go too
    places = []
    for column in (0, 1):
        used, of_pair = np.unique(pairs.ids(column)[readable], return_inverse=True)
        embedded[column] = embedded[column][torch.from_numpy(np.searchsorted(kept[column], used)).to(device)]
        kept[column] = used
        places.append(of_pair)
    first, second = embedded
    return PairFeatures(first, second, kept[0], places[0], places[1], sorted(set(bad)), kept[1])


def broadcast_buffers(model: nn.Module) -> None:
    """Give all ranks the buffers of rank 0: BatchNorm's running statistics differ between ranks on the CPU."""
    for buffer in model.buffers():
        distributed.broadcast(buffer)
