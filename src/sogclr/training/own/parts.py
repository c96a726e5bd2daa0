"""Parts of a user's own: a model, a loss, a data set, a transform. What a run says of them, and what resume asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import BadInput
from ...models.backbone import OWN
from ...run_folder import RunFolder
from ..skip import copy_where_
from .rows import RowImages, is_rows

PARTS = ("model", "loss", "dataset", "transform")


class MapDataset(Protocol):
    """A map-style data set: (image, index) or (views, index) for each index 0..n-1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


@dataclass(frozen=True)
class OwnParts:
    """What a caller of `sogclr.train` gives instead of a name or a folder; None where it is ours."""

    model: nn.Module | None = None
    """Images (N, C, H, W) -> features (N, F)."""
    loss: nn.Module | None = None
    """A loss of ours, or any module called with (z0, z1, index)."""
    dataset: MapDataset | None = None
    """Of (image, index) or (views, index); a `datasets.Dataset` of the Hugging Face package is made one."""
    transform: Callable[[Any], Tensor] | None = None
    """An image, or whatever the data set gives, -> one random view, (C, H, W)."""
    head: bool = True
    """Whether the model gets our projection head; False for a model that has its own."""

    def __post_init__(self) -> None:
        """Raise BadInput for what can be no such part: most often a class in the place of an object."""
        if self.model is not None and not isinstance(self.model, nn.Module):
            raise BadInput(f"model= is {_kind(self.model)}; give the name of a model, or a module (torch.nn.Module)")
        for part, value in (("loss", self.loss), ("transform", self.transform)):
            if value is not None and (not callable(value) or (part == "loss" and isinstance(value, type))):
                raise BadInput(f"{part}= is {_kind(value)}; give {'a module' if part == 'loss' else 'a function'}")
        if not isinstance(self.dataset, type) and is_rows(self.dataset):
            object.__setattr__(self, "dataset", RowImages(self.dataset))
        if self.dataset is not None:
            if isinstance(self.dataset, type) or not all(hasattr(self.dataset, f"__{n}__") for n in ("len", "getitem")):
                raise BadInput(
                    f"dataset= is {_kind(self.dataset)}; give a map-style data set, with a length and (image, i) at i"
                )
            if len(self.dataset) == 0:
                raise BadInput(f"dataset= ({name_of(self.dataset)}) has no samples; give some")

    def table(self) -> dict[str, Any]:
        """Return what a run says of them: the table [own] of its `config.toml`; empty where there are none."""
        table: dict[str, Any] = {part: name_of(getattr(self, part)) for part in PARTS if self.has(part)}
        if self.dataset is not None:
            table["samples"] = len(self.dataset)
        return table if self.head else {**table, "head": False}

    def has(self, part: str) -> bool:
        """Return whether there is such a part of the user's own."""
        return getattr(self, part) is not None

    def fit_to(self, run: RunFolder) -> OwnParts:
        """Return the parts with which `run` goes on.

        Raises:
            BadInput: the run was trained with other parts.
        """
        table = run.config_table().get("own", {})
        for part in PARTS:
            trained, given = table.get(part), name_of(getattr(self, part)) if self.has(part) else None
            if trained is not None and given != trained:
                what = f"and {part}= is a {given}; pass the same" if given else "; pass it"
                raise BadInput(
                    f"this run was trained with a {part} of your own ({trained}){'' if given is None else ' '}{what}: "
                    f"sogclr.resume({str(run.path)!r}, {part}=...)"
                )
            if trained is None and given is not None:
                raise BadInput(f"{run.path} was trained without a {part} of your own; leave {part}= ({given}) out")
        if self.dataset is not None and len(self.dataset) != table["samples"]:
            raise BadInput(
                f"this run was trained on {table['samples']:,} samples of {table['dataset']} and the one given has "
                f"{len(self.dataset):,}; give the same"
            )
        return OwnParts(self.model, self.loss, self.dataset, self.transform, table.get("head", True))


def name_of(part: Any) -> str:
    """Return the name of a function, or of an object's class."""
    return str(getattr(part, "__qualname__", type(part).__qualname__))


def _kind(part: Any) -> str:
    """Return what something is, in words: the class NAME, or a NAME."""
    return f"the class {part.__qualname__}" if isinstance(part, type) else f"a {type(part).__qualname__}"


def own_name(model: nn.Module) -> str:
    """Return how configurations and encoder files call a model of a user's own."""
    return OWN + name_of(model)


class OwnLoss(nn.Module):
    """A loss of a user's own with what a training step asks of a loss: its buffers are taken back where a step is skipped.

    Args:
        loss: called like ours, with (z0, z1, index); returns a () tensor.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.statistics: dict[str, Tensor] = {}
        self._buffers_before: list[tuple[Tensor, Tensor]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the loss's value, and keep it as the statistic `loss`.

        Raises:
            BadInput: it is no () tensor.
        """
        value = self.loss(*inputs)
        if not isinstance(value, Tensor) or value.ndim != 0:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise BadInput(f"{name_of(self.loss)} returned {found} and must return one number, a tensor of shape ()")
        self.statistics = {"loss": value.detach().float()}
        return value

    def begin_step(self) -> None:
        """Keep a copy of the buffers."""
        self._buffers_before = [(buffer, buffer.clone()) for buffer in self.buffers()]

    def rollback(self, unless: Tensor | None = None) -> None:
        """Put the buffers back, except where `unless`, () bool, is true."""
        buffers, before = [b for b, _ in self._buffers_before], [v for _, v in self._buffers_before]
        copy_where_(before, into=buffers, unless=unless)
        self._buffers_before = []


@torch.no_grad()
def probe_width(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return F: how wide the features are that the model makes of two blank images.

    Args:
        model: images -> features.
        shape: (C, H, W) of an image.

    Raises:
        BadInput: it cannot take them, or does not return rows.
    """
    like = next(model.parameters(), torch.empty(0))
    mode = model.training
    model.eval()
    try:
        features = model(torch.zeros(2, *shape, device=like.device, dtype=like.dtype))
    except (RuntimeError, AssertionError) as error:  # timm asserts the size of an image
        raise BadInput(
            f"{name_of(model)} cannot take images (2, {', '.join(map(str, shape))}): {error}; give a model for images of "
            "this shape, or another side"
        ) from error
    finally:
        model.train(mode)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise BadInput(
            f"{name_of(model)} maps images (2, {', '.join(map(str, shape))}) to {found}; a model of your own must return "
            "rows of features, (N, F)"
        )
    return int(features.shape[1])
