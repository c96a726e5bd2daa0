"""A request for a batch to uint8 crops of its images: which boxes, and their pixels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..errors import BadImage
from .augment_params import CROP_SLOTS, crop_boxes, largest_shrink, uniforms
from .decoded import DecodedImages
from .images import central_box, opened, resized_crop, warnings_off
from .recipe import Recipe
from .remote import CONNECTIONS, RemotePath
from .sampler import Request
from .source import Source


class Batch(NamedTuple):
    """What a step works on."""

    step: int
    epoch: int
    index: torch.Tensor  # type: ignore[assignment]  # a field of this name hides tuple.index, which nobody calls
    """int64 (B',) on the host: sample ids. B' is below the batch size when bad files were met."""
    crops: torch.Tensor
    """uint8 (V, B', S, S, 3)."""
    bad: list[tuple[int, str]]
    """Ids of this batch whose file could not be read, and why."""

    def first(self, count: int) -> Batch:
        """Return the first `count` samples."""
        return self._replace(index=self.index[:count], crops=self.crops[:, :count])


class Cropper(Protocol):
    """Which boxes of an image are its views."""

    views: int

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Return the boxes of images (n,) of these sizes, pixels: float64 (n, V, 4) of left, top, right, bottom."""
        ...


class RandomCrops:
    """The V random crops of each image: a function of (seed, epoch, id) and of the image's size."""

    def __init__(self, recipe: Recipe, views: int, seed: int) -> None:
        self.recipe, self.views, self.seed = recipe, views, seed

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Draw the boxes: float64 (n, V, 4), pixels."""
        of_view = [uniforms(self.seed, epoch, ids, v, CROP_SLOTS) for v in range(self.views)]
        return np.stack([crop_boxes(self.recipe, u, widths, heights) for u in of_view], axis=1)


class CentralCrop:
    """The one evaluation crop."""

    views = 1

    def __init__(self, crop_fraction: float) -> None:
        self.crop_fraction = crop_fraction

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Return the central square of each: float64 (n, 1, 4), pixels."""
        sizes = zip(widths.tolist(), heights.tolist(), strict=True)
        return np.array([[central_box(w, h, self.crop_fraction)] for w, h in sizes]).reshape(-1, 1, 4)


class CropDataset(Dataset[Batch]):
    """Request -> Batch. Lives in each worker, and keeps decoded images when all of them together are small.

    Args:
        source: where the images are.
        ids: int64, the sample ids that will be asked for.
        cropper: which boxes.
        size: S, pixels of a crop.
        background: what transparent pixels are laid on.
        cache_bytes: the most that decoded images may take.
        decoded: of `source.images`: where images are taken from instead of their files, as far as it has them.
    """

    def __init__(
        self,
        source: Source,
        ids: np.ndarray,
        cropper: Cropper,
        size: int,
        background: str,
        cache_bytes: int,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.decoded = decoded
        self.source, self.cropper, self.size, self.background = source, cropper, size, background
        self._remote = isinstance(source.images.root, RemotePath)
        used = np.zeros(len(source.images), bool)
        used[source.image_of(ids)] = True
        widths, heights = (v[used].astype(np.int64) for v in (source.images.widths, source.images.heights))
        # Only images that are never decoded smaller than they are, so that keeping them changes no pixel.
        small = len(ids) > 0 and widths.min() > 0 and np.minimum(widths, heights).max() < 2 * size
        self._keep = bool(decoded is None and small and 3 * int((widths * heights).sum()) <= cache_bytes)
        self._kept: dict[int, Image.Image] = {}  # by image id: pairs with an image in common have one

    def __getitem__(self, request: Request) -> Batch:
        ids, image_ids = request.ids, self.source.image_of(request.ids)
        widths, heights = np.maximum(self.source.widths[ids], 1), np.maximum(self.source.heights[ids], 1)
        expected = self.cropper.boxes(request.epoch, ids, widths, heights)  # all at once, where the headers were right
        crops = np.empty((self.cropper.views, len(ids), self.size, self.size, 3), dtype=np.uint8)
        bad: list[tuple[int, str]] = []
        good: list[int] = []
        fetched = self._fetch(ids, image_ids) if self._remote and self.decoded is None else {}
        with warnings_off:  # here as well, for it costs less where it is on already than once an image
            for row, (id, image_id) in enumerate(zip(ids.tolist(), image_ids.tolist(), strict=True)):
                try:
                    image, width, height, boxes = self._read(request.epoch, id, image_id, expected[row], fetched)
                    if image.size != (width, height):
                        boxes = boxes * ([image.width / width, image.height / height] * 2)
                    for v, box in enumerate(boxes.tolist()):
                        crops[v, len(good)] = resized_crop(image, tuple(box), self.size)
                except BadImage as error:
                    bad.append((id, str(error)))
                else:
                    good.append(id)
        index = torch.tensor(good, dtype=torch.int64)
        whole = torch.from_numpy(crops)
        return Batch(request.step, request.epoch, index, whole[:, : len(good)].contiguous() if bad else whole, bad)

    def _fetch(self, ids: np.ndarray, image_ids: np.ndarray) -> dict[int, BinaryIO | BadImage]:
        """Return the files of a batch of remote images, asked for at the same time: what takes time is the way."""

        def fetch(id: int) -> str | BinaryIO | BadImage:
            try:
                return self.source.file(id)
            except BadImage as error:
                return error

        pairs = zip(ids.tolist(), image_ids.tolist(), strict=True)
        wanted = [id for id, image_id in pairs if image_id not in self._kept]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            found = zip(wanted, pool.map(fetch, wanted), strict=True)
            return {id: file for id, file in found if not isinstance(file, str)}

    def _read(
        self, epoch: int, id: int, image_id: int, expected: np.ndarray, fetched: dict[int, BinaryIO | BadImage]
    ) -> tuple[Image.Image, int, int, np.ndarray]:
        """Return the image, perhaps decoded smaller; its full width and height; the boxes (V, 4) at full size."""
        if image_id in self._kept:
            image = self._kept[image_id]
            return image, image.width, image.height, expected
        if self.decoded is not None and (found := self.decoded.get(image_id)) is not None:
            image, width, height = found
            return image, width, height, self._boxes(epoch, id, width, height, expected)
        found_file = fetched.get(id) or self.source.file(id)
        if isinstance(found_file, BadImage):
            raise found_file
        with opened(found_file) as file:
            width, height = file.width, file.height
            boxes = self._boxes(epoch, id, width, height, expected)
            image = file.pixels(self.background, largest_shrink(boxes, self.size))
        if self._keep and boxes is expected:
            self._kept[image_id] = image
        return image, width, height, boxes

    def _boxes(self, epoch: int, id: int, width: int, height: int, expected: np.ndarray) -> np.ndarray:
        """Return the boxes (V, 4) at full size: those expected, unless the size was unknown or has changed since."""
        if (width, height) == (self.source.widths[id], self.source.heights[id]):
            return expected
        boxes: np.ndarray = self.cropper.boxes(epoch, np.array([id]), np.array([width]), np.array([height]))[0]
        return boxes
