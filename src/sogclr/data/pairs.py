"""Image-caption pairs with stable ids, in Arrow memory maps: which image and which text each pair is.

As a `Source` its samples are the pairs; `image_ids` and `text_ids` say what a pair is made of.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from ..progress import ProgressCallback
from .column_files import RunFiles, read_columns, read_head, saved_root, write_columns
from .headers import check_headers
from .listing import Listing, list_paths, relative_to
from .manifest import CHECK_AT_MOST, Difference, Manifest
from .paths import AnyPath, absolute, as_path, common_folder
from .shards import find_shards, read_shards
from .tables import PairRows, is_table, read_rows
from .text_columns import column_of, release_memory, text_bytes, unique_texts

_IMAGES = "images.arrow"


class Pairs:
    """The pairs of a table or of tar shards. Ids 0..len-1 follow (image id, text id).

    Attributes:
        images: the manifest of the different images; its ids are the image ids.
        captions: large_string (m,): the different captions, sorted; their places are the text ids.
        image_ids, text_ids: int64 (n,), of each pair.
        rejected: (where, reason) of the rows that are no pair.
        duplicates: how often a pair came again.
        fingerprint: SHA-256 over the images' fingerprint, the captions and the ids.
    """

    kind = "pairs"

    def __init__(
        self,
        images: Manifest,
        captions: pa.LargeStringArray,
        ids: tuple[np.ndarray, np.ndarray],
        rejected: list[tuple[str, str]],
        duplicates: int = 0,
    ) -> None:
        self.images, self.captions = images, captions
        self.image_ids, self.text_ids = ids
        self.rejected, self.duplicates = rejected, duplicates
        self.root, self.source = images.root, images.source
        digest = hashlib.sha256(images.fingerprint.encode())
        for part in (pc.binary_length(captions).to_numpy(), *ids):
            digest.update(part.astype("<i8", copy=False).data)
        digest.update(text_bytes(captions))
        self.fingerprint = digest.hexdigest()

    @classmethod
    def scan(
        cls,
        data: str | os.PathLike[str],
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
        check: bool | None = None,
        progress: ProgressCallback | None = None,
    ) -> Pairs:
        """Read a CSV, TSV, JSONL or Parquet file, or tar shards, and the headers of the images.

        Args:
            data: a table, whose paths are relative to its folder; or a folder of .tar files, one, or a pattern of them.
            image_column: the column of the images' paths in a table; found by its name when left out.
            caption_column: the column of the captions in a table; found by its name when left out.
            check: whether to read headers; None reads them when at most 200,000 images are not in the cache.
            progress: called with (headers read, headers to read).

        Raises:
            BadInput: no such data, or not a single pair in it.
        """
        source = as_path(data)
        place = absolute(source)
        shards = [] if is_table(place) and place.suffix != ".parquet" else find_shards(place)
        if not shards and is_table(place):
            root, rows = place.parent, read_rows(place, image_column, caption_column)
            return cls.from_rows(root, source, rows, check=check, progress=progress)
        if not shards:
            raise BadInput(f"there are no tar shards {source}; give a folder of .tar files, one, or a pattern")
        root = place if place.is_dir() else common_folder(shards)
        listing, rows = read_shards(shards, root)
        return cls.from_rows(root, source, rows, listing, check=check, progress=progress)

    @classmethod
    def from_rows(
        cls,
        root: AnyPath,
        source: AnyPath,
        rows: PairRows,
        listing: Listing | None = None,
        *,
        check: bool | None = None,
        progress: ProgressCallback | None = None,
    ) -> Pairs:
        """Return the pairs of rows, each once, and read the headers of the images.

        Args:
            root: absolute folder that the images' paths are relative to.
            source: DATA as it was given.
            rows: images and captions; its texts are let go of.
            listing: where the images are, by their names in the rows; None: these are paths of plain files.
            check: whether to read headers; None reads them when at most 200,000 images are not in the cache.
            progress: called with (headers read, headers to read).

        Raises:
            BadInput: not a single pair.
        """
        if not len(rows):
            first = f" (first: {rows.rejected[0][0]} {rows.rejected[0][1]})" if rows.rejected else ""
            raise BadInput(f"{source} holds no pair of an image and a caption{first}; give one with both")
        captions, text_ids = unique_texts(rows.caption.blocks())  # the longer texts first, while nothing else is there
        blocks = rows.image.blocks()
        if listing is None:
            _normalise(blocks, str(root))
        names, image_ids = unique_texts(blocks)
        if listing is None:
            listing = list_paths(names, root)
        else:  # images without a caption have no row
            image_ids = pc.index_in(names, value_set=listing.relative).to_numpy()[image_ids]
        checked = None
        if check is not False:
            at_most = CHECK_AT_MOST if check is None else None
            checked = check_headers(root, listing, at_most=at_most, progress=progress)
        key = image_ids.astype(np.int64) * len(captions) + text_ids
        key.sort()
        different = key[np.append(True, key[1:] != key[:-1])]
        images, ids = Manifest(root, source, listing, checked), np.divmod(different, len(captions))
        return cls(images, captions, ids, rows.rejected, len(key) - len(different))

    # -------------------------------------------------------------------------------------------------------- one pair
    def __len__(self) -> int:
        return len(self.image_ids)

    def relative(self, id: int) -> str:
        """Return the path of a pair's image, relative to `root`."""
        return self.images.relative(int(self.image_ids[int(id)]))

    def file(self, id: int) -> str | BinaryIO:
        """Return where the bytes of a pair's image are."""
        return self.images.file(int(self.image_ids[int(id)]))

    def image_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the image ids, int64 (k,), of pairs (k,)."""
        found: np.ndarray = self.image_ids[ids]
        return found

    def caption(self, text_id: int) -> str:
        """Return a caption by its text id."""
        return str(self.captions[int(text_id)].as_py())

    # -------------------------------------------------------------------------------------------------------- all pairs
    @cached_property
    def widths(self) -> np.ndarray:
        """Return the width of each pair's image: int32 (n,), pixels; 0 where unknown."""
        widths: np.ndarray = self.images.widths[self.image_ids]
        return widths

    @cached_property
    def heights(self) -> np.ndarray:
        """Return the height of each pair's image: int32 (n,), pixels; 0 where unknown."""
        heights: np.ndarray = self.images.heights[self.image_ids]
        return heights

    @property
    def usable(self) -> np.ndarray:
        """Return the pairs whose image is not known to be bad: int64, ascending."""
        good = np.zeros(len(self.images), bool)
        good[self.images.usable] = True
        return np.flatnonzero(good[self.image_ids])

    @property
    def bad(self) -> list[tuple[int, str]]:
        """Return (id, reason) of the pairs whose image cannot be read, as far as is known."""
        reasons = dict(self.images.bad)
        if not reasons:
            return []
        rows = np.flatnonzero(np.isin(self.image_ids, list(reasons)))
        return [(int(row), reasons[int(self.image_ids[row])]) for row in rows]

    def captions_of(self, text_ids: np.ndarray) -> list[str]:
        """Return the captions of text ids, int64 (k,)."""
        texts: list[str] = self.captions.take(pa.array(text_ids)).to_pylist()
        return texts

    def difference(self, other: Pairs) -> Difference:
        """Compare with the `other`: what it adds, lacks or has changed, as paths with their captions."""
        if self.fingerprint == other.fingerprint:
            return Difference([], [], [])
        here, there = self._lines(), other._lines()
        return Difference(
            added=there.filter(pc.invert(pc.is_in(there, value_set=here))).to_pylist(),
            removed=here.filter(pc.invert(pc.is_in(here, value_set=there))).to_pylist(),
            changed=self.images.difference(other.images).changed,
        )

    def _lines(self) -> pa.LargeStringArray:
        names = self.images.names.take(pa.array(self.image_ids))
        return pc.binary_join_element_wise(
            names, self.captions.take(pa.array(self.text_ids)), pa.scalar(": ", pa.large_string())
        )

    def describe(self) -> str:
        """Return one line of counts."""
        text = f"{len(self):,} of {len(self.images):,} images and {len(self.captions):,} captions in {self.source}"
        notes = [(len(self.bad), "with an unreadable image"), (len(self.rejected), "unusable rows")]
        lost = [f"{count:,} {what}" for count, what in notes if count]
        if lost:
            text += f", {' and '.join(lost)} (skipped, see bad_files.txt)"
        return text + (f", {self.duplicates:,} repeated pairs (kept once)" if self.duplicates else "")

    def training_part(self) -> Pairs | None:
        """Return None: a table or shards of pairs have no such part."""
        return None

    def rescan(self, columns: dict[str, str | None]) -> Pairs:
        """Return the pairs as their files are now, without reading headers.

        Args:
            columns: `image_column` and `caption_column`, as the pairs were opened with.
        """
        source = self.root / self.source.name if self.source.suffix else self.source
        source = source if source.exists() else self.source
        image, caption = columns["image_column"], columns["caption_column"]
        return Pairs.scan(source, image_column=image, caption_column=caption, check=False)

    def save_to(self, run: RunFiles) -> None:
        """Write the pairs of a run; they are mapped from there from now on."""
        self.save(run.manifest_file, run.pairs_folder)

    # ------------------------------------------------------------------------------------------------------------ file
    def save(self, manifest_file: Path, folder: Path) -> None:
        """Write the images' manifest, and all of it once more as Arrow files, which this object maps from now on.

        Args:
            manifest_file: for the images alone, Parquet.
            folder: for the Arrow files.
        """
        self.images.save(manifest_file)
        folder.mkdir(parents=True, exist_ok=True)
        self.images.save(folder / _IMAGES)
        head = {"fingerprint": self.fingerprint, "duplicates": self.duplicates}
        write_columns(folder / "captions.arrow", {"caption": self.captions}, {})
        where, reasons = [pa.array([r[k] for r in self.rejected], pa.large_string()) for k in (0, 1)]
        write_columns(folder / "rejected.arrow", {"where": where, "reason": reasons}, {})
        write_columns(folder / "pairs.arrow", {"image": self.image_ids, "text": self.text_ids}, head)
        self.images = Manifest.load(folder / _IMAGES)
        self.captions, self.image_ids, self.text_ids = _mapped(folder)
        release_memory()

    @classmethod
    def load(cls, manifest_file: Path, folder: Path) -> Pairs:
        """Map what `save` wrote, with the same arguments.

        Raises:
            BadInput: missing, damaged or not of one piece.
        """
        images = _images(manifest_file, folder / _IMAGES)
        try:
            head, rejected = read_head(folder / "pairs.arrow"), read_columns(folder / "rejected.arrow")
            captions, image_ids, text_ids = _mapped(folder)
            rows = list(zip(rejected["where"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
            found = cls(images, captions, (image_ids, text_ids), rows, head["duplicates"])
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError):
            raise BadInput(
                f"{folder} does not hold the pairs of a run, or is damaged; restore it from a copy"
            ) from None
        if found.fingerprint != head["fingerprint"]:
            raise BadInput(f"{folder} does not match its own fingerprint; restore it from a copy")
        return found


def _images(manifest_file: Path, mapped: Path) -> Manifest:
    """Return the mapped copy of the images' manifest, with the folder that the manifest names; old runs have no copy.

    Raises:
        BadInput: missing, damaged or not of one piece.
    """
    if not mapped.exists():
        return Manifest.load(manifest_file)
    root, fingerprint = saved_root(manifest_file)
    images = Manifest.load(mapped, root)
    if images.fingerprint != fingerprint:
        raise BadInput(f"{mapped} is not the copy of {manifest_file}; remove it, it is only there for speed")
    return images


def _normalise(blocks: list[pa.LargeStringArray], root: str) -> None:
    """Make paths what is stored of them, in place: only the current block is made of Python objects."""
    for k, block in enumerate(blocks):
        blocks[k] = column_of([relative_to(name, root) for name in block.to_pylist()])


def _mapped(folder: Path) -> tuple[pa.LargeStringArray, np.ndarray, np.ndarray]:
    """Return the captions, and the images' and texts' ids of the pairs."""
    pairs, captions = read_columns(folder / "pairs.arrow"), read_columns(folder / "captions.arrow")
    return captions["caption"], pairs["image"].to_numpy(), pairs["text"].to_numpy()
