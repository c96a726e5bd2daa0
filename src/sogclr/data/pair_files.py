"""The files of a run's pairs: Arrow files that are mapped into memory, and small ones that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import BadInput
from .column_files import read_columns, read_head, saved_root, write_columns
from .manifest import Manifest
from .pair_columns import IMAGE_TEXT, Kind
from .pair_ids import NO_NEGATIVES

IMAGES = "images.arrow"


def write_pairs(
    folder: Path,
    texts: pa.LargeStringArray,
    ids: Sequence[np.ndarray],
    negatives: np.ndarray,
    rejected: list[tuple[str, str]],
    head: Mapping[str, Any],
) -> None:
    """Write everything but the images; `pairs.arrow`, the last file, has the head.

    Args:
        folder: for the files.
        texts: (m,).
        ids: int64 (n,) twice.
        negatives: int64 (2, k).
        rejected: (where, reason).
        head: what else is to be known.
    """
    where, reasons = [pa.array([entry[k] for entry in rejected], pa.large_string()) for k in (0, 1)]
    write_columns(folder / "captions.arrow", {"caption": texts}, {})
    write_columns(folder / "rejected.arrow", {"where": where, "reason": reasons}, {})
    write_columns(folder / "negatives.arrow", dict(zip(("pair", "text"), negatives, strict=True)), {})
    write_columns(folder / "pairs.arrow", {"image": ids[0], "text": ids[1]}, head)


def read_parts(folder: Path) -> tuple[dict[str, Any], list[tuple[str, str]], np.ndarray]:
    """Return head, rejected rows and hard negatives (2, k) of what `write_pairs` wrote; version 0.1 knew no negatives."""
    rejected, hard = read_columns(folder / "rejected.arrow"), folder / "negatives.arrow"
    rows = list(zip(rejected["where"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    negatives = NO_NEGATIVES
    if hard.is_file():
        columns = read_columns(hard)
        negatives = np.stack([columns[name].to_numpy() for name in ("pair", "text")])
    return read_head(folder / "pairs.arrow"), rows, negatives


def read_columns_held(folder: Path) -> tuple[tuple[str, str], tuple[Kind, Kind]]:
    """Return how the two columns are called and what they hold, from a head alone; version 0.1 knew images with captions.

    Raises:
        BadInput: missing or damaged.
    """
    try:
        head = read_head(folder / "pairs.arrow")
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise BadInput(f"{folder} does not hold the pairs of a run, or is damaged; restore it from a copy") from None
    first, second = head.get("names", ("image", "caption"))
    kinds = head.get("kinds", IMAGE_TEXT)
    return (first, second), (kinds[0], kinds[1])


def map_pairs(folder: Path) -> tuple[pa.LargeStringArray, np.ndarray, np.ndarray]:
    """Return the texts, and the ids of the pairs' first and second things."""
    pairs, texts = read_columns(folder / "pairs.arrow"), read_columns(folder / "captions.arrow")
    return texts["caption"], pairs["image"].to_numpy(), pairs["text"].to_numpy()


def load_images(manifest_file: Path, mapped: Path) -> Manifest:
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
