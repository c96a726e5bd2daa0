"""`export`: the encoder for use elsewhere, each file checked against PyTorch before it gets its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from ..data.pair_columns import Kind
from ..errors import BadInput
from ..files import atomic_write, check_output
from ..models.encoder import Encoder, load_encoder
from ..models.two_tower import TextTower, load_two_tower
from ..progress import Progress
from ..run_folder import RunFolder
from .export_card import loading_call, write_card
from .export_formats import (
    SUFFIXES,
    check_same,
    preprocessing,
    run_onnx,
    run_timm,
    run_torchscript,
    write_onnx,
    write_timm,
    write_torchscript,
)
from .export_sentences import export_sentence_transformer
from .export_texts import export_text_tower

TRACED = ("torchscript", "onnx")
SENTENCES = "sentence-transformers"


def export(
    run: str | os.PathLike[str],
    format: Literal["timm", "safetensors", "torchscript", "onnx", "sentence-transformers"] = "timm",
    out: str | os.PathLike[str] | None = None,
    *,
    column: str | None = None,
    quiet: bool = False,
) -> Path:
    """Write the encoder for use elsewhere, checked against PyTorch.

    `timm` and `safetensors` are one file: `timm.create_model(name, num_classes=0, checkpoint_path=file)` loads it
    strictly, and so does `load_encoder`; for the models with a small stem, which timm does not know, the lines that are shown
    do. A model card, README.md, is written beside an encoder of images. TorchScript and ONNX take normalised float32 images (N, 3, S, S), any N, and give
    features (N, D). Of a run on pairs these two are a whole tower, with its projection: unit rows,
    to be multiplied with those of the other; `timm` is its backbone alone, as timm knows no projections.

    The tower of texts takes int64 tokens (N, L), any N and L, and has its tokenizer and a JSON of its prompts and lengths
    beside it. `sentence-transformers` is a folder with that tower, which `SentenceTransformer(folder)` loads.

    Args:
        run: A run's folder, or an exported encoder. Of a run on pairs, the image tower, or else the last text tower.
        format: timm and safetensors: weights that timm.create_model(checkpoint_path=) loads. sentence-transformers: a folder.
        out: The file or folder; encoder (or image_tower, text_tower) with the suffix of its format, in the run's folder, when left out.
        column: Of a run on pairs: the column whose tower it is.
        quiet: Do not show how the file is loaded.

    Returns:
        The file, or the folder.

    Raises:
        BadInput: no such encoder or format, its features are not finite, or a package that the format needs is missing.
        RunFailed: the file does not compute what PyTorch does; it is not kept.
    """
    if format not in (*SUFFIXES, SENTENCES):
        raise BadInput(f"there is no format {format!r}; give one of {', '.join((*SUFFIXES, SENTENCES))}")
    place, target = Path(run), None if out is None else Path(out)
    columns = RunFolder(place).pair_columns()
    if columns is None:
        if column is not None or format == SENTENCES:
            what = "--column" if column is not None else f"--format {format}"
            raise BadInput(f"{what} is for runs on pairs and {place} is none; leave it out")
        source = RunFolder(place).encoder_file if place.is_dir() else place
        run_of = RunFolder(place) if place.is_dir() else None
        return _accompany(load_encoder(place), format, source, target, run_of, Progress(quiet))
    return _export_tower(RunFolder(place), columns, format, target, column, Progress(quiet))


def _accompany(
    encoder: Encoder, format: str, source: Path, target: Path | None, run: RunFolder | None, progress: Progress
) -> Path:
    """Write an encoder of images with its model card, and show how the file is loaded without this package."""
    path = _export_images(encoder, format, source, target)
    card = write_card(path, encoder, format, run)
    progress.info(f"card      {card}" if card else f"card      none: {path.parent / 'README.md'} is not ours and stays")
    progress.info(loading_call(encoder, path, format))
    return path


def _export_tower(
    run: RunFolder,
    columns: tuple[tuple[str, str], tuple[Kind, Kind]],
    format: str,
    target: Path | None,
    column: str | None,
    progress: Progress,
) -> Path:
    """Write a tower of a run on pairs, whose columns have these names and hold these kinds."""
    names, kinds = columns
    if column is not None and column not in names:
        raise BadInput(f"{run.path} has no column {column!r}; its columns are {' and '.join(names)}")
    if format not in (*TRACED, SENTENCES):
        if "images" not in kinds or column is not None:
            raise BadInput(
                f"--format {format} is the run's image backbone, without --column; for a tower of {run.path} give "
                f"{', '.join(TRACED)} or {SENTENCES}"
            )
        return _accompany(load_encoder(run.path), format, run.encoder_file, target, run, progress)
    towers = load_two_tower(run)
    first_image = kinds.index("images") if "images" in kinds and format != SENTENCES else None
    usual = towers.texts().column if first_image is None else first_image
    chosen = usual if column is None else names.index(column)
    tower, of_kind = towers.towers[chosen], [k for k in (0, 1) if kinds[k] == kinds[chosen]]
    # named after its kind, but for another than that kind's usual one
    plain = towers.model.shared or chosen == (of_kind[0] if isinstance(tower, Encoder) else of_kind[-1])
    stem = ("" if plain else ("query_", "document_")[chosen]) + kinds[chosen].removesuffix("s") + "_tower"
    if isinstance(tower, TextTower):
        served = {names[k]: towers.texts(k) for k in (of_kind if towers.model.shared else [chosen])}
        if format == SENTENCES:
            return export_sentence_transformer(tower, list(served.values()), target or run.path / stem)
        return export_text_tower(tower, served, format, target or run.path / f"{stem}{SUFFIXES[format]}")
    if format == SENTENCES:
        raise BadInput(f"--format {format} is for texts and {column} holds images; give another --column")
    return _export_images(tower, format, run.path / f"{stem}.safetensors", target)


def _export_images(encoder: Encoder, format: str, source: Path, target: Path | None) -> Path:
    """Write an encoder of images.

    Args:
        encoder: what is written.
        format: one of `SUFFIXES`.
        source: the file whose name the new one takes, with another suffix.
        target: the new one, where it was given.
    """
    path = source.with_suffix(SUFFIXES[format]) if target is None else target
    check_output(path, [SUFFIXES[format]])
    if path.resolve() == source.resolve():
        _check_images(path, encoder, format)
        return path
    size = encoder.info.image_size
    with atomic_write(path) as temporary:
        if format == "torchscript":
            write_torchscript(temporary, encoder.backbone, torch.zeros(2, 3, size, size))
        elif format == "onnx":
            about = preprocessing(encoder.info)
            write_onnx(temporary, encoder.backbone, torch.zeros(2, 3, size, size), "images", metadata=about)
        else:
            write_timm(temporary, encoder)
        _check_images(temporary, encoder, format)
    return path


def _check_images(path: Path, encoder: Encoder, format: str) -> None:
    """Compare a file with PyTorch, on another number of images than it was traced with."""
    size = encoder.info.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if format in TRACED:
            found = run_torchscript(path, images) if format == "torchscript" else run_onnx(path, images)
        else:
            found = run_timm(path, encoder, images)
        check_same(found, encoder(images), encoder.info.name, "try --format timm")
