"""How far a loss's mini-batch gradient is from the exact one: its bias, its variance, and its normalizer's error."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..losses.functional import log_mean
from . import exact


def diagnose(
    loss: nn.Module,
    encoder: nn.Module,
    views: Tensor,
    *,
    index: Tensor | None = None,
    batch_size: int = 32,
    batches: int = 500,
    single_batches: int = 32,
    variant: exact.Variant = "F2",
    temperature: float | Tensor | None = None,
    settle: int = 0,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    views_per_batch: int = 2,
) -> dict[str, float]:
    """Compare many batches of a loss, at fixed weights and fixed state, with the exact objective over all samples given.

    A batch is `batch_size` samples drawn without replacement, each in two (or more) distinct views drawn at random. The mean
    gradient costs one pass through the encoder whatever `batches` is, for the encoder is linear in what comes from above.

    Args:
        loss: `loss(z0, z1, index)`, or of more views `loss.of_views(z, index)`; a copy in evaluation mode is used, so its state stays. Losses on the scale of
            F / tau (`per_temperature`) are multiplied by tau first.
        encoder: (N, ...) -> (N, D), in evaluation mode (see `sogclr.exact.frozen`).
        views: (V, n, ...), V of 2 or more.
        index: (n,) ids of the samples; 0 to n - 1 when left out.
        batch_size: samples in a batch.
        batches: how many, for bias, cosine and normalizer error.
        single_batches: how many of them for variance and single cosines.
        variant: the objective, `F2` or `F1`.
        temperature: of the exact objective, a float or (n,); the loss's own when left out.
        settle: passes over the samples first, at these weights, in which the copy's state may change: the normalizer's
            error is then the estimator's own, without what moving weights and batch statistics added in training.
        dtype: float64 computes in that.
        seed: of the draws.
        views_per_batch: how many of a sample's views a batch holds, 2 or more. What is exact is over all V, whatever it is.

    Returns:
        `F1`, `F2` (the exact objectives), `gradient_norm` (of the exact gradient of the variant); relative to that norm
        `bias` (of the mean gradient, less `bias_noise`, what chance adds) and `variance` (total variance of one batch's
        gradient / norm squared); `cosine` to the exact gradient of the mean one, `cosine_batch` of single ones, mean;
        `normalizer_rmse`, `normalizer_bias` (of nu - log(mean over views of g), over the anchors of the batches);
        `images`, `views`, `batches` (how many).

    Raises:
        BadInput: shapes do not fit, or the encoder is not in evaluation mode.
    """
    count, n = views.shape[:2]
    _check_sizes(n, batch_size, batches, single_batches)
    if not 2 <= views_per_batch <= count:
        raise BadInput(f"views_per_batch must be from 2 to the {count} views of a sample and was {views_per_batch}")
    encoder, loss = exact.convert(encoder, dtype), copy.deepcopy(loss).eval()
    z = exact.embed_views(encoder, views)
    index = (torch.arange(n) if index is None else index).to(z.device)
    tau = temperature_of(loss, index) if temperature is None else temperature
    truth = flatten(exact.pull_back(encoder, views, exact.embedding_gradient(z, tau, variant)))
    sampler = _BatchSampler(n, count, batch_size, seed, views_per_batch)
    _settle(loss, z, index, sampler, settle * max(1, n // batch_size))
    mean, singles, errors = _average(loss, encoder, views, z, index, tau, sampler, batches, single_batches)
    return {
        "F1": exact.objective(z, tau, "F1"),
        "F2": exact.objective(z, tau, "F2"),
        **_moments(mean, singles, truth, batches),
        **_normalizer_error(errors),
        "images": n,
        "views": count,
        "batches": batches,
    }


def _check_sizes(n: int, batch_size: int, batches: int, single_batches: int) -> None:
    if not 2 <= batch_size <= n or single_batches < 2 or batches < single_batches:
        raise BadInput(
            f"a diagnosis needs 2 <= batch_size <= samples and 2 <= single_batches <= batches and got {batch_size} of {n}, "
            f"{single_batches} and {batches}"
        )


@torch.no_grad()
def _settle(loss: nn.Module, z: Tensor, index: Tensor, sampler: _BatchSampler, steps: int) -> None:
    """Let the loss's state come to rest at these embeddings."""
    loss.train()
    for _ in range(steps):
        rows, pair = (t.to(z.device) for t in sampler())
        _value(loss, z[pair, rows], index[rows])
    loss.eval()


