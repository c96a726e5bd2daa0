"""A manifest on the disk: a Parquet file, or an Arrow file that is mapped into memory rather than read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput
from ..files import atomic_write


def write_columns(path: Path, table: pa.Table) -> None:
    """By the suffix, whole or not at all."""
    with atomic_write(path) as temporary:
        if path.suffix != ".arrow":
            pq.write_table(table, temporary)
            return
        with pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table.combine_chunks())


def read_head(path: str | os.PathLike[str]) -> dict[str, str]:
    """Format, root, source and fingerprint."""
    if Path(path).suffix == ".arrow":
        with pa.memory_map(str(path)) as file:
            schema = pa.ipc.open_file(file).schema
    else:
        schema = pq.read_schema(path)
    return json.loads((schema.metadata or {})[b"sogclr"])


def read_columns(path: str | os.PathLike[str]) -> dict[str, pa.Array]:
    """Mapped, or read one after the other: as a table and then in one piece each would be there twice at a time."""
    if Path(path).suffix == ".arrow":
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        return dict(zip(batch.schema.names, batch.columns, strict=True))
    with pq.ParquetFile(path) as parquet:
        return {name: parquet.read([name])[name].combine_chunks() for name in parquet.schema_arrow.names}


def saved_root(path: Path) -> tuple[str, str]:
    """The folder and the fingerprint that a saved manifest is of, from its head alone.

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
