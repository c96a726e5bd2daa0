"""What the report shows of the images or texts: neighbours, map and both ends of log u, as plain values for the page."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...data.labels import Labels, read_labels
from ...data.manifest import Manifest
from ...data.pair_columns import IMAGE_TEXT
from ...data.pairs import Pairs
from ...data.remote import RemotePath
from ...errors import BadInput
from ...models.two_tower import load_two_tower
from ...progress import ProgressCallback
from .augmented import augmented_views
from .captions import nearest_to_captions
from .embedding_map import EmbeddingMap, embedding_map, layout
from .extremes import extremes, extremes_table
from .run_summary import RunSummary
from .sample import (
    NEIGHBOURS,
    Sample,
    choose_queries,
    classes_of,
    draw_sample,
    encoder_of,
    locate_images,
    neighbours,
    same_class_share,
)
from .texts import ShownText, nearest_texts, texts_at_both_ends
from .thumbnails import Thumbnail, Thumbnails

COPY_SIZE = 128  # pixels of a thumbnail: sharp at twice the size that is shown
TINY = 48  # pixels; images up to this size are shown with square pixels
VIEWED = 4  # images with views
AT_EACH_END = 10  # images or texts with the largest, and with the smallest log u


@dataclass
class ReportData:
    """What there is to show; whatever is missing has left a note that says why."""

    notes: list[str] = field(default_factory=list)
    labels: Labels | None = None
    pairs: Pairs | None = None
    """Of a run on pairs."""
    images: int = 0
    """Images in the run's manifest."""
    sampled: int = 0
    """Images that the neighbours and the map were drawn from, or texts of the second column."""
    queries: list[tuple[Thumbnail, list[Thumbnail]]] = field(default_factory=list)
    """Images, each with its nearest neighbours."""
    captions: list[tuple[str, list[Thumbnail]]] = field(default_factory=list)
    """Captions with the images nearest to them, of a run on images with texts."""
    texts: list[tuple[str, list[ShownText]]] = field(default_factory=list)
    """Texts of the first column with those of the second nearest to them, of a run on texts."""
    same_class: float | None = None
    """Share of the sample's nearest neighbours that have the class of their query."""
    views: list[tuple[Thumbnail, list[str]]] = field(default_factory=list)
    """Images, each with data URIs of views as the encoder saw them."""
    closest: list[tuple[Thumbnail, Thumbnail]] = field(default_factory=list)
    """Pairs of images that lie closest to each other."""
    farthest: list[Thumbnail] = field(default_factory=list)
    """Images that lie farthest from their nearest."""
    extremes: str = ""
    """A CSV of more of both."""
    map: EmbeddingMap | None = None
    log_u: np.ndarray | None = None
    """float32, of the images or texts visited, of pairs of those in the first column; None where the method keeps none."""
    unseen: int = 0
    """Those that have not been visited."""
    largest: list[Thumbnail] | list[ShownText] = field(default_factory=list)
    """The images or texts with the largest log u."""
    smallest: list[Thumbnail] | list[ShownText] = field(default_factory=list)
    pixelated: bool = False
    """Show pixels as squares: the images are tiny."""

    @property
    def of_texts(self) -> bool:
        """Return whether both columns hold texts, so that there are no images."""
        return self.pairs is not None and "images" not in self.pairs.kinds

    @property
    def seconds(self) -> int:
        """Return how many different things the second column of pairs holds."""
        return 0 if self.pairs is None else len(np.unique(self.pairs.second_ids))


