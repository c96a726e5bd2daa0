"""What DATA is: a source of samples with stable ids. Images alone, or image-caption pairs; a new kind is a class and a row here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from ..errors import BadInput
from ..progress import ProgressCallback
from .manifest import Difference, Manifest
from .pairs import Pairs, holds_pairs

if TYPE_CHECKING:
    from ..run_folder import RunFolder


class Source(Protocol):
    """Samples with ids 0..len-1. Of images alone a sample is an image; of pairs it is an image with one of its captions."""

    kind: str
    """`images` or `pairs`: what its samples are, in the plural."""
    root: Path
    """The folder that relative paths are relative to."""
    source: Path
    """DATA as it was given."""
    fingerprint: str
    """SHA-256 over what decides which samples there are."""

    def __len__(self) -> int: ...

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """(where, reason) of what was given and is no sample at all."""
        ...

    @property
    def images(self) -> Manifest:
        """The different images."""
        ...

    @property
    def usable(self) -> np.ndarray:
        """int64: the ids not known to be bad, ascending."""
        ...

    @property
    def bad(self) -> list[tuple[int, str]]:
        """(id, reason) of the samples whose image cannot be read, as far as is known."""
        ...

    @property
    def widths(self) -> np.ndarray:
        """int32 (n,): pixels of each sample's image; 0 where unknown."""
        ...

    @property
    def heights(self) -> np.ndarray:
        """int32 (n,): pixels of each sample's image; 0 where unknown."""
        ...

    def relative(self, id: int, /) -> str:
        """Return the path of a sample's image, relative to `root`."""
        ...

    def file(self, id: int, /) -> str | BinaryIO:
        """Return where the bytes of a sample's image are."""
        ...

    def image_of(self, ids: Any, /) -> Any:
        """Return the image ids of samples, one or an array."""
        ...

    def describe(self) -> str:
        """Return one line of counts."""
        ...

    def rescan(self, config_columns: dict[str, str | None], /) -> Source:
        """Return the source as its files are now, without reading headers."""
        ...

    def difference(self, other: Any, /) -> Difference:
        """Return what was added, removed or changed from this source to the `other`, of the same kind."""
        ...

    def save_to(self, run: RunFolder, /) -> None:
        """Write what `load_source` reads."""
        ...


def open_source(
    data: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    progress: ProgressCallback | None = None,
) -> Source:
    """Return the samples of DATA: the pairs of a table or of tar shards, or the images of a folder or list.

    Args:
        data: a folder, a list file, a table of pairs, or tar shards.
        image_column: column of the images' paths in a table; found by its name when left out.
        caption_column: column of the captions; found by its name when left out.
        progress: called with (headers read, headers to read).

    Raises:
        BadInput: DATA cannot be read, or columns are given and it holds images.
    """
    if holds_pairs(data):
        return Pairs.scan(data, image_column=image_column, caption_column=caption_column, progress=progress)
    columns = {"--image-column": image_column, "--caption-column": caption_column}
    for name, column in columns.items():
        if column is not None:
            raise BadInput(f"{name} is for image-caption pairs and {data} holds images; leave it out")
    return Manifest.scan(data, progress=progress)


def load_source(run: RunFolder) -> Source:
    """Return the samples of a run, with their ids.

    Raises:
        BadInput: missing or damaged.
    """
    return run.pairs() if run.holds_pairs() else run.manifest()


def scan_images(data: str | os.PathLike[str], progress: ProgressCallback | None = None) -> Manifest:
    """Return the images of a folder or list; or the different images of a table of pairs or of tar shards."""
    return open_source(data, progress=progress).images
