"""Models of open_clip: an architecture of its list with weights, or a folder with its configuration."""

from __future__ import annotations

import copy
import difflib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn

from ..data.inputs import INTERPOLATIONS, Inputs
from ..errors import BadInput
from .backbone import timm
from .clip_parts import ClipParts, ClipTower, NoProjection, Original, files_of, read_json, set_logits, too_large
from .open_clip_package import import_open_clip
from .text import Tokenizer

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_RESIZES = {"shortest": False, "squash": True}  # its name -> whether it squashes


def load_original(what: str) -> Original:
    """Load a model.

    Args:
        what: `ARCHITECTURE:FILE`, `ARCHITECTURE:TAG`, or a folder with `open_clip_config.json` and weights.

    Raises:
        BadInput: there is none, or it cannot be built again without another download; or open_clip is not installed.
    """
    package = import_open_clip()
    folder = Path(what)
    if folder.is_dir():
        name, weights = f"local-dir:{folder}", None
        config = read_json(folder / CONFIG)
    else:
        name, _, weights = what.partition(":")
        config = _config_of(package, name, weights)
    checked = check_config(config, what)
    # a tokenizer of Hugging Face is read by transformers, which would run code that its files name
    safe = {"trust_remote_code": False, "local_files_only": folder.is_dir()}
    of_hugging_face = checked["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    try:
        model = package.create_model(name, pretrained=weights, force_custom_text=True, require_pretrained=True)
        reader = package.get_tokenizer(name, **(safe if of_hugging_face else {}))
    except Exception as error:  # no network, another architecture, no weights, a pickle: one sentence for all of them
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"--clip {what} could not be loaded by open_clip ({reason}); give the weights' own file"
        ) from None
    model = model.float().eval().requires_grad_(False)
    about, size = model.visual.preprocess_cfg, _side(model.visual.image_size, what)
    if about.get("resize_mode", "shortest") not in _RESIZES:
        raise BadInput(
            f"--clip {what} resizes images by {about['resize_mode']!r}; give a model of {' or '.join(_RESIZES)}"
        )
    how = about.get("interpolation", "bicubic")

    def encode(images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return model.encode_image(images, normalize=True), model.encode_text(reader(texts), normalize=True)

    squash = _RESIZES[about.get("resize_mode", "shortest")]
    return Original(
        config=checked | {"name": None if folder.is_dir() else name},
        files=files_of(reader) if hasattr(reader, "tokenizer") else {},
        parts=_take_apart(model, checked["model_cfg"]["embed_dim"]),
        tokenizer=_tokenizer(reader, checked["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}, what),
        inputs=Inputs(
            tuple(about["mean"]), tuple(about["std"]), 1.0, how if how in INTERPOLATIONS else "bicubic", squash
        ),
        image_size=size,
        logit_scale=float(model.logit_scale),
        logit_bias=None if model.logit_bias is None else float(model.logit_bias),
        encode=encode,
    )


def check_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration from which a model is built without a look elsewhere.

    Args:
        config: with `model_cfg`, as open_clip writes it.
        where: it is from, for the message.

    Raises:
        BadInput: it needs another model or code for that, or is of a model that cannot be.
    """
    found = copy.deepcopy(config.get("model_cfg"))
    if not isinstance(found, dict) or not all(isinstance(found.get(f"{one}_cfg"), dict) for one in ("vision", "text")):
        raise BadInput(f"the configuration of {where} has no model_cfg with vision_cfg and text_cfg; restore it")
    vision, text = found["vision_cfg"], found["text_cfg"]
    backbone = vision.get("timm_model_name")
    if "multimodal_cfg" in found or "hf_model_name" in text:
        raise BadInput(
            f"{where} is a CoCa, or its texts are those of another model; give an open_clip model with towers of its own"
        )
    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or set(options) - {"clean"} or text.get("tokenizer_mode"):
        raise BadInput(f"{where} cuts texts in a way that is not known here ({options}); give another model")
    if backbone is not None and not (isinstance(backbone, str) and ":" not in backbone and timm.is_model(backbone)):
        raise BadInput(f"{where} needs timm's model {backbone!r}, which timm {timm.__version__} does not have")
    if size := too_large(found):
        raise BadInput(f"the configuration of {where} says {size}, which no model here has")
    if backbone is not None:
        vision["timm_model_pretrained"] = False
    return {"model_cfg": found, "name": config.get("name")}


def build_parts(config: dict[str, Any]) -> ClipParts:
    """Build the parts of a model, with random weights.

    Args:
        config: what `check_config` returned.
    """
    return _take_apart(_build(config), config["model_cfg"]["embed_dim"])


def write_model(
    folder: Path,
    config: dict[str, Any],
    files: dict[str, bytes],
    weights: dict[str, Tensor],
    inputs: Inputs,
    logits: tuple[float, float],
) -> None:
    """Write a folder that open_clip loads as `local-dir:`, whose file of weights its architecture takes too.

    Args:
        folder: there, and empty.
        config: what `check_config` returned.
        files: of the tokenizer.
        weights: of the parts, by their names.
        inputs: how images are made ready.
        logits: log(1 / tau), and SigLIP's bias.
    """
    model, about = _build(config), config["model_cfg"]
    _take_apart(model, about["embed_dim"]).load_state_dict(weights)
    set_logits(model, logits)
    whole = bool(about.get("custom_text"))  # without it the text tower's parts are the model's own
    state = {k if whole else k.removeprefix("text."): v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    resize = next(name for name, squash in _RESIZES.items() if squash == inputs.squash)
    preprocess = {"mean": inputs.mean, "std": inputs.std, "interpolation": inputs.interpolation, "resize_mode": resize}
    table = {"model_cfg": about, "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(table, indent=2), encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _config_of(package: ModuleType, name: str, weights: str) -> dict[str, Any]:
    """Return the configuration of an architecture, whose weights are a file or a tag that it has."""
    found = package.get_model_config(name)
    if found is None:
        near = difflib.get_close_matches(name, package.list_models(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see open_clip.list_models()"
        raise BadInput(f"open_clip has no architecture {name!r}; {hint}")
    tags = package.list_pretrained_tags_by_model(name)
    if weights not in tags and not Path(weights).is_file():
        raise BadInput(
            f"{weights!r} is neither a file nor a tag of {name}'s weights; it has {', '.join(tags) or 'none'}"
        )
    about = package.get_pretrained_cfg(name, weights) if weights in tags else {}
    if weights in tags and bool(about.get("quick_gelu")) != bool(found.get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if found.get("quick_gelu") else f"{name}-quickgelu"
        raise BadInput(f"the weights {weights} were trained with another GELU than {name} has; give {other}:{weights}")
    return {"model_cfg": found}


def _build(config: dict[str, Any]) -> nn.Module:
    about = {k: v for k, v in copy.deepcopy(config["model_cfg"]).items() if k != "custom_text"}
    model: nn.Module = import_open_clip().CustomTextCLIP(**about)
    return model


def _take_apart(model: nn.Module, width: int) -> ClipParts:
    images, texts = (ClipTower(cast(nn.Module, inner), width) for inner in (model.visual, model.text))
    return ClipParts(images, texts, NoProjection(width), NoProjection(width))


def _side(size: int | tuple[int, int], what: str) -> int:
    sides = (size, size) if isinstance(size, int) else size
    if sides[0] != sides[1]:
        raise BadInput(f"--clip {what} takes images of {sides[0]} by {sides[1]} pixels; give a model of square ones")
    return sides[0]


# ------------------------------------------------------------------------------------------------------------ tokenizer
def _tokenizer(reader: Any, options: dict[str, str], what: str) -> Tokenizer:
    """Return a tokenizer that gives the ids of open_clip's own, with its options."""
    if not hasattr(reader, "tokenizer"):
        name, inner, pad = options.get("clean", "lower"), _bpe(reader), 0
    else:
        if not reader.tokenizer.is_fast:
            raise BadInput(f"the tokenizer of --clip {what} is not a fast one; install a newer transformers")
        inner = tokenizers.Tokenizer.from_str(reader.tokenizer.backend_tokenizer.to_str())
        name, pad = options.get("clean", "whitespace"), int(reader.tokenizer.pad_token_id or 0)
    return Tokenizer(inner, reader.context_length, pad, full=True, clean=name)


def _bpe(reader: Any) -> tokenizers.Tokenizer:
    """Return open_clip's SimpleTokenizer as one of the package tokenizers."""
    first, last = (reader.decoder[token] for token in (reader.sot_token_id, reader.eot_token_id))
    inner = tokenizers.Tokenizer(
        models.BPE(reader.encoder, list(reader.bpe_ranks), end_of_word_suffix="</w>", unk_token=last)
    )
    words = pre_tokenizers.Split(tokenizers.Regex(f"(?i:{reader.pat.pattern})"), "removed", invert=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.add_special_tokens([first, last])  # which a text may name
    inner.post_processor = processors.TemplateProcessing(
        f"{first} $A {last}", special_tokens=[(first, reader.sot_token_id), (last, reader.eot_token_id)]
    )
    return inner
