"""The list of a data set's images with stable ids: sorted relative paths, sizes, a fingerprint, what cannot be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from ..progress import ProgressCallback
from .column_files import RunFiles, read_columns, read_head, write_columns
from .headers import Checked, check_headers, sparse_text
from .listing import Listing, first_few, list_file, list_folder
from .pair_columns import ColumnNames
from .paths import AnyPath, absolute, as_path, common_folder, file_at
from .shards import find_shards, list_shards, samples_in
from .text_columns import text_bytes

CHECK_AT_MOST = 200_000
"""With `check=None`, headers are read when at most this many files are not in the cache."""
TRAINING_PARTS = ("train", "training")
"""Folders right below DATA of which the first with images is what is trained on."""
_FORMAT = "sogclr-manifest-1"


@dataclass(frozen=True)
class Difference:
    """What happened between two manifests of a folder: relative paths."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    """Present in both, with another size."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def describe(self) -> str:
        """Return one phrase with counts and the first few paths, e.g. `13 removed (first: cats/0412.jpg)`."""
        parts = [
            f"{len(paths):,} {what} (first: {first_few(paths)})"
            for what, paths in (("added", self.added), ("removed", self.removed), ("changed in size", self.changed))
            if paths
        ]
        return ", ".join(parts) if parts else "no difference"


