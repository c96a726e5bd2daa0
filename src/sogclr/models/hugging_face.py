"""Hugging Face encoders: where they are, and the package that builds them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Literal

from ..errors import BadInput

Pooling = Literal["mean", "cls"]


def find_encoder(name: str) -> Path:
    """Find the folder with the `config.json` of an encoder; a hub's name is looked up there, or in its cache.

    Args:
        name: its path, the name of an installed package that carries it, or its name on the Hugging Face hub.

    Raises:
        BadInput: there is none.
    """
    place = Path(name)
    if (place / "config.json").is_file():
        return place
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for parent in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(p.parent for p in Path(parent).rglob("config.json") if (p.parent / "tokenizer.json").is_file())
        if found:
            return found[0]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not place.exists():
        return _from_hub(name)
    raise BadInput(
        f"--text-model {name} is neither a folder with a config.json nor an installed package that carries an encoder; "
        "give the path of a Hugging Face text encoder, or its name on the hub, as organisation/name"
    )


def _from_hub(name: str) -> Path:
    """Return the folder in the hub's cache, to which configuration, tokenizer and weights are downloaded first."""
    import_transformers()
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # not there, no network, no permission: one sentence for all of them
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"--text-model {name} is no folder here and could not be had from the Hugging Face hub ({reason}); "
            "download it where there is a network, and give its folder"
        ) from None


def pooling_of(folder: Path) -> Pooling:
    """Return how an encoder's folder says that its tokens are pooled, as Sentence Transformers writes it; else mean."""
    try:
        table = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    return "cls" if table.get("pooling_mode_cls_token") or table.get("pooling_mode") == "cls" else "mean"


def import_transformers() -> ModuleType:
    """Return the package transformers, quiet.

    Raises:
        BadInput: it is not installed.
    """
    from .torchvision_cpu import import_timm

    import_timm()  # transformers imports torchvision too, and needs the same repair
    try:
        import transformers
    except ImportError:
        raise BadInput("a model of Hugging Face needs the package transformers: pip install 'sogclr[text]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    module: ModuleType = transformers
    return module
