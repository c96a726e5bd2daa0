"""The images of a report: a sample, its features, who is near whom, where each lies on a map, and small copies."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...data.images import central_crop, decode
from ...data.labels import Labels
from ...data.manifest import Manifest
from ...errors import BadImage, BadInput
from ...evaluation.knn import nearest
from ...models.backbone import create_backbone
from ...models.encoder import Encoder, EncoderInfo, load_encoder
from ...models.features import compute_features
from ...run_folder import RunFolder

QUERIES, NEIGHBOURS, AT_EACH_END = 12, 8, 10


@dataclass(frozen=True)
class Sample:
    """Images with their features, in a drawn order: every first part of it is a fair sample too."""

    ids: np.ndarray
    """int64 (m,), ids of the manifest."""
    unit: np.ndarray
    """float32 (m, D), backbone features at length 1."""
    lost: list[tuple[int, str]]
    """(id, reason) of images that were drawn and could not be read."""


# ------------------------------------------------------------------------------------------------------------- sources
def encoder_of(run: RunFolder, device: str) -> Encoder | None:
    """The finished encoder, or the one in the newest checkpoint of an unfinished run; None when there is neither.

    Raises:
        BadInput: the file that should hold it cannot be read.
    """
    if run.encoder_file.is_file():
        return load_encoder(run.path, device)
    newest = run.latest_checkpoint()
    if newest is None:
        return None
    from ...run_folder import load_checkpoint

    config = run.config()
    size, name = config.data.image_size or 224, str(config.model.model)
    backbone = create_backbone(name, size)
    saved = load_checkpoint(newest)["model"]
    start = "backbone."
    backbone.load_state_dict({k.removeprefix(start): v for k, v in saved.items() if k.startswith(start)})
    info = EncoderInfo(name, size, background=config.data.background)
    return Encoder(backbone, info).to(device).eval().requires_grad_(False)


def located(manifest_file: Path, data: str | os.PathLike[str] | None) -> Manifest:
    """The run's manifest, with its root moved to where `data` says that the images are now.

    Raises:
        BadInput: none of a few images looked for is there, or the manifest cannot be read.
    """
    manifest = Manifest.load(manifest_file)
    if data is None:
        return manifest
    given = Path(data)
    folder = given.parent if given.is_file() else given
    # A run on DATA/train lists its files relative to train/, and the user knows the folder as DATA.
    for root in (folder, folder / manifest.root.name):
        if any((root / manifest.relative(int(i))).is_file() for i in manifest.usable[:20]):
            return Manifest.load(manifest_file, root)
    raise BadInput(
        f"{data} does not hold the images of this run (looked for {manifest.relative(int(manifest.usable[0]))} and "
        f"others, which were in {manifest.root}); give the folder where they are now"
    )


def draw(
    manifest: Manifest, encoder: Encoder, most: int, *, workers: int, device: str,
    progress: Callable[[int, int], None] | None = None,
) -> Sample:  # fmt: skip
    """Features of at most `most` usable images; the same ones every time."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(manifest.usable)[:most]
    features, ids, lost = compute_features(
        encoder, manifest, np.sort(order), workers=workers, device=device, progress=progress
    )
    position = {int(id): row for row, id in enumerate(ids)}
    rows = np.array([position[int(i)] for i in order if int(i) in position], dtype=np.int64)
    features, ids = features[rows].astype(np.float32), ids[rows]
    finite = np.isfinite(features).all(axis=1)  # an encoder that has diverged gives NaN
    features, ids = features[finite], ids[finite]
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return Sample(ids, features / np.maximum(length, 1e-12), lost)


