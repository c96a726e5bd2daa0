"""What `classify` found: a table for people, JSON, and the model card of the classifier."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..data.labels import Labels
from ..data.listing import first_few
from ..data.manifest import Manifest
from ..evaluation.cross_validation import CrossValidation, FittedClassifier
from ..models.encoder import Encoder, EncoderInfo
from ..progress import RichText
from .export_card import preparation

SHOWN = 30  # classes of a table on the screen


@dataclass(frozen=True)
class ClassifyResult(RichText):
    """A classifier that was written, and what it is worth on images that it was fitted without."""

    path: Path
    """Its folder."""
    encoder: str
    """The run or file that it was made of."""
    model: str
    weights: str
    """SHA-256 of the encoder."""
    data: str
    fingerprint: str
    """Of the images."""
    labels: str
    """Where they came from."""
    grouped: bool
    """Whether images that belong together were held out together."""
    images: int
    """Labelled ones that could be read."""
    unreadable: int
    counts: dict[str, int]
    """Class -> images."""
    wanted: float
    """Accuracy that the sure predictions are to have."""
    strength: float | None
    """C, the inverse of the regularisation, that was chosen; None of SGD."""
    temperature: float
    threshold: float | None
    """The least probability that is sure; None where none suffices."""
    scores: CrossValidation
    notes: list[str] = field(default_factory=list)
    """What there is to say, each a sentence."""

    @classmethod
    def of(
        cls,
        folder: Path,
        run: str | os.PathLike[str],
        manifest: Manifest,
        labels: Labels,
        y: np.ndarray,
        unreadable: int,
        wanted: float,
        encoder: Encoder,
        fitted: FittedClassifier,
    ) -> ClassifyResult:
        """Return the result of a fit to classes `y`, int64 (n,)."""
        counts = dict(zip(labels.classes, np.bincount(y).tolist(), strict=True))
        return cls(
            folder,
            os.fspath(run),
            encoder.info.name,
            encoder.fingerprint(),
            str(manifest.root),
            manifest.fingerprint,
            labels.source,
            labels.groups is not None,
            len(y),
            unreadable,
            counts,
            wanted,
            fitted.strength,
            fitted.temperature,
            fitted.threshold,
            fitted.scores,
            _notes(counts, labels, fitted.scores),
        )

    @property
    def recalls(self) -> dict[str, float | None]:
        """Return class -> the fraction of its images that are found; None where it cannot be held out."""
        return dict(zip(self.counts, self.scores.recalls, strict=True))

    def to_json(self) -> dict[str, object]:
        """Return one flat JSON object."""
        about = {**vars(self), "path": str(self.path)}
        return {**vars(about.pop("scores")), **about, "recalls": self.recalls}

    def __rich__(self) -> Group:
        lost = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        head = [f"{self.path}: {self.describe_images()}{lost}", *self.describe_scores(), *self.notes]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("class")
        for title in ("images", "found, %"):
            table.add_column(title, justify="right")
        shown = list(self.counts)
        if len(shown) > SHOWN:
            shown = sorted(shown, key=lambda name: (self.recalls[name] is None, self.recalls[name]))[:SHOWN]
            head.append(f"the {SHOWN} classes that are found least, of {len(self.counts):,}:")
        for name in shown:
            table.add_row(Text(name), f"{self.counts[name]:,}", _percent(self.recalls[name]))
        following = f"next  sogclr predict {self.path} PHOTOS --out predictions.csv"
        return Group(*map(Text, head), table, Text(following))

    def describe_images(self) -> str:
        """Return how many images a class it was fitted on."""
        least, most = min(self.counts.values()), max(self.counts.values())
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return f"{len(self.counts)} classes from {self.images:,} images, {each} each"

    def describe_scores(self) -> list[str]:
        """Return sentences on what it is worth."""
        s, largest = self.scores, max(self.counts.values()) / self.images
        kind, wanted = "cross-validation by groups" if self.grouped else "cross-validation", f"{100 * self.wanted:g} %"
        sure = f"unsure: all predictions, as {wanted} right cannot be reached on these images"
        if self.threshold is not None:
            right = "" if s.sure_accuracy is None else f", of which {_percent(s.sure_accuracy)} % were right"
            sure = (
                f"sure: predictions with a probability of {self.threshold:.3f} or more; {_percent(s.sure)} % of the images "
                f"were{right} ({wanted} wanted)"
            )
        return [
            f"accuracy: {_percent(s.accuracy)} ± {_percent(s.accuracy_std)} % in {s.folds}-fold {kind} of {s.rows:,} images; "
            f"balanced {_percent(s.balanced_accuracy)} %; the largest class alone {_percent(largest)} %",
            sure,
            f"probabilities: log loss {s.log_loss:.3f} ({s.log_loss_before:.3f} without the temperature of {self.temperature:.2f})",
        ]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _notes(counts: dict[str, int], labels: Labels, scores: CrossValidation) -> list[str]:
    few = [f"{name} ({count})" for name, count in counts.items() if count < scores.folds]
    alone = [name for name, recall in zip(counts, scores.recalls, strict=True) if recall is None]
    said = [
        (few, f"fewer images than the {scores.folds} folds, so little can be said of it"),
        (alone, "one image or group, so never held out"),
    ]
    notes = [f"classes with {what}: {len(names):,}, {first_few(names)}" for names, what in said if names]
    unknown = f"rows of the labels that name no image that is there: {labels.unknown_paths:,}"
    return [*notes, unknown] if labels.unknown_paths else notes


# ----------------------------------------------------------------------------------------------------------------- card
def write_card(info: EncoderInfo, result: ClassifyResult, onnx: bool) -> str:
    """Return `README.md` of a classifier's folder, without places on this machine.

    Args:
        info: of its encoder.
        result: what is said.
        onnx: whether there is an ONNX file.
    """
    rows = [
        f"| {name.replace('|', '&#124;')} | {result.counts[name]:,} | {_percent(recall)} |"
        for name, recall in result.recalls.items()
    ]
    graph = (
        "`classifier.onnx` is the same with its encoder for other runtimes: normalised float32 images "
        f"(N, 3, {info.image_size}, {info.image_size}) to probabilities (N, {len(rows)}); its metadata names the classes."
    )
    return (
        "\n\n".join(
            [
                "---\nlicense: unknown\nlibrary_name: sogclr\npipeline_tag: image-classification\n---",
                f"# {result.path.name}",
                f"A classifier of images, made with sogclr: a linear layer on the features of an encoder, `{result.model}`. "
                f"{result.describe_images()}.",
                f'```sh\nsogclr predict {result.path.name} photos/ --out predictions.csv\n```\n\n```python\nimport sogclr\n\nclassifier = sogclr.load_classifier("{result.path.name}")'
                f'\nclassifier.predict_files(["a.jpg"])\n```',
                preparation(info),
                *([graph] if onnx else []),
                "## What it is worth",
                "Measured on images that it was fitted without, by cross-validation. The encoder may have seen them in training, "
                "without labels; and images of other places, cameras or years may be harder.",
                "\n".join(f"- {line}" for line in [*result.describe_scores(), *result.notes]),
                "\n".join(["| class | images | found, % |", "|---|---|---|", *rows]),
                "## Made of",
                f"- encoder `{Path(result.encoder).name}`, weights `{result.weights}`\n"
                f"- {result.images:,} images, fingerprint `{result.fingerprint}`, labels from {result.labels}\n"
                f"- regularisation C = {result.strength}, temperature {result.temperature:.4g}, threshold {'none' if result.threshold is None else result.threshold}",
            ]
        )
        + "\n"
    )
