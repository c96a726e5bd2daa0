"""What a run takes over from the loss of another: the state of the samples that both have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn


def transfer_state(loss: nn.Module, old: dict[str, Tensor], columns: Mapping[str, tuple[pa.Array, pa.Array]]) -> int:
    """Copy what a loss keeps for each sample, where another run's loss has the same.

    Args:
        loss: it is written to.
        old: the other loss's state.
        columns: name in the state -> the samples' names here, and there.

    Returns:
        How many samples that was, at most.
    """
    ours, carried = loss.state_dict(keep_vars=True), 0
    for key, (here, there) in columns.items():
        mine, theirs = ours.get(key), old.get(key)
        if mine is None or theirs is None or not mine.ndim == theirs.ndim == 1:
            continue
        where = pc.fill_null(pc.index_in(here, value_set=there), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        rows = np.flatnonzero(where >= 0)
        with torch.no_grad():
            mine[torch.from_numpy(rows).to(mine.device)] = theirs[torch.from_numpy(where[rows])].to(mine.device)
        carried = max(carried, len(rows))
    return carried
