"""Image-caption pairs with stable ids, in Arrow memory maps: which image and which text each pair is.

To samplers and loaders it is a manifest whose ids are the pairs'; `image_ids` and `text_ids` say what a pair is made of.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from ..files import atomic_write
from ..progress import ProgressCallback
from .headers import check_headers
from .images import EMPTY
from .listing import Listing, relative_to, text_bytes
from .manifest import CHECK_AT_MOST, Difference, Manifest
from .manifest_file import saved_root
from .shards import find_shards, read_shards
from .tables import SUFFIXES, read_rows
from .text_columns import column_of, distinct, give_back

if TYPE_CHECKING:
    from ..run_folder import RunFolder

_BLOCK = 1 << 16
_IMAGES = "images.arrow"


def holds_pairs(data: str | os.PathLike[str]) -> bool:
    """Whether DATA is a table or tar shards, and so pairs; else it is images."""
    place = Path(data)
    if place.suffix.lower() in SUFFIXES or place.suffix.lower() == ".tar":
        return True
    if "*" in place.name or "{" in place.name:
        return place.suffix == ".tar"
    return place.is_dir() and any(p.suffix == ".tar" for p in place.iterdir())


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
        self, images: Manifest, captions: pa.LargeStringArray, ids: tuple[np.ndarray, np.ndarray],
        rejected: list[tuple[str, str]], duplicates: int = 0,
    ) -> None:  # fmt: skip
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
        cls, data: str | os.PathLike[str], *, image_column: str | None = None, caption_column: str | None = None,
        check: bool | None = None, progress: ProgressCallback | None = None,
    ) -> Pairs:  # fmt: skip
        """Read a CSV, TSV, JSONL or Parquet file, or tar shards, and the headers of the images.

        Args:
            image_column, caption_column: found by the usual names when left out. Paths are relative to the file.
            check: whether to read headers; None reads them when at most 200,000 images are not in the cache.
            progress: called with (headers read, headers to read).

        Raises:
            BadInput: no such data, or not a single pair in it.
        """
        source = Path(data)
        place = Path(os.path.abspath(source))
        listing: Listing | None = None
        if place.suffix.lower() in SUFFIXES:
            root, rows = place.parent, read_rows(place, image_column, caption_column)
        else:
            shards = find_shards(str(place))
            if not shards:
                raise BadInput(f"there are no tar shards {source}; give a folder of .tar files, one, or a pattern")
            root = place if place.is_dir() else Path(os.path.commonpath([p.parent for p in shards]))
            listing, rows = read_shards(shards, root)
        if not len(rows):
            first = f" (first: {rows.rejected[0][0]} {rows.rejected[0][1]})" if rows.rejected else ""
            raise BadInput(f"{source} holds no pair of an image and a caption{first}; give one with both")
        captions, text_ids = distinct(rows.caption)  # the longer texts first, while nothing else is there
        if listing is None:
            _normalise(rows.image, str(root))
        names, image_ids = distinct(rows.image)
        if listing is None:
            listing = _listing_of(names, root)
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

    # -------------------------------------------------------------------------------------- a manifest of pairs: one pair
    def __len__(self) -> int:
        return len(self.image_ids)

    def relative(self, id: int) -> str:
        """The path of a pair's image, relative to `root`."""
        return self.images.relative(int(self.image_ids[int(id)]))

    def file(self, id: int) -> str | BinaryIO:
        """Where the bytes of a pair's image are."""
        return self.images.file(int(self.image_ids[int(id)]))

    def image_of(self, ids: Any) -> Any:
        """The image ids of pairs, one or an array."""
        return self.image_ids[ids]

    def caption(self, text_id: int) -> str:
        """A caption by its text id."""
        return self.captions[int(text_id)].as_py()

    # -------------------------------------------------------------------------------------------------------- all pairs
    @cached_property
    def widths(self) -> np.ndarray:
        return self.images.widths[self.image_ids]

    @cached_property
    def heights(self) -> np.ndarray:
        return self.images.heights[self.image_ids]

    @property
    def usable(self) -> np.ndarray:
        """int64: the pairs whose image is not known to be bad, ascending."""
        good = np.zeros(len(self.images), bool)
        good[self.images.usable] = True
        return np.flatnonzero(good[self.image_ids])

    @property
    def bad(self) -> list[tuple[int, str]]:
        """(id, reason) of the pairs whose image cannot be read, as far as is known."""
        reasons = dict(self.images.bad)
        if not reasons:
            return []
        rows = np.flatnonzero(np.isin(self.image_ids, list(reasons)))
        return [(int(row), reasons[int(self.image_ids[row])]) for row in rows]

    def captions_of(self, text_ids: np.ndarray) -> list[str]:
        """The captions of some text ids."""
        return self.captions.take(pa.array(text_ids)).to_pylist()

    def difference(self, other: Pairs) -> Difference:
        """What was added, removed or changed from these pairs to the `other`: paths with their captions."""
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
        """One line of counts."""
        text = f"{len(self):,} of {len(self.images):,} images and {len(self.captions):,} captions in {self.source}"
        notes = [(len(self.bad), "with an unreadable image"), (len(self.rejected), "unusable rows")]
        lost = [f"{count:,} {what}" for count, what in notes if count]
        if lost:
            text += f", {' and '.join(lost)} (skipped, see bad_files.txt)"
        return text + (f", {self.duplicates:,} repeated pairs (kept once)" if self.duplicates else "")

    def rescan(self, config_columns: dict[str, str | None]) -> Pairs:
        """Return the pairs as their files are now, without reading headers."""
        source = self.root / self.source.name if self.source.suffix else self.source
        source = source if source.exists() else self.source
        image, caption = config_columns["image_column"], config_columns["caption_column"]
        return Pairs.scan(source, image_column=image, caption_column=caption, check=False)

    def save_to(self, run: RunFolder) -> None:
        """Write the pairs of a run; they are mapped from there from now on."""
        self.save(run.manifest_file, run.pairs_folder)

    # ------------------------------------------------------------------------------------------------------------ file
    def save(self, manifest_file: Path, folder: Path) -> None:
        """Write the images' manifest, and it and the pairs as Arrow files that are mapped, not read: also here, from now on."""
        self.images.save(manifest_file)
        folder.mkdir(parents=True, exist_ok=True)
        self.images.save(folder / _IMAGES)
        head = {"fingerprint": self.fingerprint, "duplicates": self.duplicates}
        _write(folder / "captions.arrow", {"caption": self.captions})
        where, reasons = [pa.array([r[k] for r in self.rejected], pa.large_string()) for k in (0, 1)]
        _write(folder / "rejected.arrow", {"where": where, "reason": reasons})
        _write(folder / "pairs.arrow", {"image": pa.array(self.image_ids), "text": pa.array(self.text_ids)}, head)
        self.images = Manifest.load(folder / _IMAGES)
        self.captions, self.image_ids, self.text_ids = _mapped(folder)
        give_back()

    @classmethod
    def load(cls, manifest_file: Path, folder: Path) -> Pairs:
        """Map what `save` wrote.

        Raises:
            BadInput: missing, damaged or not of one piece.
        """
        images = _images(manifest_file, folder / _IMAGES)
        try:
            head = json.loads((_map(folder / "pairs.arrow").schema.metadata or {})[b"sogclr"])
            captions, *ids = _mapped(folder)
            rows = [tuple(r.values()) for r in _map(folder / "rejected.arrow").to_pylist()]
            found = cls(images, captions, (ids[0], ids[1]), rows, head["duplicates"])
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError):
            raise BadInput(
                f"{folder} does not hold the pairs of a run, or is damaged; restore it from a copy"
            ) from None
        if found.fingerprint != head["fingerprint"]:
            raise BadInput(f"{folder} does not match its own fingerprint; restore it from a copy")
        return found


