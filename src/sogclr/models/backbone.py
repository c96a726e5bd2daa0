"""Backbones by timm name, small stems, pretrained weights."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import BadInput
from .torchvision_cpu import import_timm

timm = import_timm()

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OWN = "own:"  # begins the name of a model of a user's own
SMALL_IMAGE = 96  # below this many pixels a ResNet gets the small-image stem


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
    if model is not None and model.startswith(OWN):
        return model, "a model of your own"
    if model is None:
        return (
            "resnet18_small" if small else "resnet50"
        ), f"chosen for {image_size}-pixel images; --model picks another"
    if small and f"{model}_small" in timm.list_models("*_small", module="backbone"):
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
