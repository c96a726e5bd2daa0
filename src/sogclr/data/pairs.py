"""Pairs of two things with stable ids, in Arrow memory maps: an image and a caption, two texts, or two images.

The different images of both columns have ids of their own, and so have the different texts: what stands in both columns
is one thing. As a `Source` its samples are the pairs; `first_ids` and `second_ids` say what a pair is made of.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from ..files import make_folder
from ..progress import ProgressCallback
from .column_files import RunFiles
from .headers import check_headers
from .listing import Listing, list_paths
from .manifest import CHECK_AT_MOST, Difference, Manifest
from .pair_columns import IMAGE_TEXT, ColumnNames, Kind
from .pair_files import IMAGES, load_images, map_pairs, read_parts, write_pairs
from .pair_ids import NO_NEGATIVES, number_negatives, number_things
from .paths import AnyPath, absolute, as_path, common_folder
from .shards import find_shards, read_shards
from .tables import PairRows, is_table, read_rows
from .text_columns import release_memory, text_bytes


class Pairs:
    """The pairs of a table or of tar shards. Ids 0..len-1 follow (id of the first thing, id of the second).

    Attributes:
        kinds: what the two columns hold; images come first where there are both.
        names: of the two columns.
        images: the manifest of the different images; its ids are the image ids.
        texts: large_string (m,): the different texts, sorted; their places are the text ids.
        first_ids, second_ids: int64 (n,), of each pair, each of its column's kind.
        negatives: int64 (2, k): a pair, ascending, and the id of a text that is no match of its first thing.
        rejected: (where, reason) of the rows that are no pair.
        duplicates: how often a pair came again.
        contradicted: hard negatives that are left out, as another row says that they match.
        fingerprint: SHA-256 over the images' fingerprint, the texts and the ids.
    """

    kind = "pairs"

    def __init__(
        self,
        images: Manifest,
        texts: pa.LargeStringArray,
        ids: tuple[np.ndarray, np.ndarray],
        rejected: list[tuple[str, str]],
        duplicates: int = 0,
        *,
        kinds: tuple[Kind, Kind] = IMAGE_TEXT,
        names: tuple[str, str] = ("image", "caption"),
        negatives: np.ndarray = NO_NEGATIVES,
        contradicted: int = 0,
    ) -> None:
        self.images, self.texts, self.kinds, self.names = images, texts, kinds, names
        self.first_ids, self.second_ids = ids
        self.rejected, self.duplicates = rejected, duplicates
        self.negatives, self.contradicted = negatives, contradicted
        self.root, self.source = images.root, images.source
        digest = hashlib.sha256(images.fingerprint.encode())
        if kinds != IMAGE_TEXT:
            digest.update(json.dumps(kinds).encode())
        for part in (pc.binary_length(texts).to_numpy(), *ids, *negatives):
            digest.update(np.ascontiguousarray(part.astype("<i8", copy=False)).data)
        digest.update(text_bytes(texts))
        self.fingerprint = digest.hexdigest()

    @classmethod
    def scan(
        cls,
        data: str | os.PathLike[str],
        columns: ColumnNames | None = None,
        *,
        check: bool | None = None,
        progress: ProgressCallback | None = None,
    ) -> Pairs:
        """Read a CSV, TSV, JSONL or Parquet file, or tar shards, and the headers of the images.

        Args:
            data: a table, whose paths are relative to its folder; or a folder of .tar files, one, or a pattern of them.
            columns: of a table; found by their names, or by being the only two, as far as they are left out.
            check: whether to read headers; None reads them when at most 200,000 images are not in the cache.
            progress: called with (headers read, headers to read).

        Raises:
            BadInput: no such data, or not a single pair in it.
        """
        source = as_path(data)
        place = absolute(source)
        shards = [] if is_table(place) and place.suffix != ".parquet" else find_shards(place)
        if not shards and is_table(place):
            return cls.from_rows(place.parent, source, read_rows(place, columns), check=check, progress=progress)
        if columns is not None and columns.columns is not None:
            raise BadInput(
                f"--columns is for tables and {source} holds tar shards of images and captions; leave it out"
            )
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
            rows: the pairs; its texts are let go of.
            listing: where the images are, by their names in the rows; None: these are paths of plain files.
            check: whether to read headers; None reads them when at most 200,000 images are not in the cache.
            progress: called with (headers read, headers to read).

        Raises:
            BadInput: not a single pair.
        """
        if not len(rows):
            first = f" (first: {rows.rejected[0][0]} {rows.rejected[0][1]})" if rows.rejected else ""
            both = "an image and a caption" if rows.kinds == IMAGE_TEXT else f"a {rows.names[0]} and a {rows.names[1]}"
            raise BadInput(f"{source} holds no pair of {both}{first}; give one with both")
        # the different things: the longer texts first, while nothing else is there
        texts, text_ids = number_things(rows.columns("texts"))
        names, image_ids = number_things(rows.columns("images"), None if listing is not None else str(root))
        if listing is None:
            listing = list_paths(names, root)
        else:  # images without a caption have no row
            image_ids = [pc.index_in(names, value_set=listing.relative).to_numpy()[ids] for ids in image_ids]
        checked = None
        if check is not False:
            at_most = CHECK_AT_MOST if check is None else None
            checked = check_headers(root, listing, at_most=at_most, progress=progress)
        images = Manifest(root, source, listing, checked)
        # the different pairs
        wrong = text_ids.pop()
        of_columns = [(image_ids if kind == "images" else text_ids).pop(0) for kind in rows.kinds]
        base = len(texts) if rows.kinds[1] == "texts" else len(images)
        key = of_columns[0].astype(np.int64) * base + of_columns[1]
        different = np.unique(key)
        negatives, contradicted = number_negatives(key, different, base, np.array(rows.negative_rows, np.int64), wrong)
        return cls(
            images,
            texts,
            np.divmod(different, base),
            rows.rejected,
            len(key) - len(different),
            kinds=rows.kinds,
            names=rows.names,
            negatives=negatives,
            contradicted=contradicted,
        )

    # -------------------------------------------------------------------------------------------------------- one pair
    def __len__(self) -> int:
        return len(self.first_ids)

    def relative(self, id: int) -> str:
        """Return a name for a pair: the path of its image, relative to `root`; of two images or two texts, both."""
        columns = [k for k in (0, 1) if self.kinds[k] == "images"] or [0, 1]
        return " | ".join(self.name(k, int(self.ids(k)[int(id)])) for k in columns)

    def name(self, column: int, thing: int) -> str:
        """Return the path of an image, or a text, by the column (0 or 1) that it stands in and its id."""
        return str(self.things(column)[thing].as_py())

    def images_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the image ids of pairs (k,): int64 (k, I), for I columns of images."""
        columns = [self.ids(k)[ids] for k in (0, 1) if self.kinds[k] == "images"]
        return np.stack(columns, axis=1) if columns else np.empty((len(ids), 0), np.int64)

    # -------------------------------------------------------------------------------------------------------- all pairs
    def ids(self, column: int) -> np.ndarray:
        """Return `first_ids` (0) or `second_ids` (1)."""
        return (self.first_ids, self.second_ids)[column]

    def things(self, column: int) -> pa.LargeStringArray:
        """Return all things of a column's kind: the images' paths or the texts, in the order of their ids."""
        return self.images.names if self.kinds[column] == "images" else self.texts

    @property
    def usable(self) -> np.ndarray:
        """Return the pairs whose image is not known to be bad: int64, ascending."""
        return np.flatnonzero(~self._with_bad_image())

    @property
    def bad(self) -> list[tuple[int, str]]:
        """Return (id, reason) of the pairs with an image that cannot be read, as far as is known."""
        reasons, rows = dict(self.images.bad), np.flatnonzero(self._with_bad_image())
        of_rows = self.images_of(rows).tolist()
        return [
            (int(row), next(reasons[i] for i in ids if i in reasons)) for row, ids in zip(rows, of_rows, strict=True)
        ]

    def _with_bad_image(self) -> np.ndarray:
        bad = np.zeros(len(self.images), bool)
        bad[[id for id, _ in self.images.bad]] = True
        found = np.zeros(len(self), bool)
        for column in (0, 1):
            if self.kinds[column] == "images" and bad.any():
                found |= bad[self.ids(column)]
        return found

    def texts_of(self, text_ids: np.ndarray) -> list[str]:
        """Return the texts of text ids, int64 (k,)."""
        texts: list[str] = self.texts.take(pa.array(text_ids)).to_pylist()
        return texts

    def negatives_of(self, ids: np.ndarray, epoch: int) -> np.ndarray:
        """Return a hard negative of each pair (k,), the next one in each epoch: int64 (k,) text ids, -1 where there is none."""
        start, stop = (np.searchsorted(self.negatives[0], ids, side=side) for side in ("left", "right"))
        found = np.full(len(ids), -1, np.int64)
        some = stop > start
        found[some] = self.negatives[1][start[some] + (epoch + ids[some]) % (stop - start)[some]]
        return found

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
        both = [self.things(k).take(pa.array(self.ids(k))) for k in (0, 1)]
        return pc.binary_join_element_wise(*both, pa.scalar(": ", pa.large_string()))

    def describe(self) -> str:
        """Return one line of counts."""
        if self.kinds == IMAGE_TEXT:
            what = f"{len(self.images):,} images and {len(self.texts):,} captions"
        else:
            counted = (f"{len(np.unique(self.ids(k))):,} {self.kinds[k]} ({self.names[k]})" for k in (0, 1))
            what = " and ".join(counted)
        text = f"{len(self):,} of {what} in {self.source}"
        if self.negatives.size:
            text += f", {self.negatives.shape[1]:,} hard negatives"
            if self.contradicted:
                text += f" (and {self.contradicted:,} left out, as another row says that they match)"
        notes = [(len(self.bad), "with an unreadable image"), (len(self.rejected), "unusable rows")]
        lost = [f"{count:,} {what}" for count, what in notes if count]
        if lost:
            text += f", {' and '.join(lost)} (skipped, see bad_files.txt)"
        return text + (f", {self.duplicates:,} repeated pairs (kept once)" if self.duplicates else "")

    def training_part(self) -> Pairs | None:
        """Return None: a table or shards of pairs have no such part."""
        return None

    def rescan(self, columns: ColumnNames) -> Pairs:
        """Return the pairs as their files are now, without reading headers.

        Args:
            columns: as the pairs were opened with.
        """
        source = self.root / self.source.name if self.source.suffix else self.source
        return Pairs.scan(source if source.exists() else self.source, columns, check=False)

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
        make_folder(folder)
        self.images.save(folder / IMAGES)
        head = {
            "fingerprint": self.fingerprint,
            "duplicates": self.duplicates,
            "kinds": self.kinds,
            "names": self.names,
            "contradicted": self.contradicted,
        }
        write_pairs(folder, self.texts, (self.first_ids, self.second_ids), self.negatives, self.rejected, head)
        self.images = Manifest.load(folder / IMAGES)
        self.texts, self.first_ids, self.second_ids = map_pairs(folder)
        release_memory()

    @classmethod
    def load(cls, manifest_file: Path, folder: Path) -> Pairs:
        """Map what `save` wrote, with the same arguments.

        Raises:
            BadInput: missing, damaged or not of one piece.
        """
        images = load_images(manifest_file, folder / IMAGES)
        try:
            head, rejected, negatives = read_parts(folder)
            texts, *ids = map_pairs(folder)
            more = {}
            if "kinds" in head:  # version 0.1 knew images with captions alone
                more = {k: tuple(head[k]) for k in ("kinds", "names")} | {"contradicted": head["contradicted"]}
            found = cls(images, texts, (ids[0], ids[1]), rejected, head["duplicates"], negatives=negatives, **more)
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError):
            raise BadInput(
                f"{folder} does not hold the pairs of a run, or is damaged; restore it from a copy"
            ) from None
        if found.fingerprint != head["fingerprint"]:
            raise BadInput(f"{folder} does not match its own fingerprint; restore it from a copy")
        return found
