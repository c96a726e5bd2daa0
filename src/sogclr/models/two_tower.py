"""Two towers, an image encoder and a text encoder with a common space: while they train, and afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..errors import BadInput
from ..run_folder import RunFolder
from .backbone import create_backbone, feature_width
from .encoder import Encoder, EncoderInfo, read_metadata, save_weights
from .text import TextSetup

FORMAT = "sogclr-two-tower-1"
TEXTS_AT_ONCE = 256  # batch of the text tower in use


class TwoTowerModel(nn.Module):
    """Image and text backbones, each with a linear projection into the common space; not normalised: the loss does that.

    A frozen backbone stays in evaluation mode and gets no gradient; `forward` takes its precomputed features.

    Args:
        backbone: normalised images (N, 3, S, S) -> (N, F).
        text_backbone: tokens (N, L) -> (N, T).
        dim: width of the common space.
        image_frozen: whether the image backbone is frozen.
        text_frozen: whether the text backbone is frozen.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int,
        *,
        image_frozen: bool = False,
        text_frozen: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.text_backbone = backbone, text_backbone
        self.head = nn.Linear(feature_width(backbone), dim, bias=False)
        self.text_head = nn.Linear(feature_width(text_backbone), dim, bias=False)
        self.image_frozen, self.text_frozen = image_frozen, text_frozen
        if image_frozen:
            backbone.requires_grad_(False)
        if text_frozen:
            text_backbone.requires_grad_(False)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projections (N, dim), (N, dim) of image-text pairs.

        Args:
            images: normalised (N, 3, S, S), or features (N, F) where the image backbone is frozen.
            texts: int64 tokens (N, L), or features (N, T) where the text backbone is frozen.
        """
        x = images if self.image_frozen else self.backbone(images)
        y = texts if self.text_frozen else self.text_backbone(texts)
        return self.head(x), self.text_head(y)

    def train(self, mode: bool = True) -> TwoTowerModel:
        """Set training mode, except for frozen backbones."""
        super().train(mode)
        if self.image_frozen:
            self.backbone.eval()
        if self.text_frozen:
            self.text_backbone.eval()
        return self


class ImageTower(nn.Module):
    """The image half of a model: normalised images (N, 3, S, S) -> (N, dim) unit rows.

    Args:
        model: shares its image backbone and projection.
    """

    def __init__(self, model: TwoTowerModel) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.num_features = model.head.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Return the unit rows (N, dim) of normalised images (N, 3, S, S)."""
        return functional.normalize(self.head(self.backbone(images)).float(), dim=1)


class TwoTower(Encoder):
    """A model in use. As an `Encoder` it gives images' unit rows of the common space; `encode_texts` gives texts'.

    Example:
        >>> towers = load_two_tower("runs/birds")                                # doctest: +SKIP
        >>> similarity = towers.encode(crops) @ towers.encode_texts(["a red bird"]).T   # doctest: +SKIP

    Args:
        model: on `device`, in evaluation mode.
        info: name and preprocessing of the image tower.
        text: the text tower's description and tokenizer.
        device: where texts are encoded.
    """

    def __init__(self, model: TwoTowerModel, info: EncoderInfo, text: TextSetup, device: torch.device | str) -> None:
        super().__init__(ImageTower(model), info)
        self.model, self.text, self.device = model, text, torch.device(device)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return (N, D) unit rows, float32, on the device."""
        rows = [
            functional.normalize(self.model.text_head(self.text_features(texts[k : k + TEXTS_AT_ONCE])).float(), dim=1)
            for k in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return torch.cat(rows) if rows else torch.empty(0, self.num_features, device=self.device)

    def text_features(self, texts: list[str]) -> Tensor:
        """Return the text backbone's features (N, T), before the projection."""
        features: Tensor = self.model.text_backbone(self.text.tokenizer(texts).to(self.device))
        return features


def save_two_tower(path: Path, model: TwoTowerModel, info: EncoderInfo) -> None:
    """Write the weights of both towers; the text tower's description and tokenizer are in the run's `text/`."""
    save_weights(path, model, FORMAT, info, dim=str(model.head.out_features))


def load_two_tower(run: str | os.PathLike[str], device: str | torch.device = "cpu") -> TwoTower:
    """Load the two towers of a finished run on pairs, in evaluation mode.

    Args:
        run: the folder of the run.
        device: where the towers will be.

    Raises:
        BadInput: no such run, or it is not on pairs or not finished.
    """
    folder = RunFolder.open(run)
    path = folder.two_tower_file
    if not folder.holds_pairs():
        raise BadInput(f"{run} was trained on images alone and knows no texts; train on image-caption pairs for that")
    if not path.is_file():
        raise BadInput(f"{run} is not finished ({path.name} is missing); resume it first: sogclr resume {run}")
    metadata = read_metadata(path, FORMAT, "restore it from a copy")
    info = EncoderInfo.from_json(metadata["info"])
    text = TextSetup.load(folder.text_folder)
    model = TwoTowerModel(create_backbone(info.name, info.image_size), text.build(), int(metadata["dim"]))
    model.load_state_dict(load_file(path))
    return TwoTower(model.to(device).eval().requires_grad_(False), info, text, device)
