"""A `datasets.Dataset` of the Hugging Face package as a data set of (image, i); the package itself is not imported."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from ...data.images import decode
from ...errors import BadInput


def is_rows(dataset: Any) -> bool:
    """Return whether a data set is one of the `datasets` package: rows with named and typed columns."""
    return hasattr(dataset, "column_names") and hasattr(dataset, "cast_column")


class RowImages:
    """The images of a data set's rows; a row's id is its number.

    Args:
        rows: a `datasets.Dataset` with one column of images.

    Raises:
        BadInput: it is streamed, a dictionary of parts, or has no or several columns of images.
    """

    def __init__(self, rows: Any) -> None:
        if isinstance(rows.column_names, dict):
            parts = ", ".join(map(repr, rows.column_names))
            raise BadInput(
                f"dataset= has the parts {parts}; give one of them, as dataset=parts[{next(iter(rows), '')!r}]"
            )
        if not hasattr(rows, "__len__"):
            raise BadInput(
                "dataset= is streamed and its rows have no numbers, which each image needs; load it without streaming, or "
                "write it to Parquet files or tar shards and give these as DATA"
            )
        found = [name for name, feature in rows.features.items() if type(feature).__name__ == "Image"]
        if len(found) != 1:
            raise BadInput(
                f"dataset= has {len(found)} columns of images ({', '.join(found or rows.column_names)}); give it with one: "
                "dataset.select_columns([NAME]), after dataset.cast_column(NAME, datasets.Image()) if its type is another"
            )
        self.column = found[0]
        feature = type(rows.features[self.column])(decode=False)  # the bytes, which are decoded here as files are
        self.rows = rows.select_columns(found).cast_column(self.column, feature).with_format(None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return (image, index).

        Raises:
            BadImage: the image cannot be read.
        """
        cell = self.rows[index][self.column] or {}
        content, path = cell.get("bytes"), cell.get("path")
        return decode(io.BytesIO(content or b"") if content is not None or path is None else path), index
