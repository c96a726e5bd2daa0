"""The peers' losses, from their own installed packages. Single modules are loaded where a whole package drags too much."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch


@functools.cache
def folder(package: str) -> Path | None:
    """Return where a package is installed, found without running it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@functools.cache
def module(package: str, path: str) -> ModuleType:
    """Load one file of a package, without the package's own imports."""
    home = folder(package)
    assert home is not None
    spec = importlib.util.spec_from_file_location(f"peer_{package}", home / path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@functools.cache
def below_empty_packages(name: str) -> ModuleType:
    """Load a module that imports others of its package absolutely: its parent packages are put in place, unrun."""
    parts = name.split(".")
    home = folder(parts[0])
    assert home is not None
    for name_of_parent in ("lightly", "lightly.models", "lightly.models.modules", "lightly.utils", "lightly.loss"):
        parent = ModuleType(name_of_parent)
        parent.__path__ = [str(home.joinpath(*name_of_parent.split(".")[1:]))]
        sys.modules[name_of_parent] = parent
    # wants torchvision, and is needed only for a memory bank on several processes
    sys.modules["lightly.models.utils"] = sys.modules["lightly.models"].utils = ModuleType("lightly.models.utils")
    return importlib.import_module(name)


def installed() -> dict[str, str]:
    found = {}
    for package in ("libauc", "lightly", "open_clip_torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def versions() -> str:
    """Return names and versions of the peers that are installed, for a page."""
    return ", ".join(f"{name} {number}" for name, number in installed().items()) or "no peers installed"


def one_tower(device: str, samples: int) -> dict[str, torch.nn.Module]:
    """Return the losses by name; each is called with (z0, z1, index) or, NT-Xent, with (z0, z1)."""
    losses: dict[str, torch.nn.Module] = {}
    if folder("libauc"):
        losses["LibAUC GCLoss_v1"] = module("libauc", "losses/contrastive.py").GCLoss_v1(
            N=samples, tau=0.1, gamma=0.9, device=torch.device(device)
        )
    if folder("lightly"):
        losses["lightly NTXentLoss"] = below_empty_packages("lightly.loss.ntx_ent_loss").NTXentLoss(temperature=0.1)
    return losses


def two_towers(device: str, samples: int) -> dict[str, torch.nn.Module]:
    """Return the losses by name; GCLoss_v2 is called with (x, y, index), ClipLoss with (x, y, 1 / tau); both want unit rows."""
    losses: dict[str, torch.nn.Module] = {}
    if folder("libauc"):
        losses["LibAUC GCLoss_v2"] = module("libauc", "losses/contrastive.py").GCLoss_v2(N=samples, tau=0.1, gamma=0.9)
    if folder("open_clip"):
        losses["open_clip ClipLoss"] = module("open_clip", "loss.py").ClipLoss()
    return losses
