"""Training on image-caption pairs: what the trainer asks of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed
from ..config.schema import TrainConfig
from ..data.augment import Augmentation
from ..data.decoded import require_decoded
from ..data.loader import Batch, training_loader
from ..data.pairs import Pairs
from ..data.recipe import Recipe
from ..data.sampler import ResumableSampler
from ..errors import BadInput
from ..evaluation.image_text import score_pairs
from ..losses import ClipLoss, SigLipLoss, TwoTowerGlobalContrastiveLoss, TwoTowerMemoryContrastiveLoss
from ..losses.image_text import ImageTextLoss
from ..models.backbone import create_backbone
from ..models.encoder import Encoder, EncoderInfo
from ..models.features import BATCH, same_buffers
from ..models.text import TextSetup, built_in, pretrained
from ..models.two_tower import TwoTower, TwoTowerModel, save_two_tower
from ..run_folder import RunFolder
from .build_loss import build_estimator, build_temperature, memory_steps, queue_of, transfer_state
from .frozen_features import image_features, lookup_loader, text_features

EVALUATED = 1000  # images of the online evaluation, with all their captions


class PairTask:
    """Pairs for the trainer: batches, model, loss, online retrieval, and the files of the two towers.

    A tower whose rate is 0 is frozen: its features are computed once and looked up. With both frozen only the
    projections train.
    """

    things = "pairs"
    diagnosis = None

    def __init__(self, config: TrainConfig, run: RunFolder, pairs: Pairs) -> None:
        self.config, self.run, self.pairs = config, run, pairs
        self.image_frozen, self.text_frozen = config.pairs.image_rate == 0, config.pairs.text_rate == 0
        self._check_frozen()
        self.decoded = require_decoded(pairs.images, config.data.background, config.data.cache)
        self.text = self._text_setup()
        self._images: np.ndarray | None = None
        self._texts: np.ndarray | None = None
        usable = np.unique(pairs.image_ids[pairs.usable])
        draw = np.random.Generator(np.random.Philox(key=config.run.seed))
        chosen = usable if len(usable) <= EVALUATED else np.sort(draw.choice(usable, EVALUATED, replace=False))
        self.evaluated = pairs.usable[np.isin(pairs.image_ids[pairs.usable], chosen)]

    def _check_frozen(self) -> None:
        model, options = self.config.model, self.config.pairs
        if self.image_frozen and model.pretrained is None and model.init_from is None:
            raise BadInput(
                "--image-rate 0 freezes an encoder that knows nothing; give its weights with --pretrained FILE"
            )
        if self.text_frozen and options.text_model is None and model.init_from is None:
            raise BadInput("--text-rate 0 freezes a text tower that knows nothing; give one with --text-model PATH")

    def _text_setup(self) -> TextSetup:
        """The run's own, if it has begun; that of the run it starts from; else a new one."""
        options = self.config.pairs
        if self.run.config_file.is_file():
            return TextSetup.load(self.run.text_folder)
        if self.config.model.init_from is not None:
            source = RunFolder.open(self.config.model.init_from)
            if not source.holds_pairs():
                raise BadInput(f"{source.path} was trained on images alone; give its encoder with --pretrained instead")
            return TextSetup.load(source.text_folder)
        if options.text_model is not None:
            return pretrained(options.text_model, options.text_length)
        used = np.unique(self.pairs.text_ids[self.pairs.usable])
        captions = (c for k in range(0, len(used), 4096) for c in self.pairs.captions_of(used[k : k + 4096]))
        return built_in(captions, options.vocab_size, options.text_width, options.text_layers, options.text_length)

    # --------------------------------------------------------------------------------------------------- model and loss
    def build_model(self) -> TwoTowerModel:
        """Both towers, with weights drawn from the seed or given."""
        torch.manual_seed(self.config.run.seed)
        options = self.config.model
        backbone = create_backbone(str(options.model), self.config.data.image_size or 0, options.pretrained)
        return TwoTowerModel(
            backbone, self.text.build(), options.head_dim, image_frozen=self.image_frozen, text_frozen=self.text_frozen
        )

    def build_loss(self) -> ImageTextLoss:
        """The loss of `--method`, with an estimator and perhaps temperatures for images and for texts."""
        loss, images, texts = self.config.loss, len(self.pairs.images), len(self.pairs.captions)
        towers = [build_temperature(loss, n) for n in (images, texts)]
        tau: Any = tuple(towers) if loss.temperature_mode == "per-sample" else towers[0]
        if loss.method == "clip":
            return ClipLoss(tau)
        if loss.method == "siglip":
            return SigLipLoss(loss.temperature)
        if loss.estimator in ("memory", "boosted-memory"):
            return TwoTowerMemoryContrastiveLoss(
                images, self.config.model.head_dim, queue_of(loss), loss.temperature, num_texts=texts,
                steps=memory_steps(self.config),
            )  # fmt: skip
        of_images, of_texts = (build_estimator(self.config, n) for n in (images, texts))
        return TwoTowerGlobalContrastiveLoss(
            images, tau, num_texts=texts, estimator=(of_images, of_texts), balanced=loss.balanced
        )

    def rates(self) -> dict[str, float]:
        """Name of a part of the model -> its share of the learning rate."""
        return {"backbone.": self.config.pairs.image_rate, "text_backbone.": self.config.pairs.text_rate}

    # ---------------------------------------------------------------------------------------------------------- batches
    def prepare(self, model: nn.Module, info: EncoderInfo, device: torch.device, progress: Any) -> None:
        """Compute the features of frozen towers, unless the run has them already."""
        assert isinstance(model, TwoTowerModel)
        model.eval()
        folder = self.run.features_folder
        if self.image_frozen:
            self._images = image_features(
                folder / "images.npy", Encoder(model.backbone, info), self.pairs.images,
                workers=self.config.data.workers or 0, device=device, progress=progress("features of the images"),
            )  # fmt: skip
        if self.text_frozen:
            towers = TwoTower(model, info, self.text, device)
            self._texts = text_features(folder / "texts.npy", towers, self.pairs, progress("features of the captions"))

    def loader(self, recipe: Recipe, start_step: int, pin_memory: bool) -> Iterator[Batch]:
        """Endless batches of pairs, one view of each image."""
        data, run = self.config.data, self.config.run
        if self._images is not None:
            sampler = ResumableSampler(self.pairs.usable, run.batch_size, run.seed, start_step, distributed.shard())
            return lookup_loader(sampler, self.pairs, self._images)
        return training_loader(
            self.pairs, self.pairs.usable, recipe, data.image_size or 0, run.batch_size, run.seed,
            start_step=start_step, workers=data.workers or 0, views=1, background=data.background, pin_memory=pin_memory,
            part=distributed.shard(), decoded=self.decoded,
        )  # fmt: skip

    def contrasts(self, batch: Batch) -> bool:
        """Whether a batch, perhaps without bad files, holds two different images and two different texts."""
        return all(bool((ids != ids[:1]).any()) for ids in self.ids(batch))

    def ids(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images' ids and the texts', (B,) each."""
        rows = batch.index.numpy()
        return torch.from_numpy(self.pairs.image_ids[rows]), torch.from_numpy(self.pairs.text_ids[rows])

    def inputs(self, batch: Batch, augment: Augmentation, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the model takes: images or their features, tokens or the captions' features."""
        image_ids, text_ids = (ids.numpy() for ids in self.ids(batch))
        if self._images is not None:
            images = torch.from_numpy(self._images[image_ids]).to(device, non_blocking=True)
        else:
            crops = batch.crops[0].to(device, non_blocking=True)
            images = augment(crops, batch.index.numpy(), batch.epoch, 0)
        if self._texts is not None:
            return images, torch.from_numpy(self._texts[text_ids]).to(device, non_blocking=True)
        return images, self.text.tokenizer(self.pairs.captions_of(text_ids)).to(device, non_blocking=True)

    def loss_of(
        self, forward: Callable[..., Any], loss: nn.Module, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...], keys: None
    ) -> Tensor:  # fmt: skip
        """One pass through both towers."""
        return loss(*forward(*inputs), *ids)

    def stateful(self, loss: nn.Module, batch: Batch) -> list[tuple[Any, Tensor]]:
        """The parts of the loss whose state a forward pass changes, each with the ids of the batch it is for."""
        image_ids, text_ids = self.ids(batch)
        return [
            (part, text_ids if name.startswith("text_") else image_ids)
            for name, part in loss.named_modules()
            if hasattr(part, "snapshot")
        ]

    # ------------------------------------------------------------------------------------------------------- evaluation
    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, info: EncoderInfo, augment: Augmentation, device: torch.device
    ) -> dict[str, float]:
        """Recall both ways on a fixed sample of the training images and all their captions."""
        assert isinstance(model, TwoTowerModel)
        model.eval()
        same_buffers(model)
        try:
            towers = TwoTower(model, info, self.text, device)
            scores = score_pairs(
                towers,
                self.pairs,
                self.evaluated,
                workers=self.config.data.workers or 0,
                device=device,
                batch_size=BATCH,
            )
        finally:
            model.train()
        return {k: v for k, v in scores.items() if k.endswith(("_r1", "_r5"))}

    # ------------------------------------------------------------------------------------------------------------ files
    def write_inputs(self) -> None:
        """What the run must keep of its data before it starts."""
        self.pairs.save(self.run.manifest_file, self.run.pairs_folder)
        self.text.save(self.run.text_folder)

    def finish(self, model: nn.Module, info: EncoderInfo) -> None:
        """Both towers in one file, beside the image encoder's own."""
        assert isinstance(model, TwoTowerModel)
        save_two_tower(self.run.two_tower_file, model, info)

    def carry(self, source: RunFolder, old: dict[str, Tensor], loss: nn.Module) -> int:
        """Take what another run's loss kept of the images and captions that both runs have; how many images that were."""
        theirs = source.pairs()
        images, captions = (self.pairs.images.names, theirs.images.names), (self.pairs.captions, theirs.captions)
        transfer_state(loss, old, {"text_estimator.log_u": captions, "text_temperature.tau": captions})
        return transfer_state(loss, old, {"image_estimator.log_u": images, "temperature.tau": images})
