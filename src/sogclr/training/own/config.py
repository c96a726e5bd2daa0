"""What parts of a user's own change in a run's configuration: options that they set or refuse, and lines about it."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from ...config.objective import LossConfig, TemperatureMode
from ...config.schema import TrainConfig
from ...data.source import Source
from ...errors import BadInput
from ...losses import MoCoLoss
from ...losses.contrastive import ContrastiveLoss
from ...losses.temperatures import Global, PerSample
from ...losses.two_view import TwoViewLoss
from ..parts import OnMetrics
from .data import view_side
from .parts import PARTS, OwnParts, name_of, own_name


def path_of(name: str, value: Any) -> str:
    """Return a path that was given as text.

    Raises:
        BadInput: it is none.
    """
    if not isinstance(value, str | os.PathLike):
        hint = "; a data set of your own goes to dataset=" if name == "data" else ""
        raise BadInput(f"{name} is a {type(value).__qualname__} and must be a path{hint}")
    return str(os.fspath(value))


def listeners(on_metrics: OnMetrics | None) -> list[OnMetrics]:
    """Return the functions that hear of the metrics: the one that was given, or none.

    Raises:
        BadInput: it cannot be called.
    """
    if on_metrics is not None and not callable(on_metrics):
        raise BadInput(f"on_metrics= is a {type(on_metrics).__qualname__}; give a function of a dict")
    return [] if on_metrics is None else [on_metrics]


def check_given(table: dict[str, Any], own: OwnParts) -> None:
    """Check that a configuration of a run with parts of the user's own comes with such parts.

    Raises:
        BadInput: one is missing: what trained would be another run, or none.
    """
    for part, name in table.get("own", {}).items():
        if part in PARTS and not own.has(part):
            raise BadInput(
                f"the configuration is of a run with a {part} of your own ({name}); pass one: sogclr.train(config=..., {part}=...)"
            )


def adapt_options(options: dict[str, Any], table: dict[str, Any], own: OwnParts) -> dict[str, Any]:
    """Return the options of `train` with those that parts of the user's own set.

    Args:
        options: flat, as they were given.
        table: of a configuration file.
        own: the parts.

    Raises:
        BadInput: an option that a part of the user's own makes meaningless.
    """
    check_given(table, own)
    settled = dict(options)
    in_file = {name for section in table.values() if isinstance(section, dict) for name in section}
    if own.dataset is not None:
        if "data" in options:
            raise BadInput(f"data {options['data']} and dataset= both say what to train on; keep one of them")
        settled["data"] = f"dataset={name_of(own.dataset)}"
        _refuse(options, ("labels",), "dataset=")
        settled["labels"] = "none"
    if own.dataset is not None or own.transform is not None:
        _refuse(options, ("cache", "diagnose_every"), "dataset=" if own.dataset is not None else "transform=")
        settled["cache"] = "none"
    if own.transform is not None:
        _refuse(options, ("recipe",), "transform=")
    if own.model is not None:
        _refuse(options, ("pretrained",), "model= (a module has its weights)")
        settled["model"] = own_name(own.model)
    elif not own.head:
        raise BadInput("head=False is for a model of your own that ends with its own head; give model= too")
    if not own.head:
        _refuse(options, ("head_layers", "head_dim", "head_hidden"), "head=False")
    if own.loss is not None:
        ours = [f.name for f in fields(LossConfig)]
        unused = in_file if "loss" not in table.get("own", {}) else ()  # a run's own file has all options
        _refuse({**options, **dict.fromkeys(unused)}, ours, "loss=, which is built with its own")
        if "gradient_scale" not in {*options, *in_file}:
            settled["gradient_scale"] = _gradient_scale(own.loss)
    if (own.dataset is not None or own.transform is not None) and "image_size" not in {*options, *in_file}:
        side = view_side(own.dataset, own.transform)
        settled |= {} if side is None else {"image_size": side}
    return settled


def _refuse(options: dict[str, Any], names: list[str] | tuple[str, ...], part: str) -> None:
    for name in names:
        if name in options:
            raise BadInput(f"{name}= does not go with {part}; leave it out")


def adapt_config(config: TrainConfig, lines: list[str], source: Source, own: OwnParts) -> tuple[TrainConfig, list[str]]:
    """Return a resolved configuration, and the lines about it, with what parts of the user's own change.

    Args:
        config: resolved.
        lines: about it, as `resolve` returned them.
        source: the samples.
        own: the parts.

    Raises:
        BadInput: parts of the user's own for pairs, or that decide how images are read with `--validation`.
    """
    if own.table() and source.kind != "images":
        part = next(iter(own.table()))
        raise BadInput(f"{part}= is for images and {config.data.data} holds pairs; leave it out")
    if config.data.validation is not None and (own.dataset is not None or own.transform is not None):
        part = "dataset=" if own.dataset is not None else "transform="
        raise BadInput(f"validation={config.data.validation!r} does not go with {part}; leave it out")
    _check_views(config, own)
    replaced: dict[str, str] = {}
    if own.loss is not None:
        replaced["loss"] = f"{name_of(own.loss)}, given"
        config = replace(config, loss=replace(config.loss, temperature_mode=_temperature_mode(own.loss)))
    if not own.head:
        replaced["head"] = f"that of {name_of(own.model)}"
    if own.transform is not None:
        replaced["views"] = f"of {name_of(own.transform)}, given"
    return config, [f"{line[:10]}{replaced.get(line[:10].strip(), line[10:])}" for line in lines]


def _check_views(config: TrainConfig, own: OwnParts) -> None:
    """Refuse more than two views of an image with parts of the user's own that are for two."""
    data = config.data
    option = f"views={data.views}" if data.crops is None else f"crops={data.crops!r}"
    two_views = own.loss is not None and (not isinstance(own.loss, TwoViewLoss) or isinstance(own.loss, MoCoLoss))
    for name, given in (
        ("dataset", own.dataset),
        ("transform", own.transform),
        ("loss", own.loss if two_views else None),
    ):
        if given is not None and (data.crops is not None or data.views > 2):
            raise BadInput(f"{option} does not go with {name}=, which is for two views of an image; leave it out")


def _gradient_scale(loss: nn.Module) -> float:
    """Return 1/tau of a global loss of ours, which makes its gradient as large as a softmax loss's; 1 of any other."""
    if not isinstance(loss, ContrastiveLoss) or loss.per_temperature:
        return 1.0
    tau = getattr(loss.temperature, "tau", loss.temperature)
    return 1 / float(torch.as_tensor(tau).detach().mean())


def _temperature_mode(loss: nn.Module) -> TemperatureMode:
    """Return how a loss of ours learns its temperature, on which its optimizer and a metric depend."""
    temperature = getattr(loss, "temperature", None) if isinstance(loss, ContrastiveLoss) else None
    if isinstance(temperature, PerSample):
        return "per-sample"
    return "global" if isinstance(temperature, Global) else "constant"
