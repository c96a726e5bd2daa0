"""Normalizer estimators: where nu comes from. The only thing in which the members of this family of losses differ.

An estimator is called with log ĝ of the batch, (V, B), the anchors' ids, (B,), whether its state may change, and a
`Contrast`, the rows that ĝ was made of, all without gradient; it returns nu, (V, B). It knows of no towers. To add one,
write a file with an `Estimator`, which writes what state it has by `assign`, and a line in `create`.
"""

from __future__ import annotations

from torch import nn

from ...errors import BadInput
from .boosted import BoostedAverage
from .dictionary import Dictionary
from .gamma import AdaptiveGamma, CosineGamma, Gamma
from .mini_batch import MiniBatch
from .moving_average import Convention, MovingAverage
from .neural import Neural
from .protocol import Estimator, EstimatorInput

__all__ = [
    "AdaptiveGamma",
    "BoostedAverage",
    "Convention",
    "CosineGamma",
    "Dictionary",
    "Estimator",
    "EstimatorInput",
    "Gamma",
    "MiniBatch",
    "MovingAverage",
    "Neural",
    "create",
]

NAMES = ("moving-average", "boosted", "mini-batch", "dictionary", "queue-average", "neural")


def create(
    name: str,
    num_samples: int,
    dim: int,
    gamma: Gamma = 0.9,
    convention: Convention = "per_view",
    queue: int = 4096,
    prototypes: int = 1024,
    steps: int = 1,
) -> nn.Module:
    """The estimator of a name in `NAMES`; each takes what it needs of the rest.

    Args:
        num_samples: n.  dim: D, width of the embeddings.  gamma, convention: of moving averages.
        queue: K, embeddings that are kept.  prototypes: of the neural normalizer.  steps: of the run (boosted).

    Raises:
        BadInput: no such name.
    """
    if name == "mini-batch":
        return MiniBatch()
    if name == "moving-average":
        return MovingAverage(num_samples, gamma, convention)
    if name == "boosted":
        return BoostedAverage(num_samples, steps, convention=convention)
    if name == "dictionary":
        return Dictionary(queue, dim)
    if name == "queue-average":
        return MovingAverage(num_samples, gamma, convention, Dictionary(queue, dim))
    if name == "neural":
        return Neural(dim, prototypes)
    raise BadInput(f"there is no estimator {name!r}; give one of {', '.join(NAMES)}")
