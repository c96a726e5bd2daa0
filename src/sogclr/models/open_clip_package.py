"""The package open_clip, and how it cleans texts before they are cut into tokens."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from ..errors import BadInput

CLEANINGS = ("lower", "whitespace", "canonicalize")
"""open_clip's names of them."""


def import_open_clip() -> ModuleType:
    """Return the package open_clip.

    Raises:
        BadInput: it is not installed.
    """
    from .torchvision_cpu import import_timm

    import_timm()  # open_clip imports torchvision too, and needs the same repair
    try:
        import open_clip
    except ImportError:
        raise BadInput("this model needs the package open_clip: pip install 'sogclr[open-clip]'") from None
    module: ModuleType = open_clip
    return module


def cleaning(name: str) -> Callable[[str], str]:
    """Return the function of that name: a text -> the text that is cut into tokens.

    Raises:
        BadInput: there is none, or open_clip is not installed.
    """
    if name not in CLEANINGS:
        raise BadInput(f"there is no cleaning of texts named {name!r}; it is one of {', '.join(CLEANINGS)}")
    found: Callable[[str], str] = import_open_clip().tokenizer.get_clean_fn(name)
    return found
