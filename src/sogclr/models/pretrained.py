"""Weights to start from, by timm's name of them: which architecture, which file on the hub, and how its inputs are made.

Only safetensors are taken from there, and only `download` reaches the network: for a name that the user said, when a run
begins. All else looks in the hub's cache.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from ..data.inputs import INTERPOLATIONS, Inputs
from ..errors import BadInput
from .backbone import OWN, timm
from .encoder import EncoderInfo, read_info


def resolve_pretrained(model: str | None, pretrained: str | None) -> tuple[str | None, str | None]:
    """Return `--model` and `--pretrained`; of weights by their name both are that name, with its tag; a file of ours says its model.

    Args:
        model: timm name, None where it was left out.
        pretrained: a file, or timm's name of weights.

    Raises:
        BadInput: neither a file nor a name, or the model is another one.
    """
    if (info := _info_of(pretrained)) is not None:
        if model is not None and model.split(".")[0] != info.name.split(".")[0]:
            raise BadInput(
                f"--pretrained {pretrained} holds weights of {info.name} and --model is {model}; leave --model out"
            )
        return model or info.name, pretrained
    if pretrained is None or Path(pretrained).is_file() or not timm.is_model(pretrained):
        return model, pretrained  # what is no file and no name either is refused where it is read
    architecture, config = pretrained.split(".")[0], _config_of(pretrained)
    if config is None or not config.has_weights:
        known = timm.list_pretrained(f"{architecture}.*")
        hint = f"timm has {', '.join(known[:6])}" if known else "it has none of that model: give a file"
        raise BadInput(f"timm {timm.__version__} has no weights named {pretrained!r}; {hint}")
    if model is not None and model.split(".")[0] != architecture:
        raise BadInput(
            f"--pretrained {pretrained} are weights of {architecture} and --model is {model}; leave --model out"
        )
    name = f"{architecture}.{config.tag}" if config.tag else architecture
    return name, name


def describe_weights(model: str | None, pretrained: str | None) -> tuple[dict[str, Any], int | None]:
    """Return how the weights' inputs are made, the fields of `Inputs`, and their size; nothing where nobody says it.

    Args:
        model: timm name; its tag says it, of a file too.
        pretrained: a file, which says it itself if it is one of ours, timm's name of weights, or None.
    """
    if (info := _info_of(pretrained)) is not None:
        return {k: v for k, v in asdict(info).items() if k in asdict(Inputs())}, info.image_size
    config = _config_of(model) if model is not None and "." in model and pretrained is not None else None
    if config is None:
        return {}, None
    how = config.interpolation if config.interpolation in INTERPOLATIONS else "bicubic"
    return asdict(Inputs(tuple(config.mean), tuple(config.std), config.crop_pct, how)), config.input_size[-1]


def weights_file(pretrained: str, download: bool = False) -> Path:
    """Return the file of weights, which may be given by timm's name of them.

    Args:
        pretrained: a file, or a name.
        download: whether it may come from the hub; otherwise from the hub's cache alone.

    Raises:
        BadInput: it is not there, or is no safetensors file on the hub.
    """
    if Path(pretrained).is_file() or not timm.is_model(pretrained) or (config := _config_of(pretrained)) is None:
        return Path(pretrained)
    if not config.hf_hub_id:
        raise BadInput(f"the weights {pretrained} are no safetensors on the hub ({config.url}); give a file of them")
    return _from_hub(pretrained, config.hf_hub_id, _safe_name(config.hf_hub_filename), download)


def license_of(name: str) -> str | None:
    """Return the licence that timm knows of weights; None where it knows none."""
    config = _config_of(name) if timm.is_model(name) else None
    return None if config is None else config.license


def _info_of(pretrained: str | None) -> EncoderInfo | None:
    """Return what a file says of its weights that `save_encoder` wrote; None of all else."""
    if pretrained is None or Path(pretrained).suffix != ".safetensors" or not Path(pretrained).is_file():
        return None
    info = read_info(Path(pretrained))
    return None if info is None or info.name.startswith(OWN) else info


def _config_of(name: str) -> Any:
    """Return timm's `PretrainedCfg` of a name, of the default tag where it has none; None if there is none."""
    try:
        return timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # no such tag
        return None


def _safe_name(filename: str | None) -> str:
    """Return the safetensors file beside one that timm would read pickled."""
    if filename is None:
        return "model.safetensors"
    if filename == "open_clip_pytorch_model.bin":
        return "open_clip_model.safetensors"
    return str(Path(filename).with_suffix(".safetensors"))


def _from_hub(name: str, repository: str, filename: str, download: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    where = {"repo_id": repository, "filename": filename, "revision": revision or None}
    reason = "it is not in the hub's cache"
    try:
        return Path(huggingface_hub.hf_hub_download(**cast(Any, where), local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    if download:
        try:
            return Path(huggingface_hub.hf_hub_download(**cast(Any, where)))
        except Exception as error:  # no network, no such file, no permission: one sentence for all of them
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    raise BadInput(
        f"the weights {name} could not be had ({reason}); where there is a network run "
        f"`hf download {repository} {filename}`, bring the file, and give --model {name} --pretrained FILE"
    )
