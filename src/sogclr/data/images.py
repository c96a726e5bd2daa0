"""One image file to RGB pixels, whatever its kind; one that cannot be read is a `BadImage` with its reason."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

from ..errors import BadImage, BadInput, RunFailed

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
EMPTY = "is empty (0 bytes)"
NOT_NOW = "cannot be read now"
"""Begins the reason of a fault of the machine, the disk or the network, not of the file."""
_MOST_SCANS = 100  # of a progressive JPEG; encoders write about ten
_ROWS_AT_ONCE = 64
# Pillow's own errors have no number; a damaged offset cannot be sought
_OF_THE_BYTES = (None, errno.EINVAL, errno.EOVERFLOW)
_MAY_PASS = (NOT_NOW, "no longer exists", "may not be read", "its shard")

# What Pillow may try. A closed list: some of its other plugins start programs (EPS) or fetch stubs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_SUFFIXES_OF = {
    "JPEG": {".jpg", ".jpeg"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
}
_ORIENTATION_TAG = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


ImageFile = str | os.PathLike[str] | BinaryIO
"""Where an image's bytes are: a path, or a binary file at its start."""


@dataclass(frozen=True)
class Header:
    """What the head of an image file says; width and height in pixels, after its EXIF orientation."""

    format: str
    width: int
    height: int


class _WarningsOff:
    """Switch Python's warnings off while any thread reads an image: Pillow warns of odd metadata and of large images.

    Counted rather than nested, because `warnings.catch_warnings` restores the wrong filters when threads overlap.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._depth += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._saved.__exit__(None, None, None)


warnings_off = _WarningsOff()


class OpenImage:
    """An image whose header has been read: its upright size, and `pixels` to decode it once."""

    def __init__(self, image: Image.Image, path: ImageFile) -> None:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            # Pillow only warns up to twice the limit; such an image can still take the memory of a whole batch.
            raise BadImage(_bomb(image.width, image.height, limit))
        if min(image.size) < 1:
            raise BadImage(f"has no pixels ({image.width} x {image.height})")
        self._image, self._path = image, path
        self.format = "JPEG" if image.format == "MPO" else str(image.format)
        self._orientation = _orientation(image)
        turned = self._orientation >= 5
        self.width, self.height = image.size[::-1] if turned else image.size

    def pixels(self, background: str = "white", largest_shrink: int = 1) -> Image.Image:
        """Decode to RGB. A JPEG is decoded 2, 4 or 8 times smaller, up to `largest_shrink`: much faster."""
        image, colour = self._image, background_colour(background)
        shrink = next(s for s in (8, 4, 2, 1) if s <= max(largest_shrink, 1))
        with _reasons(self._path):
            _check_scans(image)
            if shrink > 1 and self.format == "JPEG":
                image.draft(None, (image.width // shrink, image.height // shrink))
            image.load()
            rgb = _to_rgb(image, colour)
        return rgb.transpose(_TURN[self._orientation]) if self._orientation in _TURN else rgb


@contextmanager
def opened(path: ImageFile) -> Iterator[OpenImage]:
    """Open the image at `path` and read its header.

    Raises:
        BadImage: here, or from its `pixels`: whatever Pillow makes of a bad file.
    """
    with warnings_off:
        with _reasons(path):
            image = Image.open(path, formats=_FORMATS)
        with image:
            yield OpenImage(image, path)


@contextmanager
def _reasons(path: ImageFile) -> Iterator[None]:
    """Raise what Pillow raises as a `BadImage`. Only around its calls, so that no other mistake passes for a bad file."""
    try:
        yield
    except (BadImage, RunFailed):  # its own words, and a lost connection
        raise
    except Image.DecompressionBombError:
        raise BadImage(_bomb(None, None, Image.MAX_IMAGE_PIXELS)) from None
    except UnidentifiedImageError:
        raise BadImage(_unidentified(path)) from None
    except FileNotFoundError:
        raise BadImage("no longer exists") from None
    except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
        raise BadImage(_damaged(error, path)) from None


def may_pass(reason: str) -> bool:
    """Return whether the same bytes may be readable another time, so that the reason is not to be remembered."""
    return reason.startswith(_MAY_PASS)


def read_header(path: ImageFile) -> Header:
    """Return format and size, without decoding.

    Raises:
        BadImage: empty, not an image, a decompression bomb, unreadable. (Truncation shows only when decoding.)
    """
    with opened(path) as image:
        return Header(image.format, image.width, image.height)


def decode(path: ImageFile, *, background: str = "white", at_least: int | None = None) -> Image.Image:
    """Decode the first frame to an RGB image, upright, with transparency laid on a background.

    Args:
        path: where the bytes are.
        background: a colour's name, or #rrggbb.
        at_least: pixels; a JPEG may come back 2, 4 or 8 times smaller as long as both sides have at least these.

    Raises:
        BadImage: the file cannot be read whole.
        BadInput: `background` is no colour.
    """
    with opened(path) as image:
        return image.pixels(background, min(image.width, image.height) // at_least if at_least else 1)


def name_mismatch(format: str, path: str) -> str | None:
    """Return a note when the suffix promises another format, e.g. PNG data in a file named .jpg; else None."""
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES or suffix in _SUFFIXES_OF.get(format, {suffix}):
        return None
    return f"holds {format} data under the name {suffix}; it is used"


@lru_cache(maxsize=64)
def background_colour(name: str) -> tuple[int, int, int]:
    """Return the RGB value of a colour's name or of #rrggbb.

    Raises:
        BadInput: neither.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise BadInput(f"background {name!r} is no colour; give a name like white or black, or #rrggbb") from None


