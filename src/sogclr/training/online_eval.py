"""How a run is doing while it trains: kNN with labels; RankMe, alignment and uniformity without; and its gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .. import distributed
from ..data.augment import Augmentation
from ..data.labels import Labels
from ..data.loader import training_loader
from ..data.manifest import Manifest
from ..evaluation.diagnosis import diagnose
from ..evaluation.exact import eval_mode
from ..evaluation.knn import knn_leave_one_out
from ..evaluation.scores import compute
from ..models.encoder import Encoder, EncoderInfo
from ..models.features import broadcast_buffers, compute_views, features_over_ranks
from ..models.two_view import ContrastiveModel
from .reading import Reading

IMAGES = 2000  # enough for kNN to a percent, and a small part of an epoch
DIAGNOSED, DIAGNOSED_VIEWS = 512, 4  # images and views of each over which the diagnosis is exact
DIAGNOSED_BYTES = 1 << 30  # of their pixels: fewer images where they are large
VIEWED = 512  # of them at the least, for the alignment of two views


def choose(ids: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return a fixed random sample of at most so many ids, ascending."""
    if len(ids) <= most:
        return ids
    return np.sort(np.random.Generator(np.random.Philox(key=seed)).choice(ids, most, replace=False))


class OnlineEvaluation:
    """Scores on a fixed sample of at most 2,000 training images; `evaluation.scores.select` says which is to grow.

    With labels: leave-one-out kNN accuracy of the backbone's features. Without: RankMe and uniformity of the features,
    and alignment between two views. All ranks compute features; the main one goes on to the scores, and the others get none.

    Args:
        manifest: the training images.
        labels: of them, or None.
        reading: how they are read; its seed decides which they are.
    """

    def __init__(self, manifest: Manifest, labels: Labels | None, reading: Reading) -> None:
        self.manifest, self.labels, self.reading = manifest, labels, reading
        ids = manifest.usable if labels is None else manifest.usable[labels.values[manifest.usable] >= 0]
        self.ids = choose(ids, IMAGES, reading.seed)

    def __call__(
        self, model: ContrastiveModel, info: EncoderInfo, augment: Augmentation, device: torch.device
    ) -> dict[str, float]:
        """Return `knn_top1`, or `rankme`, `alignment` and `uniformity`; nothing on other ranks than the main one."""
        model.eval()
        broadcast_buffers(model)
        encoder = Encoder(model.backbone, info)
        try:
            features, kept, _ = features_over_ranks(
                encoder, self.manifest, self.ids, workers=self.reading.workers, device=device
            )
            if not distributed.is_rank0():
                return {}
            if self.labels is not None:
                y = self.labels.values[kept]
                return {"knn_top1": knn_leave_one_out(features, y, num_classes=len(self.labels.classes))}
            some = self.ids[:: max(1, len(self.ids) // VIEWED)]
            z0, z1 = compute_views(
                encoder, self.manifest, some, augment, batch_size=self.reading.batch_size, device=device
            )
            return compute(online=True, features=features, views=(z0, z1))
        finally:
            model.train()


class OnlineDiagnosis:
    """`diagnose` on a fixed random part of the images in a fixed set of views, in float32 with frozen BatchNorm.

    Over that part the objective, the gradient and the normalizers are exact; of the whole data set they are estimates
    (the objective's negatives are a sample), and exactly so where the part is all of it.

    Args:
        manifest: the training images.
        reading: how they are read; its seed decides which they are.
    """

    def __init__(self, manifest: Manifest, reading: Reading) -> None:
        self.manifest, self.reading = manifest, reading
        most = DIAGNOSED_BYTES // (DIAGNOSED_VIEWS * 3 * 4 * reading.image_size**2)
        count = min(len(manifest.usable), DIAGNOSED, max(2, most))
        draw = np.random.Generator(np.random.Philox(key=reading.seed + 1))
        self.ids = np.sort(draw.choice(manifest.usable, count, replace=False))

    def __call__(
        self,
        model: ContrastiveModel,
        loss: nn.Module,
        info: EncoderInfo,
        augment: Augmentation,
        device: torch.device,
    ) -> dict[str, float]:
        """Return what `diagnose` finds."""
        index, views = self._views(info, augment, device)
        batch = min(self.reading.batch_size, len(index))
        with eval_mode(model):
            return diagnose(loss, model, views, index=index, batch_size=batch, batches=200, single_batches=16)

    def _views(
        self, info: EncoderInfo, augment: Augmentation, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids, (m,), and (V, m, 3, S, S) views: those of the epoch 0."""
        loader = training_loader(
            self.manifest,
            self.ids,
            augment.recipe,
            augment.image_size,
            len(self.ids),
            augment.seed,
            views=DIAGNOSED_VIEWS,
            background=info.background,
        )
        batch = next(loader)
        crops, ids = batch.crops.to(device), batch.index.numpy()
        return batch.index, torch.stack([augment(crops[v], ids, 0, v) for v in range(DIAGNOSED_VIEWS)])
