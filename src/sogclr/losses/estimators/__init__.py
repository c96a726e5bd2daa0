"""Normalizer estimators: where nu comes from. The only thing in which the members of this family of losses differ.

An estimator is called with log ĝ of the batch, (V, B), the anchors' ids, (B,), whether its state may change, and an
`EstimatorInput`, the rows that ĝ was made of, all without gradient; it returns nu, (V, B). It does not know what they
are of. To add one, write a file with an `Estimator`, which writes what state it has by `assign`, and a row in
`sogclr.config.methods`.
"""

from __future__ import annotations

from ...errors import BadInput
from .boosted import BoostedAverage
from .gamma import AdaptiveGamma, CosineGamma, Gamma
from .mini_batch import MiniBatch
from .moving_average import Convention, MovingAverage
from .protocol import Estimator, EstimatorInput
from .prototypes import PrototypeNormalizer
from .queue_normalizer import QueueNormalizer

Dictionary, Neural = QueueNormalizer, PrototypeNormalizer  # their first names

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
    "PrototypeNormalizer",
    "QueueNormalizer",
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
) -> Estimator:
    """Return the estimator of a name in `NAMES`; each takes what it needs of the rest.

    Args:
        name: one of `NAMES`.
        num_samples: n.
        dim: D, width of the embeddings.
        gamma: of moving averages.
        convention: of moving averages.
        queue: K, embeddings that are kept.
        prototypes: of the prototype normalizer.
        steps: of the run, for the boosted average.

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
        return QueueNormalizer(queue, dim)
    if name == "queue-average":
        return MovingAverage(num_samples, gamma, convention, QueueNormalizer(queue, dim))
    if name == "neural":
        return PrototypeNormalizer(dim, prototypes)
    raise BadInput(f"there is no estimator {name!r}; give one of {', '.join(NAMES)}")