class Manifest:
    """The images of a folder or list file. Ids 0..len-1 follow the sorted relative posix paths.

    Attributes:
        root: absolute folder that relative paths are relative to.
        source: the folder or list file as given.
        fingerprint: SHA-256 over relative paths and sizes.
        sizes, mtimes: int64 (n,), bytes and ns.
        offsets: int64 (n,), where each begins in its shard; None for plain files.
        labels: large_string (n,), classes that shards name, empty where they do not; None for plain files.
        widths, heights: int32 (n,), pixels of the upright image, 0 where unknown.

    Example:
        >>> manifest = Manifest.scan("photos")                      # doctest: +SKIP
        >>> len(manifest), manifest.relative(0)                     # doctest: +SKIP
        (48120, 'cats/0001.jpg')
    """

    kind = "images"

    def __init__(self, root: AnyPath, source: AnyPath, listing: Listing, checked: Checked | None = None) -> None:
        n = len(listing.relative)
        if checked is None:
            checked = Checked(np.zeros(n, np.int32), np.zeros(n, np.int32), listing.bad, {})
        self.root = root
        self.source = source
        self.sizes = listing.sizes
        self.mtimes = listing.mtimes
        self.offsets = listing.offsets
        self.labels = listing.labels
        self.widths = checked.widths
        self.heights = checked.heights
        self._relative = listing.relative
        self._bad = checked.bad
        self._notes = checked.notes
        self.fingerprint = _fingerprint(listing.relative, listing.sizes)

    @classmethod
    def scan(
        cls,
        data: str | os.PathLike[str],
        *,
        check: bool | None = None,
        cache: bool = True,
        progress: ProgressCallback | None = None,
    ) -> Manifest:
        """List a folder or a .txt list file and read the headers of what is there.

        Args:
            data: a folder, or a .txt file with one path a line; or the URL of one.
            check: whether to read headers; None reads them when at most 200,000 files are not in the cache.
            cache: whether to use and keep the header cache.
            progress: called with (headers read, headers to read).

        Raises:
            BadInput: no such folder, no images in it, an unusable list file.
        """
        source = as_path(data)
        place = absolute(source)
        if samples_in(place) == "images":
            shards = find_shards(place)
            root = place if place.is_dir() else common_folder(shards)
            listing = list_shards(shards, root)
        elif place.is_dir():
            root, listing = place, list_folder(place)
        elif not place.exists():
            raise BadInput(f"there is no folder or list file {source}; give the path of a folder of images")
        elif place.suffix.lower() == ".txt":
            root, listing = place.parent, list_file(place)
        else:
            raise BadInput(
                f"{source} is a file and no .txt list; give a folder of images, or a .txt file with one path a line"
            )
        if check is False:
            return cls(root, source, listing)
        at_most = CHECK_AT_MOST if check is None else None
        checked = check_headers(root, listing, at_most=at_most, cache=cache, progress=progress)
        return cls(root, source, listing, checked)

    def rescan(self, columns: ColumnNames) -> Manifest:
        """Return the images as their files are now, without reading headers; `columns` are of pairs alone."""
        if self.source.suffix.lower() not in (".txt", ".tar", ".parquet", ".arrow"):
            return Manifest.scan(self.root, check=False)
        beside = self.root / self.source.name  # the working folder may be another one now
        return Manifest.scan(beside if self.offsets is None or find_shards(beside) else self.source, check=False)

    def save_to(self, run: RunFiles) -> None:
        """Write the manifest of a run."""
        self.save(run.manifest_file)

    # ------------------------------------------------------------------------------------------------------- one image
    def __len__(self) -> int:
        return len(self._relative)

    def relative(self, id: int) -> str:
        """Return the posix path relative to `root` of an id in 0..len-1."""
        return str(self._relative[int(id)].as_py())

    def path(self, id: int) -> AnyPath:
        """Return where the file is."""
        return self.root / self.relative(id)

    def file(self, id: int) -> str | BinaryIO:
        """Return where its bytes are: the path, or what the tar shard holds of it.

        Raises:
            BadImage: the shard, or the remote file, is gone.
        """
        return file_at(self.root, self.relative(id), self.offsets, self.sizes, self.mtimes, int(id))

    # ------------------------------------------------------------------------- as `Pairs`, whose ids are not the images'
    @property
    def images(self) -> Manifest:
        """Return itself: each sample is an image."""
        return self

    def images_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the image ids of samples (k,): int64 (k, 1), the same."""
        return ids[:, None]

    # ------------------------------------------------------------------------------------------------------ all images
    @property
    def usable(self) -> np.ndarray:
        """Return the ids not known to be bad: int64, ascending."""
        good = np.ones(len(self), bool)
        good[list(self._bad)] = False
        return np.flatnonzero(good)

    @property
    def bad(self) -> list[tuple[int, str]]:
        """Return (id, reason) of what cannot be read, as far as is known, ascending."""
        return list(self._bad.items())

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """Return nothing: what is no image is not listed."""
        return []

    @property
    def notes(self) -> list[tuple[int, str]]:
        """Return (id, remark) of files that are used although something is odd, ascending."""
        return list(self._notes.items())

    def relatives(self, ids: np.ndarray | None = None) -> list[str]:
        """Return the relative paths of `ids`, int64 (k,), or of all."""
        names: list[str] = (self._relative if ids is None else self._relative.take(pa.array(ids))).to_pylist()
        return names

    @property
    def names(self) -> pa.LargeStringArray:
        """Return the relative paths as a column, sorted."""
        return self._relative

    def top_folders(self) -> tuple[list[str], np.ndarray]:
        """Return the names of the folders right below `root`, sorted, and each file's: int64 (n,), -1 for those in none."""
        return _first_parts(self._relative)

    def part(self, name_options: Sequence[str]) -> Manifest | None:
        """Return the first of these folders right below `root` that holds images, as a manifest of its own; else None."""
        for name in name_options:
            rows = np.flatnonzero(pc.starts_with(self._relative, f"{name}/").to_numpy(zero_copy_only=False))
            if len(rows):
                return self._below(name, rows)
        return None

    def training_part(self) -> Manifest | None:
        """Return the images of a folder's `train/` part, if it has one; else None."""
        return self.part(TRAINING_PARTS) if self.source.is_dir() else None

    def _below(self, folder: str, rows: np.ndarray) -> Manifest:
        new_id = {int(old): new for new, old in enumerate(rows)}
        relative = pc.utf8_slice_codeunits(self._relative.take(pa.array(rows)), len(folder) + 1)
        offsets = None if self.offsets is None else self.offsets[rows]
        labels = None if self.labels is None else self.labels.take(pa.array(rows))
        listing = Listing(relative, self.sizes[rows], self.mtimes[rows], offsets=offsets, labels=labels)
        checked = Checked(
            self.widths[rows],
            self.heights[rows],
            {new_id[k]: reason for k, reason in self._bad.items() if k in new_id},
            {new_id[k]: note for k, note in self._notes.items() if k in new_id},
        )
        return Manifest(self.root / folder, self.source / folder, listing, checked)

    def describe(self) -> str:
        """Return one line of counts."""
        bad = f", {len(self.bad):,} of them unreadable (skipped, see bad_files.txt)" if self.bad else ""
        away = pc.sum(pc.or_(pc.starts_with(self._relative, "/"), pc.starts_with(self._relative, "../"))).as_py() or 0
        outside = f", {away:,} of them outside it, as the list or table says" if away else ""
        return f"{len(self):,} in {self.root}{outside}{bad}"

    def difference(self, other: Manifest) -> Difference:
        """Compare with the `other`: what it adds, lacks or has in another size."""
        if self.fingerprint == other.fingerprint:
            return Difference([], [], [])
        there = pc.index_in(self._relative, value_set=other._relative)
        both = np.flatnonzero(there.is_valid().to_numpy(zero_copy_only=False))
        changed = both[self.sizes[both] != other.sizes[there.drop_null().to_numpy()]]
        added = pc.invert(pc.is_in(other._relative, value_set=self._relative))
        return Difference(
            added=other._relative.filter(added).to_pylist(),
            removed=self._relative.filter(there.is_null()).to_pylist(),
            changed=self.relatives(changed),
        )

    # ------------------------------------------------------------------------------------------------------------ file
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as Parquet, or as an Arrow file where the path ends in `.arrow`: larger, and mapped rather than read."""
        n = len(self)
        head = {
            "format": _FORMAT,
            "root": str(self.root),
            "source": str(self.source),
            "fingerprint": self.fingerprint,
        }
        columns = {
            "relative": self._relative,
            "size": self.sizes,
            "mtime": self.mtimes,
            "width": self.widths,
            "height": self.heights,
            "bad": sparse_text(self._bad, n),
            "note": sparse_text(self._notes, n),
        }
        if self.offsets is not None:
            columns["offset"] = self.offsets
        if self.labels is not None:
            columns["label"] = self.labels
        write_columns(Path(path), columns, head)

    @classmethod
    def load(cls, path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Manifest:
        """Read a saved manifest; `root` is where its folder is now, if elsewhere.

        Raises:
            BadInput: not a manifest of this version, or damaged.
        """
        try:
            head, columns = read_head(path), read_columns(path)
            offsets = columns["offset"].to_numpy() if "offset" in columns else None
            sizes, mtimes = columns["size"].to_numpy(), columns["mtime"].to_numpy()
            listing = Listing(columns["relative"], sizes, mtimes, offsets=offsets, labels=columns.get("label"))
            texts = []
            for name in ("bad", "note"):
                rows = np.flatnonzero(columns[name].is_valid().to_numpy(zero_copy_only=False))
                texts.append(dict(zip(rows.tolist(), columns[name].drop_null().to_pylist(), strict=True)))
            checked = Checked(columns["width"].to_numpy(), columns["height"].to_numpy(), *texts)
        except FileNotFoundError:
            raise BadInput(f"there is no manifest {path}; the run folder is incomplete") from None
        except (OSError, pa.ArrowException, KeyError, ValueError):
            raise BadInput(f"{path} is no manifest of this project, or it is damaged; restore it from a copy") from None
        manifest = cls(absolute(as_path(root or head["root"])), as_path(head["source"]), listing, checked)
        if head["format"] != _FORMAT or head["fingerprint"] != manifest.fingerprint:
            raise BadInput(f"{path} does not match its own fingerprint or version {_FORMAT}; restore it from a copy")
        return manifest


def _first_parts(relative: pa.LargeStringArray) -> tuple[list[str], np.ndarray]:
    folder = pc.struct_field(pc.extract_regex(relative, r"^(?P<top>[^/]+)/"), "top")  # null where there is none
    encoded = pc.dictionary_encode(folder)
    names = encoded.dictionary.to_pylist()  # in order of appearance, and the paths are sorted
    return names, pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _fingerprint(relative: pa.LargeStringArray, sizes: np.ndarray) -> str:
    """Return SHA-256 over the count, the paths' lengths in bytes, their UTF-8 text, and the sizes, all little-endian."""
    digest = hashlib.sha256(len(relative).to_bytes(8, "little"))
    digest.update(pc.binary_length(relative).to_numpy().astype("<i8").tobytes())
    digest.update(text_bytes(relative))
    digest.update(sizes.astype("<i8").tobytes())
    return digest.hexdigest()
