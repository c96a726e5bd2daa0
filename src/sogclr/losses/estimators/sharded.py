"""One number a sample, divided among the ranks: each keeps n / R of them instead of n.

Sample i is kept by rank i mod R, in its row i div R. By the remainder, and not in contiguous blocks: ids that stand
next to each other (a class, a tar file, data in order) then spread evenly over the ranks, and the parts differ by one
row at most.

All ranks hold the ids of the whole batch (the loss gathers them), so nobody has to ask: owners know who needs what,
only values travel, and what is new is written by its owner without a word. A part has one row more than it keeps, -inf:
the ids of other ranks point to it, so that shapes do not depend on the ids and a GPU is not waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ... import distributed as distributed_module
from ...errors import BadInput
from ...kernels import ranks

Exchange = Literal["all-to-all", "all-reduce"]
CHUNK = 1 << 22  # rows of each rank that are put together at a time: 16 MiB a rank


@dataclass(frozen=True)
class Part:
    """Which of R parts of n numbers a rank keeps."""

    num_samples: int
    rank: int
    ranks: int

    @staticmethod
    def own(num_samples: int) -> Part | None:
        """Return this process's part in its group, also while rank 0 computes alone; None where it is the only one."""
        ranks = distributed_module.all_ranks()
        return Part(num_samples, distributed_module.rank(), ranks) if ranks > 1 else None

    @property
    def rows(self) -> int:
        """Return how many rows every rank has; the last may be unused."""
        return -(-self.num_samples // self.ranks)

    def empty(self) -> Tensor:
        """Return a part in which nothing was seen: (rows + 1,) float32, -inf."""
        return torch.full((self.rows + 1,), -math.inf)

    def of(self, whole: Tensor) -> Tensor:
        """Return this rank's part of all n numbers: (rows + 1,)."""
        part = self.empty().to(whole)
        own = whole[self.rank :: self.ranks]
        part[: len(own)] = own
        return part

    def place(self, index: Tensor) -> Tensor:
        """Return the rows here of (B,) ids; the last for what other ranks keep."""
        return torch.where(index % self.ranks == self.rank, index // self.ranks, self.rows)


def read(values: Tensor, index: Tensor, part: Part, exchange: Exchange | None = None) -> Tensor:
    """Return the numbers of the samples `index`, (B,), on all ranks, which give the same ids.

    Args:
        values: (rows + 1,), this rank's part.
        index: (B,) int64 ids.
        part: which part that is.
        exchange: `all-to-all`, half the bytes, needs the counts of ids on the host; `all-reduce` (of the maximum:
            whoever does not keep a number says -inf) does not, and is what CUDA gets. Bit for bit the same. By the
            device when left out.

    Raises:
        BadInput: not all ranks are there.
    """
    if distributed_module.world_size() != part.ranks:
        raise BadInput(
            f"the loss's state is divided among {part.ranks} ranks and {distributed_module.world_size()} compute; "
            "all must call together"
        )
    exchange = exchange or ("all-to-all" if values.device.type == "cpu" else "all-reduce")
    if exchange == "all-to-all":
        return _all_to_all(values, index, part)
    found = values[part.place(index)]
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found


def _all_to_all(values: Tensor, index: Tensor, part: Part) -> Tensor:
    """Return the numbers of `index`: each rank gets those of one of R equal blocks, and all blocks are gathered."""
    size = -(-len(index) // part.ranks)
    blocks, owners = torch.split(index, size), index % part.ranks
    asked = (owners == part.rank).nonzero().flatten()  # in the order of the blocks
    to_each = (asked // size).bincount(minlength=part.ranks).tolist()
    own = blocks[part.rank] if part.rank < len(blocks) else index[:0]
    from_each = (own % part.ranks).bincount(minlength=part.ranks).tolist()
    found = values.new_empty(len(own))
    dist.all_to_all_single(found, values[index[asked] // part.ranks], from_each, to_each)
    block = values.new_full((size,), -math.inf)
    block[(own % part.ranks).argsort(stable=True)] = found
    return ranks.all_gather(block)[: len(index)]


def total(values: Tensor) -> Tensor:
    """Return the sum over the ranks, in place."""
    dist.all_reduce(values)
    return values


def whole(values: Tensor, part: Part) -> Tensor | None:
    """Return all n numbers on rank 0's host, put together chunk by chunk; None on the others. All ranks must call.

    Rank 0 needs 4 n bytes there, and 2 R chunks of 16 MiB beside them.
    """
    main = part.rank == 0
    out = torch.empty(part.rows * part.ranks, dtype=values.dtype) if main else None
    for first in range(0, part.rows, CHUNK):
        chunk = values[first : min(first + CHUNK, part.rows)].contiguous()
        parts = [torch.empty_like(chunk) for _ in range(part.ranks)] if main else None
        dist.gather(chunk, parts, dst=0)
        if out is not None and parts is not None:
            end = (first + len(chunk)) * part.ranks
            out[first * part.ranks : end] = torch.stack(parts, dim=1).flatten().cpu()
    return None if out is None else out[: part.num_samples]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return `module.state_dict()` as if nothing were divided, for any number of ranks to load. All ranks must call.

    What was divided is whole on rank 0 and missing on the others.
    """
    state = module.state_dict()
    for name, inner in module.named_modules():
        part = getattr(inner, "part", None)
        if isinstance(part, Part):
            prefix = f"{name}." if name else ""
            together = whole(state.pop(prefix + "log_u"), part)
            state.pop(prefix + "kept_by")
            if together is not None:
                state[prefix + "log_u"] = together
    return state
