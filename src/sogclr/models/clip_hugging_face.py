"""CLIP and SigLIP models of Hugging Face's transformers, in a folder."""

from __future__ import annotations

import importlib
import json
import re
import string
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
from tokenizers import normalizers, processors
from torch import Tensor, nn
from torch.nn import functional

from ..data.inputs import Inputs
from ..errors import BadInput
from .clip_parts import ClipParts, ClipTower, NoProjection, Original, files_of, read_json, set_logits, too_large
from .hugging_face import import_transformers
from .text import Tokenizer

KINDS = {"clip": ("CLIPConfig", "CLIPModel"), "siglip": ("SiglipConfig", "SiglipModel")}
"""Their `model_type` -> transformers' classes."""
PREPROCESSING = "preprocessor_config.json"
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("attention_dropout", "projection_dim", "vocab_size", "max_position_embeddings", "projection_size"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "num_channels", "image_size", "patch_size", "vision_use_head"),
)  # all that decides what a tower computes; nothing else of a file reaches transformers
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
_OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's mean and std
_HALF = (0.5, 0.5, 0.5)  # SigLIP's


def load_original(what: str) -> Original:
    """Load a model from its folder.

    Args:
        what: the folder.

    Raises:
        BadInput: it is of another kind, or something in it is missing; or transformers is not installed.
    """
    transformers, folder = import_transformers(), Path(what)
    kind = _kind_of(read_json(folder / "config.json"), str(folder))
    config_class, model_class = (getattr(transformers, name) for name in KINDS[kind])
    try:
        config = check_config(config_class.from_pretrained(str(folder), local_files_only=True).to_dict(), str(folder))
        model, report = model_class.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation=None,  # where a configuration may name code on the hub
        )
    except BadInput:
        raise
    except Exception as error:  # no safetensors, a truncated file, weights of another shape, ...
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"transformers cannot load {folder} ({reason}); save the whole model there, with model.safetensors"
        ) from None
    if report["missing_keys"]:
        raise BadInput(
            f"the weights in {folder} lack {len(report['missing_keys'])} tensors, first: {min(report['missing_keys'])}; "
            "bring the whole file"
        )
    model = model.float().eval().requires_grad_(False)
    try:
        reader = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"the tokenizer in {folder} cannot be read ({reason}); SigLIP's needs: pip install sentencepiece protobuf"
        ) from None
    size, length, full = config["vision_config"]["image_size"], _length(config), kind == "siglip"
    inner, pad = _fast(reader, folder), int(reader.pad_token_id or 0)
    inner.enable_padding(direction=reader.padding_side)

    def encode(images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        padding = "max_length" if full else True
        tokens = reader(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        # SigLIP was trained without a mask, whatever its tokenizer gives
        inputs = {name: tokens[name] for name in ("input_ids", *(() if full else ("attention_mask",)))}
        with torch.inference_mode():
            found = model(**inputs, pixel_values=images)
        return functional.normalize(found.image_embeds, dim=1), functional.normalize(found.text_embeds, dim=1)

    return Original(
        config=config,
        files=files_of(reader),
        parts=take_apart(model),
        tokenizer=Tokenizer(inner, length, pad, full=full),
        inputs=_inputs(folder, kind, size),
        image_size=size,
        logit_scale=float(model.logit_scale),
        logit_bias=float(model.logit_bias) if full else None,
        encode=encode,
    )


def check_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return what of a configuration decides the model, and nothing else.

    Args:
        config: as transformers writes it.
        where: it is from, for the message.

    Raises:
        BadInput: it is of another kind of model, or of one that cannot be.
    """
    kind = _kind_of(config, where)
    towers = {name: config.get(name) for name in ("text_config", "vision_config")}
    if not all(isinstance(tower, dict) for tower in towers.values()):
        raise BadInput(f"the configuration of {where} has no text_config and vision_config; restore it")
    kept: dict[str, Any] = {
        "model_type": kind,
        **{k: {n: v for n, v in cast(dict[str, Any], tower).items() if n in _SIZES} for k, tower in towers.items()},
    }
    if kind == "clip":
        kept["projection_dim"] = config.get("projection_dim", 512)
    image, size = kept["vision_config"].get("image_size"), too_large(kept)
    if size or not isinstance(image, int):
        raise BadInput(f"the configuration of {where} says {size or f'image_size {image}'}, which no model here has")
    return kept


def build_parts(config: dict[str, Any]) -> ClipParts:
    """Build the parts of a model, with random weights.

    Args:
        config: what `check_config` returned.
    """
    return take_apart(_build(config))


def _build(config: dict[str, Any]) -> nn.Module:
    """Build the model of a checked configuration, with random weights."""
    transformers = import_transformers()
    config_class, model_class = (getattr(transformers, name) for name in KINDS[config["model_type"]])
    model: nn.Module = model_class(config_class.from_dict(config))
    return model


def take_apart(model: nn.Module) -> ClipParts:
    """Return the parts of transformers' model; they share its weights."""
    whole = cast(Any, model)
    vision, text = whole.config.vision_config, whole.config.text_config
    if whole.config.model_type == "clip":
        heads = whole.visual_projection, whole.text_projection
        widths = vision.hidden_size, text.hidden_size
    else:
        widths = vision.hidden_size, text.projection_size
        heads = NoProjection(widths[0]), NoProjection(widths[1])
    return ClipParts(ClipTower(whole.vision_model, widths[0]), ClipTower(whole.text_model, widths[1]), *heads)


def write_model(
    folder: Path,
    config: dict[str, Any],
    files: dict[str, bytes],
    weights: dict[str, Tensor],
    inputs: Inputs,
    logits: tuple[float, float],
) -> None:
    """Write a folder that transformers loads.

    Args:
        folder: there, and empty.
        config: what `check_config` returned.
        files: of the tokenizer.
        weights: of the parts, by their names.
        inputs: how images are made ready.
        logits: log(1 / tau), and SigLIP's bias.
    """
    model = cast(Any, _build(config))
    take_apart(model).load_state_dict(weights)
    set_logits(model, logits)
    model.save_pretrained(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    about = _preprocessing(config["model_type"], config["vision_config"]["image_size"], inputs)
    (folder / PREPROCESSING).write_text(json.dumps(about, indent=2), encoding="utf-8")


def _kind_of(config: dict[str, Any], where: str) -> str:
    kind = config.get("model_type")
    if kind == "siglip2":
        raise BadInput(f"{where} is a SigLIP 2 of variable resolution (NaFlex); give one of a fixed resolution")
    if kind not in KINDS:
        raise BadInput(f"{where} holds a model of type {kind!r}; --clip takes {' and '.join(KINDS)}")
    return str(kind)


def _length(config: dict[str, Any]) -> int:
    return int(config["text_config"]["max_position_embeddings"])


def _fast(reader: Any, folder: Path) -> tokenizers.Tokenizer:
    """Return a copy of the tokenizer that runs without transformers."""
    if reader.is_fast:
        return tokenizers.Tokenizer.from_str(reader.backend_tokenizer.to_str())
    if not hasattr(reader, "canonicalize_text"):
        raise BadInput(f"the tokenizer in {folder}, {type(reader).__name__}, is not a fast one; save a fast one there")
    converter = importlib.import_module("transformers.convert_slow_tokenizer").SpmConverter(reader)
    inner: tokenizers.Tokenizer = converter.converted()
    steps = [  # what SigLIP's does in Python: lower case, no punctuation, single spaces
        *([normalizers.Lowercase()] if reader.do_lower_case else []),
        normalizers.Replace(tokenizers.Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    inner.normalizer = normalizers.Sequence([*steps, *([inner.normalizer] if inner.normalizer else [])])
    end = (reader.eos_token, reader.eos_token_id)
    inner.post_processor = processors.TemplateProcessing(f"$A {end[0]}", special_tokens=[end])
    return inner


# -------------------------------------------------------------------------------------------------------- preprocessing
def _inputs(folder: Path, kind: str, size: int) -> Inputs:
    """Return how a model's images are made ready, as its folder says it or else as its kind does."""
    about: dict[str, Any] = {}
    for name in (PREPROCESSING, "processor_config.json"):
        if (folder / name).is_file():
            about = read_json(folder / name)
            about = about.get("image_processor", about)
            break
    mean, std = _OPENAI if kind == "clip" else (_HALF, _HALF)
    resized, crops = about.get("size", size), about.get("do_center_crop", kind == "clip")
    squash = kind == "siglip" and not crops
    shortest = resized if isinstance(resized, int) else resized.get("shortest_edge", resized.get("height", size))
    number = about.get("resample", _FILTERS.index("bicubic"))
    return Inputs(
        tuple(about.get("image_mean", mean)),
        tuple(about.get("image_std", std)),
        1.0 if squash else min(1.0, size / shortest),
        _FILTERS[number] if number in range(len(_FILTERS)) else "bicubic",
        squash,
    )


def _preprocessing(kind: str, size: int, inputs: Inputs) -> dict[str, Any]:
    """Return the same in transformers' words."""
    square = {"height": size, "width": size}
    return {
        "image_processor_type": "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if inputs.squash else {"shortest_edge": round(size / inputs.crop_fraction)},
        "resample": _FILTERS.index(inputs.interpolation),
        "do_center_crop": not inputs.squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(inputs.mean),
        "image_std": list(inputs.std),
    }
