"""Rows of pairs from CSV, TSV, JSONL and Parquet files; a row that cannot be used is kept apart, with its reason.

Each of the two columns holds images, by their paths, or texts; a third may hold texts that are no match of the first.
"""

from __future__ import annotations

import contextlib
import csv
import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput
from .images import IMAGE_SUFFIXES
from .pair_columns import IMAGE_COLUMNS, IMAGE_TEXT, ColumnNames, Columns, Kind, find_columns
from .paths import AnyPath
from .text_columns import BLOCK, TextColumn

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_SEPARATORS = ",\t;|"


_LOOKED_AT = 64  # rows that say what their columns hold


class BadRow(ValueError):
    """One row cannot be used; the text is the reason."""


class PairRows:
    """The rows of a table of pairs, one a pair, and what was left out; it grows row by row.

    Args:
        kinds: what the two columns hold.
        names: how they are called.
        rejected: where (file and line, reason) of what is left out is added.

    Attributes:
        first, second: images as they are written; texts without white space around them, not empty.
        negatives: the hard negatives of all pairs, texts.
        negative_rows: the pair of each.
    """

    def __init__(
        self,
        kinds: tuple[Kind, Kind] = IMAGE_TEXT,
        names: tuple[str, str] = ("image", "caption"),
        rejected: list[tuple[str, str]] | None = None,
    ) -> None:
        self.kinds, self.names = kinds, names
        self.first, self.second, self.negatives = TextColumn(), TextColumn(), TextColumn()
        self.negative_rows = array("q")
        self.rejected = [] if rejected is None else rejected

    def __len__(self) -> int:
        return len(self.first)

    def columns(self, kind: Kind) -> list[TextColumn]:
        """Return the columns that hold things of a kind; the hard negatives are the last of the texts."""
        both = zip((self.first, self.second), self.kinds, strict=True)
        return [column for column, k in both if k == kind] + ([self.negatives] if kind == "texts" else [])

    def add(self, where: str, first: Any, seconds: Any, negatives: Any = None) -> None:
        """Add a pair; or several, of one thing with each of a list.

        Args:
            where: file and line, for messages.
            first: what the table holds there, of any type; text is what can be used.
            seconds: the same, or a list of such.
            negatives: hard negatives, one or a list; empty ones are left out.
        """
        try:
            one = clean_cell(first, self.kinds[0], self.names[0])
            wrong = [clean_cell(v, "texts", "negative") for v in _listed(negatives) if not _is_blank(v)]
        except BadRow as error:
            self.rejected.append((where, str(error)))
            return
        for value in _listed(seconds) or [None]:
            try:
                other = clean_cell(value, self.kinds[1], self.names[1])
            except BadRow as error:
                self.rejected.append((where, str(error)))
                continue
            self.negative_rows.extend([len(self)] * len(wrong))
            for text in wrong:
                self.negatives.append(text)
            self.first.append(one)
            self.second.append(other)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes) and not value.strip())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def clean_cell(value: Any, kind: Kind, name: str) -> str:
    """Return a cell as it is kept: an image's path, or a text with single spaces.

    Raises:
        BadRow: there is no text in it.
    """
    text = _text(value, "image" if kind == "images" and name in IMAGE_COLUMNS else name)
    return text if kind == "images" else " ".join(text.split())


