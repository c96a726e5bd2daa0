"""Training on images alone: what the trainer asks of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from ..config.schema import TrainConfig
from ..data.augment import Augmentation
from ..data.decoded import require_decoded
from ..data.labels import Labels
from ..data.loader import Batch, training_loader
from ..data.manifest import Manifest
from ..data.recipe import Recipe
from ..losses.two_view import TwoViewLoss
from ..models.backbone import create_backbone
from ..models.encoder import EncoderInfo
from ..models.two_view import ContrastiveModel, ProjectionHead
from ..run_folder import RunFolder
from .build_loss import build_loss, transfer_state
from .momentum_encoder import MomentumEncoder
from .online_eval import OnlineDiagnosis, OnlineEvaluation


class ImageTask:
    """Images for the trainer: two views of each, one encoder with its head, the methods on two views."""

    things = "images"

    def __init__(self, config: TrainConfig, run: RunFolder, manifest: Manifest, labels: Labels | None) -> None:
        self.config, self.run, self.manifest = config, run, manifest
        self.decoded = require_decoded(manifest, config.data.background, config.data.cache)
        self.online = OnlineEvaluation(config, manifest, labels)
        self.diagnosis = OnlineDiagnosis(config, manifest)

    # --------------------------------------------------------------------------------------------------- model and loss
    def build_model(self) -> ContrastiveModel:
        """Backbone and head with weights drawn from the seed, or from `--pretrained`."""
        options = self.config.model
        torch.manual_seed(self.config.run.seed)
        backbone = create_backbone(str(options.model), self.config.data.image_size or 0, options.pretrained)
        width = int(backbone.num_features)  # type: ignore[arg-type]
        head = ProjectionHead(width, options.head_hidden or width, options.head_dim, options.head_layers)
        return ContrastiveModel(backbone, head)

    def build_loss(self) -> TwoViewLoss:
        """The loss of `--method`."""
        return build_loss(self.config, len(self.manifest))

    def rates(self) -> dict[str, float]:
        """Name of a part of the model -> its share of the learning rate; all is 1."""
        return {}

    # ---------------------------------------------------------------------------------------------------------- batches
    def prepare(self, model: nn.Module, info: EncoderInfo, device: torch.device, progress: Any) -> None:
        """Nothing is computed before the first step."""

    def loader(self, recipe: Recipe, start_step: int, pin_memory: bool) -> Iterator[Batch]:
        """Endless batches, two views of each image."""
        data, run = self.config.data, self.config.run
        return training_loader(
            self.manifest, self.manifest.usable, recipe, data.image_size or 0, run.batch_size, run.seed,
            start_step=start_step, workers=data.workers or 0, background=data.background, pin_memory=pin_memory,
            part=distributed.shard(), decoded=self.decoded,
        )  # fmt: skip

    def contrasts(self, batch: Batch) -> bool:
        """Whether a batch, perhaps without bad files, still holds negatives."""
        return len(batch.index) >= 2

    def ids(self, batch: Batch) -> tuple[Tensor, ...]:
        """The images' ids, (B,)."""
        return (batch.index,)

    def inputs(self, batch: Batch, augment: Augmentation, device: torch.device) -> tuple[Tensor, ...]:
        """Both views of all images, (2B, 3, S, S)."""
        crops, ids = batch.crops.to(device, non_blocking=True), batch.index.numpy()
        return (torch.cat([augment(crops[view], ids, batch.epoch, view) for view in (0, 1)]),)

    def loss_of(
        self, forward: Callable[..., Tensor], loss: nn.Module, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...],
        keys: MomentumEncoder | None,
    ) -> Tensor:  # fmt: skip
        """One forward pass for both views; with MoCo the second (or each) view's keys are the momentum encoder's."""
        (views,), (index,) = inputs, ids
        if keys is None:
            z0, z1 = forward(views).chunk(2)
            return loss(z0, z1, index)
        v0, v1 = views.chunk(2)
        if not self.config.loss.symmetric:
            return loss(forward(v0), keys(v1), index)
        (q0, q1), k0, k1 = forward(views).chunk(2), keys(v0), keys(v1)
        return (loss(q0, k1, index) + loss(q1, k0, index)) / 2

    def stateful(self, loss: nn.Module, batch: Batch) -> list[tuple[Any, Tensor]]:
        """The parts of the loss whose state a forward pass changes, each with the ids of the batch it is for."""
        return [(part, batch.index) for part in loss.modules() if hasattr(part, "snapshot")]

    # ------------------------------------------------------------------------------------------- evaluation and files
    def evaluate(
        self, model: ContrastiveModel, info: EncoderInfo, augment: Augmentation, device: torch.device
    ) -> dict[str, float]:
        """kNN with labels, health without; the first score is the one that is to grow."""
        return self.online(model, info, augment, device)

    def write_inputs(self) -> None:
        """What the run must keep of its data before it starts."""
        self.manifest.save(self.run.manifest_file)

    def finish(self, model: nn.Module, info: EncoderInfo) -> None:
        """The encoder file says it all."""

    def carry(self, source: RunFolder, old: dict[str, Tensor], loss: nn.Module) -> int:
        """Take what another run's loss kept of the images that both runs have; how many these are."""
        names = self.manifest.names, source.manifest().names
        return transfer_state(loss, old, {"estimator.log_u": names, "temperature.tau": names})
