"""A trained encoder, and the file that timm loads."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import BadInput
from ..files import atomic_write
from .backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OWN,
    create_backbone,
)

ENCODER_FORMAT = "sogclr-encoder-1"


# ------------------------------------------------------------------------------------------------------ encoder file
@dataclass(frozen=True)
class EncoderInfo:
    """What an encoder file says of itself, beside its weights."""

    name: str
    """timm name."""
    image_size: int
    """Side of the square input, pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_fraction: float = 1.0
    """Share of the (square) image that the central crop keeps at evaluation."""
    background: str = "white"
    """What transparent pixels are laid on."""

    @classmethod
    def from_json(cls, text: str) -> EncoderInfo:
        """What `json.dumps(asdict(info))` wrote."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        return cls(**fields)


class Encoder(nn.Module):
    """A trained backbone with what it needs to be used: image size, normalisation, name.

    `encoder(images)` takes normalised floating images (N, 3, S, S); `encoder.encode(crops)` takes uint8 (N, S, S, 3).
    Both give backbone features (N, num_features).
    """

    def __init__(self, backbone: nn.Module, info: EncoderInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.info = info
        self.num_features = int(backbone.num_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def encode(self, crops: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) on any device -> (N, num_features)."""
        return self(normalise(crops, self.info.mean, self.info.std))

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and bytes of the weights, and the preprocessing."""
        digest = hashlib.sha256(json.dumps(asdict(self.info), sort_keys=True).encode())
        for key, value in sorted(self.backbone.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def normalise(crops: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W), channels last in memory, (x / 255 - mean) / std."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=crops.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=crops.device)
    return (crops.float() * scale + shift).permute(0, 3, 1, 2)


def save_encoder(path: Path, backbone: nn.Module, info: EncoderInfo) -> None:
    """Write the backbone so that `timm.create_model(name, num_classes=0, checkpoint_path=path)` loads it strictly."""
    weights = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(
            weights,
            temporary,
            metadata={"format": "pt", "sogclr": ENCODER_FORMAT, "info": json.dumps(asdict(info))},
        )


def load_encoder(run_or_file: str | os.PathLike[str], device: str | torch.device = "cpu") -> Encoder:
    """The encoder of a run folder, or of an exported .safetensors file, in evaluation mode.

    Example:
        >>> encoder = load_encoder("runs/birds")                # doctest: +SKIP
        >>> features = encoder.encode(uint8_images)             # doctest: +SKIP

    Raises:
        BadInput: no such run or file, or not an encoder of this project.
    """
    path = Path(run_or_file)
    if path.is_dir():
        path = path / "encoder.safetensors"
        if not path.is_file():
            raise BadInput(
                f"{path.parent} holds no finished encoder (encoder.safetensors); train or resume that run first"
            )
    elif not path.is_file():
        raise BadInput(f"there is no run or encoder file {path}; give a run folder or an exported .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        raise BadInput(
            f"{path} is no readable safetensors file (truncated, or of another kind); export it again"
        ) from None
    if metadata.get("sogclr") != ENCODER_FORMAT:
        raise BadInput(
            f"{path} is marked {metadata.get('sogclr')!r}, this version reads {ENCODER_FORMAT!r}; give a file made by `sogclr export`"
        )
    info = EncoderInfo.from_json(metadata["info"])
    if info.name.startswith(OWN):
        raise BadInput(
            f"{path} holds the weights of a model of your own ({info.name.removeprefix(OWN)}), which only you can build; "
            f"load them into it: model.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
        )
    backbone = create_backbone(info.name, info.image_size, pretrained=path)
    return Encoder(backbone, info).to(device).eval().requires_grad_(False)
