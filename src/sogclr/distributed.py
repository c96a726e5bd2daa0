"""The processes of a run: their group, what one does for all, and what all agree on.

With `distributed`, which has the mathematics, the only place that knows of ranks.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import BadInput, Interrupted, RunFailed

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # of a rank that waits: for the main one it may be long, and torchrun sees the dead ones

_alone = False  # whether the main rank is computing something without the others


# ------------------------------------------------------------------------------------------------------------ processes
def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Ranks that compute together: those of the default process group; 1 without one, and within `on_main`."""
    return dist.get_world_size() if _grouped() and not _alone else 1


def all_ranks() -> int:
    """Ranks of the default process group, whoever computes just now; 1 without one."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """This process's number in the group, or the one torchrun gave it; 0 without either."""
    return dist.get_rank() if _grouped() else int(os.environ.get("RANK", "0"))


def is_rank0() -> bool:
    """Whether this is the one process that speaks and writes."""
    return rank() == 0


def local_world_size() -> int:
    """Processes that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def process_group() -> Iterator[None]:
    """The process group that torchrun's variables describe, for as long as the block runs; one of the caller's is kept.

    gloo on the CPU, where the ranks agree on things without a wait for the device, and NCCL on CUDA.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _grouped():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield
    except (BadInput, RunFailed, Interrupted):
        # raised by all; torchrun ends all when the first has ended, by SIGTERM, and the main one has still to say why
        if is_rank0() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        gc.collect()  # a model that still holds on to the group would end its threads at exit, by an abort
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The device of this process: with several on CUDA, the GPU of its number on the machine, LOCAL_RANK.

    Raises:
        BadInput: a machine has fewer GPUs than processes, or the device is not one for several processes.
    """
    if not _grouped() or dist.get_world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise BadInput(f"several processes train on --device cpu or cuda, and it was {device}; give one of these")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if max(local + 1, local_world_size()) > gpus:
        raise BadInput(
            f"there are {local_world_size()} processes and {gpus} GPUs on this machine; start one for each GPU"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def per_rank_batch_size(batch_size: int) -> int:
    """This rank's part of the batch of all ranks.

    Raises:
        BadInput: it cannot be split evenly, or into parts of two samples and more.
    """
    ranks = all_ranks()
    if batch_size % ranks or batch_size < 2 * ranks:
        nearest = max(2, round(batch_size / ranks)) * ranks
        raise BadInput(
            f"--batch-size {batch_size} is the batch of all processes together and cannot be split evenly over "
            f"{ranks}, two samples or more for each; give {nearest}"
        )
    return batch_size // ranks


def shard() -> tuple[int, int]:
    """(which part of each batch is this rank's, how many parts there are)."""
    return (rank(), world_size()) if world_size() > 1 else (0, 1)


# ------------------------------------------------------------------------------------------------------------ agreement
def run_on_rank0(compute: Callable[[], T]) -> T:
    """What the main rank computes, alone, while the others wait for the result; its errors are everyone's."""
    global _alone
    if world_size() == 1:
        return compute()
    said: list[Any] = [None, None]
    if is_rank0():
        _alone = True
        try:
            said[0] = compute()
        except Exception as error:
            known = type(error) in (BadInput, RunFailed, Interrupted)
            said[1] = error if known else RunFailed(f"the main process failed: {type(error).__name__}: {error}")
            raise
        finally:
            _alone = False
            dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    else:
        dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    if said[1] is not None:
        raise said[1]
    return said[0]


def rank0_first(begin: Callable[[], T], follow: Callable[[], T] | None = None) -> T:
    """`begin` on the main rank; when that has ended well, `follow` (or the same) on the others."""
    results: list[T] = []
    run_on_rank0(lambda: results.append(begin()))
    return results[0] if results else (follow or begin)()


def all_reduce_min(value: int) -> int:
    """The smallest of the ranks' numbers."""
    if world_size() == 1:
        return int(value)
    smallest = torch.tensor(int(value))
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest)


def any_rank(here: bool) -> bool:
    """Whether it is so on any rank."""
    return all_reduce_min(not here) == 0


def all_gather_object(value: T) -> list[T]:
    """The ranks' values, in rank order. They are pickled: for what is rare."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(values: Tensor) -> None:
    """Overwrite with the main rank's."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def check_on_all_ranks(check: Callable[..., Tensor], rows: Tensor, *others: Any) -> tuple[Tensor, list[int] | None]:
    """`check(rows, *others)`, whose error on any rank is everyone's: who went on would wait for ever.

    Also how many rows each rank holds; None where all hold as many. It is said by the hosts and waits for no device.

    Raises:
        BadInput: the check's own.
    """
    if world_size() == 1 or torch.compiler.is_compiling():
        return check(rows, *others), None
    result, error = rows, None
    try:
        result = check(rows, *others)
    except BadInput as raised:
        error = raised
    group = _host_group()
    sizes = torch.zeros(world_size(), dtype=torch.int64)
    sizes[rank()] = -1 if error else len(rows)
    dist.all_reduce(sizes, group=group)
    if bool((sizes < 0).any()):
        errors: list[Any] = [None] * world_size()
        dist.all_gather_object(errors, error, group=group)
        raise next(e for e in errors if e is not None)
    return result, None if bool((sizes == len(rows)).all()) else sizes.tolist()


_beside: weakref.ref[Any] | None = None  # weak: a group that outlives its end aborts the process


def _host_group() -> Any:
    """A group for tensors of the host: the default one or, where that knows only GPUs, one beside it, made at first use."""
    global _beside
    if "cpu" in dist.get_backend_config():
        return None
    group = None if _beside is None else _beside()
    if group is None or group not in dist.distributed_c10d._world.pg_map:
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        _beside = weakref.ref(group)
    return group


# ---------------------------------------------------------------------------------------------------------------- model
def wrap_ddp(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model with gradients averaged over the ranks; buffers are the main rank's at the start of each forward pass."""
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
