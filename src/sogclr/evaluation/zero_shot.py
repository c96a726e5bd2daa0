"""Zero-shot classification: the class whose name, in some sentences, is nearest to the image (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInput

if TYPE_CHECKING:
    from ..models.two_tower import TwoTower

TEMPLATES = ("{}", "a photo of {}", "a picture of {}")


def class_embeddings(towers: TwoTower, classes: list[str], templates: tuple[str, ...] = TEMPLATES) -> Tensor:
    """Return the mean over the templates of each class's sentence, (C, D) unit rows.

    Args:
        towers: whose text tower is used.
        classes: C names; underscores and hyphens count as spaces.
        templates: sentences with {} for the name.

    Raises:
        BadInput: a template without {}.
    """
    wrong = [t for t in templates if "{}" not in t]
    if wrong or not templates:
        raise BadInput(
            f"a template needs {{}} where the class name goes and {wrong[0] if wrong else 'none'!r} has none"
        )
    names = [" ".join(name.replace("_", " ").replace("-", " ").split()) for name in classes]
    rows = towers.encode_texts([t.replace("{}", name) for name in names for t in templates])
    return functional.normalize(rows.view(len(names), len(templates), -1).mean(dim=1), dim=1)


def zero_shot(images: Tensor, classes: Tensor, y: np.ndarray) -> dict[str, float]:
    """Return top-1 and top-5 accuracy, and the mean over classes of top-1 (each class counts alike).

    Args:
        images: (n, D) unit rows.
        classes: (C, D) unit rows.
        y: int64 (n,), the class of each image.

    Returns:
        `zero_shot_top1`, `zero_shot_top5` (with more than 5 classes), `zero_shot_mean_per_class`.
    """
    k = min(5, len(classes))
    best = torch.cat([(part @ classes.T).topk(k, dim=1).indices for part in torch.split(images, 1 << 14)]).cpu().numpy()
    right = best == y[:, None]
    per_class = [float(right[y == c, 0].mean()) for c in np.unique(y)]
    found = {"zero_shot_top1": float(right[:, 0].mean()), "zero_shot_mean_per_class": float(np.mean(per_class))}
    return found | ({"zero_shot_top5": float(right.any(axis=1).mean())} if len(classes) > 5 else {})
