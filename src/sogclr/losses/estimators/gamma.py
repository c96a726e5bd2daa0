"""Rates of a moving average: what gamma, the weight of the new value, is at a step and for a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...errors import BadInput


def half_cosine(step: Tensor, steps: int) -> Tensor:
    """Return what falls from 1 at step 0 to 0 at `steps`, then stays: () float32, of a () integer."""
    return 0.5 * (1 + torch.cos(math.pi * (step / steps).clamp(max=1.0)))


class CosineGamma:
    """gamma falls along a half cosine from `start` to `end` over `steps` updates, then stays (FastCLIP, 2407.01445).

    FastCLIP takes half of the run as `steps`; the whole run is a slower start with the same end.
    """

    def __init__(self, end: float, steps: int, start: float = 1.0) -> None:
        if not 0.0 < end <= start <= 1.0:
            raise BadInput(f"a gamma schedule needs 0 < end <= start <= 1 and got start {start}, end {end}")
        if steps < 1:
            raise BadInput(f"a gamma schedule needs at least 1 step and got {steps}")
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, step: Tensor, log_u: Tensor | None = None) -> Tensor:
        """Return the gamma of the update numbered `step`, 0-based, () integer: () float32, on the same device."""
        return self.end + (self.start - self.end) * half_cosine(step, self.steps)

    def __repr__(self) -> str:
        return f"CosineGamma({self.start} to {self.end} in {self.steps} steps)"


class AdaptiveGamma:
    """gamma_i = sigmoid(alpha + log u_i), SCENT's (2602.02877): samples with many hard negatives forget faster.

    It is the closed-form step of stochastic proximal mirror descent on nu. As log u_i falls in training so does
    gamma_i; alpha = -c makes it one half where log u_i = c. Far below that the average no longer moves: choose alpha so
    that alpha + log u stays above about -4. log u is at most 1 / tau, where training starts.
    """

    def __init__(self, alpha: float = -4.0) -> None:
        if not math.isfinite(alpha):
            raise BadInput(f"alpha must be a finite number and was {alpha}")
        self.alpha = alpha

    def __call__(self, step: Tensor, log_u: Tensor) -> Tensor:
        """Return the gamma of samples with `log_u`, (B,), before the update, -inf where unseen: (B,)."""
        return torch.sigmoid(self.alpha + log_u)

    def logs(self, log_u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log(1 - gamma) and log gamma, (B,) each: float32's gamma itself is 1 from alpha + log u = 17 on."""
        return logsigmoid(-self.alpha - log_u), logsigmoid(self.alpha + log_u)

    def __repr__(self) -> str:
        return f"AdaptiveGamma(alpha={self.alpha})"


Gamma = float | CosineGamma | AdaptiveGamma


def checked_gamma(gamma: Gamma) -> Gamma:
    """Return a schedule as it is, and a number.

    Raises:
        BadInput: it is neither, or a number outside of (0, 1].
    """
    if isinstance(gamma, CosineGamma | AdaptiveGamma):
        return gamma
    try:
        number = float(gamma)
    except (TypeError, ValueError):
        raise BadInput(f"gamma must be a number, a CosineGamma or an AdaptiveGamma and was {gamma!r}") from None
    if not 0 < number <= 1:
        raise BadInput(
            f"gamma must be in (0, 1] and was {gamma}; it is the weight of the new estimate, 0.9 in the paper"
        )
    return number
