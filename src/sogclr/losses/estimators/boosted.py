"""A moving average whose rate falls over the whole run, while a repulsion that is stronger at first falls too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import BadInput
from .gamma import CosineGamma, half_cosine
from .moving_average import Convention, MovingAverage
from .protocol import EstimatorInput
from .queue_normalizer import QueueNormalizer


class BoostedAverage(MovingAverage):
    """nu = log u_i - log b, with u as SogCLR's, gamma from 1 to `end` and b from `boost` to 1 along half cosines.

    The gradient is that of  -s + b tau log g:  early, when the embeddings lie in a narrow cone and have to spread, the
    repulsion counts b times; at the end b is 1 and the objective is F2, with the small bias that a small gamma gives.
    The loss's value is too high by  tau (b - 1 - log b),  0.013 for b 1.6 and tau 0.1, and exact at the end.

    Args:
        num_samples: n; ids run from 0 to n - 1.
        steps: updates in the whole run; afterwards gamma is `end` and b is 1.
        boost: b at the start, 1 or more.
        end: gamma at the end.
        convention: as of `MovingAverage`.
        dictionary: as of `MovingAverage`.
        sharded: as of `MovingAverage`.

    The derivation and what was measured are in docs/method.md.
    """

    def __init__(
        self,
        num_samples: int,
        steps: int,
        boost: float = 1.6,
        end: float = 0.1,
        convention: Convention = "per_view",
        dictionary: QueueNormalizer | None = None,
        sharded: bool = False,
    ) -> None:
        if not 1.0 <= boost < math.inf:
            raise BadInput(f"boost must be 1 or more and was {boost}; it multiplies the repulsion at the start")
        super().__init__(num_samples, CosineGamma(end, steps), convention, dictionary, sharded)
        self.boost, self.steps = boost, steps

    def log_boost(self) -> Tensor:
        """Return log b of the next update: () float32."""
        return torch.log(1 + (self.boost - 1) * self.falling())

    def falling(self) -> Tensor:
        """Return what falls from 1 at the first update to 0 at the end of the run, along a half cosine: () float32."""
        return half_cosine(self.step, self.steps)

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return  log u_i - log b  after the update of u; see `Estimator.forward` for the arguments."""
        shift = self.log_boost().to(log_g.dtype)
        return super().forward(log_g, index, update, contrast) - shift

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"{super().extra_repr()}, boost={self.boost}"
