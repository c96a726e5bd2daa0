"""The images that a report looks at: a sample, its features, and who is near whom."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data.labels import Labels
from ...data.manifest import Manifest
from ...data.paths import as_path
from ...errors import BadInput
from ...evaluation.knn import nearest
from ...models.encoder import Encoder, EncoderInfo, load_encoder
from ...models.features import compute_features
from ...models.two_tower import create_run_backbone
from ...progress import ProgressCallback
from ...run_folder import RunFolder, load_checkpoint

QUERIES, NEIGHBOURS = 12, 8


@dataclass(frozen=True)
class Sample:
    """Images with their features, in a drawn order: every first part of it is a fair sample too."""

    ids: np.ndarray
    """int64 (m,), ids of the manifest."""
    unit: np.ndarray
    """float32 (m, D), backbone features at length 1."""
    bad: list[tuple[int, str]]
    """(id, reason) of images that were drawn and could not be read."""


def encoder_of(run: RunFolder, device: str) -> Encoder | None:
    """Return the finished encoder, or that of an unfinished run's newest checkpoint; None when there is neither.

    Args:
        run: where they are looked for.
        device: where the encoder goes.

    Raises:
        BadInput: the file that should hold it cannot be read.
    """
    if run.encoder_file.is_file():
        return load_encoder(run.path, device)
    newest = run.latest_checkpoint()
    if newest is None:
        return None
    info = EncoderInfo.of_run(run.config())
    backbone = create_run_backbone(run, info)
    saved = load_checkpoint(newest)["model"]
    start = "backbone."
    backbone.load_state_dict({k.removeprefix(start): v for k, v in saved.items() if k.startswith(start)})
    return Encoder(backbone, info).to(device).eval().requires_grad_(False)


def locate_images(manifest_file: Path, data: str | os.PathLike[str] | None) -> Manifest:
    """Return the run's manifest, with its root moved to where `data` says that the images are now.

    Args:
        manifest_file: of the run.
        data: a folder or a file in it; None leaves the root as it was.

    Raises:
        BadInput: none of a few images looked for is there, or the manifest cannot be read.
    """
    manifest = Manifest.load(manifest_file)
    if data is None:
        return manifest
    given = as_path(data)
    folder = given.parent if given.is_file() else given
    # A run on DATA/train lists its files relative to train/, and the user knows the folder as DATA.
    for root in (folder, folder / manifest.root.name):
        if any((root / manifest.relative(int(i))).is_file() for i in manifest.usable[:20]):
            return Manifest.load(manifest_file, root)
    raise BadInput(
        f"{data} does not hold the images of this run (looked for {manifest.relative(int(manifest.usable[0]))} and "
        f"others, which were in {manifest.root}); give the folder where they are now"
    )


def draw_sample(
    manifest: Manifest,
    encoder: Encoder,
    most: int,
    *,
    shown: list[int],
    workers: int,
    device: str,
    progress: ProgressCallback | None = None,
) -> Sample:
    """Return features of at most `most` usable images; the same ones every time.

    Args:
        manifest: where the images are.
        encoder: on `device`.
        most: images.
        shown: ids of images that the page shows anyway; they are the sample's last, up to a tenth of it.
        workers: processes that read images.
        device: what computes the features.
        progress: called with (images done, images to do).
    """
    order = np.random.Generator(np.random.Philox(key=0)).permutation(manifest.usable)
    last = np.array(shown[: most // 10], dtype=np.int64)
    order = np.concatenate([order[~np.isin(order, last)][: most - len(last)], last])
    features, ids, bad = compute_features(
        encoder, manifest, np.sort(order), workers=workers, device=device, progress=progress
    )
    position = {int(id): row for row, id in enumerate(ids)}
    rows = np.array([position[int(i)] for i in order if int(i) in position], dtype=np.int64)
    features, ids = features[rows].astype(np.float32), ids[rows]
    finite = np.isfinite(features).all(axis=1)  # an encoder that has diverged gives NaN
    features, ids = features[finite], ids[finite]
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return Sample(ids, features / np.maximum(length, 1e-12), bad)


def neighbours(unit: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and rows of the k most similar others, each (len(rows), k), most similar first."""
    keys = torch.from_numpy(unit)
    return nearest(keys[rows], keys, min(k, len(unit) - 1), own=rows)


def same_class_share(unit: np.ndarray, y: np.ndarray, k: int) -> float | None:
    """Return the share of the labelled images' k nearest that have their class; None without two labelled images.

    Args:
        unit: float32 (m, D), features at length 1.
        y: int64 (m,), classes; -1 where unknown.
        k: neighbours.
    """
    known = np.flatnonzero(y >= 0)
    if len(known) < 2:
        return None
    _, near = neighbours(unit[known], np.arange(len(known)), k)
    return float((y[known][near] == y[known][:, None]).mean())


def choose_queries(ids: np.ndarray, y: np.ndarray | None, count: int = QUERIES) -> np.ndarray:
    """Return rows of the images to show neighbours of: in turn from each class, or evenly spread over the paths.

    Args:
        ids: int64 (m,), ids of the manifest, which are in the order of the paths.
        y: int64 (m,), classes; -1 where unknown.
        count: at most so many.
    """
    count = min(count, len(ids))
    if y is None or not (y >= 0).any():
        spread: np.ndarray = np.argsort(ids, kind="stable")[np.linspace(0, len(ids) - 1, count).round().astype(int)]
        return spread
    classes = np.unique(y[y >= 0])
    if len(classes) > count:
        classes = classes[np.linspace(0, len(classes) - 1, count).round().astype(int)]
    turn = np.full(len(ids), len(ids))  # the how-manieth of its class an image is
    for c in classes:
        members = np.flatnonzero(y == c)
        turn[members] = np.arange(len(members))
    chosen = np.lexsort((y, turn))[:count]
    chosen = chosen[turn[chosen] < len(ids)]
    return chosen[np.lexsort((turn[chosen], y[chosen]))]


def classes_of(labels: Labels | None, ids: np.ndarray) -> np.ndarray | None:
    """Return the class of each id, -1 where it is unknown; None without labels."""
    return None if labels is None else labels.values[ids]
