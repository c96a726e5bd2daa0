"""Choice of device, precision, threads and reader processes on this machine."""

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
    """Return the number of CPU cores for this process: those it may use, divided among the run's local processes."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, have // local_world_size())


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        BadInput: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name} is no device; give auto, cpu, cuda, cuda:1 or mps") from None
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if (device.index or 0) >= counts.get(device.type, 0):
        have = (
            "this build of torch is for the CPU only"
            if torch.version.cuda is None
            else f"{torch.cuda.device_count()} GPUs are visible"
        )
        raise BadInput(f"--device {name} is not there ({have}); give --device auto")
    return device


def choose_precision(name: Precision, device: torch.device) -> Precision:
    """Return the precision of the forward pass; weights and loss state stay fp32.

    `auto` is bf16 where the hardware multiplies it (a device that emulates it is many times slower), else fp16 on CUDA
    and fp32 elsewhere. What the user named is taken as it is.

    Args:
        name: auto, fp32, bf16 or fp16.
        device: as `choose_device` returned it.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current device
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if fast else "fp32"
    return "fp32"


def choose_threads(device: torch.device, workers: int | None) -> tuple[int, int]:
    """Return (torch threads, reader processes), together no more than the cores.

    On a CPU half of the cores are torch's: the threads of an operation wait for each other, so a second busy process on
    the same cores slows it down by far more than its share.

    Args:
        device: where the model runs.
        workers: number of reader processes that the user asked for; None leaves it open.
    """
    have = cores()
    if device.type == "cpu":
        threads = max(1, have // 2)
        return threads, min(max(1, have - threads), 4) if workers is None else workers
    return max(1, min(4, have // 2)), min(max(1, have - 1), 12) if workers is None else workers


@contextmanager
def computing_on(device: str | torch.device, workers: int | None) -> Iterator[tuple[torch.device, int]]:
    """Choose device and reader processes for a computation, and limit its threads while the block runs.

    The limit holds for torch and for the BLAS of NumPy and SciPy: without it, a logistic regression on two cores with a
    busy neighbour takes many times as long.

    Args:
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: number of reader processes; None chooses it.

    Yields:
        (device, number of reader processes).

    Raises:
        BadInput: there is no such device here, or `workers` is negative.
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
