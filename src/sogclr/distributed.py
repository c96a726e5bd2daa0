"""The process group of a run: rank and world size, collectives, work on rank 0, DDP.

With `kernels.ranks` and `losses.estimators.sharded`, which have the collectives of the loss, all that calls
torch.distributed.
Everything works without a process group too, as with one rank.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import BadInput, Interrupted, RunFailed

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # rank 0 may evaluate for long while the others wait; torchrun notices dead ranks itself

_only_rank0 = False  # within `run_on_rank0`, on rank 0


# -------------------------------------------------------------------------------------------------------- process group
def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of ranks that take part in collectives: 1 without a process group and within `run_on_rank0`."""
    return dist.get_world_size() if _has_group() and not _only_rank0 else 1


def all_ranks() -> int:
    """Return the number of ranks of the process group, also within `run_on_rank0`; 1 without one."""
    return dist.get_world_size() if _has_group() else 1


def rank() -> int:
    """Return this process's rank in the group, before there is one the RANK that torchrun set, else 0."""
    if _has_group():
        return dist.get_rank()
    return _set_by_torchrun("RANK", 0) if _set_by_torchrun("WORLD_SIZE", 1) > 1 else 0


def is_rank0() -> bool:
    """Return whether this is rank 0, which prints messages and writes files."""
    return rank() == 0


def local_world_size() -> int:
    """Return the number of this run's processes on this machine."""
    return _set_by_torchrun("LOCAL_WORLD_SIZE", 1)


def _set_by_torchrun(name: str, default: int) -> int:
    """Return a number of the environment.

    Raises:
        BadInput: it is none.
    """
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise BadInput(f"{name} in the environment is a number where torchrun sets it, and was {text!r}; unset it")
    return int(text)


@contextmanager
def process_group() -> Iterator[None]:
    """Open the process group that torchrun's environment variables describe, and destroy it after the block.

    Without torchrun, or inside a process group of the caller's, nothing is opened. The backend is NCCL for CUDA tensors
    and gloo for CPU tensors, so that small decisions need no wait for the device.

    Raises:
        BadInput: the environment describes half of a group.
    """
    if _set_by_torchrun("WORLD_SIZE", 1) <= 1 or _has_group():
        yield
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise BadInput(
            f"WORLD_SIZE is set in the environment without {', '.join(missing)}; unset it, or start by torchrun"
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield
    except (BadInput, RunFailed, Interrupted):
        # raised by all; torchrun ends all when the first has ended, by SIGTERM, and the main one has still to say why
        if is_rank0() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        gc.collect()  # a DDP model that outlives the group aborts the process at exit
        # gloo's threads free the tensors of the last collective, for which they need the interpreter's lock; a group that is
        # destroyed meanwhile waits for them with that lock in its hands, for ever
        time.sleep(0.1)
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Return this rank's device: `cuda:LOCAL_RANK` where several ranks use CUDA, else `device` itself.

    Raises:
        BadInput: the machine has fewer GPUs than processes, or the device cannot be used by several processes.
    """
    if not _has_group() or dist.get_world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise BadInput(f"several processes train on --device cpu or cuda, and it was {device}; give one of these")
    local, gpus = _set_by_torchrun("LOCAL_RANK", 0), torch.cuda.device_count()
    if max(local + 1, local_world_size()) > gpus:
        raise BadInput(
            f"there are {local_world_size()} processes and {gpus} GPUs on this machine; start one for each GPU"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def per_rank_batch_size(batch_size: int) -> int:
    """Return the per-rank batch size.

    Args:
        batch_size: samples in the batch of all ranks together.

    Raises:
        BadInput: the batch cannot be split evenly, or a rank would get fewer than two samples.
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
    """Return (index, count): this rank reads shard `index` of the `count` shards of each batch."""
    return (rank(), world_size()) if world_size() > 1 else (0, 1)


# ---------------------------------------------------------------------------------------------------------- collectives
def run_on_rank0(compute: Callable[[], T]) -> T:
    """Call `compute` on rank 0 while the other ranks wait, and return its result on all of them.

    Args:
        compute: without arguments; its result is pickled. Inside it, `world_size()` is 1.

    Raises:
        Exception: what `compute` raised, on rank 0; on the others the same error where it is one of `errors`, else a
            RunFailed with its text.
    """
    global _only_rank0
    if world_size() == 1:
        return compute()
    said: list[Any] = [None, None]  # rank 0's result, rank 0's error
    if is_rank0():
        _only_rank0 = True
        try:
            said[0] = compute()
        except Exception as error:
            known = type(error) in (BadInput, RunFailed, Interrupted)
            said[1] = error if known else RunFailed(f"the main process failed: {type(error).__name__}: {error}")
            raise
        finally:
            _only_rank0 = False
            dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    else:
        dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    if said[1] is not None:
        raise said[1]
    return cast(T, said[0])


def rank0_first(begin: Callable[[], T], follow: Callable[[], T] | None = None) -> T:
    """Call `begin` on rank 0 and, once it has returned, `follow` (`begin` where there is none) on the other ranks."""
    results: list[T] = []
    run_on_rank0(lambda: results.append(begin()))
    return results[0] if results else (follow or begin)()


def all_reduce_min(value: int) -> int:
    """Return the smallest of the ranks' values."""
    if world_size() == 1:
        return int(value)
    smallest = torch.tensor(int(value))
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest)


def any_rank(here: bool) -> bool:
    """Return whether `here` is true on any rank."""
    return all_reduce_min(not here) == 0


def all_gather_object(value: T) -> list[T]:
    """Return the values of all ranks, in rank order. They are pickled, so use it rarely."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(values: Tensor) -> None:
    """Overwrite `values` with those of rank 0, in place."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def check_on_all_ranks(check: Callable[..., Tensor], rows: Tensor, *args: Any) -> tuple[Tensor, list[int] | None]:
    """Call `check(rows, *args)` and raise on all ranks if it raises on any: a rank that went on would wait for ever.

    The ranks exchange host tensors, so this waits for no device.

    Args:
        check: raises BadInput where `rows` or `args` cannot be used.
        rows: (B, ...), this rank's part of the batch.
        args: further arguments of `check`.

    Returns:
        What `check` returned, and how many rows each rank holds, None where all hold equally many.

    Raises:
        BadInput: what `check` raised, on this rank or the first that did.
    """
    if world_size() == 1 or torch.compiler.is_compiling():
        return check(rows, *args), None
    result, error = rows, None
    try:
        result = check(rows, *args)
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


_gloo_group: weakref.ref[dist.ProcessGroup] | None = None  # weak: a group that outlives its end aborts the process


def _host_group() -> dist.ProcessGroup | None:
    """Return a group for CPU tensors: None (the default one), or a gloo group where the default one has only NCCL."""
    global _gloo_group
    if "cpu" in dist.get_backend_config():
        return None
    group = None if _gloo_group is None else _gloo_group()
    if group is None or group not in dist.distributed_c10d._world.pg_map:
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        _gloo_group = weakref.ref(group)
    return group


# ---------------------------------------------------------------------------------------------------------------- model
def wrap_ddp(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap `model` so that gradients are averaged over the ranks and each forward pass starts from rank 0's buffers."""
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
