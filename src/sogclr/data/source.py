"""Samples with stable ids, whatever DATA is: the `Source` protocol, and the table of the kinds of DATA.

To read a new kind of DATA, write a function that returns a `Manifest` (images) or `Pairs`, or a
class like these, and add a row to `SOURCES`. Training, embedding and evaluation ask for nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np

from ..errors import BadInput
from ..progress import ProgressCallback
from .column_files import RunFiles
from .manifest import Difference, Manifest
from .pair_columns import ColumnNames
from .pairs import Pairs
from .paths import AnyPath, as_path
from .shards import samples_in
from .tables import is_table


class Source(Protocol):
    """Samples with ids 0..len-1. A sample is an image, or a pair: an image with a caption, two texts, or two images."""

    kind: str
    """`images` or `pairs`: what its samples are, in the plural."""
    root: AnyPath
    """The folder that relative paths are relative to."""
    source: AnyPath
    """DATA as it was given."""
    fingerprint: str
    """SHA-256 over what decides which samples there are."""

    def __len__(self) -> int: ...

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """Return (where, reason) of what was given and is no sample at all."""
        ...

    @property
    def images(self) -> Manifest:
        """Return the different images."""
        ...

    @property
    def usable(self) -> np.ndarray:
        """Return the ids not known to be bad: int64, ascending."""
        ...

    @property
    def bad(self) -> list[tuple[int, str]]:
        """Return (id, reason) of the samples with an image that cannot be read, as far as is known."""
        ...

    def relative(self, id: int, /) -> str:
        """Return a name for a sample: the path of its image, relative to `root`."""
        ...

    def images_of(self, ids: np.ndarray, /) -> np.ndarray:
        """Return the image ids of samples (k,): int64 (k, I), of the I images that a sample has."""
        ...

    def describe(self) -> str:
        """Return one line of counts."""
        ...

    def training_part(self) -> Self | None:
        """Return the part of DATA that is for training, where it says so; None: all of it."""
        ...

    def rescan(self, columns: ColumnNames, /) -> Self:
        """Return the source as its files are now, without reading headers.

        Args:
            columns: as it was opened with.
        """
        ...

    def difference(self, other: Self, /) -> Difference:
        """Compare with the `other`: what it adds, lacks or has changed."""
        ...

    def save_to(self, run: RunFiles, /) -> None:
        """Write what `load_source` reads."""
        ...


# --------------------------------------------------------------------------------------------------- the kinds of DATA
@dataclass(frozen=True)
class OpenOptions:
    """How DATA is to be opened."""

    columns: ColumnNames = ColumnNames()  # noqa: RUF009  (frozen)
    """Of a table of pairs."""
    check: bool | None = None
    """Whether to read the images' headers; None reads them when at most 200,000 are not in the cache."""
    progress: ProgressCallback | None = None
    """Called with (headers read, headers to read)."""


@dataclass(frozen=True)
class SourceKind:
    """A row of `SOURCES`: a kind of DATA, how to tell it from others, and how to open it."""

    samples: Literal["images", "pairs"]
    """The `kind` of the source that it gives."""
    matches: Callable[[AnyPath], bool]
    """Whether DATA is of this kind, by its name or by what is there; it need not exist."""
    open: Callable[[AnyPath, OpenOptions], Source]
    """Return the samples of DATA, or raise `BadInput`."""
    load: Callable[[RunFiles], Source | None]
    """Return the samples of a run that such a source was saved to; None where the run is on something else."""


def kind_of(data: str | os.PathLike[str]) -> SourceKind:
    """Return which kind of DATA it is; where nothing is there, what its name means."""
    return next(kind for kind in SOURCES.values() if kind.matches(as_path(data)))


def open_source(
    data: str | os.PathLike[str],
    columns: ColumnNames | None = None,
    *,
    check: bool | None = None,
    progress: ProgressCallback | None = None,
) -> Source:
    """Return the samples of DATA: the pairs of a table or of tar shards, or the images of a folder or list.

    Args:
        data: a folder, a list file, a table of pairs, or tar shards; or the URL of one.
        columns: of a table; found by their names, or by being the only two, as far as they are left out.
        check: whether to read the images' headers; None reads them when at most 200,000 are not in the cache.
        progress: called with (headers read, headers to read).

    Raises:
        BadInput: DATA cannot be read, or columns are given and it holds images.
    """
    kind, columns = kind_of(data), columns or ColumnNames()
    for name, value in vars(columns).items():
        if value is not None and kind.samples == "images":
            option = "--columns" if name == "columns" else f"--{name}-column"
            raise BadInput(f"{option} is for pairs and {data} holds images; leave it out")
    return kind.open(as_path(data), OpenOptions(columns, check, progress))


def load_source(run: RunFiles) -> Source:
    """Return the samples of a run, with their ids.

    Raises:
        BadInput: missing or damaged.
    """
    return next(source for kind in SOURCES.values() if (source := kind.load(run)) is not None)


def scan_images(data: str | os.PathLike[str], progress: ProgressCallback | None = None) -> Manifest:
    """Return the images of a folder or list; or the different images of a table of pairs or of tar shards."""
    return open_source(data, progress=progress).images


# ----------------------------------------------------------------------------------------------------------- the table
def _open_pairs(data: AnyPath, options: OpenOptions) -> Pairs:
    return Pairs.scan(data, options.columns, check=options.check, progress=options.progress)


def _load_pairs(run: RunFiles) -> Pairs | None:
    return Pairs.load(run.manifest_file, run.pairs_folder) if run.pairs_folder.is_dir() else None


def _open_images(data: AnyPath, options: OpenOptions) -> Manifest:
    return Manifest.scan(data, check=options.check, progress=options.progress)


def _load_images(run: RunFiles) -> Manifest:
    return Manifest.load(run.manifest_file)


SOURCES: dict[str, SourceKind] = {
    "shards of images": SourceKind("images", lambda data: samples_in(data) == "images", _open_images, lambda run: None),
    "shards of pairs": SourceKind("pairs", lambda data: samples_in(data) == "pairs", _open_pairs, _load_pairs),
    "table": SourceKind("pairs", is_table, _open_pairs, _load_pairs),
    "folder or list": SourceKind("images", lambda data: True, _open_images, _load_images),
}
"""Name -> kind of DATA. The first that matches is taken; the last takes all the rest, and says what is wrong with it.
The images of every run are loaded by the last, too."""
