"""The whole-data values of the theory: normalizers, objectives and gradients over all samples, in chunks, on any device.

n samples in V views each (a fixed, finite set, over which everything here is exact); an anchor a is a view of a sample,
its negatives are all V views of the n - 1 other samples, and

    log g_a = log of the mean over the negatives of exp(s_ab / tau)
    F1 = mean over i of [ -s_i + tau mean over views of log g_a ]
    F2 = mean over i of [ -s_i + tau log of the mean over views of g_a ]      (what SogCLR minimises: one state a sample)

with s_i the mean similarity over the V (V - 1) ordered pairs of distinct views. F1 <= F2.

BatchNorm makes an embedding depend on the rest of its batch, so that with batch statistics there is no exact gradient:
`gradient` refuses it. `with eval_mode(encoder):` fixes the statistics at their running values (and turns dropout off).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..kernels import at_least_float32
from ..losses.functional import expand_temperature, log_mean, normalize
from ..progress import ProgressCallback
from .exact_pairs import pair_normalizers as pair_normalizers

Variant = Literal["F1", "F2"]
_ENTRIES = 1 << 22  # similarities at a time


@torch.no_grad()
def normalizers(
    embeddings: Tensor,
    temperature: float | Tensor,
    dtype: torch.dtype | None = None,
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Return log g_a of every anchor.

    Args:
        embeddings: (V, n, D), of any norm.
        temperature: a float, or one for each sample, (n,).
        dtype: float64 for an exact check; otherwise float32 or what the embeddings have, if that is more.
        progress: called with (samples done, samples to do).

    Returns:
        (V, n).

    Raises:
        BadInput: shapes do not fit, or the temperature is not above 0.

    Example:
        >>> normalizers(torch.eye(3).expand(2, 3, 3), temperature=0.5)[0]
        tensor([0., 0., 0.])
    """
    z = _normalize(embeddings, temperature, dtype, views=1)
    found = []
    for start, stop in _chunks(z):
        found.append(_log_g(z, start, stop, _slice(temperature, start, stop, z)))
        if progress is not None:
            progress(stop, z.shape[1])
    return torch.cat(found, dim=1)


@torch.no_grad()
def objective(
    embeddings: Tensor, temperature: float | Tensor, variant: Variant = "F2", dtype: torch.dtype | None = None
) -> float:
    """Return F1 or F2 of all samples.

    Args:
        embeddings: (V, n, D), V of 2 or more, of any norm.
        temperature: a float, or one for each sample, (n,).
        variant: `F2` or `F1`.
        dtype: as for `normalizers`.

    Raises:
        BadInput: shapes do not fit, the temperature is not above 0, or there is no such variant.

    Example:
        >>> objective(torch.eye(3).expand(2, 3, 3), temperature=0.5)
        -1.0
    """
    _check_variant(variant)
    z = _normalize(embeddings, temperature, dtype, views=2)
    values = [_values(z, *chunk, temperature, variant).double().sum() for chunk in _chunks(z)]
    return float(torch.stack(values).sum() / z.shape[1])


def embedding_gradient(
    embeddings: Tensor, temperature: float | Tensor, variant: Variant = "F2", dtype: torch.dtype | None = None
) -> Tensor:
    """Return the exact gradient of F with respect to the embeddings.

    Args:
        embeddings: (V, n, D), V of 2 or more, of any norm.
        temperature: a float, or one for each sample, (n,).
        variant: `F2` or `F1`.
        dtype: as for `normalizers`.

    Returns:
        (V, n, D).

    Raises:
        BadInput: as `objective`.
    """
    _check_variant(variant)
    raw = embeddings.detach().to(dtype or embeddings.dtype).requires_grad_()
    with torch.enable_grad():
        unit = _normalize(raw, temperature, None, views=2)
        z = unit.detach().requires_grad_()
        total = torch.zeros_like(z)
        for chunk in _chunks(z):
            total += torch.autograd.grad(_values(z, *chunk, temperature, variant).sum() / z.shape[1], z)[0]
        return torch.autograd.grad(unit, raw, total)[0]


