"""Decoded images in one memory-mapped file, made once by `sogclr cache`: epochs then read pixels and decode nothing.

The file holds the images' bytes one after another (uint8, height x width x 3), then an index with their checksums, then
its length and a mark. It is written under a temporary name and renamed when whole, so that a killed command leaves no half of one.
It belongs to the files that it was made from: their fingerprint and modification times, and the background that
transparent pixels were laid on, stand in it. What could not be decoded is left out, and read the ordinary way.
Of pairs it holds the different images, each once, by their image ids.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import shutil
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..errors import BadImage, BadInput
from ..files import atomic_write, cache_folder, file_lock
from ..progress import ProgressCallback
from .images import background_colour, opened
from .manifest import Manifest

_MARK = b"sogclr-decoded-1"
_TAIL = struct.Struct("<Q")
_AT_ONCE = 64  # images a thread, before what they hold is written


class DecodedImages:
    """The decoded images of a manifest. Cheap to send to another process: it maps the file itself.

    Attributes:
        head: `fingerprint`, `mtimes`, `background`, and `side`: the most pixels of a shorter side, 0 for full size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL.size - len(_MARK)))
            tail = file.read()
            if len(tail) < _TAIL.size + len(_MARK) or not tail.endswith(_MARK):
                raise ValueError("no file of decoded images")
            (length,) = _TAIL.unpack(tail[: _TAIL.size])
            file.seek(size - len(tail) - length)
            with np.load(io.BytesIO(file.read(length))) as index:
                self.head: dict[str, Any] = json.loads(bytes(index["head"]))
                self._starts, self._sizes, self._stored = index["starts"], index["sizes"], index["stored"]
                self._checksums = index.get("checksums")
        self._bytes: np.ndarray | None = None

    def get(self, id: int) -> tuple[Image.Image, int, int] | None:
        """Return an image, perhaps smaller, and its full width and height; None where it could not be decoded, or is damaged here."""
        width, height = self._stored[id].tolist()
        if not width:
            return None
        if self._bytes is None:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        start = int(self._starts[id])
        pixels = self._bytes[start : start + 3 * width * height]
        if self._checksums is not None and zlib.crc32(pixels.data) != self._checksums[id]:
            return None
        return (Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1), *self._sizes[id].tolist())

    @property
    def kind(self) -> str:
        """Return `full`, or the side in pixels."""
        return str(self.head["side"] or "full")

    def describe(self) -> str:
        """Return a line for the start of a run."""
        side = self.head["side"]
        what = f"at most {side} pixels on the shorter side" if side else "at full size"
        return f"{np.count_nonzero(self._stored[:, 0]):,} decoded images, {what}, from {self.path}"

    def enough(self, manifest: Manifest, side: int) -> bool:
        """Return whether the shorter sides are long enough: of `side` pixels, or those that the files have."""
        shorter = np.minimum(manifest.widths, manifest.heights)
        known = len(shorter) > 0 and shorter.min() > 0
        own: int = self.head["side"]
        return own == 0 or own >= side or bool(known and own >= shorter.max())

    def unfit(self, manifest: Manifest, background: str) -> str | None:
        """Return why these are not the images of `manifest`; None where they are."""
        if self.head["fingerprint"] != manifest.fingerprint or self.head["mtimes"] != _digest(manifest.mtimes):
            return f"the decoded images in {self.path} are of other files than {manifest.source} has now"
        if self.head["background"] != list(background_colour(background)):
            return f"the decoded images in {self.path} were made with another --background than {background}"
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}


def decoded_file(manifest: Manifest, side: int = 0) -> Path:
    """Return where the decoded images of a source are kept, a file each side, in the cache folder.

    Args:
        manifest: of a folder, list or table.
        side: as for `write_decoded`.
    """
    where = hashlib.sha256(os.fsencode(manifest.root / manifest.source.name)).hexdigest()[:16]
    of_side = f"-{side}" if side else ""
    return cache_folder() / "decoded" / f"{manifest.root.name or 'images'}-{where}{of_side}.pixels"


def find_decoded(manifest: Manifest, background: str) -> tuple[list[DecodedImages], str | None]:
    """Return the decoded images of a manifest, the largest first; and a sentence about some that do not fit."""
    path = decoded_file(manifest)
    found: list[DecodedImages] = []
    reasons = []
    for file in sorted(path.parent.glob(f"{glob.escape(path.stem)}*{path.suffix}")):
        try:
            images = DecodedImages(file)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            reasons.append(f"{file} is damaged and is not used; `sogclr cache` makes it again")
            continue
        if reason := images.unfit(manifest, background):
            reasons.append(f"{reason}; they are not used, and `sogclr cache` makes them again")
        else:
            found.append(images)
    return sorted(found, key=lambda images: images.head["side"] or math.inf, reverse=True), next(iter(reasons), None)


