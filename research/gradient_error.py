"""Bias and variance of a rule's gradient, and the error of its nu, against the exact whole-data values at frozen weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .many_runs import ManyRuns, forward
from .measure import exact


def flat_gradient(runs: ManyRuns, rows: Tensor, dz: Tensor) -> Tensor:
    """Return (R, P), the gradient with respect to all weights of each run, given dL/dz at the rows (R, N) of the table."""
    z = normalize(forward(runs.weights, runs.table[rows]), dim=2)
    parts = torch.autograd.grad(z, runs.weights, dz)
    return torch.cat([p.flatten(1) for p in parts], dim=1)


@torch.no_grad()
def exact_dz(z: Tensor, tau: float, variant: str = "F2", rows: int = 32) -> tuple[Tensor, Tensor]:
    """Return d F / d z in closed form, (V, n, D), and log g, (V, n).

    With w_a the derivative of F with respect to tau g_a, times Vn (F2: 1 / mean over the views of g; F1: 1 / g_a):
    dF/dz_a = (1/Vn) { -2 mean over the other views of z  +  (w_a + w_b) E_ab / (V (n-1)) summed over b in N(a), times z_b }.
    """
    views, n, _ = z.shape
    _, _, log_g = exact(z, tau)
    scale = log_g if variant == "F1" else (log_g.logsumexp(dim=0) - math.log(views)).expand(views, n)
    w = torch.exp(-scale).flatten()
    flat = z.reshape(views * n, -1)
    turned = (flat / tau).T.contiguous()
    ids = torch.arange(n).repeat(views)
    push = torch.empty_like(flat)
    for k in range(0, views * n, rows):
        e = (flat[k : k + rows] @ turned).exp_().mul_(w[k : k + rows, None] + w[None, :])
        e.masked_fill_(ids[k : k + rows, None] == ids[None, :], 0.0)
        push[k : k + rows] = e @ flat
    push = push.view(views, n, -1) / (views * (n - 1))
    pull = 2 * (z.sum(dim=0, keepdim=True) - z) / (views - 1)
    return (push - pull) / (views * n), log_g


def exact_gradient(runs: ManyRuns, run: int, variant: str = "F2") -> tuple[Tensor, Tensor]:
    """Return (P,), the gradient of F with respect to the weights of one run, and log g (V, n)."""
    dz, log_g = exact_dz(runs.embeddings(run), runs.tau, variant)
    alone = copy.copy(runs)
    alone.weights = [w.detach()[run : run + 1].requires_grad_() for w in runs.weights]
    every = torch.arange(runs.n * runs.views)[None]
    return flat_gradient(alone, every, dz.transpose(0, 1).reshape(1, runs.n * runs.views, -1))[0], log_g


def gradient_error(
    runs: ManyRuns, rules: dict[str, Any], batches: int, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Return, for each rule (an object that serves all R runs) and run, over `batches` batches at the present weights:

    `bias` = |mean gradient - exact| / |exact| with the part removed that chance leaves in a mean of so many batches,
    `noise` = root mean square of |gradient - mean| / |exact|,  `cosine` of the mean to the exact one,
    `nu_rmse` = root mean square of nu - log g (its mean over the views of a sample, as u has one number a sample).
    No rule's state is changed, and none is carried from batch to batch.
    """
    truth = [exact_gradient(runs, r) for r in range(len(runs.jobs))]
    exact_flat = torch.stack([g for g, _ in truth])
    log_g = torch.stack([g.logsumexp(dim=0) - math.log(runs.views) for _, g in truth])  # (R, n)
    count = len(runs.jobs)
    sums = {name: torch.zeros_like(exact_flat) for name in rules}
    squares = {name: torch.zeros(count) for name in rules}
    errors = {name: torch.zeros(count) for name in rules}
    g = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        index = torch.randperm(runs.n, generator=g)[: runs.batch].expand(count, -1)
        first = torch.randint(runs.views, index.shape[1:], generator=g)
        second = (first + torch.randint(1, runs.views, first.shape, generator=g)) % runs.views
        rows = torch.cat([index * runs.views + first, index * runs.views + second], dim=1)
        z = normalize(forward(runs.weights, runs.table[rows]), dim=2)
        with torch.no_grad():
            here = z.detach()
            seen, e = runs.see(here, index)
        for k, (name, rule) in enumerate(rules.items()):
            with torch.no_grad():
                once = copy.deepcopy(rule)
                dz, nu = runs.dz_of(once, seen, e)
            parts = torch.autograd.grad(z, runs.weights, dz, retain_graph=k < len(rules) - 1)
            flat = torch.cat([p.flatten(1) for p in parts], dim=1)
            sums[name] += flat
            squares[name] += flat.square().sum(dim=1)
            wrong = nu.view(count, 2, -1) - log_g.gather(1, index)[:, None]
            errors[name] += wrong.square().mean(dim=(1, 2))
    norm = exact_flat.norm(dim=1)
    out = {}
    for name in rules:
        mean = sums[name] / batches
        variance = (squares[name] / batches - mean.square().sum(dim=1)).clamp(min=0) * batches / (batches - 1)
        bias2 = ((mean - exact_flat).square().sum(dim=1) - variance / batches).clamp(min=0)
        out[name] = {
            "bias": (bias2.sqrt() / norm).tolist(),
            "noise": (variance.sqrt() / norm).tolist(),
            "cosine": torch.nn.functional.cosine_similarity(mean, exact_flat, dim=1).tolist(),
            "nu_rmse": (errors[name] / batches).sqrt().tolist(),
        }
    return out
