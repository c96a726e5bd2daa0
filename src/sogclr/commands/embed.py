"""`sogclr embed`: a file of embeddings that survives an interruption."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.numpy import load, save_file

from .. import __version__
from ..config.ranges import check_least
from ..data.bad_files import bad_files_beside, write_bad_files_beside
from ..data.texts import Texts
from ..errors import BadInput
from ..evaluation.label_free import refuse_non_finite
from ..files import atomic_write, check_output, file_lock, read_sealed, seal, write_text
from ..hardware import computing_on
from ..models.encoder import Encoder
from ..models.features import Features, compute_features, nothing_readable
from ..models.run_encoders import RunEncoders
from ..models.two_tower import TextTower
from ..progress import ProgressCallback, part_of, progress_bar
from .embedding_file import SUFFIXES, Job, check_names_fit, write_embeddings
from .things import Things, compute_text_features, kind_of_things, open_things

PART_ROWS = 8192  # things between two savings


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` wrote; as text, one line for people."""

    path: Path
    images: int
    """Rows of the file."""
    width: int
    """Numbers in a row."""
    bad: int
    """Images that could not be read, or rows without a text; they have no row."""
    kind: str = "images"
    """What was embedded, images or texts."""

    def __str__(self) -> str:
        what = "files could not be read" if self.kind == "images" else "rows hold no text"
        lost = f"; {self.bad:,} {what}, see {bad_files_beside(self.path)}" if self.bad else ""
        return f"{self.path}: {self.images:,} embeddings of {self.width:,} numbers{lost}"


