"""What goes with an exported encoder of images: the call that loads it without this package, and a model card."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..config.toml import to_toml
from ..data.source import load_source
from ..errors import BadInput
from ..files import write_text
from ..models.backbone import SMALL_STEMS, size_options
from ..models.clip import ClipSetup
from ..models.encoder import Encoder, EncoderInfo
from ..models.pretrained import license_of
from ..run_folder import RunFolder

MARK = "<!-- written by `sogclr export`, which writes it anew -->"
_CROPPED = "cropped to the central square, {:g} of the shorter side, resized to"
_PLACES = ("data", "out", "labels", "init_from", "validation")  # options that tell where things are on this machine


def loading_call(encoder: Encoder, file: str, format: str) -> str:
    """Return the lines of Python that load an exported file without this package, in evaluation mode.

    Args:
        encoder: what is in it.
        file: its path, seen from where they are run.
        format: of it: timm, safetensors, torchscript or onnx.
    """
    name = encoder.info.name
    if format == "torchscript":
        return f"import torch\nmodel = torch.jit.load({file!r})"
    if format == "onnx":
        return f"import onnxruntime\nmodel = onnxruntime.InferenceSession({file!r})"
    if name in SMALL_STEMS:
        base, options = SMALL_STEMS[name]
        conv: Any = encoder.backbone.conv1
        given = "".join(f", {key}={value!r}" for key, value in options.items() if key != "stride")
        return "\n".join(
            [
                "import timm, torch",
                f"model = timm.create_model({base!r}, num_classes=0{given})",
                f"model.conv1 = torch.nn.Conv2d(3, {conv.out_channels}, 3, stride={conv.stride[0]}, padding=1, bias=False)",
                "model.maxpool = torch.nn.Identity()",
                f"timm.models.load_checkpoint(model.eval(), {file!r})",
            ]
        )
    given = "".join(f", {key}={value!r}" for key, value in size_options(name, encoder.info.image_size).items())
    return f"import timm\nmodel = timm.create_model({name!r}, num_classes=0, checkpoint_path={file!r}{given}).eval()"


def write_card(path: Path, encoder: Encoder, format: str, run: RunFolder | None, mix: float = 1.0) -> Path | None:
    """Write `README.md`, a model card, beside an exported file; another README that is there stays.

    Args:
        path: the file.
        encoder: what is in it.
        format: of it.
        run: what trained it, where that is known.
        mix: the share of what it trained, in a mix with what it started from.

    Returns:
        The card; None where another README is there.
    """
    card = path.parent / "README.md"
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return None
    table = {} if run is None else run.config_table()
    parts = _about(path, encoder, format, table)
    parts += _mix_words(mix)
    write_text(card, "\n\n".join([*parts, *([] if run is None else _of_run(run, table, mix))]) + "\n")
    return card


def _mix_words(mix: float) -> list[str]:
    """Return the paragraph on a mix of weights, if they are one."""
    if mix == 1:
        return []
    return [
        f"Its weights are a mix, (1 − a) start + a end with a = {mix:g}, of those that training started from and those "
        "that it ended with (WiSE-FT, arXiv 2109.01903)."
    ]


def write_clip_card(card: Path, setup: ClipSetup, call: str, prompt: str, run: RunFolder, mix: float) -> None:
    """Write the model card of both towers of a run.

    Args:
        card: the file.
        setup: what they are.
        call: the lines of Python that load them.
        prompt: put before each text in training.
        run: what trained them.
        mix: the share of what it trained, in a mix with what it started from.
    """
    library = {"hugging-face": "transformers", "open-clip": "open_clip"}[setup.library]
    fields = [
        "---",
        "license: unknown",
        f"library_name: {library}",
        "pipeline_tag: zero-shot-image-classification",
        "---",
    ]
    said = f"`{prompt}` was put before each text." if prompt else "Nothing was put before the texts."
    about = f"Two towers, of images and of texts, that started from `{setup.name}` and were trained with sogclr. {said}"
    parts = ["\n".join(fields), MARK, f"# {setup.name}, tuned", about, f"```python\n{call}\n```", *_mix_words(mix)]
    write_text(card, "\n\n".join([*parts, *_of_run(run, run.config_table(), mix)]) + "\n")


def _about(path: Path, encoder: Encoder, format: str, table: dict[str, Any]) -> list[str]:
    """Return the card's first paragraphs: fields for the hub, what it is, and how it is used."""
    info, weights = encoder.info, str(table.get("model", {}).get("pretrained", ""))
    published = weights == info.name
    fields = [
        "---",
        f"license: {(license_of(weights) if published else None) or 'unknown'}",
        "library_name: timm",
        "pipeline_tag: image-feature-extraction",
        *([f"base_model: timm/{weights}"] if published else []),
        "---",
    ]
    return [
        "\n".join(fields),
        MARK,
        f"# {path.name}",
        f"An encoder of images, `{info.name}`, trained by contrastive learning without labels with sogclr: "
        f"RGB images (N, 3, {info.image_size}, {info.image_size}) to {encoder.num_features} features each.",
        f"```python\n{loading_call(encoder, path.name, format)}\n```",
        preparation(info),
    ]


