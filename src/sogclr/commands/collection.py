"""Images with their embeddings, ready to be searched: from a file of `sogclr embed`, or embedded now."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ..data.source import scan_images
from ..errors import BadInput
from ..models.features import compute_features
from ..models.two_tower import TwoTower
from ..progress import ProgressCallback
from .embed import SUFFIXES, Job

Picture = str | os.PathLike[str] | BinaryIO
"""Where the bytes of an image are: a path or an open file."""


@dataclass(frozen=True)
class Hit:
    """One image that was found."""

    path: str
    """Relative to where the images are."""
    score: float
    """Cosine similarity with the query."""
    picture: Picture = field(repr=False)


class Collection:
    """Images with their unit rows.

    Args:
        paths: of the n images, relative to where they are.
        rows: floating (n, D).
        picture: says where the bytes of the image of a row are.

    Attributes:
        paths: the same.
        rows: float32 (n, D), of unit length.
    """

    def __init__(self, paths: list[str], rows: Tensor, picture: Callable[[int], Picture]) -> None:
        self.paths, self.rows, self.picture = paths, functional.normalize(rows.float(), dim=1), picture

    def nearest(self, query: Tensor, top: int) -> list[Hit]:
        """Return the `top` images most similar to a unit vector (D,), best first."""
        score, where = (self.rows @ query.to(self.rows)).topk(min(top, len(self.paths)))
        return [Hit(self.paths[i], s, self.picture(i)) for s, i in zip(score.tolist(), where.tolist(), strict=True)]


def open_collection(
    source: str | os.PathLike[str], towers: TwoTower, workers: int = 0, progress: ProgressCallback | None = None
) -> Collection:
    """Return the embeddings of a file, or of the images of a folder, list, table or shards.

    Args:
        source: the file, or the images.
        towers: that the file was written with, or that embed the images now.
        workers: processes that read images.
        progress: called with (images done, images to do).

    Raises:
        BadInput: no such file or images, or embeddings of another model.
    """
    place = Path(source)
    if place.suffix in SUFFIXES and place.is_file() and (stored := _read(place)) is not None:
        return _checked(place, *stored, towers)
    manifest = scan_images(source)
    features, ids, _ = compute_features(
        towers.images, manifest, manifest.usable, workers=workers, device=towers.device, progress=progress
    )
    if not len(ids):
        raise BadInput(f"no image of {source} can be read; give others")
    return Collection(manifest.relatives(ids), torch.from_numpy(features), lambda row: manifest.file(int(ids[row])))


def _read(path: Path) -> tuple[list[str], np.ndarray, Job] | None:
    """Return paths, floating (n, D) rows and what they were made by; None of a Parquet table of something else."""
    about = "{}"
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            if not {"path", "embedding"} <= set(table.column_names):
                return None
            about = (table.schema.metadata or {}).get(b"sogclr", about)
            rows = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
            paths = table["path"].to_pylist()
        elif path.suffix == ".npz":
            with np.load(path) as file:
                rows, paths = file["embedding"], file["path"].tolist()
                about = file["about"].item() if "about" in file else about
        else:
            with safe_open(path, framework="numpy") as file:
                rows, paths = file.get_tensor("embedding"), json.loads((file.metadata() or {})["path"])
                if "about" in file.keys():  # noqa: SIM118  (it is no mapping)
                    about = file.get_tensor("about").tobytes()
        return paths, np.array(rows), json.loads(about)
    except Exception as error:
        raise BadInput(
            f"{path} is no readable file of embeddings ({type(error).__name__}); write it with `sogclr embed`"
        ) from None


def _checked(path: Path, paths: list[str], rows: np.ndarray, about: Job, towers: TwoTower) -> Collection:
    """Return the collection of a file, if its embeddings are by these towers."""
    other = about.get("weights") not in (None, towers.images.fingerprint())
    if other or rows.shape[1] != towers.num_features:
        raise BadInput(
            f"{path} holds embeddings of {rows.shape[1]} numbers by {about.get('encoder', 'an unknown model')}, not by this "
            "run; write them with `sogclr embed RUN DATA --out FILE`"
        )
    root = _root(path, str(about.get("data", ".")), paths)
    return Collection(paths, torch.from_numpy(rows), lambda row: root / paths[row])


def _root(file: Path, data: str, paths: list[str]) -> Path:
    """Return the folder of a file's images: as it names it, from here or from its own folder; or beside it."""
    places = [base / data for base in (Path(), file.parent)] + [file.parent]
    roots = [place if place.is_dir() else place.parent for place in places]
    return next((root for root in roots if any((root / p).is_file() for p in paths[:16])), roots[0])