def embed(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    column: str | None = None,
    as_column: str | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> EmbedResult:
    """Write the embeddings of images or texts. The same command again goes on where an interrupted one stopped.

    They are backbone features; of a run on pairs, unit vectors in the space that both columns have in common.

    The file holds `id` (int64), `path` or `text` (in a .safetensors file as a JSON list in the metadata) and `embedding`
    (float32 or float16, computed in float32 on any device). The id of an image is its place in the sorted list of files,
    and its path is relative to DATA; the id of a text is its line or row, from 0. What it was made from and by is there
    too, as JSON: `about` (in a .safetensors file its bytes; in Parquet the metadata `sogclr`).
    What is done is kept beside it every 8,192 rows, and the same call goes on from there. Parquet is written in parts,
    for any number of rows; the other formats are assembled in memory.

    Args:
        run: A run's folder, or an exported encoder (.safetensors).
        data: Images: a folder, a .txt list, a table, or tar shards; or the URL of one (s3://, ...). Texts: a .txt file with one a
            line, or a table with --column.
        out: The file to write: .parquet, .npz or .safetensors, with ids and paths or texts.
        column: Column of a table, whose texts are embedded; of a run on texts the column of the run when left out.
        as_column: Column of the run's pairs that encodes; the last that holds such things when left out.
        dtype: Type of the numbers.
        batch_size: Images or texts at a time.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        quiet: Show no progress.
        progress: Called with (rows done, rows to do), in the place of a bar.

    Returns:
        What was written.

    Raises:
        BadInput: something in the input cannot be used; nothing was written.
    """
    path = Path(out)
    check_output(path, SUFFIXES)
    if dtype not in ("float32", "float16"):
        raise BadInput(f"--dtype must be float32 or float16 and was {dtype}")
    check_least({"--batch-size": (batch_size, 1)})
    with file_lock(path.with_name(f".{path.name}.lock"), f"writes {path}"):
        with progress_bar("embedding", quiet, progress) as show, computing_on(device, workers) as (chosen, readers):
            encoders = RunEncoders.load(run, chosen)
            kind = kind_of_things(data, encoders, column, as_column)
            of = encoders.named(as_column, kind)
            of = encoders.columns(kind)[-1] if of is None else of
            name = encoders.names[of] if encoders.names else ""
            encoder, things = encoders.towers[of], open_things(data, kind, column or name)
            check_names_fit(path, things)
            parts = _Parts(path, _job(encoder, run, data, things, dtype, name), len(things.usable))
            for number in parts.missing():
                first = number * PART_ROWS
                ids = things.usable[first : first + PART_ROWS]
                report = part_of(show, first, len(ids), len(things.usable))
                features, kept, bad = compute_embeddings(
                    encoder, things, ids, batch_size=batch_size, workers=readers, device=chosen, progress=report
                )
                parts.write(number, _as_type(features, dtype), kept, bad)
        return _finish(path, parts, things)


def compute_embeddings(
    encoder: Encoder | TextTower,
    things: Things,
    ids: np.ndarray,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: ProgressCallback | None = None,
) -> Features:
    """Compute the features of some images or texts, as `compute_features` returns them, with the same arguments."""
    if isinstance(things, Texts):
        return compute_text_features(encoder, things, ids, batch_size=batch_size, progress=progress)
    assert isinstance(encoder, Encoder), "texts have a tower of their own"
    return compute_features(
        encoder, things, ids, batch_size=batch_size, workers=workers, device=device, progress=progress
    )


def _job(
    encoder: Encoder | TextTower,
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    things: Things,
    dtype: str,
    column: str,
) -> Job:
    return {
        "sogclr": __version__,
        "encoder": str(run),
        "model": encoder.info.name if isinstance(encoder, Encoder) else "texts",
        "kind": things.kind,
        "column": column,
        "data": str(data),
        "weights": encoder.fingerprint(),
        things.kind: things.fingerprint,
        "dtype": dtype,
        "part_rows": PART_ROWS,
    }


def _finish(path: Path, parts: _Parts, things: Things) -> EmbedResult:
    """Write the file from its parts, and the list of what cannot be read beside it."""
    if isinstance(things, Texts):
        lost = things.rejected
    else:
        bad = [*things.bad, *parts.bad()]
        if len(bad) == len(things):
            parts.remove()
            raise nothing_readable(things, bad)
        lost = [(things.relative(i), reason) for i, reason in bad]
    rows, width = write_embeddings(path, parts.read(), things, parts.job)
    write_bad_files_beside(path, lost)
    parts.remove()
    return EmbedResult(path, rows, width, len(lost), things.kind)


# ----------------------------------------------------------------------------------------------------------- the parts
def _as_type(features: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 (m, D) features in the type of the file.

    Raises:
        BadInput: they are not finite, or too large for it.
    """
    refuse_non_finite(features)
    largest, limit = float(np.abs(features).max(initial=0.0)), float(np.finfo(dtype).max)
    if largest > limit:
        raise BadInput(f"the features go up to {largest:.3g} and {dtype} goes up to {limit:.3g}; use --dtype float32")
    return features.astype(dtype)


class _Parts:
    """The finished pieces of an embedding file, in a hidden folder beside it; pieces of another job are thrown away."""

    def __init__(self, path: Path, job: Job, rows: int) -> None:
        self.folder = path.with_name(f".{path.name}.parts")
        self.job = job
        self.count = math.ceil(rows / PART_ROWS)
        head = self.folder / "job.json"
        text = json.dumps(job, sort_keys=True)
        if not (head.is_file() and head.read_text(encoding="utf-8") == text):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._job = (head, text)
        self._bad: dict[int, list[tuple[int, str]]] = {}  # of the pieces that are there

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def missing(self) -> list[int]:
        """Return the numbers of the pieces that are still to be computed, damaged ones among them."""
        return [k for k in range(self.count) if not self._is_whole(k)]

    def _is_whole(self, number: int) -> bool:
        with contextlib.suppress(OSError, ValueError):
            self._bad[number] = json.loads(self._read(number)["bad"].tobytes())
        return number in self._bad

    def write(self, number: int, features: np.ndarray, ids: np.ndarray, bad: list[tuple[int, str]]) -> None:
        """Save a piece: float (m, D), int64 (m,), and (id, reason) of images that cannot be read."""
        if not self.folder.is_dir():  # with the first piece: a refusal before it leaves nothing behind
            self.folder.mkdir(parents=True)
            write_text(*self._job)
        with atomic_write(self._file(number)) as temporary:
            lost = np.frombuffer(json.dumps(bad).encode(), np.uint8)
            save_file({"embedding": features, "id": ids, "bad": lost}, temporary)
            seal(temporary)
        self._bad[number] = bad

    def _read(self, number: int) -> dict[str, np.ndarray]:
        return load(bytes(read_sealed(self._file(number))))

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield `embedding`, `id` and `bad` of all pieces, in order."""
        return map(self._read, range(self.count))

    def bad(self) -> list[tuple[int, str]]:
        """Return (id, reason) of the images that cannot be read, once no piece is missing."""
        return [(int(i), reason) for k in range(self.count) for i, reason in self._bad[k]]

    def remove(self) -> None:
        """Take all pieces away."""
        shutil.rmtree(self.folder, ignore_errors=True)
