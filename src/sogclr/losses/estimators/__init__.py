"""Normalizer estimators: where nu comes from. The only thing in which the members of this family of losses differ.

An estimator is called with log ĝ of the batch, (V, B), the anchors' ids, (B,), whether its state may change, and a
`Contrast`, the rows that ĝ was made of, all without gradient; it returns nu, (V, B). It knows of no towers. To add one,
write a file with such a module (and, if it has state, `snapshot` and `restore`, as `MovingAverage`) and a row in
`sogclr.config.methods`.
"""

from __future__ import annotations

from .boosted import BoostedAverage
from .dictionary import Dictionary
from .gamma import AdaptiveGamma, CosineGamma, Gamma
from .mini_batch import MiniBatch
from .moving_average import Convention, MovingAverage
from .neural import Neural
from .protocol import EstimatorInput

__all__ = [
    "AdaptiveGamma",
    "BoostedAverage",
    "Convention",
    "CosineGamma",
    "Dictionary",
    "EstimatorInput",
    "Gamma",
    "MiniBatch",
    "MovingAverage",
    "Neural",
]
