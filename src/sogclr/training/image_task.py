"""Training on images alone: views of each, one encoder with its head; and MoCo, which adds an encoder of keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed
from ..data.crops import Batch
from ..data.manifest import Manifest
from ..data.source import Source
from ..evaluation.exact import eval_mode
from ..evaluation.warm_start import set_view_normalizers
from ..losses import GlobalContrastiveLoss
from ..losses.two_view import TwoViewLoss
from ..models.encoder import EncoderInfo, save_encoder
from ..models.features import broadcast_buffers
from ..models.two_view import ContrastiveModel
from ..progress import Progress
from ..run_folder import RunFolder
from .momentum_encoder import MomentumEncoder
from .task import Encode, Task
from .transfer import transfer_state
from .views import Views


class ImageTask(Task):
    """Images for the trainer: views of each, one encoder with its head, the losses on views.

    Args:
        source: the images.
        views: makes the views of each.
        model: backbone and head, on `device`.
        loss: called with (z0, z1, ids), or of more views `loss.of_views(z, ids)`, on `device`.
        info: what the encoder file says of itself.
        device: where the model is.
    """

    things = "images"

    def __init__(
        self,
        source: Source,
        views: Views,
        model: ContrastiveModel,
        loss: nn.Module,
        info: EncoderInfo,
        device: torch.device,
    ) -> None:
        self.source, self.views, self.model, self.loss_fn = source, views, model, loss
        self.info, self.device, self.scored = info, device, views.scored

    # ---------------------------------------------------------------------------------------------------------- batches
    def prepare(self, progress: Progress) -> None:
        """Compute nothing: all is there before the first step."""

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield batches from `start` on, the views of each image."""
        return self.views.batches(start, pin_memory)

    def blank_batch(self) -> Batch:
        """Return two images without content."""
        return self.views.blank_batch()

    def has_negatives(self, batch: Batch) -> bool:
        """Return whether a batch, perhaps without bad files, holds two images."""
        return len(batch.index) >= 2

    # --------------------------------------------------------------------------------------------------------- one step
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the V views of each size of all images, (V B, C, S, S): the first views before the second."""
        return self.views.inputs(batch, self.device)

    def ids(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the images' ids, (B,)."""
        return (batch.index,)

    def loss(self, encode: Encode, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of one forward pass for all views."""
        views = self._embed(encode, inputs)
        if len(views) == 2:
            return self._loss(views[0], views[1], *ids)
        assert isinstance(self.loss_fn, TwoViewLoss), "the loss takes more than two views"
        return self.loss_fn.of_views(views, *ids)

    def _embed(self, encode: Encode, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the embeddings of every view, (B, D) each."""
        outputs = encode(*inputs)
        of_sizes = outputs if isinstance(outputs, tuple) else (outputs,)
        return [z for rows, count in zip(of_sizes, self.views.counts, strict=True) for z in rows.chunk(count)]

    def _loss(self, z0: Tensor, z1: Tensor, index: Tensor) -> Tensor:
        value: Tensor = self.loss_fn(z0, z1, index)
        return value

    # ------------------------------------------------------------------------------------------------------------ state
    def transfer(self, source: RunFolder, loss_state: dict[str, Tensor]) -> int:
        """Take what another run's loss kept of the images that both runs have, and return how many these are."""
        if not isinstance(self.source, Manifest):
            return 0  # samples without names
        names = self.source.names, source.manifest().names
        return transfer_state(self.loss_fn, loss_state, {"estimator.log_u": names, "temperature.tau": names})

    def set_exact_normalizers(self, progress: Progress) -> None:
        """Set u of every readable image to the exact mean of g over its views, those of epoch 0, in evaluation mode."""
        assert isinstance(self.loss_fn, GlobalContrastiveLoss), "the loss keeps normalizers"
        broadcast_buffers(self.model)
        report, total, done = progress.callback("embeddings of all images"), len(self.source.usable), 0
        rows, ids = [], []
        with eval_mode(self.model), torch.inference_mode():
            for batch in self.views.one_pass():
                if len(batch.index):
                    z = torch.stack(self._embed(self.model, self.inputs(batch)))
                    rows.append(z.float().cpu().numpy())
                    ids.append(batch.index.numpy().copy())
                done += distributed.world_size() * (len(batch.index) + len(batch.bad))
                report(min(done, total), total)
        parts = distributed.all_gather_object((rows, ids))
        z = torch.from_numpy(np.concatenate([z for part in parts for z in part[0]], axis=1)).to(self.device)
        index = torch.from_numpy(np.concatenate([i for part in parts for i in part[1]])).to(self.device)
        set_view_normalizers(self.loss_fn, z, index, progress.callback("exact normalizers"))

    # ------------------------------------------------------------------------------------------------- scores and files
    def evaluate(self) -> dict[str, float]:
        """Return the accuracy of kNN with labels, label-free scores without."""
        return self.views.evaluate(self.model, self.device)

    def diagnose(self) -> dict[str, float]:
        """Return how far the loss's gradient is from the exact one, on a fixed part of the images."""
        return self.views.diagnose(self.model, self.loss_fn, self.device)

    def write_inputs(self, run: RunFolder) -> None:
        """Write the manifest."""
        self.source.save_to(run)

    def save_weights(self, path: Path) -> None:
        """Write the encoder as it is now."""
        save_encoder(path, self.model.backbone, self.info)

    def finish(self, run: RunFolder) -> None:
        """Write the encoder file."""
        self.save_weights(run.encoder_file)


class MoCoTask(ImageTask):
    """Images for MoCo: queries of the model against keys of its momentum encoder.

    Args:
        momentum: of the encoder of keys.
        rising: whether its momentum rises to 1 by the end.
        total: steps of the run.
        symmetric: whether both views are queries.

    The other arguments are those of `ImageTask`.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        model: ContrastiveModel,
        loss: nn.Module,
        info: EncoderInfo,
        device: torch.device,
        *,
        momentum: float,
        rising: bool,
        total: int,
        symmetric: bool,
    ) -> None:
        super().__init__(source, views, model, loss, info, device)
        self.symmetric = symmetric
        self.keys = MomentumEncoder(self.model, momentum, rising, total).to(self.device)

    def loss(self, encode: Encode, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of queries of the first view, or of both, against keys of the other."""
        (views,) = inputs
        v0, v1 = views.chunk(2)
        if not self.symmetric:
            return self._loss(encode(v0), self.keys(v1), *ids)
        (q0, q1), k0, k1 = encode(views).chunk(2), self.keys(v0), self.keys(v1)
        return (self._loss(q0, k1, *ids) + self._loss(q1, k0, *ids)) / 2

    def after_step(self, step: int, ok: Tensor) -> None:
        """Let the encoder of keys follow the model, where `ok`."""
        self.keys.update(self.model, step, ok)

    def companions(self) -> Sequence[nn.Module]:
        """Return the encoder of keys."""
        return (self.keys,)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the encoder of keys, and of neighbours."""
        return super().state_dict() | {"keys": self.keys.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of the encoder of keys, and of neighbours."""
        super().load_state_dict(state)
        self.keys.load_state_dict(state["keys"])

    def transfer(self, source: RunFolder, loss_state: dict[str, Tensor]) -> int:
        """Let the encoder of keys begin as the model that was taken over."""
        self.keys.average.module.load_state_dict(self.model.state_dict())
        return super().transfer(source, loss_state)