def require_decoded(manifest: Manifest, background: str, kind: str) -> DecodedImages | None:
    """Return the decoded images that a run asks for, or was started with; None where it reads the files.

    Args:
        manifest: the images.
        background: what transparent pixels are laid on.
        kind: `full`, or the side in pixels; or `none`, or `auto` where nothing was chosen.

    Raises:
        BadInput: there are none, or they are of other files or another side.
    """
    if kind in ("none", "auto"):
        return None
    found, reason = find_decoded(manifest, background)
    for images in found:
        if images.kind == kind:
            return images
        reason = f"the decoded images in {images.path} are of --side {images.head['side']}"
    side = "0" if kind == "full" else kind
    raise BadInput(
        f"{reason or f'there are no decoded images of {manifest.source}'}, and --cache {kind} is to be read; "
        f"run `sogclr cache {manifest.source} --side {side}`, or start a run with --cache none"
    )


def write_decoded(
    manifest: Manifest,
    side: int = 0,
    background: str = "white",
    threads: int = 1,
    progress: ProgressCallback | None = None,
) -> tuple[DecodedImages, list[tuple[int, str]]]:
    """Decode every image of a manifest once, and keep the pixels.

    Args:
        manifest: the images.
        side: images whose shorter side is longer are made smaller, to this many pixels; 0 keeps them as they are.
        background: what transparent pixels are laid on.
        threads: that decode at the same time.
        progress: called with (images done, images to do).

    Returns:
        What was written, and (id, reason) of what could not be decoded.

    Raises:
        BadInput: not enough room on the disk; another process is writing the same file; no such colour.
    """
    path = decoded_file(manifest, side)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_suffix(".lock"), f"decodes the images of {manifest.root}"):
        for left in path.parent.glob(f".{path.stem}.*.tmp{path.suffix}"):
            left.unlink(missing_ok=True)  # of a command that was killed: it holds the lock no more
        _check_room(manifest, side, path.parent)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            bad = _write(file, manifest, side, background, threads, progress)
    return DecodedImages(path), bad


def _write(
    file: BinaryIO,
    manifest: Manifest,
    side: int,
    background: str,
    threads: int,
    progress: ProgressCallback | None,
) -> list[tuple[int, str]]:
    n, known = len(manifest), dict(manifest.bad)
    starts, sizes, stored = np.zeros(n, np.int64), np.zeros((n, 2), np.int32), np.zeros((n, 2), np.int32)
    checksums = np.zeros(n, np.uint32)
    bad: list[tuple[int, str]] = []

    def pixels(id: int) -> tuple[Image.Image, int, int] | str:
        try:
            if id in known:
                return known[id]
            return _decoded(manifest, id, side, background)
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, n, _AT_ONCE * threads):
            ids = range(begin, min(n, begin + _AT_ONCE * threads))
            for id, found in zip(ids, pool.map(pixels, ids), strict=True):
                if isinstance(found, str):
                    bad.append((id, found))
                    continue
                image, *sizes[id] = found
                starts[id], stored[id] = file.tell(), image.size
                content = image.tobytes()
                checksums[id] = zlib.crc32(content)
                file.write(content)
            if progress:
                progress(ids.stop, n)
    head = {
        "fingerprint": manifest.fingerprint,
        "mtimes": _digest(manifest.mtimes),
        "background": list(background_colour(background)),
        "side": side,
    }
    index = io.BytesIO()
    text = np.frombuffer(json.dumps(head).encode(), np.uint8)
    np.savez(index, head=text, starts=starts, sizes=sizes, stored=stored, checksums=checksums)
    file.write(index.getvalue() + _TAIL.pack(index.tell()) + _MARK)
    return bad


def _decoded(manifest: Manifest, id: int, side: int, background: str) -> tuple[Image.Image, int, int]:
    """Return an image, its shorter side at most `side` pixels, antialiased; and its full width and height."""
    with opened(manifest.file(id)) as file:
        shorter = min(file.width, file.height)
        image = file.pixels(background, max(1, shorter // (2 * side)) if side else 1)
        if 0 < side < min(image.size):
            size = tuple(max(side, round(s * side / shorter)) for s in (file.width, file.height))
            image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        return image, file.width, file.height


def _check_room(manifest: Manifest, side: int, folder: Path) -> None:
    widths, heights = manifest.widths.astype(np.float64), manifest.heights.astype(np.float64)
    shrink = np.minimum(1.0, side / np.maximum(1.0, np.minimum(widths, heights))) if side else 1.0
    need, free = int((3 * widths * heights * shrink**2).sum()), shutil.disk_usage(folder).free
    if need > free:
        raise BadInput(
            f"decoded images of {manifest.root} take {need / 2**30:,.1f} GiB and {folder} has {free / 2**30:,.1f} free; "
            "give a smaller --side, or another folder in SOGCLR_CACHE"
        )


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()
