"""The global contrastive loss in the Sentence Transformers trainer (5.4 or newer).

    train, texts = add_ids(pairs)                     # a column `label`: which text is which
    loss = GlobalContrastiveLoss(model, texts)        # in place of MultipleNegativesRankingLoss
    trainer = GlobalContrastiveTrainer(model=model, args=args, train_dataset=train, loss=loss)

The trainer is theirs, and two things more: it begins from the exact normalizers of the data, without which an epoch or
two would be those of a mini-batch loss, and its checkpoints hold the loss's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..distributed import shard
from ..errors import BadInput
from ..evaluation.exact import eval_mode
from ..evaluation.warm_start import set_pair_normalizers
from ..kernels.ranks import all_gather
from ..losses import TwoTowerGlobalContrastiveLoss
from ..losses.estimators import Gamma, MiniBatch
from ..models.torchvision_cpu import import_timm

import_timm()  # transformers imports torchvision too, and needs the same repair
try:
    from accelerate.utils import send_to_device
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

    from .transformers import LossStateCallback

    try:
        from sentence_transformers.sentence_transformer import losses
    except ImportError:  # before release 6
        from sentence_transformers import losses
except ImportError as error:
    raise BadInput(f"{error.name} is not installed: pip install 'sogclr[sentence-transformers]'") from None

Features = Iterable[dict[str, Any]]
LABELS = ("label", "labels", "score", "scores")
"""Columns that the trainer does not take for texts."""
NUM_NEGATIVES = 15
"""What the positive stands beside in the denominator: fine-tuning was better with it there (docs/results/sentence_transformers.md)."""
_NO_IDS = "the data set has no ids; train on what add_ids(dataset) returns"


def add_ids(dataset: Dataset) -> tuple[Dataset, int]:
    """Add a column `label` with the ids of each row's texts, and return how many different texts there are.

    A text has one id wherever it stands, so that it is never a negative of itself, nor of what it is paired with.

    Args:
        dataset: columns anchor, positive and, where there are any, hard negatives, by whatever names.

    Raises:
        BadInput: a column is there that the trainer would take for the ids, or there are fewer than two columns.
    """
    columns = list(dataset.column_names)
    if taken := [c for c in columns if c in LABELS]:
        raise BadInput(
            f"the data set has a column {taken[0]!r}, which the trainer would take for the ids; remove it or rename it"
        )
    if len(columns) < 2:
        raise BadInput(f"the data set needs columns of anchors and of positives, and has {columns}")
    ids: dict[Any, int] = {}
    rows = [
        [ids.setdefault(text, len(ids)) for text in row] for row in zip(*(dataset[c] for c in columns), strict=True)
    ]
    return dataset.add_column("label", rows), len(ids)


class LossOfEachWidth(nn.ModuleDict):
    """A two-tower loss with normalizers of its own for each width of embeddings that comes: `MatryoshkaLoss` cuts them.

    They are made when they are first needed, or when a state that has them is loaded. Under `torch.no_grad()`, as in the
    trainer's evaluation, no state is read or written: the value is the objective with the batch's own normalizers.

    Args:
        num_samples: ids run from 0 to num_samples - 1.
        temperature: tau.
        options: more of `TwoTowerGlobalContrastiveLoss`; `num_negatives` is 15 when left out.
    """

    def __init__(self, num_samples: int, temperature: float, **options: Any) -> None:
        super().__init__()
        common: dict[str, Any] = {"temperature": temperature, "same_kind": True, "share_negatives": True}
        common["num_negatives"] = options.pop("num_negatives", NUM_NEGATIVES)
        self.num_samples, self.options = num_samples, common | options
        self.build()  # wrong arguments are refused here
        self.of_batch = [TwoTowerGlobalContrastiveLoss(1 << 62, estimator=MiniBatch(), **common)]  # a list: no state

    def build(self) -> TwoTowerGlobalContrastiveLoss:
        """Return a loss that has seen nothing."""
        return TwoTowerGlobalContrastiveLoss(self.num_samples, **self.options)

    def of_width(self, width: int, device: torch.device) -> TwoTowerGlobalContrastiveLoss:
        """Return the loss on embeddings of a width."""
        if str(width) not in self:
            self[str(width)] = self.build().to(device)
        loss = self[str(width)]
        assert isinstance(loss, TwoTowerGlobalContrastiveLoss)
        return loss

    def forward(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of a batch: () float32.

        Args:
            embeddings: (B, D) of anchors, of positives, and of each further column, hard negatives.
            labels: (B,) ids of the rows, or (B, columns) ids of the texts.
        """
        anchors, positives, *further = embeddings
        training = torch.is_grad_enabled()
        if labels is None and training:
            raise BadInput(_NO_IDS)
        ids = ids_of_columns(torch.arange(len(anchors)) if labels is None else labels, len(embeddings))
        loss = self.of_width(anchors.shape[1], anchors.device) if training else self.of_batch[0]
        hard = (torch.stack(further, dim=1), torch.stack(ids[2:], dim=1)) if further else ()
        value: Tensor = loss(anchors, positives, ids[0], ids[1], *hard)
        return value

    def warm_start(self, embeddings: list[Tensor], labels: Tensor, widths: Sequence[int]) -> None:
        """Set the normalizers to their exact values over all rows of the training data.

        Args:
            embeddings: (n, D) of anchors, of positives, and of hard negatives.
            labels: (n,) or (n, columns), their ids.
            widths: of the embeddings' first numbers; each has normalizers of its own.
        """
        first, second, *hard_ids = ids_of_columns(labels, len(embeddings))
        for width in widths:
            x, y, *hard = (z[:, :width] for z in embeddings)
            more = (torch.cat(hard), torch.cat(hard_ids)) if hard else ()
            set_pair_normalizers(self.of_width(width, x.device), x, y, first, second, *more)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key, value in state_dict.items():
            if key.startswith(prefix):
                self.of_width(int(key.removeprefix(prefix).split(".")[0]), value.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def ids_of_columns(labels: Tensor, columns: int) -> list[Tensor]:
    """Return (B,) ids for each column of texts, from (B, columns), or from (B,), a row's, where there are two columns."""
    if labels.ndim == 1 and columns == 2:
        return [labels, labels]
    if labels.ndim != 2 or labels.shape[1] != columns:
        raise BadInput(
            f"ids are {tuple(labels.shape)} for {len(labels)} rows of {columns} texts; use add_ids(dataset) last, on the "
            "columns that are trained on"
        )
    return list(labels.T.contiguous())


class GlobalContrastiveLoss(nn.Module):
    """Each text against ALL others of the data set, at any batch size: for `SentenceTransformerTrainer`.

    As `MultipleNegativesRankingLoss` both ways, with a running normalizer for each text in place of the batch's. Of
    several processes each sees the whole batch of all, without an option.

    Args:
        model: the one that is trained.
        num_samples: different texts, as `add_ids` counts them; or rows, where `label` is a number a row.
        temperature: tau, 1 / `scale` of Sentence Transformers.
        gamma: weight of the new estimate, as of `TwoTowerGlobalContrastiveLoss`.
        options: more of `TwoTowerGlobalContrastiveLoss`; `num_negatives` is 15 when left out.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        num_samples: int,
        temperature: float = 0.05,
        gamma: Gamma = 0.2,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = model
        self.losses = LossOfEachWidth(num_samples, temperature=temperature, gamma=gamma, **options)

    def forward(self, sentence_features: Features, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch as the trainer gives it: tokens of each column, and the ids."""
        loss: Tensor = self.losses([self.model(f)["sentence_embedding"] for f in sentence_features], labels)
        return loss


class CachedGlobalContrastiveLoss(losses.CachedMultipleNegativesRankingLoss):
    """`GlobalContrastiveLoss` for batches larger than memory: its numbers, by Sentence Transformers' gradient cache.

    Args:
        model: the one that is trained.
        num_samples: different texts, as `add_ids` counts them; or rows, where `label` is a number a row.
        temperature: tau, 1 / `scale` of Sentence Transformers.
        gamma: weight of the new estimate, as of `TwoTowerGlobalContrastiveLoss`.
        mini_batch_size: texts of a column that are embedded at a time.
        options: more of `TwoTowerGlobalContrastiveLoss`; `num_negatives` is 15 when left out.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        num_samples: int,
        temperature: float = 0.05,
        gamma: Gamma = 0.2,
        mini_batch_size: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(model, scale=1 / temperature, mini_batch_size=mini_batch_size)
        self.losses = LossOfEachWidth(num_samples, temperature=temperature, gamma=gamma, **options)

    def forward(self, sentence_features: Features, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch as the trainer gives it; its `backward` embeds the texts once more."""
        self._labels = labels  # not every release hands them to `calculate_loss`
        loss: Tensor = super().forward(sentence_features, labels)
        return loss

    def calculate_loss(self, reps: list[list[Tensor]], *_: Any, with_backward: bool = False) -> Tensor:
        """Return the loss of the embeddings, in mini-batches of each column, and their gradients if so asked."""
        loss: Tensor = self.losses([torch.cat(column) for column in reps], self._labels)
        if with_backward:
            torch.autograd.backward(loss)
        return loss.detach() if with_backward else loss


class GlobalContrastiveTrainer(SentenceTransformerTrainer):
    """The trainer of Sentence Transformers, with a warm start, and with the loss's state in its checkpoints.

    Args:
        args: of `SentenceTransformerTrainer`.
        warm_start: set every normalizer to its exact value before the first step, from one pass over the training texts
            without gradient.
        kwargs: of `SentenceTransformerTrainer`.
    """

    def __init__(self, *args: Any, warm_start: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.warm_start = warm_start
        parts = nn.ModuleDict({name.replace(".", "-"): part for name, part in of_each_width(self.loss)})
        self.loss_state = LossStateCallback(parts)
        self.add_callback(self.loss_state)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; from a checkpoint, or from the latest with `True`, with the loss's state that it holds.

        Raises:
            BadInput: a checkpoint has no state of this loss.
        """
        if isinstance(resume_from_checkpoint, str):
            self.loss_state.resume_from = resume_from_checkpoint
        if self.warm_start and not resume_from_checkpoint:
            self.begin_from_exact()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def begin_from_exact(self) -> None:
        """Set the normalizers of every loss to their exact values; with several processes each embeds its part."""
        several = self.loss if isinstance(self.loss, dict) else {"": self.loss}
        data = self.train_dataset if isinstance(self.train_dataset, dict) else {"": self.train_dataset}
        for name, loss in several.items():
            parts = [part for _, part in of_each_width(loss)]
            if parts:
                rows = [self.embed(d) for key, d in data.items() if key == name or not isinstance(self.loss, dict)]
                *embeddings, labels = (torch.cat(column) for column in zip(*rows, strict=True))
                cut = [m.matryoshka_dims for m in loss.modules() if hasattr(m, "matryoshka_dims")]
                for part in parts:
                    part.warm_start(embeddings, labels, cut[0] if cut else [embeddings[0].shape[1]])

    @torch.no_grad()
    def embed(self, dataset: Dataset) -> list[Tensor]:
        """Return the (n, D) embeddings of each column of a data set, and its labels, in any order of the rows."""
        if not hasattr(dataset, "__len__"):
            raise BadInput("a warm start reads all rows first, and the data are a stream; give warm_start=False")
        if not set(LABELS) & set(dataset.column_names):
            raise BadInput(_NO_IDS)
        length = [sum(len(str(value)) for value in row.values()) for row in dataset]
        order = sorted(range(len(length)), key=length.__getitem__)  # little padding
        k, ranks = shard()
        batches = DataLoader(
            Subset(dataset, order[k::ranks]),
            self.args.eval_batch_size,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # leaves everybody's alone
        )
        rows = []
        with eval_mode(self.model), self.accelerator.autocast():
            for batch in batches:
                features, labels = self.collect_features(send_to_device(batch, self.model.device))
                rows.append([*(self.model(f)["sentence_embedding"].float() for f in features), labels])
        columns = [torch.cat(column) for column in zip(*rows, strict=True)]
        return [all_gather(c, [len(order[r::ranks]) for r in range(ranks)]) if ranks > 1 else c for c in columns]


def of_each_width(loss: nn.Module | dict[str, nn.Module]) -> list[tuple[str, LossOfEachWidth]]:
    """Return the name and the module of all that has state in a loss, or in a loss for each data set."""
    modules = (nn.ModuleDict(loss) if isinstance(loss, dict) else loss).named_modules()
    return [(name, module) for name, module in modules if isinstance(module, LossOfEachWidth)]
