"""A classifier of images: an encoder with a linear layer on its features, and the file that holds both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images import ImageFile
from ..errors import BadInput
from .backbone import create_backbone, feature_width
from .clip import ClipSetup
from .encoder import Encoder, read_info_of, save_weights
from .weight_files import read_weights_file

FILE = "classifier.safetensors"
FORMAT = "sogclr-classifier-1"
CLIP_FOLDER = "clip"


class ProbabilityModel(nn.Module):
    """Normalised images (N, 3, S, S) -> probabilities (N, C), float32.

    Args:
        backbone: normalised images -> features (N, D).
        num_classes: C.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(feature_width(backbone), num_classes)
        self.num_features = num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities (N, C) of normalised images (N, 3, S, S)."""
        probabilities: Tensor = self.linear(self.backbone(images)).float().softmax(1)
        return probabilities


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an image."""

    label: str
    """The most probable class."""
    probability: float
    """Of that class, calibrated."""
    unsure: bool
    """Whether the probability is below the classifier's threshold."""


@dataclass(frozen=True)
class Classifier:
    """A classifier in use.

    Example:
        >>> classifier = load_classifier("clf")                                     # doctest: +SKIP
        >>> [p.label for p in classifier.predict_files(["a.jpg", "b.jpg"])]         # doctest: +SKIP
    """

    model: Encoder
    """Its features are the probabilities (N, C); it has the preprocessing."""
    classes: list[str]
    threshold: float | None
    """The least probability that is sure; None where no probability is."""
    sure: float
    """Accuracy that the sure predictions are to have."""
    clip: ClipSetup | None = None
    """What the encoder is, where it is one of a CLIP model."""

    def __call__(self, crops: Tensor) -> Tensor:
        """Return the probabilities (N, C) of uint8 crops (N, S, S, 3) on the classifier's device.

        Raises:
            BadInput: they are no tensor of that type and shape.
        """
        return self.model.encode(crops)

    def predict_files(self, paths: Iterable[ImageFile], batch_size: int = 64) -> list[Prediction]:
        """Return what it says of files, read one after another.

        For a folder `sogclr.predict` is faster: it reads in several processes.

        Raises:
            BadInput: a path instead of a list of them, or a file that cannot be read.
        """
        found = self.decide(self.model.encode_files(paths, batch_size).numpy())
        return [
            Prediction(self.classes[k], p, unsure) for k, p, unsure in zip(*(a.tolist() for a in found), strict=True)
        ]

    def decide(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the most probable class, its probability, and whether that is unsure.

        Args:
            probabilities: float32 (N, C).

        Returns:
            int64 (N,), float32 (N,) and bool (N,).
        """
        best = probabilities.max(1)
        least = np.inf if self.threshold is None else self.threshold
        return probabilities.argmax(1), best, best < least

    def save(self, path: Path) -> None:
        """Write the file that `load_classifier` reads; of a CLIP model `clip/` beside it."""
        about = json.dumps({"classes": self.classes, "threshold": self.threshold, "sure": self.sure})
        save_weights(path, self.model.backbone, FORMAT, self.model.info, classifier=about)
        if self.clip is not None:
            self.clip.save(path.parent / CLIP_FOLDER)


def load_classifier(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Classifier:
    """Load what `sogclr classify` wrote, in evaluation mode.

    Args:
        folder: its folder.
        device: where the classifier will be.

    Raises:
        BadInput: no such folder, or its file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise BadInput(f"{folder} holds no classifier ({FILE}); give a folder that `sogclr classify` wrote")
    remedy = "restore it from a copy, or make it again with `sogclr classify`"
    info, metadata = read_info_of(path, FORMAT, remedy)
    weights = read_weights_file(path, remedy)
    damaged = BadInput(f"{path} does not hold what `sogclr classify` writes; {remedy}")
    try:
        about = json.loads(metadata["classifier"])
        classes, threshold, sure = [*map(str, about["classes"])], about["threshold"], about["sure"]
    except (KeyError, TypeError, ValueError):
        raise damaged from None
    clip = ClipSetup.find(path.parent / CLIP_FOLDER)
    backbone = create_backbone(info.name, info.image_size) if clip is None else clip.build().backbone
    model = ProbabilityModel(backbone, len(classes))
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise damaged from None
    return Classifier(Encoder(model, info).to(device).eval().requires_grad_(False), classes, threshold, sure, clip)
