"""Entry point of `sogclr` and of `python -m sogclr`: Ctrl-C is one line at any moment."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def main() -> int:
    """Run the command line and return the exit code.

    The first Ctrl-C ends a command, also while modules are imported and while it ends; the next ends the process wherever it is.
    """
    interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    def unraisable(about: Any) -> None:
        if interrupted or issubclass(about.exc_type, KeyboardInterrupt):  # Python would go on without it
            print("sogclr: interrupted", file=sys.stderr, flush=True)
            os._exit(130)
        sys.__unraisablehook__(about)

    sys.unraisablehook = unraisable
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from . import progress
        from .cli import main as run

        progress.of_command = True
        return run()
    except BaseException:  # also what a module makes of an interruption while it is imported
        if not interrupted:
            raise
        print("sogclr: interrupted", file=sys.stderr, flush=True)
        return 130
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left but to end


if __name__ == "__main__":
    sys.exit(main())
