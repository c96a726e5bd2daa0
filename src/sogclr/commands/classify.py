"""`sogclr classify`: a classifier from an encoder and a few labels, with an honest measure of what it is worth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from ..config.ranges import check_least
from ..data.labels import Labels, read_labels
from ..data.manifest import Manifest
from ..errors import BadInput
from ..evaluation.cross_validation import FittedClassifier, fit_classifier
from ..files import atomic_folder, check_new_folder, write_text
from ..hardware import computing_on
from ..models.classifier import FILE, Classifier, ProbabilityModel
from ..models.clip import ClipSetup
from ..models.encoder import Encoder
from ..models.features import compute_features, nothing_readable
from ..models.two_tower import clip_of_run, load_run_encoder
from ..progress import ProgressCallback, progress_bar
from .classify_result import ClassifyResult, write_card
from .export_formats import check_same, onnx_packages, preprocessing, run_onnx, write_onnx

ONNX_FILE = "classifier.onnx"


def classify(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    labels: str = "auto",
    folds: int = 5,
    sure: float = 0.95,
    onnx: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> ClassifyResult:
    """Make a classifier of an encoder and some labelled images; `sogclr predict` uses it.

    It is a linear layer on the backbone's features. Its accuracy is measured by cross-validation, on images that it was
    fitted without, and so are the probabilities (calibrated by a temperature) and the threshold below which they are unsure.

    Args:
        run: A run's folder, or an exported encoder (.safetensors).
        data: The labelled images: a folder with a folder a class (its train/ part, if it has one), a .txt list, or tar shards.
        out: The folder to make: the classifier, a model card, and classifier.onnx.
        labels: auto, folder, or a CSV file of path,label, or of path,label,group: the images of a group (one camera, patient
            or day) are held out together. Images that it does not name are left out.
        folds: Parts of the cross-validation.
        sure: How many of the predictions that are not marked as unsure are to be right.
        onnx: Write classifier.onnx too, encoder and probabilities in one graph, where 'sogclr[onnx]' is installed.
        seed: Seed of the parts.
        batch_size: Images at a time.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        quiet: Show no progress.
        progress: Called with (images done, images to do), in the place of a bar.

    Returns:
        What was written, and what it is worth.

    Raises:
        BadInput: something in the input cannot be used; nothing was written.
        RunFailed: the ONNX file does not compute what PyTorch does; nothing was written.
    """
    folder = Path(out)
    check_least({"--folds": (folds, 2), "--batch-size": (batch_size, 1), "--seed": (seed, 0)})
    if not 0 < sure < 1:
        raise BadInput(f"--sure must be between 0 and 1 and was {sure}; 0.95 stands for 95 of 100")
    check_new_folder(folder)
    with computing_on(device, workers) as (chosen, readers):
        encoder, clip = load_run_encoder(run, chosen), clip_of_run(run)
        manifest, known = read_labelled(data, labels)
        with progress_bar("embedding", quiet, progress) as show:
            usable = np.intersect1d(manifest.usable, np.flatnonzero(known.values >= 0))
            features, kept, bad = compute_features(
                encoder, manifest, usable, batch_size=batch_size, workers=readers, device=chosen, progress=show
            )
        y, groups = known.values[kept], None if known.groups is None else known.groups[kept]
        _check_readable(manifest, known, y, bad)
        with progress_bar("fitting", quiet or progress is not None) as show:
            fitted = fit_classifier(
                features, y, groups=groups, folds=folds, sure=sure, seed=seed, device=chosen, progress=show
            )
        unreadable = int((known.values >= 0).sum()) - len(kept)
        result = ClassifyResult.of(folder, run, manifest, known, y, unreadable, sure, encoder, fitted)
        _write(folder, assemble(encoder, fitted, known.classes, sure, clip), onnx, result)
    return result


def read_labelled(data: str | os.PathLike[str], how: str) -> tuple[Manifest, Labels]:
    """Return the images to classify by, and their labels.

    Args:
        data: a folder, of which the part for training is taken where the labels come with the images; a list; tar shards.
        how: value of --labels.

    Raises:
        BadInput: there are no images or labels.
    """
    manifest = Manifest.scan(data)
    if how in ("auto", "folder"):
        manifest = manifest.training_part() or manifest
    if not len(manifest.usable):
        raise nothing_readable(manifest, manifest.bad)
    if (labels := read_labels(manifest, how)) is None:
        raise BadInput(
            f"{manifest.root} has no labels to classify by; put each class into a folder of its own, two or more and no "
            "image beside them, or give --labels FILE.csv with path,label"
        )
    return manifest, labels


def _check_readable(manifest: Manifest, labels: Labels, y: np.ndarray, bad: list[tuple[int, str]]) -> None:
    """Refuse classes without an image that can be read; `y`, int64 (n,), are the classes of those that can."""
    if not len(y):
        raise nothing_readable(manifest, [*manifest.bad, *bad])
    names = manifest.top_folders()[0] if labels.source == "folder" else labels.classes
    if missing := [name for name in names if name not in {labels.classes[k] for k in np.unique(y)}]:
        raise BadInput(
            f"class {missing[0]!r} of {manifest.root} has no image that can be read; restore one, or remove the class"
        )


def assemble(
    encoder: Encoder, fitted: FittedClassifier, classes: list[str], sure: float, clip: ClipSetup | None
) -> Classifier:
    """Return the encoder with a fitted layer on it, on the CPU, in evaluation mode."""
    model = ProbabilityModel(encoder.backbone, len(classes))
    model.linear.load_state_dict({"weight": torch.from_numpy(fitted.weight), "bias": torch.from_numpy(fitted.bias)})
    whole = Encoder(model, encoder.info).cpu().eval().requires_grad_(False)
    return Classifier(whole, classes, fitted.threshold, sure, clip)


def _write(folder: Path, classifier: Classifier, onnx: bool, result: ClassifyResult) -> None:
    """Write the folder of a classifier."""
    if onnx:
        try:
            onnx_packages()
        except BadInput as error:
            onnx = False
            result.notes.append(f"there is no {ONNX_FILE}: {error}")
    with atomic_folder(folder) as temporary:
        classifier.save(temporary / FILE)
        if onnx:
            _write_onnx(temporary / ONNX_FILE, classifier)
        write_text(temporary / "README.md", write_card(classifier.model.info, result, onnx))


@torch.inference_mode()
def _write_onnx(path: Path, classifier: Classifier) -> None:
    """Write encoder and probabilities as one graph, and compare it with PyTorch on another number of images."""
    model, size = classifier.model, classifier.model.info.image_size
    about = {"classes": json.dumps(classifier.classes), "threshold": json.dumps(classifier.threshold)}
    example = torch.zeros(2, 3, size, size)
    write_onnx(
        path, model.backbone, example, "images", metadata=preprocessing(model.info) | about, output="probabilities"
    )
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    check_same(run_onnx(path, images), model(images), "classifier", "try --no-onnx")
