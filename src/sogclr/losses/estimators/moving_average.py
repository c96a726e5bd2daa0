"""SogCLR's running estimate of each sample's normalizer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ...errors import BadInput
from ..functional import log_mean, merge_duplicates, moving_average
from .dictionary import Dictionary
from .gamma import AdaptiveGamma, CosineGamma, Gamma

Convention = Literal["per_view", "per_sample"]


class MovingAverage(nn.Module):
    """nu = log u_i after  u_i <- (1 - gamma) u_i + gamma ĝ_i:  SogCLR's estimator (2202.12387, Algorithm 1).

    The first visit of a sample sets u_i = ĝ_i, sample by sample. A sample that is in the batch more than once is
    blended each time with the old value; the mean of the results is stored.

    Args:
        num_samples: n; ids run from 0 to n - 1.
        gamma: weight of the NEW value, in (0, 1]; or a `CosineGamma` or `AdaptiveGamma`.
        convention: `per_sample` averages ĝ over the views and gives both the same nu (the paper); `per_view` blends
            each view with the old u_i on its own and stores the average (the authors' code).
        dictionary: where ĝ comes from, instead of the batch alone: `Dictionary(size, dim)`, batch and queue.

    Attributes:
        log_u: (n,) float32 buffer, -inf where unseen.  step: () int64 buffer, updates so far.
    """

    log_u: Tensor
    step: Tensor

    def __init__(
        self,
        num_samples: int,
        gamma: Gamma = 0.9,
        convention: Convention = "per_view",
        dictionary: Dictionary | None = None,
    ) -> None:
        super().__init__()
        if num_samples < 2:
            raise BadInput(f"num_samples must be 2 or more and was {num_samples}; pass len(dataset)")
        if not isinstance(gamma, CosineGamma | AdaptiveGamma) and not 0.0 < gamma <= 1.0:
            raise BadInput(
                f"gamma must be in (0, 1] and was {gamma}; it is the weight of the new estimate, 0.9 in the paper"
            )
        if convention not in ("per_view", "per_sample"):
            raise BadInput(f"convention must be 'per_view' or 'per_sample' and was {convention!r}")
        self.num_samples, self.gamma, self.convention = num_samples, gamma, convention
        self.dictionary = dictionary
        self.register_buffer("log_u", torch.full((num_samples,), -math.inf, dtype=torch.float32))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def rate(self, log_u: Tensor) -> float | Tensor:
        """The gamma of the next update of samples with these log u, (B,): a float, () or (B,), dtype and device theirs."""
        if isinstance(self.gamma, CosineGamma | AdaptiveGamma):
            return self.gamma(self.step, log_u).to(log_u.dtype)
        return self.gamma

    def current_gamma(self) -> Tensor:
        """() float32 on the state's device: the mean gamma of the next update, over the samples that were seen."""
        if not isinstance(self.gamma, AdaptiveGamma):
            return torch.as_tensor(self.rate(self.log_u), dtype=torch.float32, device=self.log_u.device)
        seen = ~torch.isneginf(self.log_u)
        return (self.rate(self.log_u) * seen).sum() / seen.sum().clamp(min=1)

    def forward(
        self,
        log_g: Tensor,
        index: Tensor,
        update: bool,
        z: Tensor | None = None,
        temperature: float | Tensor | None = None,
    ) -> Tensor:
        if self.dictionary is not None:
            log_g = self.dictionary(log_g, index, update, z=z, temperature=temperature)
        old = self.log_u[index].to(log_g.dtype)
        gamma = self.rate(old)
        if self.convention == "per_view":
            nu = moving_average(old, log_g, gamma)
            new = log_mean(nu)
        else:
            new = moving_average(old, log_mean(log_g), gamma)
            nu = new.expand_as(log_g)
        if update:
            stored = merge_duplicates(new, index)
            # what is not finite never enters the state, and no wait for the device is needed to keep it out
            self.log_u[index] = torch.where(stored.abs() < math.inf, stored, old).to(self.log_u.dtype)
            self.step.add_(1)
        return nu

    def snapshot(self, index: Tensor) -> tuple[Tensor, ...]:
        """What `restore` needs to undo the update of a batch: copies of the rows `index`, (B,), and of the step."""
        index = index.to(self.log_u.device)
        return index, self.log_u[index].clone(), self.step.clone()

    def restore(self, saved: tuple[Tensor, ...]) -> None:
        """Undo the update since `snapshot`."""
        index, rows, step = saved
        self.log_u[index] = rows
        self.step.copy_(step)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        saved = state_dict.get(prefix + "log_u")
        if isinstance(saved, Tensor) and saved.shape != self.log_u.shape:
            raise BadInput(
                f"the loss state was saved for {len(saved)} samples and this loss is built for {self.num_samples}; "
                "ids would point at other samples: build it with the same num_samples"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, gamma={self.gamma}, convention={self.convention!r}"
