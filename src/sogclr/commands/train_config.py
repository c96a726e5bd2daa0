"""The configuration that a run keeps: written when it begins, changed where it goes on otherwise."""

from __future__ import annotations

import platform
import sys

import torch

from .. import __version__
from ..config.schema import TrainConfig
from ..config.toml import to_table, to_toml
from ..files import write_text
from ..models.backbone import timm
from ..run_folder import RunFolder
from ..training.own.parts import OwnParts


def write_config(run: RunFolder, config: TrainConfig, own: OwnParts) -> None:
    """Write a resolved configuration, with what the run is made with."""
    table = {**to_table(config), "versions": versions()}
    if parts := own.table():
        table["own"] = parts
    write_text(run.config_file, to_toml(table))


def change_optim(run: RunFolder, changes: dict[str, float]) -> None:
    """Write other options of the optimizer into the configuration of a run, for all that follows."""
    table = run.config_table()
    write_text(run.config_file, to_toml({**table, "optim": {**table["optim"], **changes}}))


def versions() -> dict[str, str]:
    """Return what the run is made with."""
    return {
        "sogclr": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "platform": sys.platform,
    }
