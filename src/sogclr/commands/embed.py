"""`sogclr embed`: a file of embeddings that survives an interruption."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from ..models.features import compute_features, load_image_encoder, nothing_readable
from ..progress import ProgressCallback

SUFFIXES = (".parquet", ".npz", ".safetensors")
PART_ROWS = 8192  # images between two savings


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` wrote; as text, one line for people."""

    path: Path
    images: int
    width: int
    bad: int
    """Images that could not be read; they have no row."""

    def __str__(self) -> str:
        lost = f"; {self.bad:,} files could not be read, see {_bad_file(self.path)}" if self.bad else ""
        return f"{self.path}: {self.images:,} embeddings of {self.width:,} numbers{lost}"


# ------------------------------------------------------------------------------------------------------------ the file
def embed(
    run_or_file: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> EmbedResult:
    """Write the embeddings of every image of a folder, a list file, a table of pairs or tar shards.

    They are backbone features; of a run on pairs, unit vectors in the common space of images and texts.

    The file holds `id` (int64, the place in the sorted list of files), `path` (relative to DATA; in a .safetensors file
    as a JSON list in the metadata) and `embedding` (float32 or float16, computed in float32 on any device). What it was made
    from and by is there too, as JSON: `about` (in a .safetensors file its bytes; in Parquet the metadata `sogclr`). What is
    done is kept beside it every 8,192 images, and the same call goes on from there.

    Args:
        run_or_file: a run's folder, or an exported encoder.
        out: .parquet (written in parts: for any number of images), .npz or .safetensors (assembled in memory).
        workers: processes that read images; None chooses from the cores.
        device: auto, cpu, cuda, mps.
        progress: called with (images done, images to do).

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
        with computing_on(device, workers) as (chosen, readers):
            encoder = load_image_encoder(run_or_file, chosen)
            manifest = scan_images(data)
            _check_paths_fit(path, manifest)
            job = {
                "sogclr": __version__, "encoder": str(run_or_file), "model": encoder.info.name, "data": str(data),
                "weights": encoder.fingerprint(), "images": manifest.fingerprint, "dtype": dtype, "part_rows": PART_ROWS,
            }  # fmt: skip
            parts = _Parts(path, job, manifest.usable)
            ids, total = manifest.usable, len(manifest.usable)
            for number in parts.missing():
                rows = ids[number * PART_ROWS : (number + 1) * PART_ROWS]
                base = number * PART_ROWS

                def report(done: int, _: int, base: int = base) -> None:
                    if progress is not None:
                        progress(base + done, total)

                features, kept, bad = compute_features(
                    encoder, manifest, rows, batch_size=batch_size, workers=readers, device=chosen, progress=report
                )
                parts.write(number, _as_type(features, dtype), kept, bad)
        bad_rows = [*manifest.bad, *parts.bad()]
        if len(bad_rows) == len(manifest):
            parts.remove()
            raise nothing_readable(manifest, bad_rows)
        images, width = _assemble(path, parts, manifest, job)
        _bad_file(path).unlink(missing_ok=True)
        if bad_rows:
            write_bad_files(_bad_file(path), [(manifest.relative(i), reason) for i, reason in bad_rows])
        parts.remove()
        return EmbedResult(path, images, width, len(bad_rows))


def _as_type(features: np.ndarray, dtype: str) -> np.ndarray:
    refuse_non_finite(features)
    largest, limit = float(np.abs(features).max(initial=0.0)), float(np.finfo(dtype).max)
    if largest > limit:
        raise BadInput(f"the features go up to {largest:.3g} and {dtype} goes up to {limit:.3g}; use --dtype float32")
    return features.astype(dtype)


def _bad_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.bad_files.txt")


class _Parts:
    """The finished pieces of an embedding file, in a hidden folder beside it; pieces of another job are thrown away."""

    def __init__(self, path: Path, job: dict[str, Any], ids: np.ndarray) -> None:
        self.folder = path.with_name(f".{path.name}.parts")
        self.count = math.ceil(len(ids) / PART_ROWS)
        head = self.folder / "job.json"
        text = json.dumps(job, sort_keys=True)
        if not (head.is_file() and head.read_text(encoding="utf-8") == text):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._job = (head, text)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def missing(self) -> list[int]:
        return [k for k in range(self.count) if not self._file(k).is_file()]

    def write(self, number: int, features: np.ndarray, ids: np.ndarray, bad: list[tuple[int, str]]) -> None:
        if not self.folder.is_dir():  # with the first piece: a refusal before it leaves nothing behind
            self.folder.mkdir(parents=True)
            write_text(*self._job)
        with atomic_write(self._file(number)) as temporary:
            save_file({"embedding": features, "id": ids}, temporary, metadata={"bad": json.dumps(bad)})

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        return (load_file(self._file(k)) for k in range(self.count))

    def bad(self) -> list[tuple[int, str]]:
        found = []
        for k in range(self.count):
            with safe_open(self._file(k), framework="numpy") as file:
                found += [(int(i), reason) for i, reason in json.loads(file.metadata()["bad"])]
        return found

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _check_paths_fit(path: Path, manifest: Manifest) -> None:
    """Safetensors keeps the paths in its header, which may have 100 MB."""
    if path.suffix == ".safetensors" and sum(map(len, manifest.relatives())) > 80_000_000:
        raise BadInput(
            f"{len(manifest):,} paths are too many for the header of a .safetensors file; give a .parquet name"
        )


def _assemble(path: Path, parts: _Parts, manifest: Manifest, job: dict[str, Any]) -> tuple[int, int]:
    """Write the file from its parts, whole or not at all; returns its rows and columns."""
    with atomic_write(path) as temporary:
        if path.suffix == ".parquet":
            return _write_parquet(temporary, parts, manifest, {"sogclr": json.dumps(job)})
        tables = list(parts.read())
        ids = np.concatenate([t["id"] for t in tables])
        features = np.concatenate([t["embedding"] for t in tables])
        paths = manifest.relatives(ids)
        if path.suffix == ".npz":
            with open(temporary, "wb") as file:  # given a name, numpy would add .npz to it
                np.savez(file, id=ids, path=np.array(paths, dtype=str), embedding=features, about=json.dumps(job))
        else:
            # One key: safetensors writes several in any order, and the same job should give the same file.
            about = np.frombuffer(json.dumps(job).encode(), np.uint8)
            tensors = {"id": ids, "embedding": features, "about": about}
            save_file(tensors, temporary, metadata={"path": json.dumps(paths)})
    return features.shape


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
