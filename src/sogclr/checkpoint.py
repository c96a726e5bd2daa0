"""Checkpoints: one `state_dict` of everything, atomic, readable with `weights_only=True`."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from .errors import BadInput, RunFailed
from .files import atomic_write
from .run_folder import RunFolder

FORMAT = "sogclr-checkpoint-1"


def save_checkpoint(run: RunFolder, state: dict[str, Any], keep: int, best: bool = False) -> Path:
    """Write `step-XXXXXXXX.pt`, link it as `best.pt` if it is, and remove all but the last `keep`.

    Raises:
        RunFailed: the disk is full; earlier checkpoints are untouched.
    """
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    path = run.checkpoints / f"step-{state['step']:08d}.pt"
    try:
        # A file, not its name: torch's own writer does not say that the disk is full.
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
        if best:
            with atomic_write(run.best_checkpoint) as temporary:
                _link(path, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        older = [p.name for p in run.checkpoint_files()]
        raise RunFailed(
            f"the checkpoint {path} could not be written ({error}); free some space, then `sogclr resume {run.path}` "
            f"goes on from {older[-1] if older else 'the start'}"
        ) from None
    for old in run.checkpoint_files()[:-keep]:
        old.unlink()
    return path


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except PermissionError:  # a file system without hard links
        shutil.copyfile(source, target)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at `path`, on the CPU.

    Raises:
        BadInput: truncated, not ours, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"there is no checkpoint {path}") from None
    except Exception as error:
        raise BadInput(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: truncated, or not one of ours); "
            "remove it to go on from the one before"
        ) from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise BadInput(
            f"{path} has format {found!r} and this version reads {FORMAT!r}; use the version of sogclr that wrote it"
        )
    return state
