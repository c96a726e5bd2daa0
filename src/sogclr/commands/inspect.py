"""`sogclr inspect`: what is in a run, a folder or list of images, or an encoder file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.images import decode as decode_image
from ..data.labels import read_labels
from ..data.manifest import Manifest
from ..data.pair_columns import ColumnNames
from ..data.pairs import Pairs
from ..data.paths import AnyPath, as_path
from ..data.source import kind_of
from ..errors import BadImage, BadInput
from ..progress import ProgressCallback, progress_bar
from ..run_folder import RunFolder
from .advise import advise as find_advice
from .inspection import EncoderInspection, ImagesInspection, Inspection, PairsInspection, RunInspection


def inspect(
    path: str | os.PathLike[str],
    *,
    decode: bool = False,
    columns: str | None = None,
    advise: bool = False,
    minutes: float = 2.0,
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> Inspection:
    """Say what is in a run, a folder of images or an encoder: sizes, bad files, configuration.

    Args:
        path: A run, DATA as of `sogclr train` (also by URL), or an encoder file.
        decode: Decode every image, to find the truncated ones too.
        columns: Two columns of a table of pairs, as for `sogclr train`.
        advise: Train shortly at several batch sizes, and say what to train with and how long it takes.
        minutes: How long --advise measures.
        quiet: Show no progress.
        progress: Called with (files read, files to read), in the place of a bar.

    Returns:
        An `ImagesInspection`, `PairsInspection`, `RunInspection` or `EncoderInspection`; its `kind` says which.

    Raises:
        BadInput: there is nothing, or nothing that can be read.
    """
    place = as_path(path)
    if not place.exists() and kind_of(place).samples != "pairs":
        raise BadInput(f"there is nothing at {path}; give a run, a folder or .txt list of images, or an encoder file")
    if isinstance(place, Path) and RunFolder(place).config_file.is_file():
        if decode or advise:
            option = "--decode reads" if decode else "--advise trains on"
            raise BadInput(f"{path} is a run and {option} images; give the folder of images")
        return _inspect_run(RunFolder(place))
    if isinstance(place, Path) and place.suffix == ".safetensors":
        return _inspect_encoder(place)
    with progress_bar("reading images", quiet, progress) as show:
        if kind_of(place).samples == "pairs":
            found: ImagesInspection = _inspect_pairs(place, ColumnNames(columns=columns), decode, show)
        else:
            found = _inspect_images(place, Manifest.scan(place, progress=show), decode, show)
    if not advise:
        return found
    if isinstance(found, PairsInspection):
        kind, count = "pairs", found.pairs
    else:
        kind, count = "images", found.images - len(found.bad)
    with progress_bar("seconds of short trainings", quiet, progress) as show:
        given = {} if columns is None else {"columns": columns}
        return replace(found, advice=find_advice(path, kind, count, minutes, show, **given))


# -------------------------------------------------------------------------------------------------------------- images
def _inspect_images(place: AnyPath, manifest: Manifest, decode: bool, progress: ProgressCallback) -> ImagesInspection:
    bad = dict(manifest.bad)
    if decode:
        bad |= _undecodable(manifest, progress)
    names, tops = manifest.top_folders()
    labels = read_labels(manifest, "auto")
    known = (manifest.widths > 0) & (manifest.heights > 0)
    sides = np.minimum(manifest.widths, manifest.heights)[known]
    return ImagesInspection(
        path=str(place),
        images=len(manifest),
        bytes=int(np.maximum(manifest.sizes, 0).sum()),
        fingerprint=manifest.fingerprint,
        folders={name: int((tops == k).sum()) for k, name in enumerate(names)},
        classes=[] if labels is None else labels.classes,
        checked="decoded" if decode else "headers" if known.any() or bad else "names and sizes only",
        bad={manifest.relative(i): reason for i, reason in sorted(bad.items())},
        notes={manifest.relative(i): note for i, note in manifest.notes},
        shorter_side=_spread(sides) if len(sides) else None,
    )


def _spread(sides: np.ndarray) -> dict[str, float]:
    return {"smallest": int(sides.min()), "median": float(np.median(sides)), "largest": int(sides.max())}


def _inspect_pairs(place: AnyPath, columns: ColumnNames, decode: bool, progress: ProgressCallback) -> PairsInspection:
    pairs = Pairs.scan(place, columns, progress=progress)
    images = vars(_inspect_images(place, pairs.images, decode, progress))
    return PairsInspection(
        **{**images, "fingerprint": pairs.fingerprint},
        pairs=len(pairs),
        captions=len(pairs.texts),
        columns=dict(zip(pairs.names, pairs.kinds, strict=True)),
        negatives=pairs.negatives.shape[1],
        repeated=pairs.duplicates,
        rejected=dict(pairs.rejected),
    )


def _undecodable(manifest: Manifest, progress: ProgressCallback) -> dict[int, str]:
    """Return reasons by id. In threads: Pillow decodes outside the interpreter's lock."""
    ids: list[int] = manifest.usable.tolist()

    def reason(id: int) -> str | None:
        try:
            decode_image(manifest.file(id))
        except BadImage as error:
            return str(error)
        return None

    found = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (id, why) in enumerate(zip(ids, pool.map(reason, ids), strict=True), 1):
            if why is not None:
                found[id] = why
            progress(done, len(ids))
    return found


