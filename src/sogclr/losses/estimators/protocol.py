"""What an estimator sees of a batch beside its log ĝ."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EstimatorInput:
    """Anchors and the candidates among which their negatives are, of all ranks and without gradient.

    On one tower the two views are both; on two towers images are anchors against texts, and texts against images.
    """

    anchors: Tensor
    """(V, B, D) unit rows."""
    candidates: Tensor
    """(W, B, D) unit rows."""
    ids: Tensor
    """(B,), or (B, kinds) where rows have several: what shares an id is no negative."""
    temperature: float | Tensor
    """Of the anchors: a float, () or (B,)."""
