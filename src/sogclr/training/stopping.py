"""SIGINT and SIGTERM: finish the step, save, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals(info: Callable[[str], None], patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield `stop()`, true once a signal has come. A second SIGINT interrupts at once, unless `patient`.

    torchrun passes on to its processes what the terminal has sent to all of them already: one Ctrl-C comes twice.

    Outside the main thread, where Python cannot handle signals, `stop()` is always false.

    Args:
        info: called with a line about the first signal.
        patient: whether further signals are ignored.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received and number == signal.SIGINT and not patient:
            raise KeyboardInterrupt
        received.append(number)
        if len(received) == 1:
            info(f"{signal.Signals(number).name}: finishing this step, then saving")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
