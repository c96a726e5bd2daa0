"""`inspect`: what is in a run, a folder or list of images, or an encoder file; as JSON and as tables."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..data.images import decode as decode_image
from ..data.labels import read_labels
from ..data.manifest import Manifest
from ..data.pairs import Pairs, holds_pairs
from ..errors import BadImage, BadInput
from ..progress import ProgressCallback
from ..run_folder import RunFolder

FILES_SHOWN = 20  # on a screen; the JSON has all
CLASSES_SHOWN = 12


def inspect(
    path: str | os.PathLike[str], *, decode: bool = False, progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """What is at `path`: a run, a folder or list of images, or an encoder file. JSON-able; `kind` says which.

    Args:
        decode: decode every image of a folder or list, to find the truncated ones too.
        progress: called with (files read, files to read).

    Raises:
        BadInput: there is nothing, or nothing that can be read.
    """
    place = Path(path)
    if not place.exists() and not holds_pairs(place):
        raise BadInput(f"there is nothing at {path}; give a run, a folder or .txt list of images, or an encoder file")
    if RunFolder(place).config_file.is_file():
        if decode:
            raise BadInput(f"{path} is a run and --decode reads images; give the folder of images")
        return _run(RunFolder(place))
    if place.suffix == ".safetensors":
        return _encoder(place)
    if holds_pairs(place):
        return _pairs_of(place, decode, progress)
    return _images(place, Manifest.scan(place, progress=progress), decode, progress)


def _pairs_of(place: Path, decode: bool, progress: ProgressCallback | None) -> dict[str, Any]:
    pairs = Pairs.scan(place, progress=progress)
    return {
        **_images(place, pairs.images, decode, progress),
        "kind": "pairs",
        "pairs": len(pairs),
        "captions": len(pairs.captions),
        "repeated": pairs.duplicates,
        "rejected": dict(pairs.rejected),
        "fingerprint": pairs.fingerprint,
    }


# -------------------------------------------------------------------------------------------------------------- images
def _images(place: Path, manifest: Manifest, decode: bool, progress: ProgressCallback | None) -> dict[str, Any]:
    bad = dict(manifest.bad)
    if decode:
        bad |= _undecodable(manifest, progress)
    names, tops = manifest.top_folders()
    labels = read_labels(manifest, "auto")
    known = (manifest.widths > 0) & (manifest.heights > 0)
    sides = np.minimum(manifest.widths, manifest.heights)[known]
    found: dict[str, Any] = {
        "kind": "images",
        "path": str(place),
        "images": len(manifest),
        "bytes": int(np.maximum(manifest.sizes, 0).sum()),
        "fingerprint": manifest.fingerprint,
        "folders": {name: int((tops == k).sum()) for k, name in enumerate(names)},
        "classes": [] if labels is None else labels.classes,
        "checked": "decoded" if decode else "headers" if known.any() or bad else "names and sizes only",
        "bad": {manifest.relative(i): reason for i, reason in sorted(bad.items())},
        "notes": {manifest.relative(i): note for i, note in manifest.notes},
    }
    if len(sides):
        found["shorter_side"] = {
            "smallest": int(sides.min()),
            "median": float(np.median(sides)),
            "largest": int(sides.max()),
        }
    return found


def _undecodable(manifest: Manifest, progress: ProgressCallback | None) -> dict[int, str]:
    """Reasons by id. In threads: Pillow decodes outside the interpreter's lock."""
    ids = manifest.usable.tolist()

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
            if progress is not None:
                progress(done, len(ids))
    return found


