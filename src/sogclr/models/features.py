"""Features of a data set by a frozen encoder, on one rank or on many."""

from __future__ import annotations

import os
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
from ..progress import ProgressCallback
from ..run_folder import RunFolder
from .encoder import Encoder, EncoderInfo, load_encoder
from .two_tower import TEXTS_AT_ONCE, TextTower, TwoTower, load_two_tower

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


def load_image_encoder(run_or_file: str | os.PathLike[str], device: str | torch.device) -> Encoder:
    """Load what images are embedded with: the image tower of a run on pairs, else the backbone.

    Args:
        run_or_file: a run folder or a .safetensors file.
        device: where the encoder will be.

    Raises:
        BadInput: no such run or file, the run is not finished, or it is on texts.
    """
    if RunFolder(run_or_file).holds_pairs():
        return load_two_tower(run_or_file, device).images
    return load_encoder(run_or_file, device)


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


def texts_over_ranks(tower: TextTower, texts: list[str]) -> torch.Tensor:
    """Encode texts as `TextTower.encode` does, chunk k on rank k modulo the number of ranks; gather them on all.

    Returns:
        Float32 (N, D) unit rows, on the tower's device.
    """
    rank, ranks = distributed.shard()
    if ranks == 1:
        return tower.encode(texts)
    chunks = [texts[k : k + TEXTS_AT_ONCE] for k in range(0, len(texts), TEXTS_AT_ONCE)]
    own = [tower.encode(chunk).cpu().numpy() for chunk in chunks[rank::ranks]]
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
    """Embed both sides of some pairs, over all ranks, with the whole result on each.

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
    embedded: list[Tensor] = []
    kept: list[np.ndarray] = []
    bad: list[tuple[int, str]] = []
    for column, tower in enumerate(towers.towers):
        ids = np.unique(pairs.ids(column)[rows])
        if isinstance(tower, TextTower):
            embedded.append(texts_over_ranks(tower, pairs.texts_of(ids)))
        else:
            found, ids, unreadable = features_over_ranks(
                tower, pairs.images, ids, batch_size=batch_size, workers=workers, device=device, progress=progress
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
    return PairFeatures(first, second, kept[0], places[0], places[1], sorted(set(bad)))


def broadcast_buffers(model: nn.Module) -> None:
    """Give all ranks the buffers of rank 0: BatchNorm's running statistics differ between ranks on the CPU."""
    for buffer in model.buffers():
        distributed.broadcast(buffer)
