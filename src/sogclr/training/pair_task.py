"""Training on pairs: what the trainer asks of its data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import Augmentation
from ..data.crops import Batch
from ..data.pairs import Pairs
from ..evaluation.exact import eval_mode
from ..evaluation.image_text import score_pairs
from ..evaluation.warm_start import set_pair_normalizers
from ..losses import TwoTowerGlobalContrastiveLoss
from ..models.clip import ClipSetup
from ..models.encoder import Encoder, EncoderInfo, save_encoder
from ..models.features import broadcast_buffers, pair_features, project_features, texts_over_ranks
from ..models.text import TextSetup
from ..models.two_tower import TwoTower, TwoTowerModel, save_two_tower
from ..progress import Progress
from ..run_folder import RunFolder
from .frozen_features import image_features, lookup_loader, text_features
from .online_eval import choose
from .reading import Reading
from .task import Encode, Task
from .transfer import transfer_state

EVALUATED = 1000  # things of the first column in the online evaluation, with all their matches


class PairTask(Task):
    """Pairs for the trainer: batches, online retrieval, and the files of the two towers.

    A frozen tower's features are computed once and looked up. With both frozen only the projections train.

    Args:
        pairs: of images and texts, of texts, or of images.
        text: tokenizer and description of the text towers; None where there are none.
        model: both towers, on `device`.
        loss: called with (first rows, second rows, first ids, second ids), and hard negatives with their ids; on `device`.
        info: what the encoder file says of itself.
        reading: how images are read.
        features: the folder of frozen towers' features.
        device: where the model is.
        clip: what the towers are, where they are those of a CLIP model.
        validation: what the online evaluation is on; None for a fixed sample of the pairs.
    """

    things = "pairs"
    scored = "training pairs"

    def __init__(
        self,
        pairs: Pairs,
        text: TextSetup | None,
        model: TwoTowerModel,
        loss: nn.Module,
        info: EncoderInfo,
        reading: Reading,
        features: Path,
        device: torch.device,
        clip: ClipSetup | None = None,
        validation: Pairs | None = None,
    ) -> None:
        self.clip = clip
        self.pairs, self.text, self.model, self.loss_fn = pairs, text, model, loss
        self.info, self.reading, self.features, self.device = info, reading, features, device
        self.neighbours = reading.neighbours
        self.augment = Augmentation(reading.recipe, reading.image_size, info.mean, info.std, reading.seed)
        self.frozen: dict[int, np.ndarray] = {}
        """Column -> features of its frozen tower."""
        self.has_hard_negatives = bool(pairs.negatives.size)
        chosen = choose(np.unique(pairs.first_ids[pairs.usable]), EVALUATED, reading.seed)
        self.evaluated = pairs, pairs.usable[np.isin(pairs.first_ids[pairs.usable], chosen)]
        if validation is not None:
            self.evaluated, self.scored = (validation, validation.usable), "validation pairs"

    # ---------------------------------------------------------------------------------------------------------- batches
    def prepare(self, progress: Progress) -> None:
        """Compute the features of frozen towers, unless the run has them already."""
        self.model.eval()
        kinds, towers = self.pairs.kinds, self._towers()
        for column in (0, 1):
            if not self.model.frozen[column]:
                continue
            kind, alone = kinds[column], kinds[0] != kinds[1]
            path = self.features / (f"{kind}.npy" if alone else f"{kind}-{column + 1}.npy")
            report = progress.callback(
                f"features of the {kind}" if alone else f"features of {self.pairs.names[column]}"
            )
            if kind == "images":
                self.frozen[column] = image_features(
                    path,
                    Encoder(self.model.parts(column)[0], self.info),
                    self.pairs.images,
                    workers=self.reading.workers,
                    device=self.device,
                    progress=report,
                )
            else:
                self.frozen[column] = text_features(path, towers.texts(column), self.pairs, report)

    def _towers(self) -> TwoTower:
        return TwoTower(self.model, self.pairs.kinds, self.info, self.text, self.device)

    def _read_columns(self) -> list[int]:
        """Return the columns whose images are read for each batch."""
        return [k for k in (0, 1) if self.pairs.kinds[k] == "images" and k not in self.frozen]

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield batches of pairs from `start` on, one crop of each image."""
        reading = self.reading
        if self._read_columns():
            return reading.batches(self.pairs, start, 1, pin_memory)
        images = {k: features for k, features in self.frozen.items() if self.pairs.kinds[k] == "images"}
        return lookup_loader(reading.sampler(self.pairs, start), self.pairs, images)

    def blank_batch(self) -> Batch:
        """Return two pairs with black images."""
        return self.reading.blank_batch(self.pairs, 1)

    def has_negatives(self, batch: Batch) -> bool:
        """Return whether a batch, perhaps without bad files, holds two different things in each column."""
        return all(bool((ids != ids[:1]).any()) for ids in self.ids(batch)[:2])

    # --------------------------------------------------------------------------------------------------------- one step
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the model takes of each column: images, tokens, or features; and of the hard negatives, if any."""
        first, second, *wrong = (ids.numpy() for ids in self.ids(batch))
        # a pair without a hard negative has its own text there, which the loss leaves out
        hard = [np.where(ids < 0, second, ids) for ids in wrong]
        return tuple(
            self._inputs_of(k, ids, batch) for k, ids in ((0, first), (1, second), *((1, ids) for ids in hard))
        )

    def _inputs_of(self, column: int, ids: np.ndarray, batch: Batch) -> Tensor:
        if column in self.frozen:
            return torch.from_numpy(self.frozen[column][ids]).to(self.device, non_blocking=True)
        if self.pairs.kinds[column] == "texts":
            assert self.text is not None, "a column of texts has a tokenizer"
            return self.text.tokens(self.pairs.texts_of(ids), column).to(self.device, non_blocking=True)
        place = [k for k in (0, 1) if self.pairs.kinds[k] == "images"].index(column)
        crops = batch.crops[place].to(self.device, non_blocking=True)
        return self.augment(crops, batch.index.numpy(), batch.epoch, place)

    def ids(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the ids of the first things, of the second, and of the hard negatives, if any: (B,) each, -1 for none."""
        rows = batch.index.numpy()
        found = [self.pairs.first_ids[rows], self.pairs.second_ids[rows]]
        if self.has_hard_negatives:
            found.append(self.pairs.negatives_of(rows, batch.epoch))
        return tuple(torch.from_numpy(ids) for ids in found)

    def loss(self, encode: Encode, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of one pass through both towers."""
        first, second, *wrong = encode(*inputs)
        hard = {"negatives": wrong[0], "negative_index": ids[2]} if wrong else {}
        value: Tensor = self.loss_fn(first, second, ids[0], ids[1], **hard)
        return value

    # ------------------------------------------------------------------------------------------------------------ state
    def transfer(self, source: RunFolder, loss_state: dict[str, Tensor]) -> int:
        """Take what another run's loss kept of the things that both runs have, and return how many of the first column."""
        theirs, ours = source.pairs(), self.pairs
        first, second = ((ours.things(k), theirs.things(k)) for k in (0, 1))
        transfer_state(self.loss_fn, loss_state, {"text_estimator.log_u": second, "text_temperature.tau": second})
        return transfer_state(self.loss_fn, loss_state, {"image_estimator.log_u": first, "temperature.tau": first})

    def set_exact_normalizers(self, progress: Progress) -> None:
        """Set u of every thing to its exact value over all pairs, in evaluation mode: of images by their central crops."""
        loss, pairs = self.loss_fn, self.pairs
        assert isinstance(loss, TwoTowerGlobalContrastiveLoss), "the loss keeps normalizers"
        broadcast_buffers(self.model)
        negatives, negative_ids = None, None
        with eval_mode(self.model):
            towers = self._towers()
            found = pair_features(
                towers,
                pairs,
                pairs.usable,
                workers=self.reading.workers,
                device=self.device,
                progress=progress.callback("embeddings of all pairs"),
                frozen=self.frozen,
            )
            further = np.setdiff1d(pairs.negatives[1], found.second_ids)
            if loss.share_negatives and len(further):
                negatives = self._embed_texts(towers, further)
                negative_ids = torch.from_numpy(further).to(self.device)
        of_pairs = found.first_ids[found.first_rows], found.second_ids[found.second_rows]
        first_ids, second_ids = (torch.from_numpy(ids).to(self.device) for ids in of_pairs)
        set_pair_normalizers(
            loss,
            found.first[torch.from_numpy(found.first_rows).to(self.device)],
            found.second[torch.from_numpy(found.second_rows).to(self.device)],
            first_ids,
            second_ids,
            negatives,
            negative_ids,
            progress.callback("exact normalizers"),
        )

    def _embed_texts(self, towers: TwoTower, ids: np.ndarray) -> Tensor:
        """Return the unit rows (k, D) of texts of the second column, int64 (k,)."""
        if 1 in self.frozen:
            return project_features(self.model, 1, self.frozen[1], ids, self.device)
        return texts_over_ranks(towers.texts(1), self.pairs.texts_of(ids))

    # ------------------------------------------------------------------------------------------------- scores and files
    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Return the recall both ways on a fixed sample of the training pairs, or on all of the validation pairs."""
        self.model.eval()
        broadcast_buffers(self.model)
        try:
            features = pair_features(self._towers(), *self.evaluated, workers=self.reading.workers, device=self.device)
            return score_pairs(features, self.pairs.kinds, online=True)
        finally:
            self.model.train()

    def diagnose(self) -> dict[str, float]:
        """Raise: a diagnosis is of two views, and `--diagnose-every` was refused."""
        raise NotImplementedError

    def write_inputs(self, run: RunFolder) -> None:
        """Write the pairs and the tokenizer."""
        self.pairs.save_to(run)
        if self.clip is not None:
            self.clip.save(run.clip_folder)
        if self.text is not None:
            self.text.save(run.text_folder)

    def save_weights(self, path: Path) -> None:
        """Write both towers as they are now."""
        save_two_tower(path, self.model, self.pairs.kinds, self.info)

    def finish(self, run: RunFolder) -> None:
        """Write the image encoder's own file, where timm knows it, and both towers in one, which makes the run finished."""
        if self.clip is None and self.pairs.kinds[0] == "images":
            save_encoder(run.encoder_file, self.model.backbone, self.info)
        self.save_weights(run.two_tower_file)
