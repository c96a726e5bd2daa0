"""Backbones by timm name, small stems, pretrained weights."""

from __future__ import annotations

import difflib
import os
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import BadInput
from .torchvision_cpu import import_timm
from .weight_files import read_weights_file

timm = import_timm()

OWN = "own:"  # begins the name of a model of a user's own
CLIP = "clip:"  # begins the name of a model of `--clip`
HUB = ("hf-hub:", "hf_hub:", "local-dir:")  # begins the name of a model that timm would download, or read from a folder
SMALL_IMAGE = 96  # below this many pixels a ResNet gets the small-image stem


# ---------------------------------------------------------------------------------------------------- small-image stem
SMALL_STEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18_small": ("resnet18", {}),
    "resnet18_stride2": ("resnet18", {"stride": 2}),  # a quarter of its operations, for CPUs
    "resnet34_small": ("resnet34", {}),
    "resnet50_small": ("resnet50", {}),
    "resnet101_small": ("resnet101", {}),
    # one basic block a stage and a stride-2 stem, 0.3 M weights, for CPUs
    "resnet10_mini": (
        "resnet18",
        {"stride": 2, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "stem_width": 16},
    ),
}
"""Name -> timm's model, and what differs beside its stem, for images below 96 pixels."""
LIGHT = 1.3e9  # floating-point operations of a forward pass of one image that a CPU trains on in reasonable time