def _images(manifest_file: Path, mapped: Path) -> Manifest:
    """The mapped copy of the images' manifest, with the folder that the manifest names; runs from before have none.

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
    """Paths as they are stored, in place: only the current block is made of Python objects."""
    for k, block in enumerate(blocks):
        blocks[k] = column_of([relative_to(name, root) for name in block.to_pylist()])


def _listing_of(names: pa.LargeStringArray, root: Path) -> Listing:
    """The images of a table, whose names are sorted; what is missing is listed as bad."""
    sizes, mtimes, bad = np.full(len(names), -1), np.zeros(len(names), np.int64), dict[int, str]()
    for start in range(0, len(names), _BLOCK):
        for id, relative in enumerate(names.slice(start, _BLOCK).to_pylist(), start):
            try:
                status = os.stat(os.path.join(root, relative))
            except (OSError, ValueError):
                bad[id] = "does not exist"
                continue
            sizes[id], mtimes[id] = status.st_size, status.st_mtime_ns
            if not status.st_size:
                bad[id] = EMPTY
    return Listing(names, sizes, mtimes, bad)


def _write(path: Path, columns: dict[str, Any], head: dict[str, Any] | None = None) -> None:
    table = pa.table(columns).combine_chunks().replace_schema_metadata({"sogclr": json.dumps(head or {})})
    with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        for batch in table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]:
            writer.write_batch(batch)


def _mapped(folder: Path) -> tuple[pa.LargeStringArray, np.ndarray, np.ndarray]:
    """Captions, and the images' and texts' ids of the pairs."""
    pairs, captions = _map(folder / "pairs.arrow"), _map(folder / "captions.arrow")
    return captions["caption"].chunk(0), pairs["image"].chunk(0).to_numpy(), pairs["text"].chunk(0).to_numpy()


def _map(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
