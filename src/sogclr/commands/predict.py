"""`sogclr predict`: what a classifier says of images, as a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..config.ranges import check_least
from ..data.bad_files import bad_files_beside, write_bad_files_beside
from ..data.source import scan_images
from ..files import atomic_write, check_output
from ..hardware import computing_on
from ..models.classifier import Classifier, load_classifier
from ..models.features import compute_features, nothing_readable
from ..progress import ProgressCallback, part_of, progress_bar

SUFFIXES = (".csv", ".parquet")
PART_ROWS = 8192  # images between two writes


@dataclass(frozen=True)
class PredictResult:
    """What `predict` wrote; as text, one line for people."""

    path: Path
    images: int
    """Rows of the file."""
    unsure: int
    """How many of them are marked."""
    counts: dict[str, int]
    """Class -> images that it is the most probable of."""
    bad: int
    """Files that could not be read; they have no row."""

    def __str__(self) -> str:
        lost = f"; {self.bad:,} files could not be read, see {bad_files_beside(self.path)}" if self.bad else ""
        return f"{self.path}: {self.images:,} images, {self.unsure:,} of them unsure{lost}"

    def to_json(self) -> dict[str, object]:
        """Return one JSON object."""
        return {**vars(self), "path": str(self.path)}


def predict(
    classifier: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    all_classes: bool = False,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> PredictResult:
    """Write the class of each image, its probability, and whether that is unsure.

    The file has the columns `path` (relative to DATA), `class`, `probability` (of that class, calibrated) and `unsure`
    (whether the probability is below the threshold that was chosen with the classifier).

    Args:
        classifier: The folder that `sogclr classify` wrote.
        data: Images as for `sogclr embed`: a folder, a .txt list, or tar shards; or the URL of one.
        out: The file to write: .csv or .parquet.
        all_classes: Write the probability of every class too, in a column `probability_CLASS`.
        batch_size: Images at a time.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        quiet: Show no progress.
        progress: Called with (images done, images to do), in the place of a bar.

    Returns:
        What was written.

    Raises:
        BadInput: something in the input cannot be used; nothing was written.
    """
    path = Path(out)
    check_output(path, SUFFIXES)
    check_least({"--batch-size": (batch_size, 1)})
    with progress_bar("predicting", quiet, progress) as show, computing_on(device, workers) as (chosen, readers):
        known = load_classifier(classifier, chosen)
        images = scan_images(data)
        bad, counts, unsure, ids = images.bad, np.zeros(len(known.classes), np.int64), 0, images.usable
        schema = _schema(known, all_classes)
        with atomic_write(path) as temporary, _open_writer(temporary, path.suffix, schema) as writer:
            for first in range(0, len(ids), PART_ROWS):
                part = ids[first : first + PART_ROWS]
                report = part_of(show, first, len(part), len(ids))
                probabilities, kept, unreadable = compute_features(
                    known.model, images, part, batch_size=batch_size, workers=readers, device=chosen, progress=report
                )
                best, probability, doubt = known.decide(probabilities)
                columns = [images.relatives(kept), [known.classes[k] for k in best], probability, doubt]
                columns += list(probabilities.T) if all_classes else []
                writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
                counts += np.bincount(best, minlength=len(counts))
                unsure += int(doubt.sum())
                bad = [*bad, *unreadable]
            if not counts.sum():
                raise nothing_readable(images, bad)
        write_bad_files_beside(path, [(images.relative(i), reason) for i, reason in bad])
    named = dict(zip(known.classes, counts.tolist(), strict=True))
    return PredictResult(path, int(counts.sum()), unsure, named, len(bad))


def _schema(classifier: Classifier, all_classes: bool) -> pa.Schema:
    """Return the columns of the file."""
    columns = [("path", pa.string()), ("class", pa.string()), ("probability", pa.float32()), ("unsure", pa.bool_())]
    more = [(f"probability_{name}", pa.float32()) for name in classifier.classes] if all_classes else []
    return pa.schema([*columns, *more])


def _open_writer(path: Path, suffix: str, schema: pa.Schema) -> pa.csv.CSVWriter | pq.ParquetWriter:
    """Return a context that writes tables to a file."""
    return pa.csv.CSVWriter(path, schema) if suffix == ".csv" else pq.ParquetWriter(path, schema, compression="zstd")
