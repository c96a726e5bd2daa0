"""Images of a sample that lie closest to each other, near-duplicates, and farthest from all others, outliers."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np

from ...data.manifest import Manifest
from .sample import NEIGHBOURS, Sample, neighbours

LISTED = 200  # of each, at most


@dataclass(frozen=True)
class Extremes:
    """Both lists, the most extreme first."""

    closest: list[tuple[int, int, float]]
    """(id, id, cosine) of pairs of images, each once."""
    farthest: list[tuple[int, int, float]]
    """(id, id of the nearest, mean cosine with the nearest few) of images."""


def extremes(sample: Sample) -> Extremes:
    """Return the extremes of a sample of two images or more."""
    cosines, near = neighbours(sample.unit, np.arange(len(sample.ids)), NEIGHBOURS)
    pairs = {
        (min(i, j), max(i, j)): value
        for i, (others, values) in enumerate(zip(near.tolist(), cosines.tolist(), strict=True))
        for j, value in zip(others, values, strict=True)
    }
    ids = sample.ids.tolist()
    closest = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    mean = cosines.mean(axis=1)
    farthest = np.argsort(mean, kind="stable")[:LISTED].tolist()
    return Extremes(
        [(ids[i], ids[j], value) for (i, j), value in closest],
        [(ids[i], ids[int(near[i, 0])], float(mean[i])) for i in farthest],
    )


def extremes_table(found: Extremes, manifest: Manifest) -> str:
    """Return a CSV of the paths: what an image is, its path, that of the image nearest to it, the cosine."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["what", "path", "nearest", "cosine"])
    for what, rows in (("close pair", found.closest), ("outlier", found.farthest)):
        writer.writerows([what, manifest.relative(i), manifest.relative(j), f"{value:.4f}"] for i, j, value in rows)
    return file.getvalue()
