"""What is being read, and since when: a disk or network that does not answer is told with the file's name."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .. import progress
from ..errors import RunFailed

HANGS_AFTER = 300.0  # seconds that one file may take
LOOK_EVERY = 5.0  # seconds
_mine: Tensor | list[int] | None = None  # this reader's row
_name: Callable[[int], str] = str  # of what the main process reads itself


def new_watch(workers: int) -> Tensor:
    """Return a table in shared memory: int64 (workers, 2), of each the id that it reads and the time when it began, ns."""
    table = torch.full((workers, 2), -1, dtype=torch.int64)
    table.share_memory_()  # type: ignore[no-untyped-call]
    return table


def watch_reader(table: Tensor, worker: int) -> None:
    """Write what this process reads into a row of the table, from now on."""
    global _mine
    _mine = table[worker]


def watch_here(name: Callable[[int], str]) -> None:
    """Watch what this process reads itself, from now on: a thread looks, for the main one may hang where no signal wakes it.

    A reading that hangs ends a command, with exit code 1; in somebody's program it is said alone.

    Args:
        name: id -> the file.
    """
    global _mine, _name
    _name = name
    if _mine is None:
        row = [-1, -1]  # no tensor: it may be made in inference mode and be written to outside of it
        _mine = row
        threading.Thread(target=_look, args=(row,), daemon=True).start()


def _look(row: list[int]) -> None:
    seen, looks = list(row), 0
    while True:
        time.sleep(LOOK_EVERY)
        before, seen = seen, list(row)
        # looks are counted, and no clock is read: the whole process may be stopped for long
        looks = looks + 1 if seen == before and seen[0] >= 0 else 0
        if looks * LOOK_EVERY > HANGS_AFTER:
            print(f"sogclr: {_hangs(_name(seen[0]), looks * LOOK_EVERY)}", file=sys.stderr, flush=True)
            if progress.of_command:
                os._exit(1)
            reads(-1)  # it is said once


def reads(id: int) -> None:
    """Say what is read from now on; -1 is nothing."""
    if _mine is not None:
        _mine[1] = time.monotonic_ns()  # first: the file before is not looked at any more
        _mine[0] = id


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
            raise RunFailed(_hangs(name(id), seconds))


def _hangs(name: str, seconds: float) -> str:
    return (
        f"{name} has been read for {seconds:,.0f} s without an end: the disk or the network does not answer; "
        "go on when it does, or take the file out of the data"
    )
