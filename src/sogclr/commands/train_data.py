"""What a run is trained on, as its options name it."""

from __future__ import annotations

import os
from dataclasses import replace

from ..config.schema import TrainConfig
from ..data.pair_columns import ColumnNames
from ..data.pair_overlap import count_shared
from ..data.pairs import Pairs
from ..data.paths import as_path
from ..data.source import Source, kind_of, open_source
from ..data.tables import is_table
from ..errors import BadInput
from ..progress import Progress


def columns_of(config: TrainConfig) -> ColumnNames:
    """Return which columns of a table a configuration names."""
    pairs = config.pairs
    return ColumnNames(pairs.image_column, pairs.caption_column, pairs.columns)


def scan(data: str | os.PathLike[str], progress: Progress, columns: ColumnNames) -> Source:
    """Return what to train on: the pairs of DATA; or its images, or those of its `train/` part.

    Args:
        data: a folder, a list file, a table of pairs, or tar shards.
        progress: for messages and a bar.
        columns: of a table of pairs, as far as they are named.

    Raises:
        BadInput: DATA cannot be read, or columns are given and it holds images.
    """
    source = open_source(data, columns, progress=progress.callback("checking images"))
    part = source.training_part()
    if part is not None:
        progress.info(f"training on {part.root} (the rest of {data} is left for evaluation)")
    return part or source


def check_unchanged(source: Source, columns: ColumnNames, remedy: str) -> None:
    """Check that the samples of a run are as they were.

    Args:
        source: as the run lists them.
        columns: as they were opened with.
        remedy: what to do otherwise, for the message.

    Raises:
        BadInput: they have changed.
    """
    if difference := source.difference(source.rescan(columns)):
        raise BadInput(f"{difference.describe()}; {remedy}")


def validation_columns(config: TrainConfig, source: Source) -> ColumnNames:
    """Return which columns of the table of `--validation` are read: two, called as those of DATA.

    Args:
        config: with the columns that were named.
        source: what is trained on.
    """
    named = columns_of(config)
    if named.columns is not None:
        return replace(named, columns=",".join(named.columns.split(",")[:2]))
    tables = is_table(as_path(source.source)) and is_table(as_path(str(config.data.validation)))
    if tables and named == ColumnNames() and isinstance(source, Pairs) and source.kinds[0] == source.kinds[1]:
        return ColumnNames(columns=",".join(source.names))  # and not in the order that the other table has them
    return named


def scan_validation(config: TrainConfig, source: Source, progress: Progress) -> Source | None:
    """Return what the online evaluation is on; None without `--validation`.

    Args:
        config: of the run.
        source: what is trained on.
        progress: for messages and a bar.

    Raises:
        BadInput: it cannot be read, or holds something else than DATA.
    """
    data = config.data.validation
    if data is None:
        return None
    if kind_of(data).samples != source.kind:
        raise BadInput(
            f"--validation {data} holds {kind_of(data).samples} and {config.data.data} {source.kind}; give held-out {source.kind}"
        )
    found = open_source(data, validation_columns(config, source), progress=progress.callback("checking images"))
    if len(found.usable) < 2:
        raise BadInput(f"--validation {data} holds {len(found.usable)} usable {found.kind}; give 2 or more")
    shared = ""
    if isinstance(found, Pairs) and isinstance(source, Pairs):
        if found.kinds != source.kinds:
            raise BadInput(
                f"--validation {data} holds pairs of {' and '.join(found.kinds)} and {config.data.data} of "
                f"{' and '.join(source.kinds)}; give held-out pairs with the same columns"
            )
        if seen := count_shared(found, source, found.usable):
            shared = f"; {seen:,} of them are trained on"
    progress.info(f"held out  {found.describe()}{shared}")
    return found