# ---------------------------------------------------------------------------------------------------------- neighbours
def neighbours(unit: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the k most similar others, each (len(rows), k), most similar first."""
    keys = torch.from_numpy(unit)
    return nearest(keys[rows], keys, min(k, len(unit) - 1), own=rows)


def same_class_share(unit: np.ndarray, y: np.ndarray, k: int) -> float | None:
    """Of the k nearest of each labelled image, the share that has its class; None without two labelled images."""
    known = np.flatnonzero(y >= 0)
    if len(known) < 2:
        return None
    _, near = neighbours(unit[known], np.arange(len(known)), k)
    return float((y[known][near] == y[known][:, None]).mean())


def choose_queries(ids: np.ndarray, y: np.ndarray | None, count: int = QUERIES) -> np.ndarray:
    """Rows of the images to show neighbours of: in turn from each class, or evenly spread over the paths."""
    count = min(count, len(ids))
    if y is None or not (y >= 0).any():
        return np.argsort(ids, kind="stable")[np.linspace(0, len(ids) - 1, count).round().astype(int)]
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


# ----------------------------------------------------------------------------------------------------------------- map
def layout(unit: np.ndarray) -> np.ndarray | None:
    """float64 (m, 2) in [0, 1]: t-SNE of the first 50 principal components, or two of these for few images.

    None when the features do not differ, as those of a collapsed encoder.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    m = len(unit)
    centred = (unit - unit.mean(axis=0)).astype(np.float64)
    if m < 3 or float(np.sqrt((centred**2).sum(axis=1).mean())) < 1e-5:
        return None
    few = m < 30
    # On one thread, because sums over threads come out in any order, and t-SNE makes another map of each rounding.
    with threadpool_limits(1):
        components = PCA(min(2 if few else 50, m - 1, unit.shape[1]), random_state=0).fit_transform(centred)
        if few:
            points = components
        else:
            tsne = TSNE(2, perplexity=min(30.0, (m - 1) / 3), init="pca", max_iter=750, random_state=0, n_jobs=1)
            points = tsne.fit_transform(components)
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-12)


# -------------------------------------------------------------------------------------------------------------- copies
def small_copies(manifest: Manifest, ids: np.ndarray, size: int, background: str) -> dict[int, np.ndarray]:
    """id -> uint8 (size, size, 3), the central square; what cannot be read is left out."""

    def copy(id: int) -> np.ndarray | None:
        try:
            return central_crop(decode(manifest.file(id), background=background, at_least=size), size)
        except BadImage:
            return None

    wanted = [int(i) for i in dict.fromkeys(ids.tolist())]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pixels = pool.map(copy, wanted, chunksize=64)
        return {id: array for id, array in zip(wanted, pixels, strict=True) if array is not None}


def data_uri(pixels: np.ndarray, quality: int = 82) -> str:
    """uint8 (H, W, 3) as a WebP data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def sheet(tiles: list[np.ndarray]) -> tuple[str, int]:
    """All tiles (T, T, 3) in one image, row by row: its data URI, and how many stand in a row."""
    side = tiles[0].shape[0]
    columns = math.ceil(math.sqrt(len(tiles)))
    canvas = np.zeros((math.ceil(len(tiles) / columns) * side, columns * side, 3), dtype=np.uint8)
    for k, tile in enumerate(tiles):
        row, column = divmod(k, columns)
        canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    return data_uri(canvas, quality=78), columns


def tile_size(image_size: int, count: int) -> int:
    """Side of a map tile, pixels: sharp at the size that is shown, and a page of a few megabytes."""
    most = 64 if count <= 5_000 else 48 if count <= 10_000 else 32
    return next(size for size in (32, 48, 64) if size >= min(image_size, most))


def colours(count: int) -> list[str]:
    """As many distinguishable colours, for light and dark backgrounds."""
    ten = ["#4e79a7", "#f28e2b", "#e15759", "#40b0a6", "#59a14f", "#d9b317", "#b07aa1", "#ff8fab", "#9c755f", "#8a8f98"]
    if count <= len(ten):
        return ten[:count]
    # The golden angle keeps neighbouring classes apart, whatever their number.
    return [f"hsl({(k * 137.508) % 360:.0f} {70 - k % 3 * 15}% {48 + k % 2 * 12}%)" for k in range(count)]


def classes_of(labels: Labels | None, ids: np.ndarray) -> np.ndarray | None:
    """The class of each id, -1 where it is unknown; None without labels."""
    return None if labels is None else labels.values[ids]
