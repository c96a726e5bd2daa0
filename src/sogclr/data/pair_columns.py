"""The columns of a table of pairs: which they are, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import BadInput
from .paths import AnyPath

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "file", "path", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "txt")
Kind = Literal["images", "texts"]
"""What a column holds."""
IMAGE_TEXT: tuple[Kind, Kind] = ("images", "texts")


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of a table are the pairs', as far as the user has said; the others are found by their names."""

    image: str | None = None
    """The column of the images' paths."""
    caption: str | None = None
    """The column of the captions."""
    columns: str | None = None
    """Two columns of any kind, or three with hard negatives, as `query,document,negative`."""
    only: str | None = None
    """The one column that is read, where texts are wanted and no pairs."""

    def __post_init__(self) -> None:
        names = self.listed()
        if self.columns is not None and (len(names) not in (2, 3) or not all(names) or len(set(names)) < len(names)):
            raise BadInput(
                f"--columns must be two different names, or three with hard negatives, and was {self.columns!r}; "
                "give it as query,document or query,document,negative"
            )
        if self.columns is not None and (self.image is not None or self.caption is not None):
            raise BadInput("--columns names both columns already; leave --image-column and --caption-column out")

    def listed(self) -> list[str]:
        """Return the names in `columns`, in order."""
        return [name.strip() for name in (self.columns or "").split(",")]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that were found."""

    names: tuple[str, ...]
    """Two, and the hard negatives' where there is one."""
    kinds: tuple[Kind, Kind] | None
    """What the first two hold; None until somebody has looked."""


def find_columns(path: AnyPath, names: list[str], asked: ColumnNames) -> Columns:
    """Find the columns: those asked for; else an image and a caption under their usual names; else the only two.

    Raises:
        BadInput: not there; the message lists what is.
    """
    wanted = asked.listed() if asked.columns is not None else [asked.only] if asked.only is not None else []
    for name in wanted:
        if name not in names:
            remedy = "; name the one of the texts with --column" if asked.only is not None else ""
            raise BadInput(f"{path} has no column {name!r}; its columns are {', '.join(names)}{remedy}")
    if wanted:
        return Columns(tuple(wanted), None)
    if asked.image is None and asked.caption is None and len(names) == 2 and _usual(names, IMAGE_COLUMNS) is None:
        return Columns((names[0], names[1]), None)
    image = _find(path, names, asked.image, IMAGE_COLUMNS, "image")
    return Columns((image, _find(path, names, asked.caption, CAPTION_COLUMNS, "caption")), IMAGE_TEXT)


def _usual(names: list[str], usual: tuple[str, ...]) -> str | None:
    lower = {name.strip().lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def _find(path: AnyPath, names: list[str], asked: str | None, usual: tuple[str, ...], what: str) -> str:
    if asked is not None:
        if asked in names:
            return asked
        raise BadInput(f"{path} has no column {asked!r}; its columns are {', '.join(names)}")
    found = _usual(names, usual)
    if found is None:
        raise BadInput(
            f"{path} has no {what} column under a usual name ({', '.join(usual[:4])}, ...); its columns are "
            f"{', '.join(names)}: name one with --{what}-column, or two of any kind with --columns A,B"
        )
    return found
