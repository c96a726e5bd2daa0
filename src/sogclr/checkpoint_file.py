"""The file of a checkpoint: read only if every byte of it is as it was written, and never as pickled code."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any

from .errors import BadInput

CHECKPOINT_FORMAT = "sogclr-checkpoint-1"


class DamagedCheckpoint(BadInput):
    """A checkpoint is truncated, or a byte of it has changed."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state that `save_checkpoint` wrote, with its tensors on the CPU.

    Raises:
        BadInput: the file is missing, not a checkpoint of ours, or of another version.
        DamagedCheckpoint: it is truncated, or a byte of it has changed.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as parts:  # torch writes checksums and does not look at them
            if (part := parts.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {part} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"there is no checkpoint {path}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the latter of a damaged offset
            raise BadInput(f"the checkpoint {path} cannot be read now ({error.strerror}); try again") from None
        raise DamagedCheckpoint(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: truncated, damaged, or not one of ours); "
            "remove it to go on from the one before"
        ) from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != CHECKPOINT_FORMAT:
        raise BadInput(
            f"{path} has format {found!r} and this version reads {CHECKPOINT_FORMAT!r}; use the version of sogclr that wrote it"
        )
    return state
