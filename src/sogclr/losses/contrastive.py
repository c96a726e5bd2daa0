"""What all contrastive losses have in common, on two views or on image-text pairs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..distributed import world_size
from ..errors import BadInput
from ..kernels import at_least_float32
from ..kernels.ranks import scale_gradient
from . import functional as F
from . import temperatures
from .estimators import EstimatorInput
from .rollback import StatefulModule

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Anchors:
    """What a loss sees of the batch of all ranks: B samples, and V views of each that are anchors, 1 for MoCo."""

    z: Tensor
    """(V, B, D) unit rows."""
    index: Tensor
    """(B,) ids."""
    temperature: float | Tensor
    """A float, () or (B,); or, where images and texts have their own, (2, B)."""
    s_pos: Tensor
    """(B,): similarity of the two views; of more the mean over all pairs of them."""
    log_g: Tensor
    """(V, B): log ĝ over the negatives in the batch."""
    negatives: float | Tensor = 0.0
    """How many negatives each anchor has: a number, (B,) or (V, B)."""
    positives: Tensor | None = None
    """(V - 1, V, B), of more than two views: similarity of each with each of the others."""

    @property
    def pairs(self) -> Tensor:
        """Return the similarity of every pair of views: (B,) of two, (V - 1, V, B) of more."""
        return self.s_pos if self.positives is None else self.positives

    def estimator_input(self) -> EstimatorInput:
        """Return what an estimator sees of views: all are anchors, and all are candidates."""
        z = self.z.detach()
        return EstimatorInput(z, z, temperatures.detached(self.temperature))


class ContrastiveLoss(StatefulModule):
    """What all losses have in common, of views or of pairs: their arguments, reduction over ranks, statistics.

    After a call, `nu` holds the (V, B) normalizers, and `statistics` what can be said of them. Between `begin_step` and
    `rollback` a loss keeps what it needs to take its updates back.
    """

    __call__: Callable[..., Tensor]

    num_negatives: float | None = None
    """How many negatives a positive stands beside in the denominator; None for infinitely many, which leave it out."""
    per_temperature = False
    """Whether the value is on the scale of F / tau, as of a cross-entropy, and not on that of F."""

    def __init__(
        self, temperature: float | nn.Module = 0.1, reduction: Reduction = "mean", normalize: bool = True
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise BadInput(f"reduction must be 'mean', 'sum' or 'none' and was {reduction!r}")
        self.temperature = temperatures.as_temperature(temperature)
        self.reduction, self.normalize = reduction, normalize
        # of the last call: nu, s_pos, log ĝ, tau and more statistics
        self._last: tuple[Tensor, Tensor, Tensor, float | Tensor, dict[str, Tensor]] | None = None

    def rows(self, z: Tensor) -> Tensor:
        """Return (B, D) embeddings in float32 or float64, of norm one unless `normalize=False`."""
        return F.normalize(z) if self.normalize else at_least_float32(z)

    def reduce(self, values: Tensor) -> Tensor:
        """Return the mean or the sum of the values of all ranks, (B,), or all of them.

        Each rank's gradient is that of its own rows in the loss of the whole batch.
        """
        if self.reduction == "mean":
            values = values.mean()
        elif self.reduction == "sum":
            values = values.sum()
        return scale_gradient(values, world_size())

    def dual_values(self, anchors: Anchors, nu: Tensor) -> Tensor:
        """Return the (B,) dual values at nu, (V, B), and record them."""
        self.record(anchors, nu)
        if self.num_negatives is None:
            return F.dual_loss(anchors.s_pos, anchors.log_g, nu, anchors.temperature)
        return F.softmax_dual_loss(anchors.pairs, anchors.log_g, nu, anchors.temperature, self.num_negatives)

    def record(self, anchors: Anchors, nu: Tensor, **more: Tensor) -> None:
        """Keep what `statistics` is made from; `more` stands beside its entries, or for one of them."""
        tau = temperatures.detached(anchors.temperature)
        self._last = nu.detach(), anchors.s_pos.detach(), anchors.log_g.detach(), tau, more

    @property
    def nu(self) -> Tensor | None:
        """Return the normalizers of the last call, (V, B); None before it."""
        return None if self._last is None else self._last[0]

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Return () tensors of the last call, made when asked for and without a wait for the device; none before it.

        `objective` (the batch's estimate of E[-s + tau log g]), `normalizer_mean` and `normalizer_std` (of nu),
        `weight_max` (the largest exp(log ĝ - nu)) and `temperature` (the mean).
        """
        if self._last is None:
            return {}
        nu, s_pos, log_g, tau, more = self._last
        return {
            "objective": F.dual_loss(s_pos, log_g, nu, tau).mean(),
            "normalizer_mean": nu.mean(),
            "normalizer_std": nu.std(),
            "weight_max": (log_g - nu).max().exp(),
            "temperature": tau.mean() if isinstance(tau, Tensor) else torch.full_like(log_g[0, 0], tau),
        } | more

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        tau = "" if isinstance(self.temperature, nn.Module) else f"temperature={self.temperature}, "
        return f"{tau}reduction={self.reduction!r}, normalize={self.normalize}"


def no_autocast(z: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations on the device of z keep their dtypes."""
    kind = z.device.type
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(kind):
        return nullcontext()  # entering takes longer than some losses' arithmetic
    return torch.autocast(device_type=kind, enabled=False)


def replicated(value: Tensor) -> Tensor:
    """Return what every rank computes alike from parameters and the whole batch, with its gradient shared by the ranks.

    The gradient is whole on each rank already, and `reduce` multiplies by their number.
    """
    return scale_gradient(value, 1 / world_size())
