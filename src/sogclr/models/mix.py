"""The weights between those that a run started from and those that it ended with.

Legend: theta_0, theta_1: the weights at the start and at the end; a: the share of the end.

    theta_a = (1 - a) theta_0 + a theta_1

Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadInput
from ..run_folder import RunFolder
from .weight_files import read_weights_file


def check_mix(run: RunFolder, mix: float) -> None:
    """Check that weights can be mixed.

    Args:
        run: whose start and end are mixed.
        mix: share of the end.

    Raises:
        BadInput: the share is not from 0 to 1, or the run kept no start.
    """
    if not 0 <= mix <= 1:
        raise BadInput(f"--mix must be from 0 (the start) to 1 (the end) and was {mix:g}")
    if not run.start_file.is_file():
        raise BadInput(
            f"{run.path} kept no start to mix with ({run.start_file.name}); only runs that begin from weights "
            "(--pretrained, --clip, --init-from, --text-model) have one"
        )


def mixed_weights(run: RunFolder, path: Path, mix: float) -> dict[str, Tensor]:
    """Return the weights of a run between its start and its end.

    Args:
        run: finished.
        path: of the weights at the end: both towers, or the encoder alone.
        mix: share of the end, from 0 to 1.

    Raises:
        BadInput: the share is out of range, or the run kept no start, or another model's, or none that can be read.
    """
    end = read_weights_file(path)
    if mix == 1:
        return end
    check_mix(run, mix)
    # of pairs the start is both towers, of which the encoder is the first one's backbone
    inner = "backbone." if run.holds_pairs() and path != run.two_tower_file else ""
    whole = read_weights_file(run.start_file)
    start = {k.removeprefix(inner): v for k, v in whole.items() if k.startswith(inner)}
    if {k: v.shape for k, v in start.items()} != {k: v.shape for k, v in end.items()}:
        raise BadInput(f"{run.start_file} holds another model than {path.name}; restore it from a copy")
    return interpolate(start, end, mix)


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], mix: float) -> dict[str, Tensor]:
    """Return (1 - a) theta_0 + a theta_1 of every floating tensor; of counts those of the nearer end.

    Args:
        start: name -> tensor.
        end: the same names and shapes.
        mix: a.
    """
    return {
        k: torch.lerp(start[k], v, mix) if v.is_floating_point() else (v if mix >= 0.5 else start[k])
        for k, v in end.items()
    }
