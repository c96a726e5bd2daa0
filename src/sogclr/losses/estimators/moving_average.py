"""SogCLR's running estimate of each sample's normalizer."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import BadInput
from ..arguments import check_num_samples
from ..functional import blend, log_mean, merge_duplicates, moving_average
from . import sharded as shards
from .gamma import AdaptiveGamma, CosineGamma, Gamma, checked_gamma
from .protocol import Estimator, EstimatorInput

Convention = Literal["per_view", "per_sample"]


class MovingAverage(Estimator):
    """nu = log u_i after  u_i <- (1 - gamma) u_i + gamma ĝ_i:  SogCLR's estimator (2202.12387, Algorithm 1).

    The first visit of a sample sets u_i = ĝ_i, sample by sample. A sample that is in the batch more than once is
    blended each time with the old value; the mean of the results is stored.

    Args:
        num_samples: n; ids run from 0 to n - 1.
        gamma: weight of the NEW value, in (0, 1]; or a `CosineGamma` or `AdaptiveGamma`.
        convention: `per_sample` averages ĝ over the views and gives both the same nu (the paper); `per_view` blends
            each view with the old u_i on its own and stores the average (the authors' code).
        sharded: divide log_u among the ranks of the process group by id, see `divide`.

    Attributes:
        log_u: (n,) float32 buffer, -inf where unseen.
        step: () int64 buffer, updates so far.
    """

    log_u: Tensor
    step: Tensor
    part: shards.Part | None
    """Which part of log_u this rank keeps; None for all of it."""

    def __init__(
        self,
        num_samples: int,
        gamma: Gamma = 0.9,
        convention: Convention = "per_view",
        sharded: bool = False,
    ) -> None:
        super().__init__()
        num_samples, gamma = check_num_samples(num_samples), checked_gamma(gamma)
        if convention not in ("per_view", "per_sample"):
            raise BadInput(f"convention must be 'per_view' or 'per_sample' and was {convention!r}")
        self.num_samples, self.gamma, self.convention = num_samples, gamma, convention
        self.part = shards.Part.own(num_samples) if sharded else None
        empty = torch.full((num_samples,), -math.inf) if self.part is None else self.part.empty()
        self.register_buffer("log_u", empty)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if self.part is not None:
            self.register_buffer("kept_by", torch.tensor([self.part.rank, self.part.ranks]))

    def divide(self) -> None:
        """Keep from now on this rank's part of log_u, 4 n / R bytes instead of 4 n; all ranks call together.

        Gradients and values stay those of a whole log_u, and `state_dict()` becomes the part's own.
        `sogclr.sharded.whole_state` puts the parts together, and estimators load that on any number of ranks, divided
        or not. Does nothing on one rank.
        """
        if self.part is None and (part := shards.Part.own(self.num_samples)) is not None:
            self.part, self.log_u = part, part.of(self.log_u)
            self.register_buffer("kept_by", torch.tensor([part.rank, part.ranks], device=self.log_u.device))

    def read(self, index: Tensor) -> Tensor:
        """Return log u of the samples `index`, (B,); of a divided log_u all ranks call, with the same ids."""
        return self.log_u[index] if self.part is None else shards.read(self.log_u, index, self.part)

    def rate(self, log_u: Tensor) -> float | Tensor:
        """Return the gamma of the next update of samples with `log_u`, (B,): a float, () or (B,)."""
        if isinstance(self.gamma, CosineGamma | AdaptiveGamma):
            return self.gamma(self.step, log_u).to(log_u.dtype)
        return self.gamma

    def current_gamma(self) -> Tensor:
        """Return the mean gamma of the next update, over the samples that were seen: () float32."""
        if not isinstance(self.gamma, AdaptiveGamma):
            return torch.as_tensor(self.rate(self.log_u), dtype=torch.float32, device=self.log_u.device)
        seen = ~torch.isneginf(self.log_u)
        sums = torch.stack([(self.rate(self.log_u) * seen).sum(), seen.sum()])
        total, count = sums if self.part is None else shards.total(sums)
        return torch.div(total, count.clamp(min=1))

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return log u_i after the update, (V, B); see `Estimator.forward` for the arguments."""
        old = self.read(index).to(log_g.dtype)
        if self.convention == "per_view":
            nu = self._blend(old, log_g)
            new = log_mean(nu)
        else:
            new = self._blend(old, log_mean(log_g))
            nu = new.expand_as(log_g)
        if update:
            stored = merge_duplicates(new, index)
            # what is not finite never enters the state, and no wait for the device is needed to keep it out
            self._write(index, torch.where(stored.abs() < math.inf, stored, old).to(self.log_u.dtype))
            self.assign(self.step, self.step + 1)
        return nu

    @torch.no_grad()
    def warm_start(self, log_g: Tensor, index: Tensor) -> None:
        """Take log g as the estimate of samples, as if they had been seen.

        Args:
            log_g: (n,) floating; where an id stands more than once, log of the mean of its g is taken.
            index: (n,) int64 ids; of a divided log_u all ranks call, with the same.
        """
        self._write(index, merge_duplicates(log_g, index).to(self.log_u.dtype))

    def _blend(self, log_u: Tensor, log_g: Tensor) -> Tensor:
        if isinstance(self.gamma, AdaptiveGamma):
            return blend(log_u, log_g, *self.gamma.logs(log_u))
        return moving_average(log_u, log_g, self.rate(log_u))

    def _write(self, index: Tensor, new: Tensor) -> None:
        if self.part is None:
            self.assign(self.log_u, new, index)
        else:
            rows = self.part.place(index)
            self.assign(self.log_u, torch.where(rows < self.part.rows, new, -math.inf), rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved, kept_by = state_dict.get(prefix + "log_u"), state_dict.get(prefix + "kept_by")
        here = self.state_dict().get("kept_by")
        _check_saved(saved)
        if isinstance(kept_by, Tensor):
            if here is None or not torch.equal(kept_by.to(here), here):
                raise BadInput(
                    f"the loss state is the part that rank {int(kept_by[0])} of {int(kept_by[1])} kept, and this one "
                    f"keeps {'all of it' if here is None else f'that of rank {int(here[0])} of {int(here[1])}'}; "
                    "save sogclr.sharded.whole_state(loss), which every rank loads"
                )
        elif isinstance(saved, Tensor) and len(saved) != self.num_samples:
            raise BadInput(
                f"the loss state was saved for {len(saved)} samples and this loss is built for {self.num_samples}; "
                "ids would point at other samples: build it with the same num_samples"
            )
        elif isinstance(saved, Tensor) and self.part is not None:
            state_dict[prefix + "log_u"] = self.part.of(saved)
            state_dict[prefix + "kept_by"] = here
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"num_samples={self.num_samples}, gamma={self.gamma}, convention={self.convention!r}"


def _check_saved(log_u: object) -> None:
    """Refuse a saved log_u that holds NaN or +inf, which no update would ever take out again."""
    if isinstance(log_u, Tensor) and not log_u.is_meta and (bad := int((~(log_u < math.inf)).sum())):
        raise BadInput(
            f"the loss state has a log_u that is NaN or infinite for {bad} of {len(log_u)} samples; load a state from "
            "before, or set them to -inf, which is unseen"
        )
