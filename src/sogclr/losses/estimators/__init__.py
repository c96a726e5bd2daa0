"""Normalizer estimators: where nu comes from. The only thing in which the members of this family of losses differ.

An estimator is called with log ĝ of the batch, (V, B), the anchors' ids, (B,), whether its state may change, and an
`EstimatorInput`, the rows that ĝ was made of, all without gradient; it returns nu, (V, B). It does not know what they
are of. To add one, write a file with an `Estimator`, which writes what state it has by `assign`, and a row in
`sogclr.config.methods`.
"""

from __future__ import annotations

from .gamma import AdaptiveGamma, CosineGamma, Gamma
from .mini_batch import MiniBatch
from .moving_average import Convention, MovingAverage
from .protocol import Estimator, EstimatorInput
from .prototypes import PrototypeNormalizer

Neural = PrototypeNormalizer  # its first name

__all__ = [
    "AdaptiveGamma",
    "Convention",
    "CosineGamma",
    "Estimator",
    "EstimatorInput",
    "Gamma",
    "MiniBatch",
    "MovingAverage",
    "Neural",
    "PrototypeNormalizer",
]
