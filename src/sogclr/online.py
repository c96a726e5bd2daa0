"""How good the encoder is while it trains: kNN with labels; RankMe, alignment and uniformity without."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .config import TrainConfig
from .data.labels import Labels
from .data.loader import training_loader
from .data.manifest import Manifest
from .data.views import Augmentation
from .embedding import compute_features
from .evaluation.health import alignment, rankme, uniformity
from .evaluation.knn import knn_leave_one_out
from .models import ContrastiveModel, Encoder, EncoderInfo

IMAGES = 2000  # enough for kNN to a percent, and a small part of an epoch


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
        try:
            features, kept, _ = compute_features(
                Encoder(model.backbone, info),
                self.manifest,
                self.ids,
                workers=self.config.data.workers or 0,
                device=device,
            )
            if self.labels is not None:
                y = self.labels.values[kept]
                return {"knn_top1": knn_leave_one_out(features, y, num_classes=len(self.labels.classes))}
            z0, z1 = self._two_views(model, info, augment, device)
            return {
                "rankme": rankme(features),
                "alignment": alignment(z0, z1),
                "uniformity": uniformity(features),
            }
        finally:
            model.train()

    @torch.inference_mode()
    def _two_views(
        self, model: ContrastiveModel, info: EncoderInfo, augment: Augmentation, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        options, data = self.config.run, self.config.data
        batch = min(options.batch_size, len(self.ids))
        loader = training_loader(
            self.manifest,
            self.ids,
            augment.recipe,
            info.image_size,
            batch,
            options.seed,
            background=data.background,
        )
        pairs = []
        for _ in range(math.ceil(min(512, len(self.ids)) / batch)):
            drawn = next(loader)
            crops = drawn.crops.to(device)
            pairs.append([model.backbone(augment(crops[v], drawn.index.numpy(), 0, v)).float() for v in (0, 1)])
        z0, z1 = (torch.cat([p[v] for p in pairs]) for v in (0, 1))
        return z0, z1
