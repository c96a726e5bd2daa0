"""Two towers, an image encoder and a text encoder with a common space: while they train, and afterwards."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ..errors import BadInput
from ..files import atomic_write
from ..run_folder import RunFolder
from .backbone import create_backbone
from .encoder import EncoderInfo, normalise
from .text import TextSetup

FORMAT = "sogclr-two-tower-1"
TEXTS_AT_ONCE = 256


class TwoTowerModel(nn.Module):
    """Image and text backbones, each with a linear projection into the common space; not normalised: the loss does that.

    A frozen backbone stays in evaluation mode, has no gradient, and its input to `forward` is its features, computed once.

    Args:
        image_frozen, text_frozen: whether that backbone is left as it is.
    """

    def __init__(
        self, backbone: nn.Module, text_backbone: nn.Module, dim: int, *, image_frozen: bool = False, text_frozen: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.text_backbone = backbone, text_backbone
        self.head = nn.Linear(int(backbone.num_features), dim, bias=False)  # type: ignore[arg-type]
        self.text_head = nn.Linear(int(text_backbone.num_features), dim, bias=False)  # type: ignore[arg-type]
        self.image_frozen, self.text_frozen = image_frozen, text_frozen
        if image_frozen:
            backbone.requires_grad_(False)
        if text_frozen:
            text_backbone.requires_grad_(False)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, S, S) or features (N, F), tokens (N, L) or features (N, T) -> (N, dim), (N, dim)."""
        x = images if self.image_frozen else self.backbone(images)
        y = texts if self.text_frozen else self.text_backbone(texts)
        return self.head(x), self.text_head(y)

    def train(self, mode: bool = True) -> TwoTowerModel:
        super().train(mode)
        if self.image_frozen:
            self.backbone.eval()
        if self.text_frozen:
            self.text_backbone.eval()
        return self


class ImageTower(nn.Module):
    """The image half alone. Normalised images (N, 3, S, S) -> (N, dim) unit rows, for the cosine with texts' rows."""

    def __init__(self, model: TwoTowerModel) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.num_features = model.head.out_features

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize(self.head(self.backbone(images)).float(), dim=1)


class TwoTower:
    """A model in use: images and texts to unit rows of one space. It is an `embedding.ImageEncoder` too.

    Example:
        >>> towers = load_two_tower("runs/birds")                                # doctest: +SKIP
        >>> similarity = towers.encode(crops) @ towers.encode_texts(["a red bird"]).T   # doctest: +SKIP
    """

    def __init__(self, model: TwoTowerModel, info: EncoderInfo, text: TextSetup, device: torch.device | str) -> None:
        self.model, self.info, self.text, self.device = model, info, text, torch.device(device)
        self.num_features = model.head.out_features

    def encode(self, crops: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) -> (N, D) unit rows."""
        return self(normalise(crops, self.info.mean, self.info.std))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> (N, D) unit rows."""
        return functional.normalize(self.model.head(self.model.backbone(images)).float(), dim=1)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """(N, D) unit rows, float32, on the device."""
        rows = [
            functional.normalize(self.model.text_head(self.text_features(texts[k : k + TEXTS_AT_ONCE])).float(), dim=1)
            for k in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return torch.cat(rows) if rows else torch.empty(0, self.num_features, device=self.device)

    def text_features(self, texts: list[str]) -> Tensor:
        """(N, T): what the text backbone says, before the projection."""
        return self.model.text_backbone(self.text.tokenizer(texts).to(self.device))

    def fingerprint(self) -> str:
        """SHA-256 over the image tower's weights and preprocessing."""
        digest = hashlib.sha256(json.dumps(asdict(self.info), sort_keys=True).encode())
        for key, value in sorted(self.model.state_dict().items()):
            if key.startswith(("backbone.", "head.")):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def save_two_tower(path: Path, model: TwoTowerModel, info: EncoderInfo) -> None:
    """Write the weights of both towers; the text tower's description and tokenizer lie in `text/` beside it."""
    weights = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    about = {"format": "pt", "sogclr": FORMAT, "info": json.dumps(asdict(info)), "dim": str(model.head.out_features)}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata=about)


def load_two_tower(run: str | os.PathLike[str], device: str | torch.device = "cpu") -> TwoTower:
    """The two towers of a finished run on pairs, in evaluation mode.

    Raises:
        BadInput: no such run, or it is not on pairs or not finished.
    """
    folder = RunFolder.open(run)
    path = folder.two_tower_file
    if not folder.holds_pairs():
        raise BadInput(f"{run} was trained on images alone and knows no texts; train on image-caption pairs for that")
    if not path.is_file():
        raise BadInput(f"{run} is not finished ({path.name} is missing); resume it first: sogclr resume {run}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        weights = load_file(path)
    except (SafetensorError, OSError):
        raise BadInput(f"{path} is no readable safetensors file; restore it from a copy") from None
    if about.get("sogclr") != FORMAT:
        raise BadInput(f"{path} is marked {about.get('sogclr')!r} and this version reads {FORMAT!r}; use that version")
    info = EncoderInfo.from_json(about["info"])
    text = TextSetup.load(folder.text_folder)
    model = TwoTowerModel(create_backbone(info.name, info.image_size), text.build(), int(about["dim"]))
    model.load_state_dict(weights)
    return TwoTower(model.to(device).eval().requires_grad_(False), info, text, device)