def _text(value: Any, what: str) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"has an empty {what}" if value is not None else f"has no {what}")
    if not isinstance(value, str):
        article = "an" if what[:1].lower() in "aeiou" else "a"
        raise BadRow(f"has {article} {what} that is no text but {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow(f"has {'an image path' if what == 'image' else f'a {what}'} that is not UTF-8") from None
    return value.strip()


def is_table(path: AnyPath) -> bool:
    """Return whether DATA is a table of pairs, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def read_rows(path: AnyPath, asked: ColumnNames | None = None) -> PairRows:
    """Read all rows of a table of pairs, its kind by the suffix.

    Args:
        path: a CSV, TSV, JSONL or Parquet file.
        asked: the columns; found by their names, or by being the only two, as far as they are left out.

    Raises:
        BadInput: no such file, an unreadable one, or no such columns.
    """
    if not path.is_file():
        raise BadInput(f"there is no table {path}; give a CSV, TSV, JSONL or Parquet file of pairs")
    asked = asked or ColumnNames()
    rejected: list[tuple[str, str]] = []
    table = read_cells(path, asked, rejected)
    columns: Columns = next(table)
    head: list[_Row] = list(islice(table, _LOOKED_AT))
    kinds = columns.kinds or (_kind(head, 1), _kind(head, 2))
    if len(columns.names) > 2 and kinds[1] != "texts":
        raise BadInput(
            f"{path} has images in its column {columns.names[1]}, and --columns names hard negatives of them "
            f"({columns.names[2]}), which can be texts only; leave the third name out"
        )
    swapped = kinds == ("texts", "images")  # images come first wherever there are both
    first, second = columns.names[1::-1] if swapped else columns.names[:2]
    rows = PairRows(IMAGE_TEXT if swapped else kinds, (first, second), rejected)
    for where, *values in chain(head, table):
        if not swapped:
            rows.add(where, *values)
        else:
            for image in _listed(values[1]) or [None]:
                rows.add(where, image, values[0])
    return rows


def read_cells(path: AnyPath, asked: ColumnNames, rejected: list[tuple[str, str]]) -> Iterator[Any]:
    """Yield the columns, and then the rows as (where, cell, ...); what is no row at all is added to `rejected`.

    Raises:
        BadInput: an unreadable table, or no such columns.
    """
    read = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(path.suffix.lower(), _csv)
    try:
        yield from read(path, asked, rejected)
    except UnicodeError:  # of UTF-16; bytes that are no UTF-8 are looked at row by row
        raise BadInput(f"{path} is no whole UTF-16 text; write it again") from None


def _kind(rows: Sequence[_Row], place: int) -> Kind:
    """Return what a column holds: images, if most of its values end as names of image files do."""
    values = [value for row in rows for value in _listed(row[place]) if isinstance(value, str | bytes) and value]
    names = sum(
        is_image_name(value if isinstance(value, str) else value.decode("utf-8", "replace")) for value in values
    )
    return "images" if values and 2 * names > len(values) else "texts"


# ---------------------------------------------------------------------------------------------------------- CSV and TSV
_Row = tuple[Any, ...]
"""Where it stands, and the cells of the columns."""


def _csv(path: AnyPath, asked: ColumnNames, rejected: list[tuple[str, str]]) -> Iterator[Any]:
    """Yield the columns, and then the rows."""
    with path.open("rb") as start:
        encoding = "utf-16" if start.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=_separator(path, first, asked))
        names = next(reader, [])
        if not any(name.strip() for name in names):
            raise BadInput(f"{path} is empty; its first line must name the columns")
        if asked == ColumnNames() and len(names) == 2 and is_image_name(names[0]):
            places = [0, 1]  # no header: a path and a caption, or another path
            yield Columns(("image", "caption"), None)
            yield f"{path.name}:1", *names
        else:
            columns = find_columns(path, names, asked)
            places = [names.index(name) for name in columns.names]
            yield columns
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
                yield where, *(row[place] for place in places)
            elif any(cell.strip() for cell in row):
                rejected.append((where, f"has {len(row)} of {len(names)} columns"))


def is_image_name(text: str) -> bool:
    """Return whether a text ends as the names of image files do."""
    return Path(text.strip()).suffix.lower() in IMAGE_SUFFIXES


def _separator(path: AnyPath, head: str, asked: ColumnNames) -> str:
    """Return the separator with which the first line holds the columns that are looked for; else the most frequent one."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    found = {}
    for separator in _SEPARATORS:
        names = next(csv.reader([head], delimiter=separator), [])
        with contextlib.suppress(BadInput):
            found[separator] = find_columns(path, names, asked)
    # by their names rather than by being two
    named = [separator for separator, columns in found.items() if asked.columns or columns.kinds]
    return next(iter([*named, *found]), max(_SEPARATORS, key=head.count))


# ---------------------------------------------------------------------------------------------------- JSONL and Parquet
def _jsonl(path: AnyPath, asked: ColumnNames, rejected: list[tuple[str, str]]) -> Iterator[Any]:
    """Yield the columns, and then the rows."""
    columns: Columns | None = None
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
                columns = find_columns(path, list(entry), asked)
                yield columns
            yield where, *(entry.get(name) for name in columns.names)
    if columns is None:
        raise BadInput(f"{path} holds no JSON object; give one a line, with the two sides of a pair")


@contextlib.contextmanager
def damaged_table(path: AnyPath, kind: str = "") -> Iterator[None]:
    """Make one sentence of what pyarrow says of a file that it cannot read; a fault of the disk stays what it is.

    Raises:
        BadInput: the file cannot be read; `kind`, as " as Parquet", is in the sentence.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:  # the second also for what thrift cannot read
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadInput(f"{path} cannot be read{kind} ({str(error).splitlines()[0]}); write it again") from None


def _parquet(path: AnyPath, asked: ColumnNames, rejected: list[tuple[str, str]]) -> Iterator[Any]:
    """Yield the columns, and then the rows."""
    with damaged_table(path, " as Parquet"):
        file = pq.ParquetFile(path if isinstance(path, Path) else path.open("rb"), memory_map=True)
        columns = find_columns(path, file.schema_arrow.names, asked)
        yield columns
        number = 0
        for batch in file.iter_batches(BLOCK, columns=list(dict.fromkeys(columns.names))):
            for values in zip(*(_values(batch.column(name)) for name in columns.names), strict=True):
                number += 1
                yield f"{path.name}:{number}", *values


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
