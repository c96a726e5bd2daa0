"""What goes wrong in `torch.compile`, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import RunFailed

_COMPILERS = ("torch._dynamo", "torch._inductor")


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Raise the compiler's errors, which are pages of its own stack, as a sentence.

    Raises:
        RunFailed: the model cannot be compiled here.
    """
    try:
        yield
    except Exception as error:  # of many classes, which have a place in common
        if not type(error).__module__.startswith(_COMPILERS):
            raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunFailed(
            f"torch.compile failed ({first[:200].rstrip('.')}); install what it misses and `sogclr resume` the run, or train "
            "without --compile"
        ) from None
