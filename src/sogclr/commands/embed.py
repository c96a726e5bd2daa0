"""`sogclr embed`: a file of embeddings that survives an interruption."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from .. import __version__
from ..data.bad_files import write_bad_files
from ..data.manifest import Manifest
from ..data.source import scan_images
from ..errors import BadInput
from ..evaluation.label_free import refuse_non_finite
from ..files import atomic_write, check_output, file_lock, write_text
from ..hardware import computing_on
from ..models.encoder import Encoder
from ..models.features import compute_features, load_image_encoder, nothing_readable
from ..progress import ProgressCallback, progress_bar

SUFFIXES = (".parquet", ".npz", ".safetensors")
PART_ROWS = 8192  # images between two savings
Job = dict[str, str | int]
"""What a file of embeddings is made from, and by."""


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` wrote; as text, one line for people."""

    path: Path
    images: int
    """Rows of the file."""
    width: int
    """Numbers in a row."""
    bad: int
    """Images that could not be read; they have no row."""

    def __str__(self) -> str:
        lost = f"; {self.bad:,} files could not be read, see {_bad_file(self.path)}" if self.bad else ""
        return f"{self.path}: {self.images:,} embeddings of {self.width:,} numbers{lost}"


def embed(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> EmbedResult:
    """Write the embeddings of a folder of images. The same command again goes on where an interrupted one stopped.

    They are backbone features; of a run on pairs, unit vectors in the common space of images and texts.

    The file holds `id` (int64, the place in the sorted list of files), `path` (relative to DATA; in a .safetensors file
    as a JSON list in the metadata) and `embedding` (float32 or float16, computed in float32 on any device). What it was
    made from and by is there too, as JSON: `about` (in a .safetensors file its bytes; in Parquet the metadata `sogclr`).
    What is done is kept beside it every 8,192 images, and the same call goes on from there. Parquet is written in parts,
    for any number of images; the other formats are assembled in memory.

    Args:
        run: A run's folder, or an exported encoder (.safetensors).
        data: Images: a folder, a .txt list, a table, or tar shards; or the URL of one (s3://, ...).
        out: The file to write: .parquet, .npz or .safetensors, with ids and paths.
        dtype: Type of the numbers.
        batch_size: Images at a time.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        quiet: Show no progress.
        progress: Called with (images done, images to do), in the place of a bar.

    Returns:
        What was written.

    Raises:
        BadInput: something in the input cannot be used; nothing was written.
    """
    path = Path(out)
    check_output(path, SUFFIXES)
    if dtype not in ("float32", "float16"):
        raise BadInput(f"--dtype must be float32 or float16 and was {dtype}")
    if batch_size < 1:
        raise BadInput(f"--batch-size must be 1 or more and was {batch_size}")
    with file_lock(path.with_name(f".{path.name}.lock"), f"writes {path}"):
        with progress_bar("embedding", quiet, progress) as show, computing_on(device, workers) as (chosen, readers):
            encoder = load_image_encoder(run, chosen)
            manifest = scan_images(data)
            _check_paths_fit(path, manifest)
            parts = _Parts(path, _job(encoder, run, data, manifest, dtype), len(manifest.usable))
            for number in parts.missing():
                first = number * PART_ROWS
                ids, report = manifest.usable[first : first + PART_ROWS], _from(first, len(manifest.usable), show)
                features, kept, bad = compute_features(
                    encoder, manifest, ids, batch_size=batch_size, workers=readers, device=chosen, progress=report
                )
                parts.write(number, _as_type(features, dtype), kept, bad)
        return _finish(path, parts, manifest)


def _job(
    encoder: Encoder,
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    manifest: Manifest,
    dtype: str,
) -> Job:
    return {
        "sogclr": __version__,
        "encoder": str(run),
        "model": encoder.info.name,
        "data": str(data),
        "weights": encoder.fingerprint(),
        "images": manifest.fingerprint,
        "dtype": dtype,
        "part_rows": PART_ROWS,
    }


def _from(first: int, total: int, show: ProgressCallback) -> ProgressCallback:
    """Return a callback for the images from the `first` on, of so many in `total`."""
    return lambda done, _: show(first + done, total)


def _finish(path: Path, parts: _Parts, manifest: Manifest) -> EmbedResult:
    """Write the file from its parts, and the list of images that cannot be read beside it."""
    bad = [*manifest.bad, *parts.bad()]
    if len(bad) == len(manifest):
        parts.remove()
        raise nothing_readable(manifest, bad)
    images, width = _assemble(path, parts, manifest)
    _bad_file(path).unlink(missing_ok=True)
    if bad:
        write_bad_files(_bad_file(path), [(manifest.relative(i), reason) for i, reason in bad])
    parts.remove()
    return EmbedResult(path, images, width, len(bad))


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


def _bad_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.bad_files.txt")


class _Parts:
    """The finished pieces of an embedding file, in a hidden folder beside it; pieces of another job are thrown away."""

    def __init__(self, path: Path, job: Job, images: int) -> None:
        self.folder = path.with_name(f".{path.name}.parts")
        self.job = job
        self.count = math.ceil(images / PART_ROWS)
        head = self.folder / "job.json"
        text = json.dumps(job, sort_keys=True)
        if not (head.is_file() and head.read_text(encoding="utf-8") == text):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._job = (head, text)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def missing(self) -> list[int]:
        """Return the numbers of the pieces that are still to be computed."""
        return [k for k in range(self.count) if not self._file(k).is_file()]

    def write(self, number: int, features: np.ndarray, ids: np.ndarray, bad: list[tuple[int, str]]) -> None:
        """Save a piece: float (m, D), int64 (m,), and (id, reason) of images that cannot be read."""
        if not self.folder.is_dir():  # with the first piece: a refusal before it leaves nothing behind
            self.folder.mkdir(parents=True)
            write_text(*self._job)
        with atomic_write(self._file(number)) as temporary:
            save_file({"embedding": features, "id": ids}, temporary, metadata={"bad": json.dumps(bad)})

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield `embedding` and `id` of all pieces, in order."""
        return (load_file(self._file(k)) for k in range(self.count))

    def bad(self) -> list[tuple[int, str]]:
        """Return (id, reason) of the images that cannot be read."""
        found = []
        for k in range(self.count):
            with safe_open(self._file(k), framework="numpy") as file:
                found += [(int(i), reason) for i, reason in json.loads(file.metadata()["bad"])]
        return found

    def remove(self) -> None:
        """Take all pieces away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _check_paths_fit(path: Path, manifest: Manifest) -> None:
    """Refuse too many paths for a safetensors file, which keeps them in its header of at most 100 MB."""
    if path.suffix == ".safetensors" and sum(map(len, manifest.relatives())) > 80_000_000:
        raise BadInput(
            f"{len(manifest):,} paths are too many for the header of a .safetensors file; give a .parquet name"
        )


# ------------------------------------------------------------------------------------------------------------ the file
def _assemble(path: Path, parts: _Parts, manifest: Manifest) -> tuple[int, int]:
    """Write the file from its parts, whole or not at all, and return its rows and columns."""
    with atomic_write(path) as temporary:
        if path.suffix == ".parquet":
            return _write_parquet(temporary, parts, manifest, {"sogclr": json.dumps(parts.job)})
        tables = list(parts.read())
        ids = np.concatenate([t["id"] for t in tables])
        features = np.concatenate([t["embedding"] for t in tables])
        paths = manifest.relatives(ids)
        if path.suffix == ".npz":
            with open(temporary, "wb") as file:  # given a name, numpy would add .npz to it
                np.savez(file, id=ids, path=np.array(paths, dtype=str), embedding=features, about=json.dumps(parts.job))
        else:
            # One key: safetensors writes several in any order, and the same job should give the same file.
            about = np.frombuffer(json.dumps(parts.job).encode(), np.uint8)
            tensors = {"id": ids, "embedding": features, "about": about}
            save_file(tensors, temporary, metadata={"path": json.dumps(paths)})
    rows, width = features.shape
    return rows, width


def _write_parquet(temporary: Path, parts: _Parts, manifest: Manifest, about: dict[str, str]) -> tuple[int, int]:
    writer, rows, width = None, 0, 0
    try:
        for part in parts.read():
            width = part["embedding"].shape[1]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(part["embedding"].reshape(-1)), width)
            paths = pa.array(manifest.relatives(part["id"]), type=pa.string())
            table = pa.table({"id": pa.array(part["id"]), "path": paths, "embedding": vectors})
            if writer is None:
                writer = pq.ParquetWriter(temporary, table.schema.with_metadata(about), compression="zstd")
            writer.write_table(table)
            rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return rows, width
