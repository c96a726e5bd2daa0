"""Entry point of `sogclr` and of `python -m sogclr`: Ctrl-C is one line at any moment."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn


def main() -> int:
    """Run the command line and return the exit code.

    The first Ctrl-C ends a command, also while modules are imported and while it ends; the next ends the process wherever it is.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if _imports(frame):
            _end_here()
        raise KeyboardInterrupt

    def unraisable(about: Any) -> None:
        if interrupted or issubclass(about.exc_type, KeyboardInterrupt):  # Python would go on without it
            _end_here()
        sys.__unraisablehook__(about)

    sys.unraisablehook = unraisable
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from . import progress
        from .cli import main as run

        progress.of_command = True
        return run()
    except BaseException:  # also what else is made of an interruption
        if not interrupted:
            raise
        print("sogclr: interrupted", file=sys.stderr, flush=True)
        return 130
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left but to end


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is being imported, which may catch any exception and go on without it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_here() -> NoReturn:
    print("sogclr: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
