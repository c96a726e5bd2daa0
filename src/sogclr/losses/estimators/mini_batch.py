"""The mini-batch's own normalizer."""

from __future__ import annotations

from torch import Tensor, nn

from .protocol import EstimatorInput


class MiniBatch(nn.Module):
    """nu = log ĝ, as in SimCLR, DCL and CLIP. No state."""

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        return log_g
