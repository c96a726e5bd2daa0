"""What DATA is: images, or pairs of images and captions."""

from __future__ import annotations

import os

from ..progress import ProgressCallback
from .manifest import Manifest
from .pairs import Pairs, holds_pairs


def scan_images(data: str | os.PathLike[str], progress: ProgressCallback | None = None) -> Manifest:
    """The images of a folder or list; or the different images of a table of pairs or of tar shards."""
    return Pairs.scan(data, progress=progress).images if holds_pairs(data) else Manifest.scan(data, progress=progress)
