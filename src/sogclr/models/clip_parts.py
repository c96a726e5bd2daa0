"""A CLIP or SigLIP model of another library, taken apart into what two towers are made of."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.inputs import Inputs
from ..errors import BadInput
from .text import Tokenizer

LARGEST = {
    "layers": 256,
    "num_hidden_layers": 256,
    "vocab_size": 2_000_000,
    "intermediate_size": 131_072,
    "mlp_ratio": 64,
}
"""The most of what a file may ask for; of all else `LARGEST_SIZE`."""
LARGEST_SIZE = 16_384


class ClipTower(nn.Module):
    """One side of a model, which is a module of its library.

    Args:
        inner: normalised images (N, 3, S, S), or tokens (N, L), -> rows, or an output that has them as `pooler_output`.
        num_features: their width F.
    """

    def __init__(self, inner: nn.Module, num_features: int) -> None:
        super().__init__()
        self.inner, self.num_features = inner, num_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features (N, F) of N inputs."""
        found = self.inner(inputs)
        rows: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return rows


class NoProjection(nn.Identity):
    """The head of a tower whose features are in the common space already.

    Args:
        width: D of that space.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_features = width


Head = nn.Linear | NoProjection


class ClipParts(nn.Module):
    """Both towers and their projections, by the names that they have in a `TwoTowerModel`."""

    def __init__(self, backbone: ClipTower, text_backbone: ClipTower, head: Head, text_head: Head) -> None:
        super().__init__()
        self.backbone, self.text_backbone, self.head, self.text_head = backbone, text_backbone, head, text_head


@dataclass(frozen=True)
class Original:
    """A model as its own library loaded it."""

    config: dict[str, Any]
    """From which its parts are built again."""
    files: dict[str, bytes]
    """Of its tokenizer, by name."""
    parts: ClipParts
    """They share its weights."""
    tokenizer: Tokenizer
    """Gives the ids that its own gives."""
    inputs: Inputs
    image_size: int
    """S, pixels."""
    logit_scale: float
    """log(1 / tau)."""
    logit_bias: float | None
    """SigLIP's."""
    encode: Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]
    """By the library alone: normalised images (N, 3, S, S) and M texts -> unit rows (N, D), (M, D)."""


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON, one of the files of a model; of anything else it is empty.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({type(error).__name__}); restore it from a copy") from None
    return table if isinstance(table, dict) else {}


@torch.no_grad()
def set_logits(model: Any, logits: tuple[float, float]) -> None:
    """Set log(1 / tau) of a library's model, and its bias where it has one."""
    model.logit_scale.fill_(logits[0])
    if getattr(model, "logit_bias", None) is not None:
        model.logit_bias.fill_(logits[1])


def files_of(reader: Any) -> dict[str, bytes]:
    """Return the files that a tokenizer of transformers writes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        reader.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def too_large(config: dict[str, Any]) -> str | None:
    """Return the first number of a configuration, at any depth, that no model has: `name value`; None without one."""
    for name, value in config.items():
        if isinstance(value, dict):
            if found := too_large(value):
                return found
            continue
        most = float("inf") if name.endswith("_token_id") else LARGEST.get(name, LARGEST_SIZE)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and number > most:
                return f"{name} {number}"
    return None
