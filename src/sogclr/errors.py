"""What can go wrong, by exit code: bad input (2), a failed run (1), an interruption (130)."""

from __future__ import annotations


class BadInput(ValueError):
    """The user's input cannot be used. One sentence: what was wrong, both values, what to do. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot go on, although its input was fine; the last checkpoint is intact. Exit code 1."""


class Interrupted(Exception):
    """The run was asked to stop by a signal and has saved its state. Exit code 130."""


class BadImage(ValueError):
    """One image file cannot be read; the text is the reason. Such files are skipped, counted and listed."""
