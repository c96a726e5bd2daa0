"""A request for a batch to uint8 crops of its images: which boxes, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..errors import BadImage
from .augment_params import CROP_SLOTS, crop_boxes, largest_shrink, uniforms
from .boxes import central_box, resized_crop
from .decoded import DecodedImages
from .images import ImageFile, OpenImage, opened, warnings_off
from .multi_crop import CropGroup
from .recipe import Recipe
from .remote import CONNECTIONS, RemotePath
from .sampler import Request
from .source import Source
from .watch import reads


class Batch(NamedTuple):
    """What a step works on."""

    step: int
    epoch: int
    index: torch.Tensor  # type: ignore[assignment]  # a field of this name hides tuple.index, which nobody calls
    """int64 (B',) on the host: sample ids. B' is below the batch size when bad files were met."""
    crops: torch.Tensor
    """uint8 (I V, B', S, S, 3): V crops of each of a sample's I images."""
    bad: list[tuple[int, str]]
    """Ids of this batch whose file could not be read, and why."""
    small: tuple[torch.Tensor, ...] = ()
    """Of multi-crop: the views of each smaller size, as `crops`."""

    def first(self, count: int) -> Batch:
        """Return the first `count` samples."""
        small = tuple(crops[:, :count] for crops in self.small)
        return self._replace(index=self.index[:count], crops=self.crops[:, :count], small=small)


class Cropper(Protocol):
    """Which boxes of an image are its views."""

    views: int
    interpolation: str
    """How they are resized."""
    exact: bool
    """Whether images are read as any program reads them: whole, and resized in one go; faster where they are not."""

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray, image: int = 0) -> np.ndarray:
        """Return the boxes of images (n,) of these sizes, pixels: float64 (n, V, 4) of left, top, right, bottom.

        Args:
            epoch: of the training.
            ids: int64 (n,), the samples.
            widths: (n,).
            heights: (n,).
            image: which of a sample's images they are.
        """
        ...


class RandomCrops:
    """The V random crops of each image: a function of (seed, epoch, id, which of its images) and of the image's size.

    Args:
        recipe: how the full-size crops are drawn.
        views: how many these are.
        seed: of the run.
        small: smaller crops, which come after them.
    """

    interpolation, exact = "bilinear", False

    def __init__(self, recipe: Recipe, views: int, seed: int, small: Sequence[CropGroup] = ()) -> None:
        self.recipes = [recipe] * views + [group.recipe for group in small for _ in range(group.views)]
        self.views, self.seed = len(self.recipes), seed

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray, image: int = 0) -> np.ndarray:
        """Draw the boxes: float64 (n, V, 4), pixels."""
        first = image * self.views
        of_view = [uniforms(self.seed, epoch, ids, v, CROP_SLOTS) for v in range(first, first + self.views)]
        drawn = zip(self.recipes, of_view, strict=True)
        return np.stack([crop_boxes(recipe, u, widths, heights) for recipe, u in drawn], axis=1)


class CentralCrop:
    """The one evaluation crop."""

    views, exact = 1, True

    def __init__(self, crop_fraction: float, interpolation: str = "bilinear", squash: bool = False) -> None:
        self.crop_fraction, self.interpolation, self.squash = crop_fraction, interpolation, squash

    def boxes(self, epoch: int, ids: np.ndarray, widths: np.ndarray, heights: np.ndarray, image: int = 0) -> np.ndarray:
        """Return the central square of each: float64 (n, 1, 4), pixels."""
        sizes = zip(widths.tolist(), heights.tolist(), strict=True)
        return np.array([[central_box(w, h, self.crop_fraction, self.squash)] for w, h in sizes]).reshape(-1, 1, 4)


def evaluation_crop(
    image: Image.Image | ImageFile,
    size: int,
    crop_fraction: float,
    interpolation: str,
    background: str,
    squash: bool = False,
) -> np.ndarray:
    """Return what an encoder sees of one image at evaluation, as `evaluation_loader` reads it: uint8 (size, size, 3).

    Args:
        image: a path, an open file, or an image of Pillow, of any mode.
        size: pixels.
        crop_fraction: how much of the shorter side the central crop keeps.
        interpolation: how it is resized.
        background: what transparent pixels are laid on.
        squash: whether the whole image is squeezed into the square instead.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(image, Image.Image):
        pixels = OpenImage(image, "").pixels(background)
    else:
        with opened(image) as file:
            pixels = file.pixels(background)
    box = central_box(pixels.width, pixels.height, crop_fraction, squash)
    return resized_crop(pixels, box, size, interpolation, exact=True)


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
        small: the last of the cropper's views, whose crops are smaller.
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
        small: Sequence[CropGroup] = (),
    ) -> None:
        self.decoded = decoded
        self.source, self.cropper, self.background = source, cropper, background
        full = cropper.views - sum(group.views for group in small)
        self.groups = [(full, size), *((group.views, group.size) for group in small)]  # (views, pixels)
        self.places = [(g, v) for g, (views, _) in enumerate(self.groups) for v in range(views)]  # of each view
        self.sizes = [self.groups[g][1] for g, _ in self.places]
        self._remote = isinstance(source.images.root, RemotePath)
        used = np.zeros(len(source.images), bool)
        used[source.images_of(ids)] = True
        widths, heights = (v[used].astype(np.int64) for v in (source.images.widths, source.images.heights))
        # Only images that are never decoded smaller than they are, so that keeping them changes no pixel.
        undiminished = len(widths) > 0 and widths.min() > 0 and np.minimum(widths, heights).max() < 2 * size
        self._keep = bool(decoded is None and undiminished and 3 * int((widths * heights).sum()) <= cache_bytes)
        self._kept: dict[int, Image.Image] = {}  # by image id: pairs with an image in common have one

    def __getitem__(self, request: Request) -> Batch:
        ids, image_ids = request.ids, self.source.images_of(request.ids)
        per_sample, how, exact = image_ids.shape[1], self.cropper.interpolation, self.cropper.exact
        # all boxes at once, where the headers were right
        expected = [self._boxes_of(request.epoch, ids, image_ids[:, k], k) for k in range(per_sample)]
        crops = [np.empty((per_sample * v, len(ids), side, side, 3), dtype=np.uint8) for v, side in self.groups]
        bad: list[tuple[int, str]] = []
        good: list[int] = []
        fetched = self._fetch(image_ids) if self._remote and self.decoded is None else {}
        with warnings_off:  # here as well, for it costs less where it is on already than once an image
            for row, (id, own_images) in enumerate(zip(ids.tolist(), image_ids.tolist(), strict=True)):
                try:
                    for k, image_id in enumerate(own_images):
                        image, width, height, boxes = self._read(
                            request.epoch, id, image_id, k, expected[k][row], fetched
                        )
                        if image.size != (width, height):
                            boxes = boxes * ([image.width / width, image.height / height] * 2)
                        for (g, v), box in zip(self.places, boxes.tolist(), strict=True):
                            views, side = self.groups[g]
                            crops[g][k * views + v, len(good)] = resized_crop(image, tuple(box), side, how, exact)
                except BadImage as error:
                    bad.append((id, str(error)))
                else:
                    good.append(id)
        reads(-1)
        index = torch.tensor(good, dtype=torch.int64)
        whole, *small = (torch.from_numpy(c[:, : len(good)].copy() if bad else c) for c in crops)
        return Batch(request.step, request.epoch, index, whole, bad, tuple(small))

    def _boxes_of(self, epoch: int, ids: np.ndarray, image_ids: np.ndarray, image: int) -> np.ndarray:
        """Return the boxes (n, V, 4) of images of the sizes that their headers told."""
        images = self.source.images
        widths, heights = np.maximum(images.widths[image_ids], 1), np.maximum(images.heights[image_ids], 1)
        return self.cropper.boxes(epoch, ids, widths, heights, image)

    def _fetch(self, image_ids: np.ndarray) -> dict[int, BinaryIO | BadImage]:
        """Return the files of remote images, asked for at the same time: what takes time is the way."""

        def fetch(image_id: int) -> str | BinaryIO | BadImage:
            try:
                return self.source.images.file(image_id)
            except BadImage as error:
                return error

        wanted = [image_id for image_id in image_ids.ravel().tolist() if image_id not in self._kept]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            found = zip(wanted, pool.map(fetch, wanted), strict=True)
            return {image_id: file for image_id, file in found if not isinstance(file, str)}

    def _read(
        self,
        epoch: int,
        id: int,
        image_id: int,
        image: int,
        expected: np.ndarray,
        fetched: dict[int, BinaryIO | BadImage],
    ) -> tuple[Image.Image, int, int, np.ndarray]:
        """Return the pixels, perhaps decoded smaller; their full width and height; the boxes (V, 4) at full size.

        Args:
            epoch: of the training.
            id: the sample.
            image_id: its image.
            image: which of the sample's images that is.
            expected: the boxes if the size is what the header told.
            fetched: image id -> file, or why there is none, of images that are remote.
        """
        if image_id in self._kept:
            kept = self._kept[image_id]
            return kept, kept.width, kept.height, expected

        def boxes_at(width: int, height: int) -> np.ndarray:
            if (width, height) == (self.source.images.widths[image_id], self.source.images.heights[image_id]):
                return expected
            one, wide, high = (np.array([value]) for value in (id, width, height))
            found: np.ndarray = self.cropper.boxes(epoch, one, wide, high, image)[0]
            return found

        if self.decoded is not None and (found := self.decoded.get(image_id)) is not None:
            pixels, width, height = found
            return pixels, width, height, boxes_at(width, height)
        reads(image_id)
        found_file = fetched.get(image_id) or self.source.images.file(image_id)
        if isinstance(found_file, BadImage):
            raise found_file
        with opened(found_file) as file:
            width, height = file.width, file.height
            boxes = boxes_at(width, height)
            shrink = 1 if self.cropper.exact else largest_shrink(boxes, self.sizes)
            pixels = file.pixels(self.background, shrink)
        if self._keep and boxes is expected:
            self._kept[image_id] = pixels
        return pixels, width, height, boxes