def collect(
    summary: RunSummary,
    data: str | None,
    most: int,
    *,
    workers: int,
    device: str,
    progress: ProgressCallback | None = None,
) -> ReportData:
    """Return everything that needs the images, the encoder or a checkpoint.

    Args:
        summary: of the run.
        data: where the run's images are now, if they moved.
        most: images to compute features of.
        workers: processes that read images.
        device: what computes the features.
        progress: called with (images done, images to do).

    Raises:
        BadInput: `data` was given and does not hold the run's images.
    """
    found = ReportData()
    try:
        found.pairs = summary.run.pairs() if summary.run.holds_pairs() else None
    except BadInput as error:
        found.notes.append(f"No pairs are shown: {error}.")
    log_u = _read_log_u(summary, found)
    if found.of_texts:
        _add_texts(summary, most, log_u, device, found)
        return found
    try:
        manifest = locate_images(summary.run.manifest_file, None)
    except BadInput as error:
        found.notes.append(f"No images are shown: {error}.")
        return found
    found.images = len(manifest)
    if data is not None:
        manifest = locate_images(summary.run.manifest_file, data)
    found.labels = _read_labels(manifest, summary, found)
    if isinstance(manifest.root, RemotePath) and data is None:  # what a run's own files say is not followed
        found.notes.append(
            f"No images are shown: they are in {manifest.root}. To fetch them: "
            f"sogclr report {summary.run.path} --data {manifest.root}."
        )
        return found
    if not manifest.root.is_dir():
        found.notes.append(
            f"No images are shown: their folder {manifest.root} is gone. If it moved, say where it is now: "
            f"sogclr report {summary.run.path} --data FOLDER."
        )
        return found
    size = int(str(summary.get("data", "image_size") or 224))
    found.pixelated = size <= TINY
    background = str(summary.get("data", "background") or "white")
    thumbnails = Thumbnails(manifest, found.labels, min(size, COPY_SIZE), background)
    if log_u is not None and len(log_u) == len(manifest):
        found.largest, found.smallest = _both_ends(log_u, thumbnails)
    sample = _sample(summary, manifest, most, found, workers, device, progress)
    if sample is None:
        return found
    _add_neighbours(sample, thumbnails, found)
    _add_views(summary, thumbnails, found)
    _add_map(sample, thumbnails, size, found)
    if found.pairs is not None and found.pairs.kinds == IMAGE_TEXT:
        try:
            found.captions = nearest_to_captions(summary.run, sample.ids, thumbnails, workers=workers, device=device)
        except BadInput as error:
            found.notes.append(f"No captions are shown: {error}.")
    return found


def _read_log_u(summary: RunSummary, found: ReportData) -> np.ndarray | None:
    try:
        log_u: np.ndarray | None = summary.run.log_u()
    except (BadInput, KeyError) as error:
        found.notes.append(f"The normalizers are not shown: {error}.")
        return None
    if log_u is None:
        return None
    visited = log_u
    if found.pairs is not None:  # what stands in the second column alone is never asked
        asked = np.unique(found.pairs.first_ids)
        visited = log_u[asked]
        log_u = np.full(len(log_u), -np.inf, log_u.dtype)
        log_u[asked] = visited
    seen = np.isfinite(visited)
    found.log_u, found.unseen = visited[seen], int((~seen).sum())
    return log_u


def _add_texts(summary: RunSummary, most: int, log_u: np.ndarray | None, device: str, found: ReportData) -> None:
    """Add what there is to show of a run on texts."""
    assert found.pairs is not None, "texts come in pairs"
    found.notes.append("Both columns hold texts: there are no pictures and no map.")
    if log_u is not None:
        found.largest, found.smallest = texts_at_both_ends(log_u, found.pairs, AT_EACH_END)
    try:
        found.texts, found.sampled = nearest_texts(found.pairs, load_two_tower(summary.run, device), most)
    except BadInput as error:
        found.notes.append(f"No neighbours are shown: {error}.")


def _read_labels(manifest: Manifest, summary: RunSummary, found: ReportData) -> Labels | None:
    try:
        return read_labels(manifest, str(summary.get("data", "labels") or "auto"))
    except BadInput as error:
        found.notes.append(f"Classes are not shown: {error}.")
        return None


