"""`export`: the encoder for use elsewhere, each file checked against PyTorch before it gets its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import torch

from ..data.pair_columns import Kind
from ..errors import BadInput
from ..files import atomic_write, check_output
from ..models.clip import LIBRARIES, ClipSetup
from ..models.encoder import Encoder, load_encoder
from ..models.mix import check_mix
from ..models.two_tower import TextTower, load_two_tower
from ..progress import Progress
from ..run_folder import RunFolder
from .export_card import loading_call, write_card
from .export_clip import export_clip
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
SENTENCES: Final = "sentence-transformers"


def export(
    run: str | os.PathLike[str],
    format: Literal["timm", "safetensors", "torchscript", "onnx", "sentence-transformers", "hugging-face", "open-clip"]
    | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    column: str | None = None,
    mix: float = 1.0,
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
    `hugging-face` and `open-clip` are folders with both towers of a run that started from such a model (`--clip`), which
    `transformers.AutoModel.from_pretrained(folder)` and `open_clip.create_model("local-dir:folder")` load.

    Args:
        run: A run's folder, or an exported encoder. Of a run on pairs, the image tower, or else the last text tower.
        format: timm and safetensors: weights that timm.create_model(checkpoint_path=) loads. sentence-transformers, hugging-face and open-clip: a folder. When left out: of a run from --clip its model's, on texts sentence-transformers, else timm.
        out: The file or folder; encoder (or image_tower, text_tower) with the suffix of its format, or hugging-face or open-clip, in the run's folder, when left out.
        column: Of a run on pairs: the column whose tower it is.
        mix: Of a run that began from weights (--pretrained, --clip, --init-from, --text-model): write a mix of these, 0, and of what it trained, 1 (WiSE-FT).
        quiet: Do not show how the file is loaded.

    Returns:
        The file, or the folder.

    Raises:
        BadInput: no such encoder or format, nothing to mix, its features are not finite, or a package that the format needs is missing.
        RunFailed: the file does not compute what PyTorch does; it is not kept.
    """
    if format is not None and format not in (known := (*SUFFIXES, SENTENCES, *LIBRARIES)):
        raise BadInput(f"there is no format {format!r}; give one of {', '.join(known)}")
    place, target = Path(run), None if out is None else Path(out)
    if mix != 1 and place.exists():
        _check_mixed(RunFolder(place), target, mix)
    columns = RunFolder(place).pair_columns()
    format = format or _usual_format(RunFolder(place), columns)
    if columns is None:
        if column is not None or format in (SENTENCES, *LIBRARIES):
            what = "--column" if column is not None else f"--format {format}"
            raise BadInput(f"{what} is for runs on pairs and {place} is none; leave it out")
        source = RunFolder(place).encoder_file if place.is_dir() else place
        run_of = RunFolder(place) if place.is_dir() else None
        return _accompany(load_encoder(place, mix=mix), format, source, target, run_of, mix, Progress(quiet))
    return _export_tower(RunFolder(place), columns, format, target, column, mix, Progress(quiet))


def _usual_format(
    run: RunFolder, columns: tuple[tuple[str, str], tuple[Kind, Kind]] | None
) -> Literal["timm", "sentence-transformers", "hugging-face", "open-clip"]:
    """Return the format when --format is left out, which a run with these columns has."""
    if columns is None:
        return "timm"
    if run.clip_folder.is_dir():
        return ClipSetup.load(run.clip_folder).library
    return "timm" if "images" in columns[1] else SENTENCES


def _check_mixed(run: RunFolder, target: Path | None, mix: float) -> None:
    """Check that a run's weights can be mixed, and that the mix does not take the place of one of them."""
    check_mix(run, mix)
    own = [p.resolve() for p in (run.encoder_file, run.two_tower_file, run.start_file)]
    if target is not None and target.resolve() in own:
        raise BadInput(f"--out {target} holds the run's own weights, which --mix is made of; give another name")


def _path_for(source: Path, format: str, mix: float) -> Path:
    """Return the path of a file that is made of another when --out is left out; a mix says so in its name."""
    return source.with_name(f"{source.stem}{'' if mix == 1 else f'-mix{mix:g}'}{SUFFIXES.get(format, '')}")


def _accompany(
    encoder: Encoder,
    format: str,
    source: Path,
    target: Path | None,
    run: RunFolder | None,
    mix: float,
    progress: Progress,
) -> Path:
    """Write an encoder of images with its model card, and show how the file is loaded without this package."""
    path = _export_images(encoder, format, source, target or _path_for(source, format, mix))
    card = write_card(path, encoder, format, run, mix)
    progress.info(f"card      {card}" if card else f"card      none: {path.parent / 'README.md'} is not ours and stays")
    progress.info(loading_call(encoder, str(path), format))
    return path


def _export_tower(
    run: RunFolder,
    columns: tuple[tuple[str, str], tuple[Kind, Kind]],
    format: str,
    target: Path | None,
    column: str | None,
    mix: float,
    progress: Progress,
) -> Path:
    """Write a tower of a run on pairs, whose columns have these names and hold these kinds."""
    names, kinds = columns
    if column is not None and column not in names:
        raise BadInput(f"{run.path} has no column {column!r}; its columns are {' and '.join(names)}")
    if format in LIBRARIES:
        if column is not None:
            raise BadInput(
                f"--format {format} is both towers of {run.path}; leave --column out, or give --format {' or '.join(TRACED)}"
            )
        return export_clip(run, format, target or _path_for(run.path / format, format, mix), mix, progress)
    if format not in TRACED and run.clip_folder.is_dir():
        setup = ClipSetup.load(run.clip_folder)
        raise BadInput(
            f"--format {format} does not go with the towers of {run.path}, which are those of a model of {setup.library}; "
            f"give {setup.library}, {' or '.join(TRACED)}"
        )
    if format not in (*TRACED, SENTENCES):
        if "images" not in kinds or column is not None:
            raise BadInput(
                f"--format {format} is the run's image backbone, without --column; for a tower of {run.path} give "
                f"{', '.join(TRACED)} or {SENTENCES}"
            )
        return _accompany(load_encoder(run.path, mix=mix), format, run.encoder_file, target, run, mix, progress)
    towers = load_two_tower(run, mix=mix)
    first_image = kinds.index("images") if "images" in kinds and format != SENTENCES else None
    usual = towers.texts().column if first_image is None else first_image
    chosen = usual if column is None else names.index(column)
    tower, of_kind = towers.towers[chosen], [k for k in (0, 1) if kinds[k] == kinds[chosen]]
    # named after its kind, but for another than that kind's usual one
    plain = towers.model.shared or chosen == (of_kind[0] if isinstance(tower, Encoder) else of_kind[-1])
    stem = ("" if plain else ("query_", "document_")[chosen]) + kinds[chosen].removesuffix("s") + "_tower"
    source = run.path / f"{stem}.safetensors"
    path = target or _path_for(source, format, mix)
    if isinstance(tower, TextTower):
        served = {names[k]: towers.texts(k) for k in (of_kind if towers.model.shared else [chosen])}
        if format == SENTENCES:
            return export_sentence_transformer(tower, list(served.values()), path)
        return export_text_tower(tower, served, format, path)
    if format == SENTENCES:
        raise BadInput(f"--format {format} is for texts and {column} holds images; give another --column")
    return _export_images(tower, format, source, path)


def _export_images(encoder: Encoder, format: str, source: Path, path: Path) -> Path:
    """Write an encoder of images.

    Args:
        encoder: what is written.
        format: one of `SUFFIXES`.
        source: the file that it comes from, which is left as it is.
        path: the new one.
    """
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