# ----------------------------------------------------------------------------------------------------------------- run
def _run(run: RunFolder) -> dict[str, Any]:
    rows, config = run.metrics(), run.config_table()
    manifest = run.manifest()
    last = {kind: next((row for row in reversed(rows) if row["kind"] == kind), None) for kind in ("train", "eval")}
    newest = run.latest_checkpoint()
    log_u, damaged = None, None
    try:
        log_u = run.log_u()
    except BadInput as error:  # the rest can still be told
        damaged = str(error)
    found: dict[str, Any] = {
        "kind": "run",
        "path": str(run.path),
        "state": "finished" if run.encoder_file.exists() else "unfinished",
        "step": int(last["train"]["step"]) if last["train"] else 0,
        "steps": config.get("run", {}).get("max_steps"),
        "images": len(manifest),
        **({"pairs": len(run.pairs())} if run.holds_pairs() else {}),
        "root": str(manifest.root),
        "bad": dict(line.split("\t", 1) for line in _lines(run.bad_file)),
        "checkpoints": [p.name for p in run.checkpoint_files()],
        "latest_checkpoint": None if newest is None else str(newest),
        **({"damaged_checkpoint": damaged} if damaged else {}),
        "last_train": _without_timing(last["train"]),
        "last_eval": _without_timing(last["eval"]),
        "skipped_steps": sum(row["kind"] == "skipped" for row in rows),
        "config": config,
    }
    if log_u is not None:
        seen = log_u[np.isfinite(log_u)]
        found["log_u"] = {
            "seen": len(seen),
            "unseen": len(log_u) - len(seen),
            **({"mean": float(seen.mean()), "std": float(seen.std())} if len(seen) else {}),
        }
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _without_timing(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {k: v for k, v in row.items() if k not in ("kind", "timing")}


# ------------------------------------------------------------------------------------------------------------- encoder
def _encoder(path: Path) -> dict[str, Any]:
    from ..models.encoder import load_encoder

    encoder = load_encoder(path)
    return {
        "kind": "encoder",
        "path": str(path),
        **asdict(encoder.info),
        "features": encoder.num_features,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "bytes": path.stat().st_size,
        "fingerprint": encoder.fingerprint(),
    }


# -------------------------------------------------------------------------------------------------------------- screen
def render(found: dict[str, Any]) -> RenderableType:
    """A result of `inspect_path` for people."""
    return {"images": _render_images, "pairs": _render_images, "run": _render_run, "encoder": _render_encoder}[
        found["kind"]
    ](found)


def _render_images(found: dict[str, Any]) -> RenderableType:
    rows = {
        "images": f"{found['images']:,} ({found['bytes'] / 1e6:,.1f} MB), checked: {found['checked']}",
        "folders": _counted(found["folders"]) or "none, all images lie side by side",
        "classes": f"{len(found['classes'])} (a folder each)" if found["classes"] else "no class folders",
        "unreadable": f"{len(found['bad']):,}",
        "fingerprint": found["fingerprint"][:16],
    }
    if "pairs" in found:
        rows = {
            "pairs": f"{found['pairs']:,} of {found['captions']:,} captions; {found['repeated']:,} were repeated",
            **rows,
            "unusable": f"{len(found['rejected']):,} rows",
        }
    if "shorter_side" in found:
        side = found["shorter_side"]
        rows["pixels"] = (
            f"shorter sides from {side['smallest']:,} to {side['largest']:,}, the median is {side['median']:g}"
        )
    return Group(
        _table(found["path"], rows),
        *_files(found["bad"], "unreadable"),
        *_files(found["notes"], "odd"),
        *_files(found.get("rejected", {}), "unusable"),
    )


def _render_run(found: dict[str, Any]) -> RenderableType:
    rows = {
        "state": f"{found['state']}, step {found['step']:,} of {found['steps']:,}",
        "images": f"{found['images']:,} in {found['root']}"
        + (f", {found['pairs']:,} pairs with captions" if "pairs" in found else ""),
        "unreadable": f"{len(found['bad']):,}",
        "skipped": f"{found['skipped_steps']:,} steps",
        "checkpoints": ", ".join(found["checkpoints"]) or "none",
        "last": _pairs(found["last_train"]),
        "evaluation": _pairs(found["last_eval"]),
    }
    if "damaged_checkpoint" in found:
        rows["damaged"] = found["damaged_checkpoint"]
    if "log_u" in found:
        rows["normalizers"] = _pairs(found["log_u"])
    for section, values in found["config"].items():
        rows[f"[{section}]"] = _pairs(values)
    return Group(_table(found["path"], rows), *_files(found["bad"], "unreadable"))


def _render_encoder(found: dict[str, Any]) -> RenderableType:
    return _table(found["path"], {k: _shown(v) for k, v in found.items() if k not in ("kind", "path")})


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def _files(reasons: dict[str, str], what: str) -> list[RenderableType]:
    if not reasons:
        return []
    lines = [f"  {name}: {reason}" for name, reason in list(reasons.items())[:FILES_SHOWN]]
    if len(reasons) > FILES_SHOWN:
        lines.append(f"  and {len(reasons) - FILES_SHOWN:,} more (--json has all)")
    return [Text("\n".join([f"{what}:", *lines]))]


def _counted(folders: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(folders.items())[:CLASSES_SHOWN]]
    more = len(folders) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _pairs(values: dict[str, Any] | None) -> str:
    return "nothing yet" if values is None else ", ".join(f"{k} {_shown(v)}" for k, v in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
