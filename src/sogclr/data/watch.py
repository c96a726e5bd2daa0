"""What reader processes are reading, and since when: a disk or network that does not answer is told with the file's name."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import RunFailed

HANGS_AFTER = 300.0  # seconds that one file may take
LOOK_EVERY = 5.0  # seconds
_mine: Tensor | None = None  # this reader's row


def new_watch(workers: int) -> Tensor:
    """Return a table in shared memory: int64 (workers, 2), of each the id that it reads and the time when it began, ns."""
    table = torch.full((workers, 2), -1, dtype=torch.int64)
    table.share_memory_()  # type: ignore[no-untyped-call]
    return table


def watch_reader(table: Tensor, worker: int) -> None:
    """Write what this process reads into a row of the table, from now on."""
    global _mine
    _mine = table[worker]


def reads(id: int) -> None:
    """Say what is read from now on; -1 is nothing."""
    if _mine is not None:
        _mine[0], _mine[1] = id, time.monotonic_ns()


def check_readers(table: Tensor, name: Callable[[int], str]) -> None:
    """Check that no reader has been reading one file for too long.

    Args:
        table: of all readers.
        name: id -> the file.

    Raises:
        RunFailed: one has.
    """
    for id, since in table.tolist():
        seconds = (time.monotonic_ns() - since) / 1e9
        if id >= 0 and seconds > HANGS_AFTER:
            raise RunFailed(
                f"{name(id)} has been read for {seconds:,.0f} s without an end: the disk or the network does not answer; "
                "go on when it does, or take the file out of the data"
            )
