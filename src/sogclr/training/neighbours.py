"""Batches of neighbours: each sample's last embedding, projected to a few numbers, makes the order of the next epoch.

Hard negatives carry most of an anchor's normalizer, and of a large data set they are nearly never in a random batch. The
embeddings are those that training computes anyway; nothing is encoded again. An epoch's order is made when it begins and
is a part of the state, with the embeddings of which the next one will be made: a resumed run has the order of one that
never stopped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import distributed
from ..config.schema import RunConfig, TrainConfig
from ..data.neighbour_order import COLUMNS, LEAF, group_size, neighbour_order, random_signs
from ..data.source import Source
from ..errors import BadInput
from ..kernels import ranks

WIDTH = 16  # numbers that are kept of an embedding


class Neighbours:
    """Makes the order of epochs from what the model gave for each sample when it was seen last.

    Near is what is near in the mean of a sample's two unit embeddings, of its two views or its two towers: the inner
    product of two such means holds all four similarities between the samples, the two that the loss compares among them.

    Args:
        num_samples: N, ids are below.
        batch_size: B.
        seed: the run's.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.rows = torch.full((num_samples, WIDTH), torch.nan, dtype=torch.float16)
        """(N, WIDTH), of each sample; NaN before it was seen. On the device once there is an embedding."""
        self.epoch, self.ids = 0, np.empty(0, np.int32)
        """The epoch whose order was made last, and its ids in that order; of epoch 0, which is random, none."""
        self._projection = torch.empty(0, WIDTH)

    # ------------------------------------------------------------------------------------------------------- the order
    def order(self, permutation: np.ndarray, epoch: int) -> np.ndarray:
        """Return the ids in the order of `epoch`, which begins or goes on now; all ranks call together and get rank 0's.

        Args:
            permutation: int64 (n,), the ids in the random order of that epoch.
            epoch: 0 or more.
        """
        if epoch == 0:
            return permutation
        if epoch != self.epoch:
            self.ids, self.epoch = distributed.run_on_rank0(lambda: self._order(permutation, epoch)), epoch
        return self.ids.astype(np.int64)

    def _order(self, permutation: np.ndarray, epoch: int) -> np.ndarray:
        ids = neighbour_order(permutation, self.rows.cpu().numpy(), self.batch_size, self.seed, epoch)
        return ids.astype(np.int32 if len(self.rows) < 2**31 else np.int64)

    # -------------------------------------------------------------------------------------------------- the embeddings
    def watch(self, encode: Any, index: Tensor) -> Any:
        """Return the model as it is called in training, whose embeddings are kept.

        Args:
            encode: inputs -> embeddings: one view of all samples after another, (V B, D); or a tuple, (B, D) of each tower.
            index: int64 (B,), the samples' ids.
        """

        def encode_and_keep(*inputs: Tensor) -> Any:
            outputs = encode(*inputs)
            self.keep(outputs[:2] if isinstance(outputs, tuple) else outputs.split(len(index)), index)
            return outputs

        return encode_and_keep

    @torch.no_grad()
    def keep(self, embeddings: tuple[Tensor, ...], index: Tensor) -> None:
        """Keep the projected mean of a sample's unit embeddings, those of all ranks; this waits for no device.

        Args:
            embeddings: (B, D) each.
            index: int64 (B,).
        """
        z = torch.stack([F.normalize(rows.float(), dim=1) for rows in embeddings]).mean(dim=0)
        if self._projection.shape[0] != z.shape[1] or self.rows.device != z.device:
            signs = random_signs(z.shape[1], WIDTH, self.seed, 0, COLUMNS)
            self._projection, self.rows = torch.from_numpy(signs).to(z.device), self.rows.to(z.device)
        rows = (z @ self._projection).to(self.rows.dtype)
        self.rows[ranks.gather(index.to(z.device, non_blocking=True))] = ranks.gather(rows)

    # ------------------------------------------------------------------------------------------------------- the state
    def state_dict(self) -> dict[str, Any]:
        """Return the embeddings, and the order that was made last."""
        return {"rows": self.rows, "epoch": self.epoch, "ids": torch.from_numpy(self.ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.rows.copy_(state["rows"])
        self.epoch, self.ids = state["epoch"], state["ids"].numpy()


# ------------------------------------------------------------------------------------------------ from a configuration
def build_neighbours(config: TrainConfig, source: Source) -> Neighbours | None:
    """Return what makes the order of a run; None where it is random."""
    run = config.run
    return Neighbours(len(source), run.batch_size, run.seed) if run.batches == "neighbours" else None


def check_neighbours(config: TrainConfig, source: Source, total: int) -> None:
    """Check that batches of neighbours, if they are asked for, can be made.

    Args:
        config: of the run.
        source: what it trains on.
        total: its steps.

    Raises:
        BadInput: they would never begin, or a batch or an epoch is too small for groups.
    """
    run = config.run
    if run.batches != "neighbours":
        return
    if group_size(run.batch_size) < 2:
        raise BadInput(
            f"--batches neighbours fills half a batch with near samples and --batch-size was {run.batch_size}; give 4 or more"
        )
    first = len(source.usable) // run.batch_size
    if first * run.batch_size < 2 * LEAF:
        raise BadInput(
            f"--batches neighbours looks for near ones among {2 * LEAF} {source.kind} or more and an epoch has "
            f"{first * run.batch_size}; leave it out"
        )
    if total * config.optim.accumulate <= first:
        raise BadInput(
            f"--batches neighbours begins with the second epoch and this run ends in its first, of {first:,} batches; "
            "leave it out or give more --epochs"
        )


def neighbour_lines(run: RunConfig, kind: str) -> list[str]:
    """Return the line on batches of neighbours; none where the order is random."""
    if run.batches != "neighbours":
        return []
    size = group_size(run.batch_size)
    return [f"{'':9} from the second epoch on of groups of {size} {kind} that are near, made anew each epoch"]
