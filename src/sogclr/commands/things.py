"""What is embedded, images or texts: which of them DATA holds, and their features."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..data.manifest import Manifest
from ..data.pair_columns import Kind
from ..data.source import scan_images
from ..data.tables import is_table
from ..data.texts import Texts, holds_lines_of_text
from ..errors import BadInput
from ..models.encoder import Encoder
from ..models.features import Features
from ..models.run_encoders import RunEncoders
from ..models.two_tower import TextTower
from ..progress import ProgressCallback

Things = Manifest | Texts
_OTHERS: dict[Kind, str] = {
    "images": "give texts: a .txt file with one a line, or a table with --column NAME",
    "texts": "give images: a folder, or a .txt list of files",
}


def kind_of_things(
    data: str | os.PathLike[str], encoders: RunEncoders, column: str | None = None, as_column: str | None = None
) -> Kind:
    """Return what DATA holds, to be embedded with a run.

    A table has texts if a column is named, if things of a column of texts are wanted, or if the run knows no images.

    Args:
        data: a folder, a .txt file, a table, or tar shards.
        encoders: of the run.
        column: value of --column.
        as_column: value of --as.

    Raises:
        BadInput: DATA has no columns, or the run knows no such things.
    """
    place = Path(data)
    if column is not None and not is_table(place):
        raise BadInput(f"--column is for tables and {data} is none; leave it out")
    wants_texts = not encoders.columns("images") or as_column in [encoders.names[k] for k in encoders.columns("texts")]
    kind: Kind = "texts" if column or holds_lines_of_text(place) or (is_table(place) and wants_texts) else "images"
    if not encoders.columns(kind):
        there = f"{data} holds {kind}" if place.exists() else f"there is no {data}"
        raise BadInput(
            f"{encoders.run} was trained on {encoders.trained_on} and knows no {kind}, and {there}; {_OTHERS[kind]}"
        )
    return kind


def open_things(data: str | os.PathLike[str], kind: Kind, column: str) -> Things:
    """Return the images of DATA, or its texts.

    Args:
        data: what holds them.
        kind: what `kind_of_things` found.
        column: of a table of texts.

    Raises:
        BadInput: they cannot be read, or there are none.
    """
    return Texts.read(Path(data), column) if kind == "texts" else scan_images(data)


@torch.inference_mode()
def compute_text_features(
    tower: Encoder | TextTower,
    texts: Texts,
    ids: np.ndarray,
    *,
    batch_size: int = 256,
    progress: ProgressCallback | None = None,
) -> Features:
    """Compute the unit rows of some texts, as `compute_features` does of images.

    Args:
        tower: of texts, in evaluation mode.
        texts: what the ids are of.
        ids: int64 (m,).
        batch_size: texts.
        progress: called with (texts done, texts to do).

    Returns:
        Float32 (m, D) features, the ids, and nothing that cannot be read.
    """
    assert isinstance(tower, TextTower), "images have an encoder of their own"
    features = [np.empty((0, tower.num_features), np.float32)]
    for start in range(0, len(ids), batch_size):
        chunk = ids[start : start + batch_size]
        features.append(tower.encode(texts.relatives(chunk)).float().cpu().numpy())
        if progress is not None:
            progress(start + len(chunk), len(ids))
    return np.concatenate(features), ids, []
