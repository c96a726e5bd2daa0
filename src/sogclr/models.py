"""Encoders by timm name, the projection head, and the encoder file that timm loads.

`backbone` always means the encoder's pooled features (what is evaluated and embedded); `projection` means the head's
output (what the loss sees, and what is thrown away afterwards).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import BadInput
from .files import replacing
from .torchvision_cpu import import_timm

timm = import_timm()

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_IMAGE = 96  # below this many pixels a ResNet gets the small-image stem
ENCODER_FORMAT = "sogclr-encoder-1"


# ---------------------------------------------------------------------------------------------------- small-image stem
def _small_stem(name: str, stride: int = 1, **kwargs: Any) -> nn.Module:
    """A timm ResNet whose 7x7 stride-2 convolution and max-pooling give way to one 3x3 convolution (SimCLR's CIFAR stem)."""
    for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)  # there are no published weights for these
    model = timm.create_model(name, **kwargs)
    width, channels = model.conv1.out_channels, model.conv1.in_channels
    model.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def resnet18_small(**kwargs: Any) -> nn.Module:
    """ResNet-18 for images below 96 pixels."""
    return _small_stem("resnet18", **kwargs)


def resnet34_small(**kwargs: Any) -> nn.Module:
    """ResNet-34 for images below 96 pixels."""
    return _small_stem("resnet34", **kwargs)


def resnet50_small(**kwargs: Any) -> nn.Module:
    """ResNet-50 for images below 96 pixels."""
    return _small_stem("resnet50", **kwargs)


def resnet101_small(**kwargs: Any) -> nn.Module:
    """ResNet-101 for images below 96 pixels."""
    return _small_stem("resnet101", **kwargs)


def resnet10_mini(**kwargs: Any) -> nn.Module:
    """One basic block a stage, 16 to 128 channels, a stride-2 stem (0.3 M weights): for small images on a CPU."""
    return _small_stem("resnet18", stride=2, layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), stem_width=16, **kwargs)


for _build in (resnet18_small, resnet34_small, resnet50_small, resnet101_small, resnet10_mini):
    timm.models.register_model(_build)


def resolve_name(model: str | None, image_size: int) -> tuple[str, str]:
    """The timm name to build for `--model`, and a few words that say why.

    Raises:
        BadInput: no such model; the nearest names are given.
    """
    small = image_size < SMALL_IMAGE
    if model is None:
        return (
            "resnet18_small" if small else "resnet50"
        ), f"chosen for {image_size}-pixel images; --model picks another"
    if small and f"{model}_small" in timm.list_models("*_small", module="models"):
        return (
            f"{model}_small",
            f"{model} with a 3x3 stem and no max-pooling, for images below {SMALL_IMAGE} pixels",
        )
    if model.startswith(("hf-hub:", "hf_hub:")):
        raise BadInput(
            f"model {model!r} would be downloaded; give a timm name and --pretrained FILE, or local-dir:PATH"
        )
    if not model.startswith("local-dir:") and not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models() for the names"
        raise BadInput(f"there is no model named {model!r} in timm {timm.__version__}; {hint}")
    return model, "as asked"


def create_backbone(name: str, image_size: int, pretrained: str | os.PathLike[str] | None = None) -> nn.Module:
    """The timm model `name` without its classifier; `pretrained` is a local weights file of the same model.

    Raises:
        BadInput: the model cannot be built at this size, or the file does not fit it.
    """
    kwargs: dict[str, Any] = {"num_classes": 0}
    try:
        try:
            backbone = timm.create_model(name, img_size=image_size, **kwargs)  # vision transformers want to know
        except TypeError:
            backbone = timm.create_model(name, **kwargs)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise BadInput(f"model {name!r} cannot be built for {image_size}-pixel images: {error}") from None
    if pretrained is not None:
        _load_pretrained(backbone, name, Path(pretrained))
    return backbone


def _load_pretrained(backbone: nn.Module, name: str, path: Path) -> None:
    weights = read_weights(path)
    wanted = backbone.state_dict()
    missing = [k for k in wanted if k not in weights]
    wrong = [k for k in wanted if k in weights and weights[k].shape != wanted[k].shape]
    if missing or wrong:
        first = (missing or wrong)[0]
        raise BadInput(
            f"{path} does not hold the weights of {name}: {len(missing)} of {len(wanted)} tensors are missing and "
            f"{len(wrong)} have another shape, first: {first}; give a file saved from the same timm model"
        )
    backbone.load_state_dict({k: weights[k] for k in wanted})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or (weights-only) torch file; a nested `state_dict` is found."""
    if not path.is_file():
        raise BadInput(f"there is no weights file {path}; give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInput(
            f"{path} cannot be read as weights ({type(error).__name__}); it may be truncated or pickled code"
        ) from None
    while isinstance(state, dict) and isinstance(state.get("state_dict", state.get("model")), dict):
        state = state.get("state_dict", state.get("model"))
    if not isinstance(state, dict):
        raise BadInput(
            f"{path} holds a {type(state).__name__}, not a state_dict; save model.state_dict() and give that file"
        )
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


# ---------------------------------------------------------------------------------------------------- training model
class ProjectionHead(nn.Sequential):
    """MLP after the backbone: Linear-BN-ReLU (once or twice), Linear-BN without bias; the last BN has no affine part.

    (N, in_features) -> (N, out_features). Source: 2202.12387's code, as in SimCLR (2002.05709, appendix).
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, layers: int = 2) -> None:
        widths = [in_features] + [hidden] * (layers - 1)
        parts: list[nn.Module] = []
        for a, b in pairwise(widths):
            parts += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        parts += [nn.Linear(widths[-1], out_features, bias=False), nn.BatchNorm1d(out_features, affine=False)]
        super().__init__(*parts)


class ContrastiveModel(nn.Module):
    """Backbone and projection head. (N, 3, S, S) -> (N, head_dim), not normalised: the loss does that."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def synchronize_statistics(models: Iterable[nn.Module], device: torch.device) -> bool:
    """Let BatchNorm use the statistics of all ranks, in place; whether that is so now, or there is none.

    CUDA only: torch has no such BatchNorm on the CPU.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for model in models for part in model.modules()):
        return True
    for model in models:
        if device.type == "cuda":
            timm.layers.convert_sync_batchnorm(model)  # torch's own would lose the activations within timm's layers
    return device.type == "cuda"


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
    with replacing(path) as temporary:
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
    backbone = create_backbone(info.name, info.image_size, pretrained=path)
    return Encoder(backbone, info).to(device).eval().requires_grad_(False)