# ----------------------------------------------------------------------------------------------------------------- run
def _inspect_run(run: RunFolder) -> RunInspection:
    rows, config = run.metrics(), run.config_table()
    own = config.get("own", {})
    if "dataset" in own:  # its images are in no file
        images, root = own["samples"], f"dataset={own['dataset']}"
    else:
        manifest = run.manifest()
        images, root = len(manifest), str(manifest.root)
    train, evaluation = _last(rows, "train"), _last(rows, "eval")
    newest = run.latest_checkpoint()
    log_u, damaged = None, None
    try:
        log_u = run.log_u()
    except BadInput as error:  # the rest can still be told
        damaged = str(error)
    return RunInspection(
        path=str(run.path),
        state="finished" if run.finished else "unfinished",
        step=int(train["step"]) if train else 0,
        steps=config.get("run", {}).get("max_steps"),
        images=images,
        pairs=len(run.pairs()) if run.holds_pairs() else None,
        root=root,
        bad=dict(line.split("\t", 1) for line in _lines(run.bad_file)),
        checkpoints=[p.name for p in run.checkpoint_files()],
        latest_checkpoint=None if newest is None else str(newest),
        damaged_checkpoint=damaged,
        last_train=train,
        last_eval=evaluation,
        skipped_steps=sum(row["kind"] == "skipped" for row in rows),
        config={k: {o: str(v) if v == math.inf else v for o, v in values.items()} for k, values in config.items()},
        log_u=None if log_u is None else _normalizers(log_u),
    )


def _normalizers(log_u: np.ndarray) -> dict[str, float]:
    """Return counts, mean and standard deviation of float32 (n,) log-normalizers, -inf where unseen."""
    seen = log_u[np.isfinite(log_u)]
    counts = {"seen": len(seen), "unseen": len(log_u) - len(seen)}
    return {**counts, "mean": float(seen.mean()), "std": float(seen.std())} if len(seen) else {**counts}


def _last(rows: Iterable[dict[str, float]], kind: str) -> dict[str, float] | None:
    """Return the newest line of a kind of `metrics.jsonl`, without what it cost."""
    row = next((row for row in reversed([*rows]) if str(row["kind"]) == kind), None)
    return None if row is None else {name: value for name, value in row.items() if name not in ("kind", "timing")}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


# ------------------------------------------------------------------------------------------------------------- encoder
def _inspect_encoder(path: Path) -> EncoderInspection:
    from ..models.encoder import load_encoder

    encoder = load_encoder(path)
    return EncoderInspection(
        path=str(path),
        **vars(encoder.info),
        features=encoder.num_features,
        parameters=sum(p.numel() for p in encoder.parameters()),
        bytes=path.stat().st_size,
        fingerprint=encoder.fingerprint(),
    )
