"""Images or texts with their embeddings, ready to be searched: from a file of `sogclr embed`, or embedded now."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..data.manifest import Manifest
from ..data.pair_columns import Kind
from ..errors import BadInput
from ..models.run_encoders import RunEncoders
from ..progress import ProgressCallback
from .embed import compute_embeddings
from .embedding_file import SUFFIXES, EmbeddingFile
from .search_index import ExactIndex, Index, open_index
from .things import kind_of_things, open_things

Picture = str | os.PathLike[str] | BinaryIO
"""Where the bytes of an image are: a path or an open file."""


@dataclass(frozen=True)
class Hit:
    """One image or text that was found."""

    path: str
    """Of an image, relative to where the images are; empty of a text."""
    score: float
    """Cosine similarity with the query."""
    picture: Picture | None = field(default=None, repr=False)
    text: str | None = None
    """None of an image."""

    @property
    def name(self) -> str:
        """Return the text, or the path."""
        return self.path if self.text is None else self.text


class Collection:
    """Images or texts with their unit rows.

    Args:
        names: paths of the n images, relative to where they are, or the n texts.
        index: of their rows.
        picture: says where the bytes of the image of a row are; None of texts.
        column: of the run's pairs, 0 or 1, whose things they are.
    """

    def __init__(
        self, names: list[str], index: Index, picture: Callable[[int], Picture] | None, column: int = 0
    ) -> None:
        self.names, self.index, self.picture, self.column = names, index, picture, column

    def nearest(self, query: Tensor, top: int) -> list[Hit]:
        """Return the `top` images or texts most similar to a unit vector (D,), best first."""
        return [self._hit(i, score) for score, i in zip(*self.index.nearest(query, top), strict=True)]

    def _hit(self, row: int, score: float) -> Hit:
        if self.picture is None:
            return Hit("", score, text=self.names[row])
        return Hit(self.names[row], score, self.picture(row))


def open_collection(
    source: str | os.PathLike[str],
    encoders: RunEncoders,
    query: int | None = None,
    *,
    column: str | None = None,
    workers: int = 0,
    progress: ProgressCallback | None = None,
    info: Callable[[str], None] | None = None,
) -> Collection:
    """Return the embeddings of a file, or of the images or texts that DATA holds; of texts each once.

    Args:
        source: the file, or DATA.
        encoders: that the file was written with, or that embed DATA now.
        query: the column of the run's pairs that is asked, if the user has said so; the other one embeds.
        column: of a table, whose texts are embedded.
        workers: processes that read images.
        progress: called with (things done, things to do).
        info: is told what the user should know, in a line.

    Raises:
        BadInput: no such file or things, or embeddings of another model.
    """
    place = Path(source)
    if place.suffix in SUFFIXES and place.is_file() and (stored := EmbeddingFile.open(place)) is not None:
        return _of_file(stored, encoders, query, info)
    kind = kind_of_things(source, encoders, column)
    of = _answering(encoders, kind, query)
    things = open_things(source, kind, column or (encoders.names[of] if encoders.names else ""))
    features, ids, _ = compute_embeddings(
        encoders.towers[of], things, things.usable, workers=workers, device=encoders.device, progress=progress
    )
    if isinstance(things, Manifest):
        if not len(ids):
            raise BadInput(f"no image of {source} can be read; give others")
        manifest = things
        rows = ExactIndex(torch.from_numpy(features))
        return Collection(manifest.relatives(ids), rows, lambda row: manifest.file(int(ids[row])), of)
    texts, first = _different(things.relatives(ids))
    return Collection(texts, ExactIndex(torch.from_numpy(features[first])), None, of)


def _answering(encoders: RunEncoders, kind: Kind, query: int | None) -> int:
    """Return the column whose things of a kind are looked through: not the one that is asked, else the last."""
    return encoders.columns(kind)[-1] if query is None else encoders.opposite(query, kind)


def _different(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the different texts, and the row where each stands first."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    return list(first), np.fromiter(first.values(), np.int64, len(first))


def _of_file(
    file: EmbeddingFile, encoders: RunEncoders, query: int | None, info: Callable[[str], None] | None
) -> Collection:
    """Return the collection of a file, if its embeddings are by the run."""
    names, first = _different(file.names) if file.kind == "texts" else (file.names, None)

    def rows() -> np.ndarray:
        return file.rows() if first is None or len(first) == len(file.names) else file.rows()[first]

    own = _embedded_as(file, encoders, query)
    index = None if own is None else open_index(file.path, len(names), rows, info)
    if own is None or index is None or index.width != encoders.towers[own].num_features:
        what = file.kind if index is None else f"{index.width} numbers"
        raise BadInput(
            f"{file.path} holds embeddings of {what} by {file.about.get('encoder', 'an unknown model')}, not by this run; "
            "write them with `sogclr embed RUN DATA --out FILE`"
        )
    if file.kind == "texts":
        return Collection(names, index, None, own)
    root = _root(file.path, str(file.about.get("data", ".")), names)
    return Collection(names, index, lambda row: root / names[row], own)


def _embedded_as(file: EmbeddingFile, encoders: RunEncoders, query: int | None) -> int | None:
    """Return the column whose tower has written a file; None if it is another model's."""
    weights, columns = file.about.get("weights"), encoders.columns(file.kind)
    if weights is None:  # another program's
        return _answering(encoders, file.kind, query) if columns else None
    by = [k for k in columns if encoders.towers[k].fingerprint() == weights]
    # both columns may have one tower
    named = [k for k in by if encoders.names and encoders.names[k] == file.about.get("column")]
    return next(iter([*named, *by]), None)


def _root(file: Path, data: str, paths: list[str]) -> Path:
    """Return the folder of a file's images: as it names it, from here or from its own folder; or beside it."""
    places = [base / data for base in (Path(), file.parent)] + [file.parent]
    roots = [place if place.is_dir() else place.parent for place in places]
    return next((root for root in roots if any((root / p).is_file() for p in paths[:16])), roots[0])
