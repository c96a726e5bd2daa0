"""Views of data, or by a transform, of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ... import distributed
from ...data.augment import Augmentation
from ...data.boxes import resized_crop
from ...data.crops import Batch, RandomCrops
from ...data.labels import Labels
from ...data.loader import one_pass, read_batches
from ...data.sampler import Request
from ...data.source import Source
from ...errors import BadImage, BadInput
from ...evaluation.scores import compute
from ...models.encoder import EncoderInfo
from ...models.features import broadcast_buffers
from ...models.two_view import ContrastiveModel
from ..online_eval import VIEWED, knn_score, scored_ids
from ..reading import Reading
from .data import generators_kept, item_of, seed_generators, two_views
from .parts import MapDataset, name_of


class _Reader(Dataset[Batch]):
    """Request -> Batch of float views (2, B, C, H, W), or of uint8 crops (2, B, S, S, 3) that are still to be augmented.

    Args:
        dataset: of (image or views, index).
        transform: image -> view; None for our crops of images, and for views.
        crops: where our crops of an image lie.
        size: S, of our crops.
        seed: the run's.
    """

    def __init__(
        self, dataset: MapDataset, transform: Callable[[Any], Tensor] | None, crops: RandomCrops, size: int, seed: int
    ) -> None:
        self.dataset, self.transform, self.crops, self.size, self.seed = dataset, transform, crops, size, seed

    def __getitem__(self, request: Request) -> Batch:
        views: list[Tensor] = []
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        with generators_kept():
            for id in request.ids.tolist():
                seed_generators(self.seed, request.epoch, id)
                try:
                    views.append(self.views(id, request.epoch))
                except BadImage as error:
                    bad.append((id, str(error)))
                else:
                    good.append(id)
        crops = torch.stack(views, dim=1) if views else torch.empty(2, 0)
        return Batch(request.step, request.epoch, torch.tensor(good, dtype=torch.int64), crops, bad)

    def views(self, id: int, epoch: int) -> Tensor:
        """Return both views of a sample, (2, C, H, W) or (2, S, S, 3)."""
        content, name = item_of(self.dataset, id), name_of(self.dataset)
        if self.transform is not None:
            return two_views(
                [self.transform(content), self.transform(content)], f"transform= ({name_of(self.transform)})"
            )
        if not isinstance(content, Image.Image):
            if isinstance(content, tuple | list) or (isinstance(content, Tensor) and content.ndim == 4):
                return two_views(content, name)
            raise BadInput(
                f"{name}[{id}] gave a {type(content).__name__}; give PIL images, two views of shape (C, H, W), or transform="
            )
        image = content.convert("RGB")
        sizes = np.array([image.width]), np.array([image.height])
        boxes = self.crops.boxes(epoch, np.array([id]), *sizes)[0].tolist()
        return torch.stack([torch.from_numpy(resized_crop(image, tuple(box), self.size).copy()) for box in boxes])


class OwnViews:
    """Views of a data set or by a transform of a user's own.

    Args:
        source: the samples.
        dataset: of (image or views, index), for the ids of `source`.
        transform: image -> view; None for our own augmentation of images, and for views.
        labels: for the online evaluation, of image files.
        info: with the normalisation of our own augmentation.
        reading: how samples are read.
    """

    scored = "training images"
    counts: tuple[int, ...] = (2,)

    def __init__(
        self,
        source: Source,
        dataset: MapDataset,
        transform: Callable[[Any], Tensor] | None,
        labels: Labels | None,
        info: EncoderInfo,
        reading: Reading,
    ) -> None:
        self.source, self.labels, self.reading = source, labels, reading
        crops = RandomCrops(reading.recipe, 2, reading.seed)
        self.reader = _Reader(dataset, transform, crops, reading.image_size, reading.seed)
        self.augment = Augmentation(reading.recipe, reading.image_size, info.mean, info.std, reading.seed)

    def view_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of the first readable sample's views, as the model sees them."""
        with generators_kept():
            for id in self.source.usable[:100].tolist():
                seed_generators(self.reading.seed, 0, id)
                try:
                    views = self.reader.views(id, 0)
                except BadImage:
                    continue
                batch = Batch(0, 0, torch.tensor([id]), views[:, None], [])
                return tuple(self.inputs(batch, torch.device("cpu"))[0].shape[1:])
        raise BadInput("none of the first 100 images can be read; give others")

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield batches from `start` on, two views of each sample."""
        reading = self.reading
        return read_batches(self.reader, reading.sampler(self.source, start).passes(), reading.workers, pin_memory)

    def one_pass(self) -> Iterator[Batch]:
        """Yield two views of each sample, once, as epoch 0 draws them."""
        rank, ranks = distributed.shard()
        requests = one_pass(self.source.usable, self.reading.batch_size)[rank::ranks]
        return read_batches(self.reader, [requests], min(self.reading.workers, len(requests)), False)

    def blank_batch(self) -> Batch:
        """Return two samples, of which only the shapes count."""
        batch = self.reader[Request(0, 0, self.source.usable[:2])]
        return batch._replace(crops=torch.zeros_like(batch.crops))

    def inputs(self, batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        """Return both views of all samples, (2B, C, H, W): the first views before the second."""
        crops = batch.crops.to(device, non_blocking=True)
        if crops.dtype != torch.uint8:  # views already
            return (crops.float().flatten(0, 1),)
        return (torch.cat([self.augment(crops[v], batch.index.numpy(), batch.epoch, v) for v in (0, 1)]),)

    @torch.inference_mode()
    def evaluate(self, model: ContrastiveModel, device: torch.device) -> dict[str, float]:
        """Return the accuracy of kNN with labels, label-free scores without, of a fixed sample's views in epoch 0.

        The main rank computes them alone.
        """
        broadcast_buffers(model)
        if not distributed.is_rank0():
            return {}
        ids = scored_ids(self.source.usable, self.labels, self.reading.seed)
        model.eval()
        try:
            batches = [self.reader[Request(0, 0, part)] for part in np.array_split(ids, -(-len(ids) // 64))]
            rows = [
                model.backbone(*self.inputs(b, device)).float().view(2, len(b.index), -1)
                for b in batches
                if len(b.index)
            ]
        finally:
            model.train()
        z = torch.cat(rows, dim=1)
        features = z[0].cpu().numpy()
        if self.labels is not None:
            return knn_score(features, torch.cat([b.index for b in batches]).numpy(), self.labels)
        some = slice(None, None, max(1, len(features) // VIEWED))
        return compute(online=True, features=features, views=(z[0, some], z[1, some]))

    def diagnose(self, model: ContrastiveModel, loss: nn.Module, device: torch.device) -> dict[str, float]:
        """Raise: `diagnose_every` was refused."""
        raise NotImplementedError
