"""Reader processes that are forked again where they do not begin."""

from __future__ import annotations

import multiprocessing
from multiprocessing import context
from multiprocessing.connection import Connection

BEGINS_WITHIN = 30.0  # seconds
STARTS = 3


class _Reader(context.ForkProcess):
    """A forked process, which `start` waits for to begin, and forks again if it does not.

    In CPython 3.11 a child waits for ever, before any code of ours, if another thread held the lock on the list of threads at the fork: nothing would
    be read any more, and nobody would say so.
    """

    _begins: Connection

    def start(self) -> None:
        """Fork, and return when the child runs.

        Raises:
            RuntimeError: no child of several began.
        """
        what = {name: getattr(self, name) for name in ("_target", "_args", "_kwargs")}  # which a start forgets
        for _ in range(STARTS):
            begun, self._begins = multiprocessing.Pipe(duplex=False)
            with begun:
                super().start()
                self._begins.close()
                if begun.poll(BEGINS_WITHIN):  # also where it has ended already
                    return
            self.kill()
            self.join()
            vars(self).update(what, _popen=None)
        raise RuntimeError(f"DataLoader worker (pid {self.ident}) did not begin, {STARTS} times")

    def run(self) -> None:
        """Say that it runs, and do what it is for."""
        self._begins.send_bytes(b"1")
        self._begins.close()
        super().run()


class ForkedReaders(context.ForkContext):
    """Makes processes that are forked again where they do not begin."""

    Process = _Reader


def reader_context() -> context.BaseContext | None:
    """Return what makes reader processes, without settling how the program makes its others; None: as torch does."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return ForkedReaders() if method == "fork" else None
