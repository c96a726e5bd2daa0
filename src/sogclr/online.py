"""How good the encoder is while it trains: kNN with labels; RankMe, alignment and uniformity without."""

from __future__ import annotations

import numpy as np
import torch

from .config import TrainConfig
from .data.labels import Labels
from .data.manifest import Manifest
from .data.views import Augmentation
from .embedding import compute_features, compute_views
from .evaluation.health import health
from .evaluation.knn import knn_leave_one_out
from .models import ContrastiveModel, Encoder, EncoderInfo

IMAGES = 2000  # enough for kNN to a percent, and a small part of an epoch
VIEWED = 512  # of them at the least, for the alignment of two views


class OnlineEvaluation:
    """Scores on a fixed sample of at most 2,000 training images; the first score is the one that is to grow.

    With labels: leave-one-out kNN accuracy of the backbone's features. Without: RankMe and uniformity of the features,
    and alignment between two views.
    """

    def __init__(self, config: TrainConfig, manifest: Manifest, labels: Labels | None) -> None:
        self.config, self.manifest, self.labels = config, manifest, labels
        ids = manifest.usable if labels is None else manifest.usable[labels.values[manifest.usable] >= 0]
        if len(ids) > IMAGES:
            ids = np.sort(np.random.Generator(np.random.Philox(key=config.run.seed)).choice(ids, IMAGES, replace=False))
        self.ids = ids

    def __call__(
        self, model: ContrastiveModel, info: EncoderInfo, augment: Augmentation, device: torch.device
    ) -> dict[str, float]:
        model.eval()
        encoder = Encoder(model.backbone, info)
        try:
            features, kept, _ = compute_features(
                encoder, self.manifest, self.ids, workers=self.config.data.workers or 0, device=device
            )
            if self.labels is not None:
                y = self.labels.values[kept]
                return {"knn_top1": knn_leave_one_out(features, y, num_classes=len(self.labels.classes))}
            some = self.ids[:: max(1, len(self.ids) // VIEWED)]
            z0, z1 = compute_views(
                encoder, self.manifest, some, augment, batch_size=self.config.run.batch_size, device=device
            )
            return health(features, z0, z1)
        finally:
            model.train()
