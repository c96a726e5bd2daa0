"""Exceptions, by exit code: bad input (2), a failed run (1), an interruption (130)."""

from __future__ import annotations


class BadInput(ValueError):
    """The user's input cannot be used (exit code 2). One sentence: what was wrong, both values, what to do."""


class RunFailed(RuntimeError):
    """The run cannot go on although its input was fine (exit code 1); the last checkpoint is intact."""


class Interrupted(Exception):
    """A signal asked the run to stop (exit code 130); its state is saved."""


class BadImage(ValueError):
    """An image file cannot be read; the message is the reason. Such files are skipped, counted and listed."""
