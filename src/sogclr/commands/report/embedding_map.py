"""The map of a report: where each image of a sample lies, and all of them in one picture."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np

from .sample import Sample, classes_of
from .thumbnails import Thumbnails, data_uri, small_copies

WIDTH = 128  # numbers of an image's features in the page


@dataclass(frozen=True)
class EmbeddingMap:
    """What the page's script draws; the fields are those of its JSON."""

    sheet: str
    """Data URI of all tiles in one image, row by row."""
    tile: int
    """Side of a tile, pixels."""
    columns: int
    """Tiles in a row of the sheet."""
    at: list[float]
    """x and y of each image in turn, in [0, 1]."""
    y: list[int]
    """The class of each image, -1 where it is unknown."""
    classes: list[str]
    colours: list[str]
    """One for each class."""
    names: list[str]
    """Path of each image."""
    features: str
    """Base64 of int8 (m, D): the directions of the features, which say who is near whom."""

    @property
    def class_counts(self) -> list[int]:
        """Return how many images each class has."""
        found: list[int] = np.bincount([c for c in self.y if c >= 0], minlength=len(self.classes)).tolist()
        return found


def embedding_map(sample: Sample, points: np.ndarray, thumbnails: Thumbnails, image_size: int) -> EmbeddingMap | None:
    """Return the map of a sample; None where none of its images can be read.

    Args:
        sample: m images.
        points: float64 (m, 2) in [0, 1].
        thumbnails: of the run's images.
        image_size: that the encoder takes, pixels.
    """
    side = tile_size(image_size, len(sample.ids))
    copies = small_copies(thumbnails.manifest, sample.ids, side, thumbnails.background)
    kept = np.array([k for k, id in enumerate(sample.ids.tolist()) if id in copies], dtype=np.int64)
    if not len(kept):
        return None
    ids, labels = sample.ids[kept], thumbnails.labels
    sheet, columns = sprite_sheet([copies[id] for id in ids.tolist()])
    y = classes_of(labels, ids)
    classes = labels.classes if labels is not None else []
    return EmbeddingMap(
        sheet=sheet,
        tile=side,
        columns=columns,
        at=np.round(points[kept], 4).ravel().tolist(),
        y=(np.full(len(ids), -1) if y is None else y).tolist(),
        classes=classes,
        colours=colours(len(classes)),
        names=thumbnails.manifest.relatives(ids),
        features=base64.b64encode(eight_bits(sample.unit[kept]).tobytes()).decode("ascii"),
    )


def eight_bits(unit: np.ndarray) -> np.ndarray:
    """Return features whose cosines are nearly the same, small enough for a page.

    Args:
        unit: float32 (m, D), at length 1.

    Returns:
        int8 (m, min(m, D, 128)): along their main directions.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums over threads come out in any order
        _, _, directions = np.linalg.svd(unit.astype(np.float64), full_matrices=False)
        along = unit @ directions[:WIDTH].T
    length = np.linalg.norm(along, axis=1, keepdims=True)
    along = along / np.maximum(length, 1e-12)
    rounded: np.ndarray = np.rint(along * (127 / max(float(np.abs(along).max(initial=0.0)), 1e-12))).astype(np.int8)
    return rounded


def layout(unit: np.ndarray) -> np.ndarray | None:
    """Place images by their features: t-SNE of the first 50 principal components, or two of these for few images.

    Args:
        unit: float32 (m, D), features at length 1.

    Returns:
        float64 (m, 2) in [0, 1]; None when the features do not differ, as those of a collapsed encoder.
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
        points = PCA(min(2 if few else 50, m - 1, unit.shape[1]), random_state=0).fit_transform(centred)
        if not few:
            tsne = TSNE(2, perplexity=min(30.0, (m - 1) / 3), init="pca", max_iter=750, random_state=0, n_jobs=1)
            points = tsne.fit_transform(points)
    placed: np.ndarray = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    placed = placed - placed.min(axis=0)
    placed = placed / np.maximum(placed.max(axis=0), 1e-12)
    return placed


def sprite_sheet(tiles: list[np.ndarray]) -> tuple[str, int]:
    """Return the data URI of all tiles (T, T, 3) in one image, row by row, and how many stand in a row."""
    side = tiles[0].shape[0]
    columns = math.ceil(math.sqrt(len(tiles)))
    canvas = np.zeros((math.ceil(len(tiles) / columns) * side, columns * side, 3), dtype=np.uint8)
    for k, tile in enumerate(tiles):
        row, column = divmod(k, columns)
        canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    return data_uri(canvas, quality=78), columns


def tile_size(image_size: int, count: int) -> int:
    """Return the side of a tile, pixels: sharp at the size that is shown, and a page of a few megabytes."""
    most = 64 if count <= 5_000 else 48 if count <= 10_000 else 32
    return next(size for size in (32, 48, 64) if size >= min(image_size, most))


def colours(count: int) -> list[str]:
    """Return as many distinguishable colours, for light and dark backgrounds."""
    ten = ["#4e79a7", "#f28e2b", "#e15759", "#40b0a6", "#59a14f", "#d9b317", "#b07aa1", "#ff8fab", "#9c755f", "#8a8f98"]
    if count <= len(ten):
        return ten[:count]
    # The golden angle keeps neighbouring classes apart, whatever their number.
    return [f"hsl({(k * 137.508) % 360:.0f} {70 - k % 3 * 15}% {48 + k % 2 * 12}%)" for k in range(count)]
