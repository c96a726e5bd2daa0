"""What the report shows of the images: gallery, map and the ends of log u, as plain values for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...data.labels import Labels, read_labels
from ...data.manifest import Manifest
from ...errors import BadInput
from . import pictures
from .pictures import AT_EACH_END, NEIGHBOURS
from .run_summary import RunSummary

COPY_SIZE = 128  # pixels of a gallery image: sharp at twice the size that is shown


@dataclass(frozen=True)
class Thumbnail:
    """One small image."""

    uri: str
    path: str
    class_name: str | None
    value: float
    """Cosine to the query, or log u."""
    same: bool | None = None
    """Whether it has the query's class, where both are known."""


@dataclass
class ReportData:
    """What there is to show; whatever is missing has left a note that says why."""

    notes: list[str] = field(default_factory=list)
    labels: Labels | None = None
    images: int = 0
    """Images in the run's manifest."""
    sampled: int = 0
    """Images that the gallery and the map were drawn from."""
    queries: list[tuple[Thumbnail, list[Thumbnail]]] = field(default_factory=list)
    texts: list[tuple[str, list[Thumbnail]]] = field(default_factory=list)
    """Captions with the images nearest to them, of a run on pairs; `same` says that the caption is the image's own."""
    same_class: float | None = None
    """Share of the sample's nearest neighbours that have the class of their query."""
    map_data: dict[str, Any] | None = None
    log_u: np.ndarray | None = None
    """float32, the seen ones only; None where the method keeps none."""
    unseen: int = 0
    ends: tuple[list[Thumbnail], list[Thumbnail]] = ((), ())  # type: ignore[assignment]
    """The images with the largest and with the smallest log u."""
    crisp: bool = False
    """Show pixels as squares: the images are tiny."""


def collect(
    facts: RunSummary, data: str | None, most: int, *, workers: int, device: str,
    progress: Callable[[int, int], None] | None = None,
) -> ReportData:  # fmt: skip
    """Everything that needs the images, the encoder or a checkpoint.

    Raises:
        BadInput: `data` was given and does not hold the run's images.
    """
    content = ReportData()
    log_u = _log_u(facts, content)
    try:
        manifest = pictures.located(facts.run.manifest_file, None)
    except BadInput as error:
        content.notes.append(f"No images are shown: {error}.")
        return content
    content.images = len(manifest)
    if data is not None:
        manifest = pictures.located(facts.run.manifest_file, data)
    content.labels = _labels(manifest, facts, content)
    if not manifest.root.is_dir():
        content.notes.append(
            f"No images are shown: their folder {manifest.root} is gone. If it moved, say where it is now: "
            f"sogclr report {facts.run.path} --data FOLDER."
        )
        return content
    size = int(facts.get("data", "image_size") or 224)
    content.crisp = size <= 48
    shelf = Thumbnails(manifest, content.labels, min(size, COPY_SIZE), str(facts.get("data", "background") or "white"))
    if log_u is not None and len(log_u) == len(manifest):
        _ends(log_u, shelf, content)
    try:
        encoder = pictures.encoder_of(facts.run, device)
    except (BadInput, KeyError, RuntimeError) as error:
        content.notes.append(f"No neighbours and no map are shown: the encoder cannot be loaded ({error}).")
        return content
    if encoder is None:
        content.notes.append("No neighbours and no map are shown: the run has saved no encoder yet.")
        return content
    sample = pictures.draw(manifest, encoder, most, workers=workers, device=device, progress=progress)
    content.sampled = len(sample.ids)
    _note_lost(sample, manifest, content)
    if len(sample.ids) < 2:
        content.notes.append("No neighbours and no map are shown: fewer than two images have usable features.")
        return content
    _gallery(sample, shelf, content)
    _map(sample, shelf, size, content)
    if facts.run.holds_pairs():
        from .texts import add_texts

        add_texts(facts.run, sample.ids, shelf, content, workers=workers, device=device)
    return content


