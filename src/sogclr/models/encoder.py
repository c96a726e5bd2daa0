"""A trained encoder, and its weight file, which timm loads too."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..config.schema import TrainConfig
from ..data.crops import evaluation_crop
from ..data.images import ImageFile, background_colour
from ..data.inputs import IMAGENET_MEAN, IMAGENET_STD, Inputs, inputs_from_table
from ..errors import BadImage, BadInput
from ..run_folder import RunFolder
from .backbone import CLIP, OWN, count_parameters, create_backbone, feature_width, timm
from .mix import mixed_weights
from .weight_files import count_numbers, read_metadata, write_weights

ENCODER_FORMAT = "sogclr-encoder-1"
LARGEST_IMAGE = 4096  # side in pixels, of an encoder that is read from a file


@dataclass(frozen=True)
class EncoderInfo:
    """What an encoder needs beside its weights: name and preprocessing."""

    name: str
    """timm name."""
    image_size: int
    """Side S of the square input, pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from the channels, which are in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """The channels are divided by it."""
    crop_fraction: float = 1.0
    """Share of the (square) image that the central crop keeps at evaluation."""
    background: str = "white"
    """Colour below transparent pixels."""
    interpolation: str = "bilinear"
    """How the central crop is resized, one of `INTERPOLATIONS`."""
    squash: bool = False
    """Whether the whole image is squeezed into the square instead."""

    @classmethod
    def of_run(cls, config: TrainConfig) -> EncoderInfo:
        """Return what the encoder of a run says of itself, from its resolved configuration."""
        inputs = asdict(inputs_from_table(Inputs(), config.inputs))
        return cls(str(config.model.model), config.data.image_size or 0, background=config.data.background, **inputs)

    @classmethod
    def from_json(cls, text: str) -> EncoderInfo:
        """Read what `to_json` wrote, as a file that a stranger may have made says it.

        Raises:
            BadInput: it is damaged, of a later version, or says what no encoder is.
        """
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or not {"name", "image_size"} <= said.keys():
            raise BadInput("its description has no name and size; restore it from a copy")
        if unknown := said.keys() - {f.name for f in fields(cls)}:
            raise BadInput(
                f"it says {', '.join(sorted(unknown))}, of which this version knows nothing; use a newer sogclr"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        info = cls(**values)
        info.check()
        return info

    def check(self) -> None:
        """Check that it names a model of timm, of a size and with inputs that can be.

        Raises:
            BadInput: it does not.
        """
        name, size = self.name, self.image_size
        if not isinstance(name, str) or not (name.startswith((OWN, CLIP)) or timm.is_model(name)):
            raise BadInput(
                f"it names the model {name!r}, which is none of timm {timm.__version__}; restore it from a copy"
            )
        if not isinstance(size, int) or not 0 <= size <= LARGEST_IMAGE:
            raise BadInput(f"its image_size is {size!r}, and can be up to {LARGEST_IMAGE}; restore it from a copy")
        background_colour(str(self.background))
        _ = self.inputs  # which are checked where they are made

    @property
    def inputs(self) -> Inputs:
        """Return how images are made ready, without their size and background."""
        return Inputs(self.mean, self.std, self.crop_fraction, self.interpolation, self.squash)

    def to_json(self, sort_keys: bool = False) -> str:
        """Return the JSON of all fields, without those that older files do not know where they are the default."""
        newer = {"interpolation": "bilinear", "squash": False}
        values = {k: v for k, v in asdict(self).items() if k not in newer or v != newer[k]}
        return json.dumps(values, sort_keys=sort_keys)


class Encoder(nn.Module):
    """A trained backbone with its preprocessing.

    `encoder(images)` takes normalised floating images (N, 3, S, S); `encoder.encode(crops)` takes uint8 (N, S, S, 3);
    `encoder.encode_files(paths)` takes files. All give features (N, num_features). `encoder.transform` is the preprocessing
    alone, as a data set of torchvision takes it.

    Args:
        backbone: normalised images (N, 3, S, S) -> (N, num_features).
        info: name and preprocessing.
    """

    def __init__(self, backbone: nn.Module, info: EncoderInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.info = info
        self.num_features = feature_width(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (N, num_features) of normalised images (N, 3, S, S)."""
        features: Tensor = self.backbone(images)
        return features

    def encode(self, crops: Tensor) -> Tensor:
        """Return the features (N, num_features) of uint8 crops (N, S, S, 3) on the encoder's device.

        Raises:
            BadInput: they are no tensor of that type and shape.
        """
        size = self.info.image_size
        if not isinstance(crops, Tensor) or crops.dtype != torch.uint8 or crops.shape[1:] != (size, size, 3):
            found = f"{crops.dtype} {tuple(crops.shape)}" if isinstance(crops, Tensor) else f"a {type(crops).__name__}"
            raise BadInput(
                f"encode takes a uint8 tensor (N, {size}, {size}, 3) of RGB crops and was given {found}; "
                "for files there is encode_files, and encoder(images) takes what transform gives"
            )
        features: Tensor = self(normalise(crops, self.info.mean, self.info.std))
        return features

    def crop(self, image: Image.Image | ImageFile) -> Tensor:
        """Return the central crop of an image of Pillow, or of a file, as evaluation sees it: uint8 (S, S, 3).

        Raises:
            BadInput: the file cannot be read.
        """
        info = self.info
        try:
            pixels = evaluation_crop(
                image, info.image_size, info.crop_fraction, info.interpolation, info.background, info.squash
            )
        except BadImage as error:
            name = os.fspath(image) if isinstance(image, str | os.PathLike) else "the image"
            raise BadInput(f"{name} {error}; leave it out or restore it") from None
        return torch.from_numpy(pixels.copy())

    def transform(self, image: Image.Image | ImageFile) -> Tensor:
        """Return an image of Pillow, or of a file, as the backbone wants it: float32 (3, S, S), cropped and normalised.

        Raises:
            BadInput: the file cannot be read.
        """
        return normalise(self.crop(image)[None], self.info.mean, self.info.std)[0]

    @torch.inference_mode()
    def encode_files(self, paths: Iterable[ImageFile], batch_size: int = 64) -> Tensor:
        """Return the features (N, num_features), float32 on the CPU, of N files, read one after another.

        For a folder `sogclr.embed` is faster: it reads in several processes.

        Raises:
            BadInput: a path instead of a list of them, or a file that cannot be read.
        """
        if isinstance(paths, str | os.PathLike):
            raise BadInput(
                f"encode_files takes a list of paths and was given {os.fspath(paths)!r}; give [{os.fspath(paths)!r}]"
            )
        device, files = next(self.parameters()).device, iter(paths)
        rows = [torch.empty(0, self.num_features)]
        while chunk := [self.crop(file) for file in islice(files, batch_size)]:
            rows.append(self.encode(torch.stack(chunk).to(device)).float().cpu())
        return torch.cat(rows)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the preprocessing and the names and bytes of the backbone's weights."""
        return weights_fingerprint(self.info.to_json(sort_keys=True), self.backbone)


def weights_fingerprint(about: str, model: nn.Module) -> str:
    """Return the SHA-256 of a description and the names and bytes of a model's weights."""
    digest = hashlib.sha256(about.encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def normalise(crops: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (x / 255 - mean) / std: uint8 (N, H, W, 3) -> float32 (N, 3, H, W), channels last in memory."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=crops.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=crops.device)
    return (crops.float() * scale + shift).permute(0, 3, 1, 2)


# --------------------------------------------------------------------------------------------------------- weight files
def save_weights(path: Path, model: nn.Module, format: str, info: EncoderInfo, **metadata: str) -> None:
    """Write the weights of `model` to a .safetensors file, with its format and `info` in the metadata."""
    write_weights(path, model.state_dict(), {**metadata, "format": "pt", "sogclr": format, "info": info.to_json()})


def read_info_of(path: Path, format: str, remedy: str) -> tuple[EncoderInfo, dict[str, str]]:
    """Read what a file says of its encoder, and all its metadata, before anything is built from them.

    Args:
        path: a .safetensors file that `save_weights` wrote.
        format: the one expected.
        remedy: what to do otherwise, for the error message.

    Raises:
        BadInput: the file cannot be read, is of another format, or says what cannot be.
    """
    metadata = read_metadata(path, format, remedy)
    try:
        info = EncoderInfo.from_json(metadata.get("info", ""))
    except BadInput as error:
        raise BadInput(f"{path} cannot be used: {error}") from None
    texts_alone = "image" not in metadata.get("kinds", "image")  # such a file has no encoder of images
    if not info.name.startswith((OWN, CLIP)) and not texts_alone:
        wanted, held = count_parameters(info.name, info.image_size), count_numbers(path)
        if wanted > 2 * held + 1_000_000:  # positions may be fewer at another size
            raise BadInput(
                f"{path} holds {held:,} numbers and says that it is {info.name}, which has {wanted:,}; {remedy}"
            )
    return info, metadata


def save_encoder(path: Path, backbone: nn.Module, info: EncoderInfo) -> None:
    """Write the backbone so that `timm.create_model(name, num_classes=0, checkpoint_path=path)` loads it strictly."""
    save_weights(path, backbone, ENCODER_FORMAT, info)


def read_info(path: Path) -> EncoderInfo | None:
    """Return what a .safetensors file says of the encoder that `save_encoder` wrote; None of any other file.

    Raises:
        BadInput: it says what this version does not know, or what cannot be.
    """
    try:
        read_metadata(path, ENCODER_FORMAT, "")
    except BadInput:
        return None
    return read_info_of(path, ENCODER_FORMAT, "restore it from a copy")[0]


def load_encoder(
    run_or_file: str | os.PathLike[str], device: str | torch.device = "cpu", *, mix: float = 1.0
) -> Encoder:
    """Load the encoder of a finished run, or of an exported .safetensors file, in evaluation mode.

    Example:
        >>> encoder = load_encoder("runs/birds")                # doctest: +SKIP
        >>> features = encoder.encode(uint8_images)             # doctest: +SKIP

    Args:
        run_or_file: a run folder or a .safetensors file.
        device: where the encoder will be.
        mix: of a run that began from weights: from 0, those weights, to 1, what it trained; between them a mix.

    Raises:
        BadInput: no such run or file, not an encoder of this project, or nothing to mix.
    """
    path, run = Path(run_or_file), RunFolder(run_or_file)
    if path.is_dir():
        columns = run.pair_columns()
        if columns is not None and "images" not in columns[1]:
            raise BadInput(f"{path} was trained on texts and knows no images; give a run on images")
        if run.clip_folder.is_dir():
            raise BadInput(
                f"{path} has the towers of a CLIP model; its encoder is sogclr.load_two_tower({str(path)!r}).images"
            )
        path = run.encoder_file
        if not path.is_file():
            raise BadInput(f"{path.parent} holds no finished encoder ({path.name}); train or resume that run first")
    elif not path.is_file():
        raise BadInput(f"there is no run or encoder file {path}; give a run folder or an exported .safetensors file")
    info, _ = read_info_of(path, ENCODER_FORMAT, "give a file made by `sogclr export`")
    if info.name.startswith(OWN):
        raise BadInput(
            f"{path} holds the weights of a model of your own ({info.name.removeprefix(OWN)}), which only you can build; "
            f"load them into it: model.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
        )
    backbone = create_backbone(info.name, info.image_size, pretrained=path)
    if mix != 1:
        backbone.load_state_dict(mixed_weights(run, path, mix))
    return Encoder(backbone, info).to(device).eval().requires_grad_(False)
