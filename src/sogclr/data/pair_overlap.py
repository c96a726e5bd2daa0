"""Which pairs or images of one data set are in another."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .manifest import Manifest
from .pairs import Pairs
from .text_columns import column_of


def count_shared(pairs: Pairs, others: Pairs, rows: np.ndarray) -> int:
    """Count the pairs that stand in another data set too: the same texts, and images at the same place.

    A whole data set of the same texts and of images of the same names and sizes is the same wherever it lies.

    Args:
        pairs: those that are counted.
        others: of the same kinds; often many more.
        rows: int64 (p,), ids of `pairs`.
    """
    if pairs.fingerprint == others.fingerprint:
        return len(rows)
    known = {"images": _image_ids(pairs, others), "texts": _ids(others.texts, pairs.texts)}
    first, second = (known[kind][others.ids(column)] for column, kind in enumerate(others.kinds))
    both = (first >= 0) & (second >= 0)
    base = len(pairs.things(1))
    keys = first[both] * base + second[both]
    return int(np.isin(pairs.first_ids[rows] * base + pairs.second_ids[rows], keys).sum())


def count_shared_images(images: Manifest, others: Manifest, rows: np.ndarray) -> int:
    """Count the images that are in another data set too, as `count_shared` does pairs.

    Args:
        images: those that are counted.
        others: often many more.
        rows: int64 (m,), ids of `images`.
    """
    return (
        len(rows) if images.fingerprint == others.fingerprint else int(np.isin(rows, _image_ids(images, others)).sum())
    )


def _image_ids(pairs: Pairs | Manifest, others: Pairs | Manifest) -> np.ndarray:
    """Return the ids in `pairs` of the images of `others`, -1 where they are not there: int64 (m,)."""
    places = [os.path.join(pairs.root, name) for name in pairs.images.names.to_pylist()]
    both_ways = [os.path.relpath(place, others.root) for place in places] + [os.path.normpath(p) for p in places]
    found = _ids(others.images.names, column_of(both_ways))
    return np.where(found < 0, found, found % max(1, len(places)))


def _ids(values: pa.LargeStringArray, among: pa.LargeStringArray) -> np.ndarray:
    found: np.ndarray = pc.fill_null(pc.index_in(values, value_set=among), -1).to_numpy(zero_copy_only=False)
    return found.astype(np.int64)