def _small_stem(base: str, stride: int = 1, **kwargs: Any) -> nn.Module:
    """Build a timm ResNet with one 3x3 convolution instead of the 7x7 stride-2 convolution and the max-pooling.

    Source: the CIFAR stem of SimCLR (2002.05709, appendix B.9).
    """
    for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)  # there are no published weights for these
    model: nn.Module = timm.create_model(base, **kwargs)
    large = cast(nn.Conv2d, model.conv1)
    small = nn.Conv2d(large.in_channels, large.out_channels, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = small
    model.maxpool = nn.Identity()
    return model


def _register(name: str, base: str, options: dict[str, Any]) -> None:
    """Make a model with a small stem one of timm's, which knows functions by their name and module."""

    def build(**kwargs: Any) -> nn.Module:
        return _small_stem(base, **(options | kwargs))

    build.__name__ = name
    globals()[name] = build
    timm.models.register_model(build)


for _name, (_base, _options) in SMALL_STEMS.items():
    _register(_name, _base, _options)


def resolve_name(model: str | None, image_size: int, on_cpu: bool = False) -> tuple[str, str]:
    """Return the timm name to build for `--model`, and a few words that say why.

    Args:
        model: what the user asked for; None leaves it open.
        image_size: side of the square input, pixels.
        on_cpu: whether it is trained there, where an open choice is one with fewer operations.

    Raises:
        BadInput: there is no such model, or it would be downloaded.
    """
    small = image_size < SMALL_IMAGE
    if model is not None and model.startswith((OWN, CLIP)):
        return model, "a model of your own" if model.startswith(OWN) else "as --clip gives it"
    if model is None:
        usual, light = ("resnet18_small", "resnet18_stride2") if small else ("resnet50", "resnet18")
        lighter = on_cpu and forward_operations(usual, image_size) > LIGHT
        where = " on a CPU" if on_cpu else ""
        return light if lighter else usual, f"chosen for {image_size}-pixel images{where}; --model picks another"
    if small and f"{model}_small" in timm.list_models("*_small", module="backbone"):
        return f"{model}_small", f"{model} with a 3x3 stem and no max-pooling, for images below {SMALL_IMAGE} pixels"
    if model.startswith(HUB):
        raise BadInput(
            f"model {model!r} would be downloaded, or read from a folder; give a timm name and --pretrained FILE"
        )
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models() for the names"
        raise BadInput(f"there is no model named {model!r} in timm {timm.__version__}; {hint}")
    return model, "as asked"


def create_backbone(name: str, image_size: int, pretrained: str | os.PathLike[str] | None = None) -> nn.Module:
    """Build the timm model `name` without its classifier.

    Args:
        name: timm name.
        image_size: side of the square input, pixels.
        pretrained: a local weights file of the same model; None starts from random weights.

    Raises:
        BadInput: the model cannot be built at this size, would be downloaded, or the file does not fit it.
    """
    if name.startswith(HUB):  # from an encoder's file, perhaps, which somebody else wrote
        raise BadInput(
            f"model {name!r} would be downloaded or read from a folder, which no file may ask for; give a timm name"
        )
    backbone: nn.Module
    try:
        try:
            backbone = timm.create_model(name, img_size=image_size, num_classes=0)
        except TypeError:  # only vision transformers depend on the image size
            backbone = timm.create_model(name, num_classes=0)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise BadInput(f"model {name!r} cannot be built for {image_size}-pixel images: {error}") from None
    return backbone if pretrained is None else _load_pretrained(backbone, name, Path(pretrained))


def is_vision_transformer(name: str) -> bool:
    """Return whether timm's model cuts images into patches."""
    try:
        return not name.startswith((OWN, CLIP)) and hasattr(_skeleton(name), "patch_embed")
    except (RuntimeError, ValueError, TypeError):  # what cannot be built is said when it is
        return False


@cache
def has_batchnorm(name: str) -> bool | None:
    """Return whether timm's model normalises by the statistics of a batch; None where the name does not tell."""
    try:
        return None if name.startswith((OWN, CLIP)) else bool(batchnorms(_skeleton(name)))
    except (RuntimeError, ValueError, TypeError):  # what cannot be built is said when it is
        return None


def size_options(name: str, image_size: int) -> dict[str, int]:
    """Return what `timm.create_model` is given of the image size, on which only vision transformers depend."""
    try:
        _skeleton(name, img_size=image_size)
    except TypeError:
        return {}
    return {"img_size": image_size}


def forward_operations(name: str, image_size: int) -> int:
    """Return the floating-point operations of a forward pass of one image, two for each multiplication with its addition."""
    backbone, image = _skeleton(name, **size_options(name, image_size)), torch.zeros(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        backbone.eval()(image.to(next(backbone.parameters()).device))
    return int(counted.get_total_flops())


def _skeleton(name: str, **options: Any) -> nn.Module:
    """Build a model without memory for its weights, or with it where an older timm cannot."""
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, num_classes=0, **options)
    except (RuntimeError, NotImplementedError):
        model = timm.create_model(name, num_classes=0, **options)
    return model


def count_parameters(name: str, image_size: int) -> int:
    """Return how many weights timm's model has, without memory for them."""
    return sum(p.numel() for p in _skeleton(name, **size_options(name, image_size)).parameters())


def freeze(backbone: nn.Module, train_last: int = 0) -> list[str]:
    """Let no parameter of a backbone have a gradient, but for those of its last stages or blocks.

    Args:
        backbone: of timm.
        train_last: how many of them stay as they were; a norm behind the last counts to it.

    Returns:
        The names of the modules that are frozen with all their parts, whose BatchNorm is not to learn either.

    Raises:
        BadInput: it has fewer, or does not say what they are.
    """
    layer_of: dict[str, int] = {}
    if train_last:
        if not hasattr(backbone, "group_matcher"):
            raise BadInput(
                f"{type(backbone).__name__} does not say what its stages are, as timm's models do; give --freeze"
            )
        matcher = cast(Any, backbone).group_matcher(coarse=True)
        layer_of = timm.models.group_parameters(backbone, matcher, reverse=True)
    shapes = dict(backbone.named_parameters())
    whole = sorted({layer for name, layer in layer_of.items() if shapes[name].ndim >= 2})
    if train_last and train_last >= len(whole):
        raise BadInput(
            f"--train-last {train_last} is all that {type(backbone).__name__} has ({len(whole) - 1} stages or blocks, and "
            "its first layer); leave it out"
        )
    first = whole[-train_last] if train_last else float("inf")
    for name, parameter in shapes.items():
        if layer_of.get(name, 0) < first:
            parameter.requires_grad_(False)
    modules = ((name, list(module.parameters())) for name, module in backbone.named_modules())
    return [name for name, parameters in modules if parameters and not any(p.requires_grad for p in parameters)]


def batchnorms(backbone: nn.Module) -> list[str]:
    """Return the names of the modules that are BatchNorm."""
    return [name for name, part in backbone.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def feature_width(backbone: nn.Module) -> int:
    """Return the width of the features, timm's `num_features`."""
    return int(cast(int, backbone.num_features))


def _load_pretrained(backbone: nn.Module, name: str, path: Path) -> nn.Module:
    """Return the backbone with the weights of a file, or one that timm has converted them for."""
    weights = read_weights(path)
    wanted = backbone.state_dict()
    missing = [k for k in wanted if k not in weights]
    wrong = [k for k in wanted if k in weights and weights[k].shape != wanted[k].shape]
    if not (missing or wrong):
        backbone.load_state_dict({k: weights[k] for k in wanted})
        return backbone
    try:
        return _converted(backbone, name, weights)
    except (RuntimeError, KeyError, AssertionError, ValueError, TypeError):
        first = (missing or wrong)[0]
        raise BadInput(
            f"{path} does not hold the weights of {name}: {len(missing)} of {len(wanted)} tensors are missing and "
            f"{len(wrong)} have another shape, first: {first}; give a file saved from the same timm model"
        ) from None


def _converted(backbone: nn.Module, name: str, weights: dict[str, Tensor]) -> nn.Module:
    """Return the model with weights of other names, or of positions at another image size, converted by timm.

    Raises:
        Exception: of whatever kind: they are not of this model.
    """
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        raise ValueError(f"timm knows no weights of {name}")
    heads = [config.classifier] if isinstance(config.classifier, str) else config.classifier or ()
    backbones = {k: v for k, v in weights.items() if not k.startswith(tuple(f"{head}." for head in heads))}
    # with as many classes as the model timm compares the names strictly
    overlay = {"state_dict": backbones, "num_classes": 0, "label_offset": 0, "custom_load": False}
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    options = {} if size is None else {"img_size": size}
    converted: nn.Module = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options
    )
    cast(dict[str, Any], converted.pretrained_cfg).pop("state_dict")
    return converted


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or a torch file, there from the nested `state_dict` or `model` if any.

    Raises:
        BadInput: the file is missing, truncated, holds pickled code, or no state_dict.
    """
    if not path.is_file():
        raise BadInput(
            f"there is no weights file {path}; give the path of a .safetensors or .pth file, or timm's name of weights"
        )
    try:
        if path.suffix == ".safetensors":
            return read_weights_file(path, "restore it from a copy, or give another file")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
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
