"""Training on image-caption pairs: what the trainer asks of its data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed
from ..data.augment import Augmentation
from ..data.crops import Batch
from ..data.pairs import Pairs
from ..data.sampler import ResumableSampler
from ..evaluation.image_text import score_pairs
from ..models.encoder import Encoder, EncoderInfo, save_encoder
from ..models.features import broadcast_buffers, pair_features
from ..models.text import TextSetup
from ..models.two_tower import TwoTower, TwoTowerModel, save_two_tower
from ..progress import Progress
from ..run_folder import RunFolder
from .frozen_features import image_features, lookup_loader, text_features
from .online_eval import choose
from .reading import Reading
from .task import Encode, Task
from .transfer import transfer_state

EVALUATED = 1000  # images of the online evaluation, with all their captions


class PairTask(Task):
    """Pairs for the trainer: batches, online retrieval, and the files of the two towers.

    A frozen tower's features are computed once and looked up. With both frozen only the projections train.

    Args:
        pairs: images with captions.
        text: tokenizer and description of the text tower.
        model: both towers, on `device`.
        loss: called with (image rows, text rows, image ids, text ids), on `device`.
        info: what the encoder file says of itself.
        reading: how images are read.
        features: the folder of frozen towers' features.
        device: where the model is.
    """

    things = "pairs"

    def __init__(
        self,
        pairs: Pairs,
        text: TextSetup,
        model: TwoTowerModel,
        loss: nn.Module,
        info: EncoderInfo,
        reading: Reading,
        features: Path,
        device: torch.device,
    ) -> None:
        self.pairs, self.text, self.model, self.loss_fn = pairs, text, model, loss
        self.info, self.reading, self.features, self.device = info, reading, features, device
        self.augment = Augmentation(reading.recipe, reading.image_size, info.mean, info.std, reading.seed)
        self._images: np.ndarray | None = None
        self._texts: np.ndarray | None = None
        chosen = choose(np.unique(pairs.image_ids[pairs.usable]), EVALUATED, reading.seed)
        self.evaluated = pairs.usable[np.isin(pairs.image_ids[pairs.usable], chosen)]

    # ---------------------------------------------------------------------------------------------------------- batches
    def prepare(self, progress: Progress) -> None:
        """Compute the features of frozen towers, unless the run has them already."""
        self.model.eval()
        if self.model.image_frozen:
            self._images = image_features(
                self.features / "images.npy",
                Encoder(self.model.backbone, self.info),
                self.pairs.images,
                workers=self.reading.workers,
                device=self.device,
                progress=progress.callback("features of the images"),
            )
        if self.model.text_frozen:
            towers = TwoTower(self.model, self.info, self.text, self.device)
            report = progress.callback("features of the captions")
            self._texts = text_features(self.features / "texts.npy", towers, self.pairs, report)

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield batches of pairs from `start` on, one crop of each image."""
        reading = self.reading
        if self._images is not None:
            sampler = ResumableSampler(self.pairs.usable, reading.batch_size, reading.seed, start, distributed.shard())
            return lookup_loader(sampler, self.pairs, self._images)
        return reading.batches(self.pairs, start, 1, pin_memory)

    def blank_batch(self) -> Batch:
        """Return two black images with the captions of two pairs."""
        return self.reading.blank_batch(self.pairs, 1)

    def has_negatives(self, batch: Batch) -> bool:
        """Return whether a batch, perhaps without bad files, holds two different images and two different texts."""
        return all(bool((ids != ids[:1]).any()) for ids in self.ids(batch))

    # --------------------------------------------------------------------------------------------------------- one step
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the model takes: images or their features, tokens or the captions' features."""
        image_ids, text_ids = (ids.numpy() for ids in self.ids(batch))
        if self._images is not None:
            images = torch.from_numpy(self._images[image_ids]).to(self.device, non_blocking=True)
        else:
            crops = batch.crops[0].to(self.device, non_blocking=True)
            images = self.augment(crops, batch.index.numpy(), batch.epoch, 0)
        if self._texts is not None:
            return images, torch.from_numpy(self._texts[text_ids]).to(self.device, non_blocking=True)
        tokens = self.text.tokenizer(self.pairs.captions_of(text_ids))
        return images, tokens.to(self.device, non_blocking=True)

    def ids(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the images' ids and the texts', (B,) each."""
        rows = batch.index.numpy()
        return torch.from_numpy(self.pairs.image_ids[rows]), torch.from_numpy(self.pairs.text_ids[rows])

    def loss(self, encode: Encode, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of one pass through both towers."""
        value: Tensor = self.loss_fn(*encode(*inputs), *ids)
        return value

    # ------------------------------------------------------------------------------------------------------------ state
    def transfer(self, source: RunFolder, loss_state: dict[str, Tensor]) -> int:
        """Take what another run's loss kept of the images and captions that both runs have, and return how many images."""
        theirs, loss = source.pairs(), self.loss_fn
        images, captions = (self.pairs.images.names, theirs.images.names), (self.pairs.captions, theirs.captions)
        transfer_state(loss, loss_state, {"text_estimator.log_u": captions, "text_temperature.tau": captions})
        return transfer_state(loss, loss_state, {"image_estimator.log_u": images, "temperature.tau": images})

    # ------------------------------------------------------------------------------------------------- scores and files
    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Return the recall both ways on a fixed sample of the training images and all their captions."""
        self.model.eval()
        broadcast_buffers(self.model)
        try:
            towers = TwoTower(self.model, self.info, self.text, self.device)
            features = pair_features(
                towers, self.pairs, self.evaluated, workers=self.reading.workers, device=self.device
            )
            return score_pairs(features, online=True)
        finally:
            self.model.train()

    def diagnose(self) -> dict[str, float]:
        """Raise: a diagnosis is of two views, and `--diagnose-every` was refused."""
        raise NotImplementedError

    def write_inputs(self, run: RunFolder) -> None:
        """Write the pairs and the tokenizer."""
        self.pairs.save_to(run)
        self.text.save(run.text_folder)

    def finish(self, run: RunFolder) -> None:
        """Write both towers in one file, and the image encoder's own."""
        save_two_tower(run.two_tower_file, self.model, self.info)
        save_encoder(run.encoder_file, self.model.backbone, self.info)