# ------------------------------------------------------------------------------------------------------ pixel formats
def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _deep_gray_to_rgb(image, background)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _deep_gray_to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert 16- and 32-bit grey to 8 bits; Pillow's own conversion clips at 255, which turns most of them white."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())  # NaN where one is
    if not np.isfinite([low, high]).all():
        raise BadImage("holds values that are not finite")
    if image.mode == "F" and low >= 0.0 and high <= 1.0:
        shift, scale = 0.0, 255.0
    elif low >= 0.0 and high <= 65535.0:
        shift, scale = 0.0, 1 / 257  # 65535 / 257 = 255
    else:
        shift, scale = low, 255 / max(high - low, 1e-300)  # no standard range: stretched to what is there
    gray = np.empty(values.shape, np.uint8)
    for rows in range(0, len(values), _ROWS_AT_ONCE):  # float64 of a whole image would take 16 times its memory
        part = slice(rows, rows + _ROWS_AT_ONCE)
        gray[part] = np.rint((values[part].astype(np.float64) - shift) * scale)
    rgb = Image.fromarray(gray).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        rgb.paste(background, mask=Image.fromarray(values == transparent))
    return rgb


def _check_scans(image: Image.Image) -> None:
    """Check that a progressive JPEG is not made of so many scans that decoding takes minutes."""
    file: BinaryIO | None = getattr(image, "fp", None)
    if image.info.get("progressive") and file is not None:
        position = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(position)
        if scans > _MOST_SCANS:
            raise BadImage(
                f"has {scans:,} scans; the limit against images that take minutes to decode is {_MOST_SCANS}"
            )


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow itself turns these, and gives the upright size
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking Pillow would decode the whole file in search of a trailing chunk
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata does not make the pixels unusable
        return 1


# ------------------------------------------------------------------------------------------------------------ reasons
def _bomb(width: int | None, height: int | None, limit: int | None) -> str:
    size = f"{width} x {height}, " if width else ""
    return f"is too large ({size}more than the {limit:,} pixels of the limit against decompression bombs)"


def _unidentified(path: ImageFile) -> str:
    size = os.path.getsize(path) if isinstance(path, str | os.PathLike) else path.seek(0, os.SEEK_END)
    if size == 0:
        return EMPTY
    return "is no JPEG, PNG, WebP, BMP, GIF or TIFF image, or its header is damaged"


def _damaged(error: Exception, path: ImageFile) -> str:
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    text = " ".join(str(error).replace(name, "").split())[:120]  # one line, and the same on every machine
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, MemoryError):
        return f"{NOT_NOW} (out of memory)"
    if isinstance(error, OSError) and error.errno not in _OF_THE_BYTES:
        return f"{NOT_NOW} ({os.strerror(error.errno)})"
    if "truncated" in text.lower():
        return f"is truncated ({text})"
    return f"is damaged or of an unsupported kind ({type(error).__name__}: {text})"