def gradient(
    encoder: nn.Module,
    views: Tensor,
    temperature: float | Tensor,
    variant: Variant = "F2",
    *,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """Return the exact gradient of F with respect to the encoder's parameters, in memory of one batch.

    Args:
        encoder: (N, ...) -> (N, D), without batch statistics (see `eval_mode`).
        views: (V, n, ...), the inputs; moved to the encoder's device a batch at a time.
        temperature: a float, or one for each sample, (n,).
        variant: `F2` or `F1`.
        dtype: float64 computes everything in that, with a copy of the encoder.
        batch_size: inputs at a time; the result does not depend on it.

    Returns:
        Parameter name -> gradient, for the parameters that require one.

    Raises:
        BadInput: BatchNorm uses batch statistics, or dropout is on.
    """
    encoder = convert(encoder, dtype)
    z = embed_views(encoder, views, batch_size)
    return pull_back(encoder, views, embedding_gradient(z, temperature, variant), batch_size)


def embed_views(encoder: nn.Module, views: Tensor, batch_size: int = 256) -> Tensor:
    """Return the embeddings of all views, without a graph, in float32 or more.

    Args:
        encoder: (N, ...) -> (N, D), without batch statistics.
        views: (V, n, ...), the inputs.
        batch_size: inputs at a time.

    Returns:
        (V, n, D).

    Raises:
        BadInput: BatchNorm uses batch statistics, or dropout is on.
    """
    check_eval_mode(encoder)
    like = next(encoder.parameters())
    with torch.no_grad():
        rows = torch.cat([encoder(x.to(like)) for x in torch.split(views.flatten(0, 1), batch_size)])
    return at_least_float32(rows).view(*views.shape[:2], -1)


def pull_back(encoder: nn.Module, views: Tensor, z_grad: Tensor, batch_size: int = 256) -> dict[str, Tensor]:
    """Return the gradient of the parameters from that of the embeddings: a vector-Jacobian product in batches.

    Args:
        encoder: (N, ...) -> (N, D), without batch statistics.
        views: (V, n, ...), the inputs.
        z_grad: (V, n, D).
        batch_size: inputs at a time.

    Returns:
        Parameter name -> gradient, for the parameters that require one.
    """
    names, parameters = zip(*((k, p) for k, p in encoder.named_parameters() if p.requires_grad), strict=True)
    total = [torch.zeros_like(p) for p in parameters]
    inputs, grads = (torch.split(t.flatten(0, 1), batch_size) for t in (views, z_grad))
    for x, grad in zip(inputs, grads, strict=True):
        with torch.enable_grad():
            z = encoder(x.to(parameters[0]))
        parts = torch.autograd.grad(z, parameters, grad.to(z), allow_unused=True, materialize_grads=True)
        for t, part in zip(total, parts, strict=True):
            t += part
    return dict(zip(names, total, strict=True))


@contextmanager
def eval_mode(encoder: nn.Module) -> Iterator[nn.Module]:
    """Put a module in evaluation mode inside a `with` block; afterwards each submodule has its own mode again.

    BatchNorm is then at its running statistics, and dropout is off.

    Args:
        encoder: any module; it is what the block is given.
    """
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield encoder
    finally:
        for module, mode in modes.items():
            module.training = mode


frozen = eval_mode  # the public name


def check_eval_mode(encoder: nn.Module) -> None:
    """Refuse an encoder whose embeddings depend on the batch or on chance.

    Raises:
        BadInput: BatchNorm uses batch statistics, or dropout is on.
    """
    for name, module in encoder.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if norm and (module.training or module.running_mean is None):
            raise BadInput(
                f"{name or 'the encoder'} ({type(module).__name__}) normalises by the batch, so an exact gradient does not "
                "exist; fix its statistics with `with sogclr.exact.frozen(encoder):`, or use an encoder without BatchNorm"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise BadInput(f"{name} drops out at random; turn it off with `with sogclr.exact.frozen(encoder):`")


def convert(encoder: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return the encoder itself, or a copy of it in another dtype."""
    return encoder if dtype is None else copy.deepcopy(encoder).to(dtype)


def _values(z: Tensor, start: int, stop: int, temperature: float | Tensor, variant: Variant) -> Tensor:
    """Return -s_i + tau (log g of the sample) of the samples start..stop, (stop - start,), from (V, n, D) unit rows."""
    views, tau = len(z), _slice(temperature, start, stop, z)
    rows = z[:, start:stop]
    s = (rows.sum(dim=0).square().sum(dim=1) - rows.square().sum(dim=(0, 2))) / (views * (views - 1))
    log_g = _log_g(z, start, stop, tau)
    return -s + tau * (log_mean(log_g) if variant == "F2" else log_g.mean(dim=0))


def _log_g(z: Tensor, start: int, stop: int, tau: float | Tensor) -> Tensor:
    """Return log g of the views of the samples start..stop, (V, stop - start)."""
    views, n, _ = z.shape
    sim = z[:, start:stop].flatten(0, 1) @ z.flatten(0, 1).T / expand_temperature(tau, views)
    sample = torch.arange(n, device=z.device)
    own = sample[start:stop, None] == sample[None, :]
    log_sum = sim.masked_fill(own.repeat(views, views), -math.inf).logsumexp(dim=1)
    return log_sum.view(views, -1) - math.log(views * (n - 1))


def _chunks(z: Tensor) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of as many samples as have `_ENTRIES` similarities."""
    views, n, _ = z.shape
    size = max(1, _ENTRIES // (views * views * n))
    for start in range(0, n, size):
        yield start, min(start + size, n)


def _slice(temperature: float | Tensor, start: int, stop: int, z: Tensor) -> float | Tensor:
    """Return the temperature of the samples start..stop, in the dtype and on the device of z."""
    if not isinstance(temperature, Tensor):
        return temperature
    temperature = temperature.detach().to(z)
    return temperature[start:stop] if temperature.ndim == 1 else temperature


def _normalize(embeddings: Tensor, temperature: float | Tensor, dtype: torch.dtype | None, views: int) -> Tensor:
    """Return unit rows, (V, n, D), once everything is known to fit; `views` are the least."""
    if embeddings.ndim != 3 or embeddings.shape[0] < views or embeddings.shape[1] < 2:
        raise BadInput(
            f"embeddings must be (V, n, D) with at least {views} views of at least 2 samples, and are "
            f"{tuple(embeddings.shape)}"
        )
    if isinstance(temperature, Tensor) and temperature.ndim == 1 and len(temperature) != embeddings.shape[1]:
        raise BadInput(
            f"there are {len(temperature)} temperatures for {embeddings.shape[1]} samples; give one for each"
        )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise BadInput(f"temperature must be greater than 0 and was {temperature}")
    return normalize(embeddings if dtype is None else embeddings.to(dtype))


def _check_variant(variant: str) -> None:
    if variant not in ("F1", "F2"):
        raise BadInput(f"variant must be 'F1' or 'F2' and was {variant!r}")