def _average(
    loss: nn.Module,
    encoder: nn.Module,
    views: Tensor,
    z: Tensor,
    index: Tensor,
    tau: float | Tensor,
    sampler: _BatchSampler,
    batches: int,
    single_batches: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the mean gradient, (P,), some batches' own, (b, P), and the errors of the normalizers of each batch, (2, B)."""
    log_g = log_mean(exact.normalizers(z, tau))
    scale = float(torch.as_tensor(tau).mean()) if getattr(loss, "per_temperature", False) else 1.0
    mean, singles, errors = torch.zeros_like(z), [], []
    for number in range(batches):
        rows, pair = (t.to(z.device) for t in sampler())
        # gradient of the loss by the batch's embeddings, (V, B, D)
        x = z[pair, rows].requires_grad_()
        with torch.enable_grad():
            grad = torch.autograd.grad(_value(loss, x, index[rows]) * scale, x)[0]
        mean[pair, rows] += grad / batches
        if number < single_batches:
            inputs = views[pair.to(views.device), rows.to(views.device)]
            singles.append(flatten(exact.pull_back(encoder, inputs, grad)))
        if isinstance(nu := getattr(loss, "nu", None), Tensor):
            errors.append(nu - log_g[rows])
    return flatten(exact.pull_back(encoder, views, mean)), torch.stack(singles), errors


def _value(loss: nn.Module, z: Tensor, index: Tensor) -> Tensor:
    """Return the loss of a batch in V views, (V, B, D)."""
    value: Tensor = loss(*z, index) if len(z) == 2 else loss.of_views(z, index)  # type: ignore[operator]
    return value


def _moments(mean: Tensor, singles: Tensor, truth: Tensor, batches: int) -> dict[str, float]:
    """Return bias, variance and cosines of a mean gradient (P,) and single ones (b, P) against the true one (P,)."""
    norm = float(truth.norm())
    spread = float(singles.var(dim=0).sum()) / norm**2
    squared = float((mean - truth).square().sum()) / norm**2
    return {
        "gradient_norm": norm,
        "bias": math.sqrt(max(0.0, squared - spread / batches)),
        "bias_noise": math.sqrt(spread / batches),
        "variance": spread,
        "cosine": float(torch.cosine_similarity(mean, truth, dim=0)),
        "cosine_batch": float(torch.cosine_similarity(singles, truth[None], dim=1).mean()),
    }


def _normalizer_error(errors: list[Tensor]) -> dict[str, float]:
    """Return the mean and the root mean square of all errors; nothing where there are none."""
    if not errors:
        return {}
    error = torch.cat(errors, dim=1).double()
    return {"normalizer_rmse": float(error.square().mean().sqrt()), "normalizer_bias": float(error.mean())}


class _BatchSampler:
    """Batches of samples with two or more distinct views of each: rows (B,) and their views (W, B)."""

    def __init__(self, n: int, views: int, batch_size: int, seed: int, per_batch: int = 2) -> None:
        self.n, self.views, self.batch_size, self.per_batch = n, views, batch_size, per_batch
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> tuple[Tensor, Tensor]:
        rows = torch.randperm(self.n, generator=self.generator)[: self.batch_size]
        if self.per_batch > 2:
            order = torch.rand(self.views, self.batch_size, generator=self.generator).argsort(dim=0)
            return rows, order[: self.per_batch]
        v0 = torch.randint(self.views, (self.batch_size,), generator=self.generator)
        step = torch.randint(1, self.views, (self.batch_size,), generator=self.generator)
        return rows, torch.stack([v0, (v0 + step) % self.views])


def temperature_of(loss: nn.Module, index: Tensor) -> float | Tensor:
    """Return the loss's temperature of some samples: a float, () or (n,).

    Args:
        loss: with an attribute `temperature`.
        index: (n,), ids of the samples.

    Raises:
        BadInput: it has none.
    """
    temperature = getattr(loss, "temperature", None)
    if temperature is None:
        raise BadInput(f"{type(loss).__name__} has no attribute `temperature`; give diagnose(temperature=)")
    found: float | Tensor = temperature(index).detach() if isinstance(temperature, nn.Module) else temperature
    return found


def flatten(gradient: dict[str, Tensor]) -> Tensor:
    """Return all of a gradient as one vector."""
    return torch.cat([g.flatten() for g in gradient.values()])
