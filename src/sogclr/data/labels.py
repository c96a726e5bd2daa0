"""Class labels of a manifest's images, from folder names or a csv file. Used for evaluation only."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadInput
from .listing import first_few
from .manifest import Manifest

_PATH_HEADS = {"path", "file", "filename", "file_name", "image", "image_path"}
_GROUP_HEAD = "group"
_LABEL_HEADS = {"label", "class", "target", "category", "y"}


@dataclass(frozen=True)
class Labels:
    """Classes by name, and each image's."""

    classes: list[str]
    values: np.ndarray
    """int64 (n,), aligned with manifest ids; -1 = unknown."""
    source: str
    """'folder', 'shards', or the csv's name."""
    unknown_paths: int = 0
    """Rows of the csv that name no image of the manifest."""
    groups: np.ndarray | None = None
    """int64 (n,): which images belong together (one camera, patient or day); -1 = to no other. None where the csv has no such column."""


def read_labels(manifest: Manifest, how: str) -> Labels | None:
    """Read labels as `--labels` asks for: auto, folder, none, or the path of a csv file.

    `auto` means the classes that shards name; else `folder` when every usable image lies in one of two or more folders right below the root.

    Raises:
        BadInput: labels were asked for that are not there.
    """
    if how == "none":
        return None
    if how == "auto" and manifest.labels is not None:
        return _from_shards(manifest, manifest.labels)
    if how in ("auto", "folder"):
        return _from_folders(manifest, required=how == "folder")
    if Path(how).suffix.lower() != ".csv" and not Path(how).is_file():
        raise BadInput(f"labels {how!r} are neither auto, folder, none nor a csv file; give one of these")
    return _from_csv(manifest, Path(how))


def _from_shards(manifest: Manifest, labels: pa.LargeStringArray) -> Labels | None:
    encoded = pc.dictionary_encode(labels)
    names = encoded.dictionary.to_pylist()
    classes = in_order([name for name in names if name])
    code = {name: k for k, name in enumerate(classes)} | {"": -1}
    values = np.array([code[name] for name in names], np.int64)[encoded.indices.to_numpy()]
    return Labels(classes, values, "shards") if len(classes) > 1 else None


def _from_folders(manifest: Manifest, required: bool) -> Labels | None:
    names, tops = manifest.top_folders()
    usable = manifest.usable
    used = np.unique(tops[usable])
    loose = int((tops[usable] < 0).sum())
    if loose or len(used) < 2:
        if not required:
            return None
        found = f"{loose:,} images lie in no folder" if loose else f"there is only {len(used)} folder"
        raise BadInput(
            f"{manifest.root} has no class folders ({found}); put each class into a folder of its own, or leave --labels folder out"
        )
    classes = in_order([names[k] for k in used])
    new = np.full(len(names) + 1, -1, dtype=np.int64)  # the last entry serves tops of -1
    new[[names.index(c) for c in classes]] = np.arange(len(classes))
    return Labels(classes, new[tops], "folder")


def in_order(classes: Sequence[str]) -> list[str]:
    """Sort class names alphabetically, or by value when all are whole numbers."""
    if all(c.isdecimal() for c in classes):
        return sorted(classes, key=lambda c: (int(c), c))
    return sorted(classes)


def _from_csv(manifest: Manifest, path: Path) -> Labels:
    paths, labels, groups = _read_csv(path)
    there = pa.array(manifest.relatives(), type=pa.large_string())
    rows = _find(there, [os.path.normpath(p) for p in paths])
    others = np.flatnonzero(rows < 0)  # paths may also be absolute, or relative to the csv's own folder
    base = os.path.abspath(path.parent)
    rows[others] = _find(there, [os.path.relpath(os.path.join(base, paths[k]), manifest.root) for k in others])
    known = rows >= 0
    if not known.any():
        raise BadInput(
            f"none of the {len(paths):,} paths in {path} is an image of {manifest.root} (first: {first_few(paths)}); "
            f"give paths relative to that folder"
        )
    classes = in_order(sorted({label for label, k in zip(labels, known, strict=True) if k and label}))
    code = {name: k for k, name in enumerate(classes)} | {"": -1}
    values = np.full(len(manifest), -1, dtype=np.int64)
    for row, label, name in zip(rows.tolist(), labels, paths, strict=True):
        if row < 0:
            continue
        if values[row] not in (-1, code[label]):
            raise BadInput(f"{path} gives {name} the labels {classes[values[row]]!r} and {label!r}; keep one of them")
        values[row] = code[label]
    if len(classes) < 2:
        raise BadInput(f"{path} has {len(classes)} class for the images of {manifest.root}; two or more are needed")
    of_image = None if groups is None else np.full(len(manifest), -1, np.int64)
    if of_image is not None and groups is not None:
        number = {"": -1} | {name: k for k, name in enumerate(sorted({*groups} - {""}))}
        of_image[rows[known]] = [number[name] for name, k in zip(groups, known, strict=True) if k]
    return Labels(classes, values, path.name, int((~known).sum()), of_image)


def _find(there: pa.LargeStringArray, names: list[str]) -> np.ndarray:
    """Return where each name is, int64 (k,), or -1."""
    rows = pc.index_in(pa.array(names, type=pa.large_string()), value_set=there)
    places: np.ndarray = pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return places


def _read_csv(path: Path) -> tuple[list[str], list[str], list[str] | None]:
    """Return paths, labels, and groups where a heading names them."""
    if not path.is_file():
        raise BadInput(f"there is no labels file {path}; give a csv of path,label")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error):
        raise BadInput(f"{path} is no UTF-8 csv file; give one of path,label") from None
    where, what, group = 0, 1, None
    if rows:
        heads = [cell.strip().lower() for cell in rows[0]]
        path_column = next((k for k, h in enumerate(heads) if h in _PATH_HEADS), None)
        label_column = next((k for k, h in enumerate(heads) if h in _LABEL_HEADS), None)
        if path_column is not None and label_column is not None:
            where, what, rows = path_column, label_column, rows[1:]
            group = heads.index(_GROUP_HEAD) if _GROUP_HEAD in heads else None
    for number, row in enumerate(rows, 1):
        if len(row) <= max(where, what):
            raise BadInput(f"row {number} of {path} has {len(row)} column, fewer than path,label need; mend that row")
    if not rows:
        raise BadInput(f"{path} has no rows; give a csv of path,label")
    names = None if group is None else [row[group].strip() if len(row) > group else "" for row in rows]
    return [row[where].strip() for row in rows], [row[what].strip() for row in rows], names
