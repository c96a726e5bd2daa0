"""What all contrastive losses have in common, on two views or on image-text pairs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..distributed import world_size
from ..errors import BadInput
from ..kernels import direct
from ..kernels.ranks import scale_gradient
from . import functional as F
from . import temperatures
from .estimators import EstimatorInput

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Anchors:
    """What a loss sees of the batch of all ranks. B samples, two views: (2, B) are the 2B anchors."""

    z: Tensor
    """(2, B, D) unit rows."""
    index: Tensor
    """(B,) ids."""
    temperature: float | Tensor
    """A float, () or (B,)."""
    s_pos: Tensor
    """(B,): similarity of the two views."""
    log_g: Tensor
    """(2, B): log ĝ over the negatives in the batch."""
    negatives: float | Tensor = 0.0
    """How many negatives each anchor has: a number, or (B,)."""

    def contrast(self) -> EstimatorInput:
        """Of two views: each is anchors, and both are candidates."""
        z = self.z.detach()
        return EstimatorInput(z, z, self.index, temperatures.detached(self.temperature))


class ContrastiveLoss(nn.Module):
    """What all losses have in common, on one tower or two: their arguments, reduction over ranks, statistics.

    After a call, `nu` holds the (2, B) normalizers, and `statistics` what can be said of them.
    """

    per_temperature = False
    """Whether the value is on the scale of F / tau, as of a cross-entropy, and not on that of F."""
    of_the_batch = True
    """Whether log ĝ over the batch's rows is all that a loss sees, so that `kernels.direct` may compute it."""

    def __init__(self, temperature: float | nn.Module, reduction: Reduction, normalize: bool) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise BadInput(f"reduction must be 'mean', 'sum' or 'none' and was {reduction!r}")
        self.temperature = temperatures.as_temperature(temperature)
        self.reduction, self.normalize = reduction, normalize
        # of the last call: nu, s_pos, log ĝ, tau and more statistics
        self._seen: tuple[Tensor, Tensor, Tensor, float | Tensor, dict[str, Tensor]] | None = None

    def unit(self, z: Tensor) -> Tensor:
        """(B, D) floating -> float32 or float64, of norm one unless `normalize=False`."""
        return F.unit_rows(z) if self.normalize else F.at_least_float32(z)

    def is_direct(self, z: Tensor, views: int) -> bool:
        """Whether `kernels.direct` goes from these (B, D) rows, so often, to log ĝ: small batches on one process."""
        return (
            self.of_the_batch
            and self.normalize
            and z.ndim == 2
            and world_size() == 1
            and direct.fits(z, views * z.shape[0], self.__dict__.get("temperature"))  # a module is not among these
        )

    def reduced(self, values: Tensor) -> Tensor:
        """(B of all ranks,) -> () or all of them; each rank's gradient is that of its own rows in the whole batch's loss."""
        if self.reduction == "mean":
            values = values.mean()
        elif self.reduction == "sum":
            values = values.sum()
        return scale_gradient(values, world_size())

    def dual(self, anchors: Anchors, nu: Tensor) -> Tensor:
        """The (B,) dual values, recorded."""
        self.record(anchors, nu)
        return F.dual_loss(anchors.s_pos, anchors.log_g, nu, anchors.temperature)

    def record(self, anchors: Anchors, nu: Tensor, **more: Tensor) -> None:
        """Keep what `statistics` is made from; `more` are statistics that stand beside the others or for one of them."""
        tau = temperatures.detached(anchors.temperature)
        self._seen = nu.detach(), anchors.s_pos.detach(), anchors.log_g.detach(), tau, more

    @property
    def nu(self) -> Tensor | None:
        """(2, B): the normalizers of the last call; None before it."""
        return None if self._seen is None else self._seen[0]

    @staticmethod
    def balance(anchors: Anchors, nu: Tensor) -> Tensor:
        """(B,) zeros whose gradient weighs the attraction as the repulsion is weighed, by w = exp(log ĝ - nu)."""
        excess = torch.exp(anchors.log_g - nu).detach().mean(dim=0) - 1
        return -excess * (anchors.s_pos - anchors.s_pos.detach())

    @property
    def statistics(self) -> dict[str, Tensor]:
        """0-d tensors of the last call, made when asked for and without waiting for the device; empty before it.

        `objective` (the batch's estimate of E[-s + tau log g]), `normalizer_mean` and `normalizer_std` (of nu),
        `weight_max` (the largest exp(log ĝ - nu)) and `temperature` (the mean).
        """
        if self._seen is None:
            return {}
        nu, s_pos, log_g, tau, more = self._seen
        return {
            "objective": F.dual_loss(s_pos, log_g, nu, tau).mean(),
            "normalizer_mean": nu.mean(),
            "normalizer_std": nu.std(),
            "weight_max": (log_g - nu).max().exp(),
            "temperature": tau.mean() if isinstance(tau, Tensor) else torch.full_like(log_g[0, 0], tau),
        } | more

    def begin_step(self) -> None:
        """Keep what `rollback` needs."""
        self._before = [(t, t.detach().clone()) for t in (*self.parameters(), *self.buffers())]

    @torch.no_grad()
    def rollback(self, unless: Tensor | None = None) -> None:
        """Take back every change of state since `begin_step`, except where `unless`, () bool, is true."""
        for now, before in self._before:
            now.copy_(F.where_ok(unless, now, before))
        self._before = []

    def extra_repr(self) -> str:
        tau = "" if isinstance(self.temperature, nn.Module) else f"temperature={self.temperature}, "
        return f"{tau}reduction={self.reduction!r}, normalize={self.normalize}"


def no_autocast(z: Tensor) -> AbstractContextManager[None]:
    """Inside it, operations on the device of z keep their dtypes."""
    kind = z.device.type
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(kind):
        return nullcontext()  # entering takes longer than some losses' arithmetic
    return torch.autocast(device_type=kind, enabled=False)


def replicated(value: Tensor) -> Tensor:
    """What every rank computes alike from parameters and the whole batch: its gradient is whole on each rank already."""
    return scale_gradient(value, 1 / world_size())
