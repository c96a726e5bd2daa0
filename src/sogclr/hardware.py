"""What this machine offers a process: device, precision, cores, threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from threadpoolctl import threadpool_limits

from .distributed import local_world_size
from .errors import BadInput

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def cores() -> int:
    """Cores for this process: those it may use, shared with the others of its run on this machine."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, have // local_world_size())


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU.

    Raises:
        BadInput: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name} is no device; give auto, cpu, cuda, cuda:1 or mps") from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}.get(
        device.type, 0
    )
    if (device.index or 0) >= count:
        have = (
            "this build of torch is for the CPU only"
            if torch.version.cuda is None
            else f"{torch.cuda.device_count()} GPUs are visible"
        )
        raise BadInput(f"--device {name} is not there ({have}); give --device auto")
    return device


def choose_precision(name: Precision, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware multiplies it (a CPU without such instructions is many times slower), or fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if fast else "fp32"
    return "fp32"


def choose_threads(device: torch.device, workers: int | None) -> tuple[int, int]:
    """(torch threads, reader processes).

    Together no more than the cores, and on a CPU half of them for torch: threads of one operation wait for each other,
    so that a second busy process on the same cores slows all of them down by far more than its share.
    """
    have = cores()
    if device.type == "cpu":
        threads = max(1, have // 2)
        return threads, min(max(1, have - threads), 4) if workers is None else workers
    return max(1, min(4, have // 2)), min(max(1, have - 1), 12) if workers is None else workers


@contextmanager
def computing_on(device: str | torch.device, workers: int | None) -> Iterator[tuple[torch.device, int]]:
    """The device and the number of reader processes to use, with threads limited as in training meanwhile.

    NumPy's and SciPy's too: on two cores with a busy neighbour a logistic regression takes many times as long without.
    """
    chosen = choose_device(str(device))
    if workers is not None and workers < 0:
        raise BadInput(f"--workers must be 0 or more and was {workers}")
    threads, readers = choose_threads(chosen, workers)
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, threads))
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield chosen, readers
    finally:
        torch.set_num_threads(before)