def preparation(info: EncoderInfo) -> str:
    """Return the paragraphs on how images become inputs: in words, and as lines of Python that read one."""
    part = "squeezed into a square of" if info.squash else _CROPPED.format(info.crop_fraction)
    mean, std = ([round(v, 6) for v in values] for values in (info.mean, info.std))
    return (
        f"Images are {part} {info.image_size} pixels "
        f"({info.interpolation}), divided by 255, and normalised: (x − mean) / std with mean {mean}, std {std}. Transparent "
        f"pixels are laid on {info.background}. Photographs are read at full size and resized with antialiasing, as Pillow does it; "
        "another way (OpenCV, tensors without antialiasing) gives other features."
        f"\n\n```python\n{reading_lines(info)}\n```"
    )


def reading_lines(info: EncoderInfo) -> str:
    """Return the lines of Python that read a photograph as the encoder wants it, without this package."""
    mean, std = ([round(v, 6) for v in values] for values in (info.mean, info.std))
    if info.squash:
        box = "box = (0, 0, image.width, image.height)"
    else:
        share = "" if info.crop_fraction == 1 else f" * {info.crop_fraction:g}"
        box = (
            f"side = min(image.size){share}\n"
            "left, top = (image.width - side) / 2, (image.height - side) / 2\n"
            "box = (left, top, left + side, top + side)"
        )
    size = info.image_size
    return "\n".join(
        [
            "import numpy",
            "from PIL import Image, ImageOps",
            'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
            box,
            f"image = image.resize(({size}, {size}), Image.Resampling.{info.interpolation.upper()}, box=box)",
            f"images = (numpy.asarray(image)[None] / 255 - {mean}) / {std}  # (1, {size}, {size}, 3)",
            f"images = images.transpose(0, 3, 1, 2).astype(numpy.float32)  # (1, 3, {size}, {size})",
        ]
    )


def _of_run(run: RunFolder, table: dict[str, Any], mix: float) -> list[str]:
    """Return the paragraphs on a run: its data, scores (of a mix its own), and settings without the places of this machine."""
    found = []
    try:
        source = load_source(run)
        found += ["## Data", f"{len(source):,} {source.kind}; fingerprint `{source.fingerprint}`."]
    except (BadInput, OSError):  # a data set of the user's own, or one that is gone
        found += ["## Data", "Not described in the run's folder."]
    if run.eval_file.is_file():
        scores = json.loads(run.eval_file.read_text(encoding="utf-8"))
        if mix != 1:
            scores = (scores.get("baselines") or {}).get(f"mix_{mix:g}", {})
        rows = [f"| {k} | {v:.4g} |" for k, v in scores.items() if isinstance(v, float | int) and math.isfinite(v)]
        found += ["## Scores", "\n".join(["| score | value |", "|---|---|", *rows])] if rows else []
        found += [str(scores["worth"])] if scores.get("worth") else []
    settings = {
        section: {
            k: Path(v).name if k in ("pretrained", "text_model", "clip") else v
            for k, v in values.items()
            if k not in _PLACES
        }
        for section, values in table.items()
        if isinstance(values, dict)
    }
    return [*found, "## Settings", f"```toml\n{to_toml(settings).strip()}\n```"]
