"""Temperatures: ids -> tau. A constant is a float; learned ones are modules, and their gradient comes by autograd.

Where tau is learned, the objective gains `rho` times tau (iSogCLR's robust objective, arXiv 2305.11965), and

    dF/dtau_i = log u_i + rho - sum over the negatives of p_ij s_ij / tau_i  =  rho - KL(p_i || uniform),

so that tau_i grows where the weights p_i sit on few negatives and falls where they are even, until the divergence is
rho.

A temperature is trained by an optimizer of yours, beside the encoder's; the next forward pass in training mode puts
what left [minimum, maximum] back. On several ranks its gradient is that of the whole batch on every rank already.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from .arguments import check_num_samples


class PerSample(nn.Module):
    """One learned temperature a sample (iSogCLR's; its two towers' code has another u, see docs/method.md).

    The gradient is sparse: only the samples of the batch have one, so it costs O(B) a step, and samples that are not
    visited do not move. Use an optimizer that takes sparse gradients and keeps no momentum for absent rows:
    `torch.optim.SGD(loss_fn.temperature.parameters(), lr)` (no state; projected gradient descent, as in the paper) or
    `torch.optim.SparseAdam` (two floats a sample more). Others refuse it. With the mean over B samples as the loss,
    a sample's gradient is 1/B of its own: lr = 0.01 B is a step of 0.01.

    Args:
        num_samples: n; ids run from 0 to n - 1.
        initial: tau of every sample at the start.
        rho: what the divergence of the negatives' weights from uniform tends to; in (0, log(negatives)).
        minimum: lower bound of tau.
        maximum: upper bound of tau.

    Attributes:
        tau: (n,) float32 parameter.

    Example:
        >>> import torch, sogclr
        >>> temperature = sogclr.temperatures.PerSample(num_samples=1000)
        >>> loss_fn = sogclr.GlobalContrastiveLoss(num_samples=1000, temperature=temperature)
        >>> optimizer = torch.optim.SGD(temperature.parameters(), lr=0.01 * 8)
        >>> z0, z1 = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss_fn(z0, z1, torch.arange(8)).backward()
        >>> optimizer.step()
        >>> int((temperature.tau != 0.1).sum())
        8

    Source: Qiu et al., arXiv 2305.11965.
    """

    def __init__(
        self, num_samples: int, initial: float = 0.1, rho: float = 0.3, minimum: float = 0.05, maximum: float = 0.7
    ) -> None:
        super().__init__()
        num_samples = check_num_samples(num_samples)
        _check(initial, rho, minimum, maximum)
        self.num_samples, self.rho, self.minimum, self.maximum = num_samples, rho, minimum, maximum
        self.tau = nn.Parameter(torch.full((num_samples,), initial, dtype=torch.float32))

    def forward(self, index: Tensor) -> Tensor:
        """Return tau of the samples `index`, (B,): (B,) float32; in training mode it is put back into bounds first."""
        if self.training:
            with torch.no_grad():
                self.tau[index] = self.tau[index].clamp(self.minimum, self.maximum)
        return torch.gather(self.tau, 0, index, sparse_grad=True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "tau")
        if isinstance(saved, Tensor) and saved.shape != self.tau.shape:
            raise BadInput(
                f"the temperatures were saved for {len(saved)} samples and these are built for {self.num_samples}; "
                "ids would point at other samples: build them with the same num_samples"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"num_samples={self.num_samples}, rho={self.rho}, minimum={self.minimum}, maximum={self.maximum}"


class Global(nn.Module):
    """One learned temperature for all (FastCLIP v3's, arXiv 2407.01445): F + rho tau is minimised over tau as well.

    FastCLIP's u has the positive inside, which this does not change: docs/method.md.

    Put its one parameter into any optimizer, without weight decay.

    Args:
        initial: tau at the start.
        rho: what the mean divergence of the negatives' weights from uniform tends to; in (0, log(negatives)).
        minimum: lower bound of tau.
        maximum: upper bound of tau.

    Attributes:
        tau: () float32 parameter.

    Example:
        >>> import torch, sogclr
        >>> temperature = sogclr.temperatures.Global(initial=0.1, rho=0.3)
        >>> loss_fn = sogclr.GlobalContrastiveLoss(num_samples=1000, temperature=temperature)
        >>> optimizer = torch.optim.Adam(temperature.parameters(), lr=2e-4)
    """

    def __init__(self, initial: float = 0.1, rho: float = 0.3, minimum: float = 0.01, maximum: float = 1.0) -> None:
        super().__init__()
        _check(initial, rho, minimum, maximum)
        self.rho, self.minimum, self.maximum = rho, minimum, maximum
        self.tau = nn.Parameter(torch.tensor(initial, dtype=torch.float32))

    def forward(self, index: Tensor) -> Tensor:
        """Return tau, () float32, whatever the ids `index`; in training mode it is put back into bounds first."""
        if self.training:
            with torch.no_grad():
                self.tau.clamp_(self.minimum, self.maximum)
        return self.tau.clone()  # the parameter may be put back into bounds before this graph is used

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"rho={self.rho}, minimum={self.minimum}, maximum={self.maximum}"


def as_temperature(temperature: float | nn.Module) -> float | nn.Module:
    """Return a module as it is, and a number as a float.

    Raises:
        BadInput: the number is not greater than 0, or float32 does not hold it or its inverse, or it is neither.
    """
    if isinstance(temperature, nn.Module):
        return temperature
    try:
        tau = float(temperature)
    except (TypeError, ValueError):
        raise BadInput(
            f"temperature must be a number or a module of sogclr.temperatures and was {temperature!r}; "
            "0.1 is the paper's"
        ) from None
    if tau == math.inf:
        raise BadInput(f"temperature must be a finite number and was {temperature}; 0.1 is the paper's")
    if not tau > 0:
        raise BadInput(f"temperature must be greater than 0 and was {temperature}; 0.1 is the paper's")
    if not 1e-37 <= tau <= 1e37:
        raise BadInput(
            f"temperature must be from 1e-37 to 1e+37, for float32 to hold it, and was {temperature}; 0.1 is the paper's"
        )
    return tau


def temperature_at(temperature: float | nn.Module, index: Tensor, like: Tensor) -> float | Tensor:
    """Return tau of the samples `index`, (B,): the float, or () or (B,) in the dtype of `like`."""
    if not isinstance(temperature, nn.Module):
        return temperature
    tau: Tensor = temperature(index)
    return tau.to(like.dtype)


def penalty(temperature: float | nn.Module, tau: float | Tensor) -> float | Tensor:
    """Return rho tau, which the objective gains where tau is learned; 0 for a constant."""
    return temperature.rho * tau if isinstance(temperature, PerSample | Global) else 0.0


def detached(tau: float | Tensor) -> float | Tensor:
    """Return tau without its graph."""
    return tau.detach() if isinstance(tau, Tensor) else tau


def _check(initial: float, rho: float, minimum: float, maximum: float) -> None:
    if not 0 < minimum <= initial <= maximum < math.inf:
        raise BadInput(
            f"a temperature needs 0 < minimum <= initial <= maximum, all finite, and got minimum {minimum}, initial {initial}, "
            f"maximum {maximum}"
        )
    if rho == math.inf:
        raise BadInput(f"rho must be a finite number and was {rho}; it is the divergence that the temperature holds")
    if not rho >= 0:
        raise BadInput(f"rho must be 0 or more and was {rho}; it is the divergence that the temperature holds")