def _sample(
    summary: RunSummary,
    manifest: Manifest,
    most: int,
    found: ReportData,
    workers: int,
    device: str,
    progress: ProgressCallback | None,
) -> Sample | None:
    """Return a sample with its features, or None and a note where there is no encoder or fewer than two images."""
    missing = "No neighbours and no map are shown:"
    try:
        encoder = encoder_of(summary.run, device)
    except (BadInput, KeyError, RuntimeError) as error:
        found.notes.append(f"{missing} the encoder cannot be loaded ({error}).")
        return None
    if encoder is None:
        found.notes.append(f"{missing} the run has saved no encoder yet.")
        return None
    shown = [one.id for one in (*found.largest, *found.smallest) if isinstance(one, Thumbnail)]
    sample = draw_sample(manifest, encoder, most, shown=shown, workers=workers, device=device, progress=progress)
    found.sampled = len(sample.ids)
    if sample.bad:
        first = ", ".join(f"{manifest.relative(id)} ({reason})" for id, reason in sample.bad[:3])
        found.notes.append(f"{len(sample.bad):,} images could not be read and were left out, first: {first}.")
    if len(sample.ids) < 2:
        found.notes.append(f"{missing} fewer than two images have usable features.")
        return None
    return sample


def _add_neighbours(sample: Sample, thumbnails: Thumbnails, found: ReportData) -> None:
    y = classes_of(found.labels, sample.ids)
    rows = choose_queries(sample.ids, y)
    cosines, near = neighbours(sample.unit, rows, NEIGHBOURS)
    for row, others, cosine in zip(rows.tolist(), near, cosines, strict=True):
        query = int(sample.ids[row])
        asked = thumbnails.of([query], [1.0])
        nearest = thumbnails.of(sample.ids[others].tolist(), cosine.tolist(), query)
        if asked:
            found.queries.append((asked[0], nearest))
    if y is not None:
        found.same_class = same_class_share(sample.unit, y, NEIGHBOURS)
    _add_extremes(sample, thumbnails, found)


def _add_views(summary: RunSummary, thumbnails: Thumbnails, found: ReportData) -> None:
    shown = [query for query, _ in found.queries[:: max(1, len(found.queries) // VIEWED)]][:VIEWED]
    try:
        views = augmented_views(summary, thumbnails.manifest, np.array([query.id for query in shown], dtype=np.int64))
    except (BadInput, KeyError, TypeError) as error:  # a configuration of an older version
        found.notes.append(f"No views are shown: {error}.")
        return
    found.views = [(query, views[query.id]) for query in shown if query.id in views]


def _add_extremes(sample: Sample, thumbnails: Thumbnails, found: ReportData) -> None:
    both = extremes(sample)
    found.extremes = extremes_table(both, thumbnails.manifest)
    for i, j, cosine in both.closest[:AT_EACH_END]:
        pair = thumbnails.of([i, j], [cosine, cosine])
        found.closest += [(pair[0], pair[1])] if len(pair) == 2 else []
    lonely = both.farthest[:AT_EACH_END]
    found.farthest = thumbnails.of([i for i, _, _ in lonely], [value for _, _, value in lonely])


def _add_map(sample: Sample, thumbnails: Thumbnails, image_size: int, found: ReportData) -> None:
    points = layout(sample.unit)
    if points is not None:
        found.map = embedding_map(sample, points, thumbnails, image_size)
    elif len(sample.ids) < 3:
        found.notes.append("There is no map: there are fewer than three images.")
    else:
        found.notes.append("There is no map: all features are the same, the encoder has collapsed.")


def _both_ends(log_u: np.ndarray, thumbnails: Thumbnails) -> tuple[list[Thumbnail], list[Thumbnail]]:
    """Return the images with the largest and with the smallest log u, farthest first."""
    bad = {id for id, _ in thumbnails.manifest.bad}
    order = [int(i) for i in np.argsort(log_u, kind="stable") if np.isfinite(log_u[i]) and int(i) not in bad]
    count = min(AT_EACH_END, len(order) // 2)
    tried = 3 * count  # files may have gone
    largest, smallest = (
        thumbnails.of(ids, [float(log_u[i]) for i in ids])[:count] for ids in (order[::-1][:tried], order[:tried])
    )
    return largest, smallest
