"""`sogclr cache`: decode all images once, for training at memory speed."""

from __future__ import annotations

import os

from ..data.decoded import write_decoded
from ..errors import BadInput
from ..hardware import cores
from ..progress import Progress
from .train import scan


def cache(
    data: str | os.PathLike[str], *, side: int = 0, background: str = "white", image_column: str | None = None,
    caption_column: str | None = None, screen: Progress,
) -> str:  # fmt: skip
    """Decode the images that `train` would read of DATA, each once, into a file that it finds; a line about it.

    Args:
        side: images whose shorter side is longer are made smaller, to this many pixels; 0 keeps full size.
        image_column, caption_column: of a table of pairs; found by the usual names when left out.

    Raises:
        BadInput: `data` cannot be read, `side` or `background` cannot be, or the disk is too small.
    """
    if side < 0:
        raise BadInput(f"--side must be 0 (full size) or more and was {side}")
    manifest = scan(data, screen, image_column, caption_column).images
    images, bad = write_decoded(manifest, side, background, cores(), screen.callback("decoding"))
    left_out = (
        f"; {len(bad):,} could not be decoded, first: {manifest.relative(bad[0][0])} ({bad[0][1]})" if bad else ""
    )
    return f"{images.describe()} ({images.path.stat().st_size / 2**20:,.0f} MiB){left_out}"
