"""The mini-batch's own normalizer."""

from __future__ import annotations

from torch import Tensor

from .protocol import Estimator, EstimatorInput


class MiniBatch(Estimator):
    """nu = log ĝ, as in SimCLR, DCL and CLIP. No state."""

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return log ĝ, (V, B); see `Estimator.forward` for the arguments."""
        return log_g
