"""Files of embeddings: ids, paths or texts, and vectors, with what they were made from and by."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from ..data.pair_columns import Kind
from ..errors import BadInput
from ..files import atomic_write
from .things import Things

SUFFIXES = (".parquet", ".npz", ".safetensors")
LABELS = {"images": "path", "texts": "text"}
"""Kind of things -> the column that says which they are."""
Job = dict[str, str | int]
"""What a file of embeddings is made from, and by."""


def check_names_fit(path: Path, things: Things) -> None:
    """Refuse too many paths or texts for a file: all but Parquet hold them whole.

    Args:
        path: of the file. The header of a .safetensors file has at most 100 MB; numpy gives all texts the longest's length.
        things: whose paths or texts they are.

    Raises:
        BadInput: they do not fit.
    """
    if path.suffix == ".parquet":
        return
    lengths = list(map(len, things.relatives(things.usable)))
    what = LABELS[things.kind] + "s"
    if path.suffix == ".safetensors" and sum(lengths) > 80_000_000:
        raise BadInput(
            f"{len(lengths):,} {what} are too many for the header of a .safetensors file; give a .parquet name"
        )
    if path.suffix == ".npz" and 4 * len(lengths) * max(lengths, default=0) > 8_000_000_000:
        raise BadInput(
            f"{len(lengths):,} {what} of up to {max(lengths):,} letters are too many for an .npz file; give a .parquet name"
        )


# ------------------------------------------------------------------------------------------------------------- writing
def write_embeddings(path: Path, parts: Iterable[dict[str, np.ndarray]], things: Things, job: Job) -> tuple[int, int]:
    """Write a file from its parts, whole or not at all, and return its rows and columns.

    Args:
        path: of the file, with one of `SUFFIXES`.
        parts: `embedding`, float (m, D), and `id`, int64 (m,), in order.
        things: what the ids are of.
        job: what the file is made from, and by.
    """
    label = LABELS[things.kind]
    with atomic_write(path) as temporary:
        if path.suffix == ".parquet":
            return _write_parquet(temporary, parts, things, {"sogclr": json.dumps(job)})
        tables = list(parts)
        ids = np.concatenate([t["id"] for t in tables])
        features = np.concatenate([t["embedding"] for t in tables])
        names = things.relatives(ids)
        if path.suffix == ".npz":
            columns = {"id": ids, label: np.array(names, dtype=str), "embedding": features}
            with open(temporary, "wb") as file:  # given a name, numpy would add .npz to it
                np.savez(file, **columns, about=json.dumps(job))  # type: ignore[arg-type]
        else:
            # One key: safetensors writes several in any order, and the same job should give the same file.
            about = np.frombuffer(json.dumps(job).encode(), np.uint8)
            tensors = {"id": ids, "embedding": features, "about": about}
            save_file(tensors, temporary, metadata={label: json.dumps(names)})
    rows, width = features.shape
    return rows, width


def _write_parquet(
    temporary: Path, parts: Iterable[dict[str, np.ndarray]], things: Things, about: dict[str, str]
) -> tuple[int, int]:
    writer, rows, width = None, 0, 0
    try:
        for part in parts:
            width = part["embedding"].shape[1]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(part["embedding"].reshape(-1)), width)
            names = pa.array(things.relatives(part["id"]), type=pa.string())
            table = pa.table({"id": pa.array(part["id"]), LABELS[things.kind]: names, "embedding": vectors})
            if writer is None:
                writer = pq.ParquetWriter(temporary, table.schema.with_metadata(about), compression="zstd")
            writer.write_table(table)
            rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return rows, width


# ------------------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True)
class EmbeddingFile:
    """A file of embeddings, by `sogclr embed` or by another program; its vectors are read when they are asked for."""

    path: Path
    kind: Kind
    names: list[str]
    """Paths of images, or texts."""
    about: Job
    """What it was made from and by; empty of another program's."""

    @classmethod
    def open(cls, path: Path) -> EmbeddingFile | None:
        """Read all but the vectors; None of a Parquet table of something else.

        Raises:
            BadInput: the file cannot be read.
        """
        about: str | bytes = "{}"
        try:
            if path.suffix == ".parquet":
                schema = pq.read_schema(path)
                kind = _kind(schema.names)
                if kind is None or "embedding" not in schema.names:
                    return None
                about = (schema.metadata or {}).get(b"sogclr", about)
                names = pq.read_table(path, columns=[LABELS[kind]])[LABELS[kind]].to_pylist()
            elif path.suffix == ".npz":
                with np.load(path) as file:
                    kind = _kind(file.files) or "images"
                    names = file[LABELS[kind]].tolist()
                    about = file["about"].item() if "about" in file else about
            else:
                with safe_open(path, framework="numpy") as file:
                    metadata = file.metadata() or {}
                    kind = _kind(list(metadata)) or "images"
                    names = json.loads(metadata[LABELS[kind]])
                    if "about" in file.keys():  # noqa: SIM118  (it is no mapping)
                        about = file.get_tensor("about").tobytes()
            return cls(path, kind, names, json.loads(about))
        except Exception as error:
            raise _unreadable(path, error) from None

    def rows(self) -> np.ndarray:
        """Read the vectors, floating (n, D).

        Raises:
            BadInput: the file cannot be read.
        """
        try:
            if self.path.suffix == ".parquet":
                vectors = pq.read_table(self.path, columns=["embedding"])["embedding"].combine_chunks()
                found = vectors.flatten().to_numpy().reshape(len(vectors), -1)
            elif self.path.suffix == ".npz":
                with np.load(self.path) as file:
                    found = file["embedding"]
            else:
                with safe_open(self.path, framework="numpy") as file:
                    found = file.get_tensor("embedding")
            if found.ndim != 2 or len(found) != len(self.names):
                raise ValueError
        except Exception as error:
            raise _unreadable(self.path, error) from None
        return np.array(found)


def _kind(labels: list[str]) -> Kind | None:
    kinds: tuple[Kind, Kind] = ("images", "texts")
    return next((kind for kind in kinds if LABELS[kind] in labels), None)


def _unreadable(path: Path, error: Exception) -> BadInput:
    return BadInput(f"{path} is no readable file of embeddings ({type(error).__name__}); write it with `sogclr embed`")
