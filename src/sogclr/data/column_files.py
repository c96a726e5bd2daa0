"""Named columns in a file, with a head of JSON: Parquet, or an Arrow file that is mapped into memory rather than read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput
from ..files import atomic_write


class RunFiles(Protocol):
    """Where a run keeps its samples: what `RunFolder` says of itself, as far as it matters here."""

    manifest_file: Path
    pairs_folder: Path


def write_columns(path: Path, columns: Mapping[str, pa.Array | np.ndarray], head: Mapping[str, Any]) -> None:
    """Write an Arrow file where the path ends in `.arrow`, Parquet elsewhere; whole or not at all."""
    table = pa.table(dict(columns)).combine_chunks().replace_schema_metadata({"sogclr": json.dumps(head)})
    with atomic_write(path) as temporary:
        if path.suffix != ".arrow":
            pq.write_table(table, temporary, write_page_checksum=True)
            return
        with pa.ipc.new_file(str(temporary), table.schema) as writer:
            for batch in table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]:
                writer.write_batch(batch)


def read_head(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the head that was written with the columns.

    Raises:
        KeyError: there is none.
    """
    if Path(path).suffix == ".arrow":
        with pa.memory_map(str(path)) as file:
            schema = pa.ipc.open_file(file).schema
    else:
        schema = pq.read_schema(path)
    head: dict[str, Any] = json.loads((schema.metadata or {})[b"sogclr"])
    return head


def read_columns(path: str | os.PathLike[str]) -> dict[str, pa.Array]:
    """Return the columns: mapped, or read one after the other, since a whole table would be there twice for a while."""
    if Path(path).suffix == ".arrow":
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        batch.validate()
        return dict(zip(batch.schema.names, batch.columns, strict=True))
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        return {name: parquet.read([name])[name].combine_chunks() for name in parquet.schema_arrow.names}


def saved_root(path: Path) -> tuple[str, str]:
    """Return the folder and the fingerprint of a saved manifest, from its head alone.

    Raises:
        BadInput: no manifest, or damaged.
    """
    try:
        head = read_head(path)
        return head["root"], head["fingerprint"]
    except FileNotFoundError:
        raise BadInput(f"there is no manifest {path}; the run folder is incomplete") from None
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise BadInput(f"{path} is no manifest of this project, or it is damaged; restore it from a copy") from None
