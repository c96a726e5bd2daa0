"""What the estimators of the normalizer have in common, and what they see of a batch beside its log ĝ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..rollback import StatefulModule


@dataclass(frozen=True)
class EstimatorInput:
    """Anchors and the candidates among which their negatives are, of all ranks and without gradient.

    Of two views, both are both; of pairs, images are anchors against texts, and texts against images.
    """

    anchors: Tensor
    """(V, B, D) unit rows."""
    candidates: Tensor
    """(W, B, D) unit rows."""
    temperature: float | Tensor
    """Of the anchors: a float, () or (B,)."""


class Estimator(StatefulModule):
    """The source of nu, the normalizer of each anchor; it does not know what the anchors are.

    A new one adds `forward`, and writes its state by `assign`, so that a step can be rolled back.
    """

    __call__: Callable[..., Tensor]

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return nu of the anchors of a batch, after the update of the state with that batch.

        Args:
            log_g: (V, B) floating, log ĝ of the anchors of V views over the negatives in the batch, without gradient.
            index: (B,) int64, the ids of the samples of all ranks.
            update: whether the state changes; False in evaluation mode.
            contrast: the rows that ĝ was made of.

        Returns:
            (V, B), dtype and device of `log_g`.
        """
        raise NotImplementedError