class Thumbnails:
    """Small copies of images by id, made once."""

    def __init__(self, manifest: Manifest, labels: Labels | None, size: int, background: str) -> None:
        self.manifest, self.labels, self.size, self.background = manifest, labels, size, background

    def class_of(self, id: int) -> int:
        return -1 if self.labels is None else int(self.labels.values[id])

    def tiles(
        self, ids: list[int], values: list[float], query: int | None = None, right: set[int] | None = None
    ) -> list[Thumbnail]:
        """A tile for each id whose file can be read; `right` are the ids that a caption belongs to."""
        copies = pictures.small_copies(self.manifest, np.array(ids, dtype=np.int64), self.size, self.background)
        found = []
        for id, value in zip(ids, values, strict=True):
            if id in copies:
                tile = self._tile(id, copies[id], value, query)
                found.append(tile if right is None else replace(tile, same=id in right))
        return found

    def _tile(self, id: int, copy: np.ndarray, value: float, query: int | None) -> Thumbnail:
        own = self.class_of(id)
        name = self.labels.classes[own] if self.labels is not None and own >= 0 else None
        asked = -1 if query is None else self.class_of(query)
        same = own == asked if own >= 0 and asked >= 0 else None
        return Thumbnail(pictures.data_uri(copy), self.manifest.relative(id), name, value, same)


def _log_u(facts: RunSummary, content: ReportData) -> np.ndarray | None:
    try:
        log_u = facts.run.log_u()
    except (BadInput, KeyError) as error:
        content.notes.append(f"The normalizers are not shown: {error}.")
        return None
    if log_u is not None:
        seen = np.isfinite(log_u)
        content.log_u, content.unseen = log_u[seen], int((~seen).sum())
    return log_u


def _labels(manifest: Manifest, facts: RunSummary, content: ReportData) -> Labels | None:
    try:
        return read_labels(manifest, str(facts.get("data", "labels") or "auto"))
    except BadInput as error:
        content.notes.append(f"Classes are not shown: {error}.")
        return None


def _note_lost(sample: pictures.Sample, manifest: Manifest, content: ReportData) -> None:
    if sample.lost:
        first = ", ".join(f"{manifest.relative(id)} ({reason})" for id, reason in sample.lost[:3])
        content.notes.append(f"{len(sample.lost):,} images could not be read and were left out, first: {first}.")


def _gallery(sample: pictures.Sample, shelf: Thumbnails, content: ReportData) -> None:
    y = pictures.classes_of(content.labels, sample.ids)
    rows = pictures.choose_queries(sample.ids, y)
    cosines, near = pictures.neighbours(sample.unit, rows, NEIGHBOURS)
    for row, others, cosine in zip(rows.tolist(), near, cosines, strict=True):
        query = int(sample.ids[row])
        asked = shelf.tiles([query], [1.0])
        found = shelf.tiles([int(i) for i in sample.ids[others]], cosine.tolist(), query)
        if asked:
            content.queries.append((asked[0], found))
    if y is not None:
        content.same_class = pictures.same_class_share(sample.unit, y, NEIGHBOURS)


def _map(sample: pictures.Sample, shelf: Thumbnails, image_size: int, content: ReportData) -> None:
    points = pictures.layout(sample.unit)
    if points is None:
        content.notes.append(
            "There is no map: "
            + (
                "there are fewer than three images."
                if len(sample.ids) < 3
                else "all features are the same, the encoder has collapsed."
            )
        )
        return
    side = pictures.tile_size(image_size, len(sample.ids))
    copies = pictures.small_copies(shelf.manifest, sample.ids, side, shelf.background)
    kept = np.array([k for k, id in enumerate(sample.ids.tolist()) if id in copies], dtype=np.int64)
    if not len(kept):
        return
    ids = sample.ids[kept]
    uri, columns = pictures.sheet([copies[id] for id in ids.tolist()])
    y = pictures.classes_of(content.labels, ids)
    classes = content.labels.classes if content.labels is not None else []
    content.map_data = {
        "sheet": uri,
        "tile": side,
        "columns": columns,
        "at": np.round(points[kept], 4).ravel().tolist(),
        "y": (np.full(len(ids), -1) if y is None else y).tolist(),
        "classes": classes,
        "colours": pictures.colours(len(classes)),
        "names": shelf.manifest.relatives(ids),
    }


def _ends(log_u: np.ndarray, shelf: Thumbnails, content: ReportData) -> None:
    """The images at both ends of log u, farthest first; some more are tried, since files may have gone."""
    bad = {id for id, _ in shelf.manifest.bad}
    order = [int(i) for i in np.argsort(log_u, kind="stable") if np.isfinite(log_u[i]) and int(i) not in bad]
    count = min(AT_EACH_END, len(order) // 2)
    largest, smallest = (
        shelf.tiles(ids, [float(log_u[i]) for i in ids])[:count]
        for ids in (order[::-1][: 3 * count], order[: 3 * count])
    )
    content.ends = (largest, smallest)
