"""`sogclr cache`: decode all images once, for training at memory speed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..data.decoded import write_decoded
from ..data.pair_columns import ColumnNames
from ..data.recipe import Recipe
from ..errors import BadInput
from ..hardware import cores
from ..progress import Progress
from .train_data import scan


@dataclass(frozen=True)
class CacheResult:
    """What `cache` wrote; as text, one line for people."""

    path: Path
    images: int
    """Images that the file holds."""
    description: str
    """What it holds, in words."""
    enough_for: int | None
    """The largest views, in pixels, that no crop of 0.08 of an image is enlarged for; None at full size."""
    bad: int
    """Images that could not be decoded."""
    first_bad: str | None
    """The first of them, and why."""

    def __str__(self) -> str:
        left_out = f"; {self.bad:,} could not be decoded, first: {self.first_bad}" if self.bad else ""
        views = f", enough for views of {self.enough_for} pixels" if self.enough_for else ""
        return f"{self.description}{views} ({self.path.stat().st_size / 2**20:,.0f} MiB){left_out}"


def cache(
    data: str | os.PathLike[str],
    *,
    side: int = 0,
    background: str = "white",
    columns: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    quiet: bool = False,
) -> CacheResult:
    """Decode all images once into one file of the cache folder, which `sogclr train` then reads instead: epochs at memory speed.

    Args:
        data: As for `sogclr train`: a folder of images (its train/ part, if it has one), a .txt list, a table, or tar shards; or the URL of one.
        side: Longer shorter sides are made this many pixels, for want of room on the disk; 0 keeps full size. Give 3.6 times the size of the views: less is not used where their crops need more. Each side has a file of its own.
        background: What transparent pixels are laid on, as for `sogclr train`.
        columns: Two columns of a table of pairs, as for `sogclr train`.
        image_column: Column of the images' paths in a table of pairs; found by its name when left out.
        caption_column: Column of the captions; found by its name when left out.
        quiet: Show no progress.

    Returns:
        The file that was written.

    Raises:
        BadInput: `data` cannot be read, `side` or `background` cannot be, or the disk is too small.
    """
    if side < 0:
        raise BadInput(f"--side must be 0 (full size) or more and was {side}")
    with Progress(quiet) as progress:
        manifest = scan(data, progress, ColumnNames(image_column, caption_column, columns)).images
        images, bad = write_decoded(manifest, side, background, cores(), progress.callback("decoding"))
    first = f"{manifest.relative(bad[0][0])} ({bad[0][1]})" if bad else None
    enough_for = int(side * Recipe().crop_scale[0] ** 0.5) if side else None
    return CacheResult(images.path, len(manifest) - len(bad), images.describe(), enough_for, len(bad), first)
