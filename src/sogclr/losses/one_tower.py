"""Two views of each image, one encoder: the global contrastive loss (SogCLR, arXiv 2202.12387) and what all losses share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..distributed import gather, log_sum_negatives, scale_gradient, uneven
from ..errors import BadInput
from ..kernels import direct
from ..processes import check_together, world_size
from . import functional as F
from . import temperatures
from .estimators import Contrast, Convention, Gamma, MovingAverage
from .validation import VIEWS, all_distinct, check_built_for, check_negatives, check_pairs, check_through

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

    def contrast(self) -> Contrast:
        """Of two views: each is anchors, and both are candidates."""
        z = self.z.detach()
        return Contrast(z, z, self.index, temperatures.detached(self.temperature))


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
        self.temperature = temperatures.checked(temperature)
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


class OneTowerLoss(ContrastiveLoss):
    """What the losses on two views have in common: checks, unit rows, float32, ids, ranks.

    A loss adds `per_sample(anchors)`, which returns the (B,) values.
    """

    num_samples: int | None = None

    def forward(self, z0: Tensor, z1: Tensor, index: Tensor) -> Tensor:
        """(B, D) floating, (B, D), (B,) ids -> (), or (B of all ranks,) with `reduction='none'`.

        With several ranks every rank gives its own rows, as many as it has, sees everybody's, and returns the loss of the
        whole batch.

        Raises:
            BadInput: shapes, dtypes or ids are wrong.  NonFinite: an embedding is not finite (CPU).
        """
        is_direct = self.is_direct(z0, 2)
        index, sizes = check_together(check_pairs, z0, z1, index, self.num_samples, VIEWS, not is_direct)
        with uneven(sizes), no_autocast(z0):
            index = gather(index)
            check_negatives(index)
            if is_direct:
                values = self.per_sample(self.direct(z0, z1, index))
            else:
                values = self.values(gather(self.unit(z0)), gather(self.unit(z1)), index)
        return self.reduced(values)

    def direct(self, z0: Tensor, z1: Tensor, index: Tensor) -> Anchors:
        """(B, D) floating, (B, D), (B,): what `values` makes of a small batch, in fewer operations."""
        apart = all_distinct(index)
        negatives = 2.0 * (z0.shape[0] - 1) if apart else F.negatives_of(index).to(F.inside(z0))
        tau = self.temperature
        assert isinstance(tau, float)
        s_pos, log_g, z = direct.one_tower(z0, z1, None if apart else index, F.log_of(negatives), tau)
        check_through(log_g, z0, z1, index)
        return Anchors(z, index, tau, s_pos, log_g, negatives)

    def values(self, z0: Tensor, z1: Tensor, index: Tensor) -> Tensor:
        """(B, D) unit rows of all ranks, (B, D), (B,) int64 -> (B,)."""
        tau = temperatures.at(self.temperature, index, z0)
        tau = replicated(tau) if isinstance(tau, Tensor) else tau
        negatives = F.negatives_of(index).to(z0.dtype)
        log_g = log_sum_negatives(z0, z1, index, tau) - negatives.log()
        s_pos = F.positive_similarity(z0, z1)
        return self.per_sample(Anchors(torch.stack([z0, z1]), index, tau, s_pos, log_g, negatives))

    def per_sample(self, anchors: Anchors) -> Tensor:
        raise NotImplementedError


class GlobalContrastiveLoss(OneTowerLoss):
    r"""Global contrastive loss: each positive pair against ALL negatives of the data set, at any batch size.

    Value of a batch, over its anchors a (sample i, view A):

        mean of  -s_{a,p(a)} + tau ( exp(log ĝ_a - nu_a) + nu_a - 1 ),   nu_a = log u_i after
        u_i <- (1 - gamma) u_i + gamma ĝ_i

    ĝ_a is the mean of exp(s_ab / tau) over the negatives in the batch. The gradient, with nu held constant, is SogCLR's;
    the value is an estimate of the global objective itself, so it can be watched.

    Args:
        num_samples: samples in the data set; `index` runs from 0 to num_samples - 1.
        temperature: tau > 0, or `sogclr.temperatures.PerSample` or `Global`, which are learned.
        gamma: weight of the new estimate in (0, 1], or `sogclr.estimators.CosineGamma` or `AdaptiveGamma`; 1 is the mini-batch loss.
        convention: `per_view` or `per_sample`, see `sogclr.estimators.MovingAverage`.
        estimator: another source of nu, instead of `gamma` and `convention`.
        balanced: weigh an anchor's attraction with w = exp(log ĝ - nu) too, as its repulsion is: the same expectation where
            E[w] = 1, with less noise (docs/method.md).
        reduction: `mean`, `sum` or `none` (one value a sample).
        normalize: scale embeddings to norm one first; pass False only if they have it already.

    All state is in `state_dict()`: `estimator.log_u` (float32, one number a sample) and `estimator.step`. It changes
    in training mode only (`loss_fn.eval()` leaves it alone).

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.GlobalContrastiveLoss(num_samples=1000, temperature=0.1, gamma=0.9)
        >>> z0, z1 = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss = loss_fn(z0, z1, index=torch.arange(8))
        >>> loss.backward()
        >>> int(torch.isfinite(loss_fn.estimator.log_u).sum())
        8

    Source: arXiv 2202.12387, Algorithm 1.
    """

    def __init__(
        self,
        num_samples: int,
        temperature: float | nn.Module = 0.1,
        gamma: Gamma = 0.9,
        convention: Convention = "per_view",
        estimator: nn.Module | None = None,
        balanced: bool = False,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(temperature, reduction, normalize)
        self.num_samples, self.balanced = num_samples, balanced
        self.estimator = MovingAverage(num_samples, gamma, convention) if estimator is None else estimator
        for part in (self.estimator, temperature):
            check_built_for(part, num_samples, "samples", "give both num_samples=len(dataset)")

    def per_sample(self, anchors: Anchors) -> Tensor:
        nu = self.estimator(anchors.log_g.detach(), anchors.index, self.training, anchors.contrast())
        values = self.dual(anchors, replicated(nu)) + temperatures.penalty(self.temperature, anchors.temperature)
        return values + self.balance(anchors, nu) if self.balanced else values
