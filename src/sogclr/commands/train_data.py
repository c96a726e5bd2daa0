"""What a run is trained on, as its options name it."""

from __future__ import annotations

import os

from ..config.schema import TrainConfig
from ..data.pair_columns import ColumnNames
from ..data.source import Source, open_source
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
