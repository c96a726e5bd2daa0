"""Images whose bytes lie inside Parquet or Arrow files, as the data sets of the Hugging Face hub have them.

A row of such a file cannot be read alone: the bytes of all images are copied once, in blocks, into one file in the cache
folder, and read from there at their offsets. That file belongs to the table's path and its version.
"""

from __future__ import annotations

import json
import shutil
import zlib
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import BadInput
from ..files import atomic_write
from .pair_columns import CAPTION_COLUMNS, IMAGE_COLUMNS
from .paths import AnyPath, status_of, unpacked_file, write_checksums
from .tables import damaged_table

_LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category")
_ROWS = 64  # read at a time


def has_images(path: AnyPath) -> bool:
    """Return whether a file holds the bytes of images."""
    with path.open("rb") as file:
        schema = _schema(path, file)
    return schema is not None and image_column(schema) is not None


def has_captions(path: AnyPath) -> bool:
    """Return whether a file has a column of captions under a usual name."""
    with path.open("rb") as file:
        schema = _schema(path, file)
    return schema is not None and _column(schema, CAPTION_COLUMNS) is not None


def image_column(schema: pa.Schema) -> str | None:
    """Return the column with the bytes of images: a struct that has `bytes`, or bytes under a usual name."""
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    found = _column(schema, IMAGE_COLUMNS)
    return found if found is not None and _is_binary(schema.field(found).type) else None


def unpack(path: AnyPath) -> Iterator[dict[str, Any]]:
    """Copy the bytes of all images of a table, and yield for each row where they are and what else it says.

    Yields:
        `key`, `name` (None where there is no image), `offset`, `size`, `captions`, `label` and `bad`.

    Raises:
        BadInput: the table cannot be read, or there is no room on the disk.
    """
    status = status_of(path)
    target = unpacked_file(path, status.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(target.parent).free
    _check_room(path, status.size, room)
    with atomic_write(target) as temporary, open(temporary, "wb") as images, path.open("rb") as file:
        checksums = array("q")
        with damaged_table(path):
            yield from _copy(path, file, images, room, checksums)
        write_checksums(target, np.array(checksums).reshape(-1, 2).T)


def _check_room(path: AnyPath, size: int, room: int) -> None:
    if size > room:
        raise BadInput(
            f"the images in {path} take more than {room / 2**30:,.1f} GiB, which is what the cache folder has free; "
            "give another folder in SOGCLR_CACHE"
        )


def _copy(
    path: AnyPath, file: BinaryIO, images: BinaryIO, room: int, checksums: array[int]
) -> Iterator[dict[str, Any]]:
    row = 0
    for batch in _batches(path, file):
        pictures = batch.column(str(image_column(batch.schema)))
        if pa.types.is_struct(pictures.type):
            pictures = pc.struct_field(pictures, "bytes")
        caption, label = _column(batch.schema, CAPTION_COLUMNS), _column(batch.schema, _LABEL_COLUMNS)
        classes = _classes(batch.schema, label)
        for k, picture in enumerate(pictures):
            key, offset, content = f"{row:09d}", images.tell(), picture.as_buffer() if picture.is_valid else b""
            _check_room(path, offset + len(content), room)  # compressed ones may be far larger than their file
            size = images.write(content)
            if size:
                checksums.extend((offset, zlib.crc32(content)))
            texts = None if caption is None else batch.column(caption)[k].as_py()
            value = None if label is None else batch.column(label)[k].as_py()
            yield {
                "key": key,
                "name": key if size else None,
                "offset": offset,
                "size": size,
                "captions": texts if texts is None or isinstance(texts, list) else [texts],
                "label": None if value is None else classes.get(value, str(value)),
                "bad": None if size else "has no bytes of an image",
            }
            row += 1


def _batches(path: AnyPath, file: BinaryIO) -> Iterator[pa.RecordBatch]:
    schema = _schema(path, file)
    if schema is None:
        raise BadInput(f"{path} is no Parquet or Arrow file; write it again")
    wanted = [str(image_column(schema)), _column(schema, CAPTION_COLUMNS), _column(schema, _LABEL_COLUMNS)]
    names = list(dict.fromkeys(name for name in wanted if name is not None))
    if path.suffix.lower() == ".parquet":
        parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        for batch in parquet.iter_batches(_ROWS, columns=names):
            yield batch.replace_schema_metadata(schema.metadata)
        return
    for batch in pa.ipc.open_stream(file):
        yield batch.select(names).replace_schema_metadata(schema.metadata)


def _schema(path: AnyPath, file: BinaryIO) -> pa.Schema | None:
    """Return the columns of a file, which is left at its start; None where it is no such file."""
    try:
        found = pq.read_schema(file) if path.suffix.lower() == ".parquet" else pa.ipc.open_stream(file).schema
    except (pa.ArrowException, OSError, UnicodeError):  # the second for what thrift cannot read
        return None
    file.seek(0)
    return found


def _column(schema: pa.Schema, usual: tuple[str, ...]) -> str | None:
    lower = {name.strip().lower(): name for name in reversed(schema.names)}
    return next((lower[name] for name in usual if name in lower), None)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _classes(schema: pa.Schema, label: str | None) -> dict[Any, str]:
    """Return the names of numbered classes, as the `datasets` package writes them into a file's head."""
    try:
        head = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(enumerate(map(str, head["info"]["features"][label]["names"])))
    except (ValueError, KeyError, TypeError):
        return {}
