"""Messages and progress while a command runs: a bar on a terminal, a line that is rewritten in a notebook, one now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_BESIDE = 32  # columns that a shortest bar takes, with its times and spaces

of_command = False
"""Whether this process is a command of ours, which may end itself, and not somebody's program."""
ProgressCallback = Callable[[int, int], None]
"""Called with (done, total), both in the same unit: images, steps, files."""


class NotebookOutput:
    """One output of a notebook's cell, rewritten in place: messages, and below them a line of progress."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._line = ""
        self._display: Any = None

    def info(self, text: str) -> None:
        """Add a message."""
        self._messages.append(text)
        self.show(self._line)

    def stop(self) -> None:
        """Remove the line of progress."""
        if self._line:
            self.show("")

    def show(self, line: str) -> None:
        """Write all messages again, and a line of progress."""
        self._line = line
        shown = {"text/plain": "\n".join(self._messages + [line] * bool(line))}
        if self._display is None:
            self._display = import_module("IPython.display").display(shown, raw=True, display_id=True)
        else:
            self._display.update(shown, raw=True)


class Progress:
    """Messages and progress on standard error, or in a notebook's cell: standard output is for results only.

    Args:
        quiet: show nothing.
        every: seconds between two lines of progress where standard error is no terminal; a notebook's is rewritten each second.
    """

    def __init__(self, quiet: bool = False, every: float = 15.0) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._notebook = NotebookOutput() if self.console.is_jupyter and not quiet else None
        self.every = every if self._notebook is None else min(every, 1.0)
        self._bar: rich.progress.Progress | None = None
        self._task: TaskID | None = None
        self._next_line = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def info(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._notebook is not None:
            self._notebook.info(text)
        else:
            self.console.print(text, markup=False)

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a progress bar.

        Args:
            name: stands before the bar.
            total: of the unit that `advance` counts.
            done: how many were done before, in a resumed run.
        """
        self.stop()
        self._next_line = time.monotonic() + self.every
        self._started, self._first = time.monotonic(), done
        if self.console.is_terminal and self._notebook is None:
            self._bar = rich.progress.Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(elapsed_when_finished=False),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                speed_estimate_period=60,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, note="")
            self._bar.start()
        self._name = name

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done; `note` stands at the end of the line."""
        if self._bar is not None and self._task is not None:
            taken = len(self._name) + 2 * len(str(total)) + _BESIDE
            self._bar.update(self._task, completed=done, total=total, note=fitting(note, self.console.width - taken))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self.every
            left = (time.monotonic() - self._started) / max(1, done - self._first) * (total - done)
            line = f"{self._name} {done:,}/{total:,}, {clock(left)} left" + (f", {note}" if note else "")
            (self.info if self._notebook is None else self._notebook.show)(line)

    def stop(self) -> None:
        """Remove the bar, or the line of progress."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
        if self._notebook is not None:
            self._notebook.stop()

    def callback(self, name: str) -> ProgressCallback:
        """Return a callback `(done, total)` that shows a bar of its own, and removes it when all is done."""
        begun = False

        def report(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                self.start(name, total)
                begun = True
            self.advance(done, total)
            if done >= total:
                self.stop()

        return report


def fitting(note: str, room: int) -> str:
    """Return as many of the parts of a note, which commas part, as there is room for, from the first on."""
    while len(note) > room and note:
        note = note.rpartition(", ")[0]
    return note


def part_of(progress: ProgressCallback | None, before: int, here: int, total: int) -> ProgressCallback | None:
    """Return a callback of (done, to do) of a part of the work, which reports things done of all.

    Args:
        progress: called with (things done, `total`); None for no callback.
        before: things of the parts before.
        here: things of this part.
        total: things of all parts.
    """
    if progress is None:
        return None
    return lambda done, todo: progress(before + here * done // todo, total)


@contextmanager
def progress_bar(
    name: str, quiet: bool = False, callback: ProgressCallback | None = None
) -> Iterator[ProgressCallback]:
    """Yield what is to be called with (done, to do): a bar of this name, or the `callback` where there is one.

    Args:
        name: stands before the bar.
        quiet: show nothing.
        callback: is called instead of drawing a bar.
    """
    if callback is not None:
        yield callback
        return
    with Progress(quiet) as progress:
        yield progress.callback(name)


class RichText:
    """A result whose text is the table that it is for people."""

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """Return what IPython and notebooks show."""
        return {"text/plain": str(self)}

    def __str__(self) -> str:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        # in a file or a pipe a line of the table is one line, unless the user says how wide it may be
        console = Console(highlight=False, width=None if terminal or "COLUMNS" in os.environ else 200)
        with console.capture() as shown:
            console.print(self)
        return "\n".join(line.rstrip() for line in shown.get().splitlines())


def rounded(epochs: float) -> str:
    """Format epochs with two decimals at most."""
    return f"{epochs:.2f}".rstrip("0").rstrip(".")


def clock(seconds: float) -> str:
    """Format seconds as `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
