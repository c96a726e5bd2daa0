"""Candidates from every rank. Nothing else in the package knows of ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import BadInput


def world_size() -> int:
    """Ranks in the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(z: Tensor) -> Tensor:
    """(B, ...) on each rank -> (B x ranks, ...) in rank order on all; this rank's own rows carry gradient.

    Raises:
        BadInput: the ranks hold batches of different sizes.
    """
    if world_size() == 1:
        return z
    local = z.detach().contiguous()
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local)
    if z.requires_grad:
        parts[dist.get_rank()] = z
    return torch.cat(parts)


def check_equal_batches(size: int, device: torch.device) -> None:
    """Every rank must hold as many rows: gathering unequal batches would hang or mix up rows. CPU only: it waits."""
    if world_size() == 1 or device.type != "cpu":
        return
    sizes = torch.zeros(world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = size
    dist.all_reduce(sizes)
    if bool((sizes != size).any()):
        raise BadInput(
            f"the ranks hold batches of {sizes.tolist()} samples; give each the same (drop the last, smaller batch)"
        )


def scale_gradient(loss: Tensor, factor: float) -> Tensor:
    """The same value with `factor` times the gradient.

    Each rank computes the loss of the whole batch and the gradient of its own rows; DistributedDataParallel then
    averages over the ranks, where a sum is wanted.
    """
    return loss if factor == 1 else loss * factor - loss.detach() * (factor - 1)
