"""Small copies of images, inside the page."""

from __future__ import annotations

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...data.boxes import central_crop
from ...data.images import decode
from ...data.labels import Labels
from ...data.manifest import Manifest
from ...errors import BadImage


@dataclass(frozen=True)
class Thumbnail:
    """One small image."""

    id: int
    """Of the manifest."""
    uri: str
    path: str
    class_name: str | None
    """None where it is unknown or not to be shown."""
    value: float
    """Cosine to the query, or log u."""
    same: bool | None = None
    """Whether it has the query's class or is the caption's own, where that is known."""

    @property
    def name(self) -> str:
        """Return its class, or else its file name."""
        return self.class_name if self.class_name is not None else self.path.rsplit("/", 1)[-1]

    @property
    def frame(self) -> str:
        """Return the CSS class of its frame."""
        return "" if self.same is None else "same" if self.same else "other"

    @property
    def description(self) -> str:
        """Return its path and class in words."""
        return self.path if self.class_name is None else f"{self.path}, class {self.class_name}"


class Thumbnails:
    """Makes small copies of a run's images.

    Args:
        manifest: of the images, with the root where they are now.
        labels: their classes, if any are known.
        size: side of a copy, pixels.
        background: what transparent pixels become.
    """

    def __init__(self, manifest: Manifest, labels: Labels | None, size: int, background: str) -> None:
        self.manifest, self.labels, self.size, self.background = manifest, labels, size, background

    def class_of(self, id: int) -> int:
        """Return the class of an image, -1 where it is unknown."""
        return -1 if self.labels is None else int(self.labels.values[id])

    def of(self, ids: list[int], values: list[float], query: int | None = None) -> list[Thumbnail]:
        """Return a thumbnail for each image whose file can be read.

        Args:
            ids: of the manifest.
            values: one for each id.
            query: id of the image that they are neighbours of.
        """
        copies = small_copies(self.manifest, np.array(ids, dtype=np.int64), self.size, self.background)
        asked = -1 if query is None else self.class_of(query)
        found = []
        for id, value in zip(ids, values, strict=True):
            if id in copies:
                own = self.class_of(id)
                name = self.labels.classes[own] if self.labels is not None and own >= 0 else None
                same = own == asked if own >= 0 and asked >= 0 else None
                found.append(Thumbnail(id, data_uri(copies[id]), self.manifest.relative(id), name, value, same))
        return found


def small_copies(manifest: Manifest, ids: np.ndarray, size: int, background: str) -> dict[int, np.ndarray]:
    """Return the central squares of some images; what cannot be read is left out.

    Args:
        manifest: where the images are.
        ids: int64 (m,).
        size: side of a copy, pixels.
        background: what transparent pixels become.

    Returns:
        Id -> uint8 (size, size, 3).
    """

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
    """Return uint8 (H, W, 3) pixels as a WebP data URI; quality is from 0 to 100."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
