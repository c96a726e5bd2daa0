"""Rows of (image, caption) from CSV, TSV, JSONL and Parquet files; a row that cannot be used is kept apart, with its reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput
from .images import IMAGE_SUFFIXES
from .paths import AnyPath
from .text_columns import BLOCK, TextColumn

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "file", "path", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "txt")
_SEPARATORS = ",\t;|"


class BadRow(ValueError):
    """One row cannot be used; the text is the reason."""


class PairRows:
    """The rows of a table of pairs, one a pair, and what was left out; it grows row by row.

    Attributes:
        image: the images, as they are written.
        caption: the captions, without white space around them, not empty.
        rejected: (file and line, reason).
    """

    def __init__(self) -> None:
        self.image, self.caption = TextColumn(), TextColumn()
        self.rejected: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.image)

    def add(self, where: str, image: Any, captions: Any) -> None:
        """Add an image with its caption, or with a list of them.

        Args:
            where: file and line, for messages.
            image: what the table holds there, of any type; text is what can be used.
            captions: the same, or a list of such.
        """
        try:
            image = _text(image, "image")
        except BadRow as error:
            self.rejected.append((where, str(error)))
            return
        several = captions if isinstance(captions, list) else [captions]
        for caption in several or [None]:
            try:
                caption = " ".join(_text(caption, "caption").split())
            except BadRow as error:
                self.rejected.append((where, str(error)))
                continue
            self.image.append(image)
            self.caption.append(caption)


def _text(value: Any, what: str) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"has an empty {what}" if value is not None else f"has no {what}")
    if not isinstance(value, str):
        raise BadRow(f"has an {what} that is no text but {type(value).__name__}".replace("an caption", "a caption"))
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow(f"has {'an image path' if what == 'image' else 'a caption'} that is not UTF-8") from None
    return value.strip()


def is_table(path: AnyPath) -> bool:
    """Return whether DATA is a table of pairs, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def read_rows(path: AnyPath, image_column: str | None = None, caption_column: str | None = None) -> PairRows:
    """Read all rows of a table of pairs, its kind by the suffix.

    Args:
        path: a CSV, TSV, JSONL or Parquet file.
        image_column: the column of the images' paths; found by its name when left out.
        caption_column: the column of the captions; found by its name when left out.

    Raises:
        BadInput: no such file, an unreadable one, or no such columns.
    """
    if not path.is_file():
        raise BadInput(f"there is no table {path}; give a CSV, TSV, JSONL or Parquet file of images and captions")
    rows = PairRows()
    read = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(path.suffix.lower(), _csv)
    for where, image, captions in read(path, image_column, caption_column, rows.rejected):
        rows.add(where, image, captions)
    return rows


# -------------------------------------------------------------------------------------------------------------- columns
def find_columns(path: AnyPath, names: list[str], image: str | None, caption: str | None) -> tuple[str, str]:
    """Find the names of the two columns: those asked for, else the usual ones.

    Raises:
        BadInput: not there; the message lists what is.
    """
    return (
        _find(path, names, image, IMAGE_COLUMNS, "image"),
        _find(path, names, caption, CAPTION_COLUMNS, "caption"),
    )


def _find(path: AnyPath, names: list[str], asked: str | None, usual: tuple[str, ...], what: str) -> str:
    if asked is not None:
        if asked in names:
            return asked
        raise BadInput(f"{path} has no column {asked!r}; its columns are {', '.join(names)}")
    lower = {name.strip().lower(): name for name in reversed(names)}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise BadInput(
            f"{path} has no {what} column under a usual name ({', '.join(usual[:4])}, ...); its columns are "
            f"{', '.join(names)}: name one with --{what}-column"
        )
    return found


# ---------------------------------------------------------------------------------------------------------- CSV and TSV
_Row = tuple[str, Any, Any]


def _csv(path: AnyPath, image: str | None, caption: str | None, rejected: list[tuple[str, str]]) -> Iterator[_Row]:
    with path.open("rb") as start:
        encoding = "utf-16" if start.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=_separator(path, first, image, caption))
        names = next(reader, [])
        if not any(name.strip() for name in names):
            raise BadInput(f"{path} is empty; its first line must name the columns")
        if image is None and caption is None and len(names) == 2 and _is_image_name(names[0]):
            places, rows = (0, 1), [names]  # no header: a path and a caption
        else:
            columns = find_columns(path, names, image, caption)
            places, rows = (names.index(columns[0]), names.index(columns[1])), []
        for row in rows:
            yield f"{path.name}:1", row[places[0]], row[places[1]]
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                rejected.append((f"{path.name}:{reader.line_num}", f"cannot be read ({error})"))
                continue
            where = f"{path.name}:{reader.line_num}"
            if len(row) > max(places):
                yield where, row[places[0]], row[places[1]]
            elif any(cell.strip() for cell in row):
                rejected.append((where, f"has {len(row)} of {len(names)} columns"))


def _is_image_name(text: str) -> bool:
    return Path(text.strip()).suffix.lower() in IMAGE_SUFFIXES


def _separator(path: AnyPath, head: str, image: str | None, caption: str | None) -> str:
    """Return the separator with which the first line holds the columns that are looked for; else the most frequent one."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    for separator in _SEPARATORS:
        names = next(csv.reader([head], delimiter=separator), [])
        try:
            find_columns(path, names, image, caption)
            return separator
        except BadInput:
            continue
    return max(_SEPARATORS, key=head.count)


# ---------------------------------------------------------------------------------------------------- JSONL and Parquet
def _jsonl(path: AnyPath, image: str | None, caption: str | None, rejected: list[tuple[str, str]]) -> Iterator[_Row]:
    columns: tuple[str, str] | None = None
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                rejected.append((where, "is no JSON"))
                continue
            if not isinstance(entry, dict):
                rejected.append((where, "is no JSON object"))
                continue
            if columns is None:
                columns = find_columns(path, list(entry), image, caption)
            yield where, entry.get(columns[0]), entry.get(columns[1])
    if columns is None:
        raise BadInput(f"{path} holds no JSON object; give one a line, with an image and a caption")


def _parquet(path: AnyPath, image: str | None, caption: str | None, rejected: list[tuple[str, str]]) -> Iterator[_Row]:
    try:
        file = pq.ParquetFile(path if isinstance(path, Path) else path.open("rb"), memory_map=True)
        columns = find_columns(path, file.schema_arrow.names, image, caption)
        number = 0
        for batch in file.iter_batches(BLOCK, columns=list(dict.fromkeys(columns))):
            images, captions = batch.column(columns[0]), batch.column(columns[1])
            for one, text in zip(_values(images), _values(captions), strict=True):
                number += 1
                yield f"{path.name}:{number}", one, text
    except pa.ArrowException as error:
        raise BadInput(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); write it again") from None


def _values(column: pa.Array) -> list[Any]:
    """Return Python values; text that is not UTF-8 comes as bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values
