"""Every public loss on the same few deterministic steps: the numbers that `test_golden.py` compares with stored ones.

Only the public API is used here. `python tests/golden_losses.py` writes the stored numbers; they are version 0.1.0's
(commit 68ae24f) and are to be written again only where a change of the mathematics is meant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sogclr
from sogclr import estimators as e
from sogclr import temperatures as t

STORED = Path(__file__).parent / "fixtures" / "golden_losses.json"
N, TEXTS, D, QUEUE = 1200, 900, 8, 24  # samples, texts where they have ids of their own, width, a queue's length
SMALL = (8, 8, 6, 8, 3, 8, 8, 2, 8, 12, 8)  # batches of the first steps; then one for the kernel of large batches
LARGE = {1: 520, 2: 1030}  # towers -> pairs whose similarities are more than 1024 * 1024
DUPLICATES, HALF, EVALUATION = (1, 6, 9), 5, 3  # steps with an id twice, in bfloat16, and in evaluation mode


@dataclass(frozen=True)
class Case:
    """A loss and what it is called with."""

    build: Callable[[], nn.Module]
    towers: int = 1
    text_ids: bool = False
    """Whether texts have ids of their own."""
    unit: bool = False
    """Whether the embeddings have norm one already."""


def _global(**options: Any) -> Case:
    return Case(lambda: sogclr.GlobalContrastiveLoss(N, **_made(options)))


def _two(**options: Any) -> Case:
    return Case(lambda: sogclr.TwoTowerGlobalContrastiveLoss(N, **_made(options)), 2)


def _captions(**options: Any) -> Case:
    return Case(lambda: sogclr.TwoTowerGlobalContrastiveLoss(N, num_texts=TEXTS, **_made(options)), 2, True)


def _made(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with modules made anew: one is given as a function that makes it."""
    return {k: v() if k in ("estimator", "temperature") and callable(v) else v for k, v in options.items()}


def _both(make: Callable[[int], nn.Module]) -> Callable[[], tuple[nn.Module, nn.Module]]:
    return lambda: (make(N), make(TEXTS))


CASES: dict[str, Case] = {
    # two views
    "global": _global(),
    "global gamma 0.3": _global(gamma=0.3, temperature=0.2),
    "global gamma 1": _global(gamma=1.0),
    "global cold": _global(gamma=0.5, temperature=0.02),
    "global per_sample": _global(gamma=0.4, convention="per_sample"),
    "global cosine": _global(gamma=e.CosineGamma(0.2, 8)),
    "global cosine per_sample": _global(gamma=e.CosineGamma(0.1, 20, start=0.8), convention="per_sample"),
    "global adaptive": _global(gamma=e.AdaptiveGamma(-3.0)),
    "global adaptive per_sample": _global(gamma=e.AdaptiveGamma(-2.0), convention="per_sample"),
    "global sum": _global(gamma=0.5, reduction="sum"),
    "global none": _global(gamma=0.5, reduction="none"),
    "global unnormalised": Case(lambda: sogclr.GlobalContrastiveLoss(N, gamma=0.5, normalize=False), unit=True),
    "mini-batch": _global(estimator=e.MiniBatch),
    "neural": _global(estimator=lambda: e.Neural(D, 16)),
    "neural restart": _global(estimator=lambda: e.Neural(D, 32, restart=4), temperature=0.2),
    "per-sample temperature": _global(temperature=lambda: t.PerSample(N)),
    "per-sample temperature per_sample": _global(
        temperature=lambda: t.PerSample(N, 0.2, 0.1, 0.15, 0.25), convention="per_sample", gamma=0.5
    ),
    "per-sample temperature neural": _global(temperature=lambda: t.PerSample(N), estimator=lambda: e.Neural(D, 16)),
    "global temperature": _global(temperature=t.Global),
    "global temperature in bounds": _global(temperature=lambda: t.Global(0.1, 3.0, 0.0995, 0.1005)),
    "global temperature mini-batch": _global(temperature=lambda: t.Global(0.2, 0.5), estimator=e.MiniBatch),
    "ntxent": Case(sogclr.NTXentLoss),
    "ntxent sum": Case(lambda: sogclr.NTXentLoss(0.5, reduction="sum")),
    "ntxent global temperature": Case(lambda: sogclr.NTXentLoss(t.Global())),
    "ntxent per-sample temperature": Case(lambda: sogclr.NTXentLoss(t.PerSample(N))),
    "dcl": Case(sogclr.DecoupledContrastiveLoss),
    "dcl none": Case(lambda: sogclr.DecoupledContrastiveLoss(0.2, reduction="none")),
    "dcl global temperature": Case(lambda: sogclr.DecoupledContrastiveLoss(t.Global())),
    "moco": Case(lambda: sogclr.MoCoLoss(D, QUEUE)),
    "moco none": Case(lambda: sogclr.MoCoLoss(D, 7, 0.1, reduction="none")),
    "moco global temperature": Case(lambda: sogclr.MoCoLoss(D, QUEUE, t.Global())),
    # images and texts
    "two towers": _two(),
    "two towers gamma 0.3": _two(gamma=0.3, temperature=0.1),
    "two towers cosine": _two(gamma=e.CosineGamma(0.2, 8)),
    "two towers adaptive": _two(gamma=e.AdaptiveGamma(-2.0)),
    "two towers sum": _two(gamma=0.5, reduction="sum"),
    "two towers none": _two(gamma=0.5, reduction="none"),
    "two towers mini-batch": _two(estimator=e.MiniBatch),
    "two towers neural": _two(estimator=lambda: e.Neural(D, 16)),
    "two towers per-sample temperature": _two(temperature=lambda: t.PerSample(N)),
    "two towers global temperature": _two(temperature=t.Global),
    "two towers two global temperatures": _two(temperature=lambda: (t.Global(0.1), t.Global(0.2))),
    "captions": _captions(gamma=0.5),
    "captions neural": _captions(estimator=lambda: e.Neural(D, 16)),
    "captions per-sample temperature": _captions(temperature=_both(t.PerSample), gamma=0.6),
    "captions global temperature": _captions(temperature=t.Global),
    "clip": Case(sogclr.ClipLoss, 2),
    "clip none": Case(lambda: sogclr.ClipLoss(0.2, reduction="none"), 2),
    "clip captions": Case(sogclr.ClipLoss, 2, True),
    "clip global temperature": Case(lambda: sogclr.ClipLoss(t.Global()), 2),
    "clip captions global temperature": Case(lambda: sogclr.ClipLoss(t.Global()), 2, True),
    "siglip": Case(sogclr.SigLipLoss, 2),
    "siglip captions": Case(sogclr.SigLipLoss, 2, True),
    "siglip fixed": Case(lambda: sogclr.SigLipLoss(0.2, -3.0, learnable=False, reduction="sum"), 2),
}


# --------------------------------------------------------------------------------------------------------------- a step
def inputs(case: Case, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return embeddings of both sides, (B, D) each, that are alike in pairs, and two kinds of ids, (B,)."""
    batch = SMALL[step] if step < len(SMALL) else LARGE[case.towers]
    draw = torch.Generator().manual_seed(1000 + step)
    common = torch.randn(batch, D, generator=draw)
    x, y = (common + 0.7 * torch.randn(batch, D, generator=draw) for _ in range(2))
    few = 20 if batch < 100 else N  # the same samples again and again
    ids = torch.randperm(few, generator=draw)[:batch]
    texts = torch.randint(0, 15 if batch < 100 else TEXTS, (batch,), generator=draw)
    if step in DUPLICATES:
        ids[1] = ids[0]
    if not case.text_ids:
        texts = ids
    if not (texts != texts[0]).any():
        texts = torch.arange(batch)
    if case.unit:
        x, y = nn.functional.normalize(x), nn.functional.normalize(y)
    dtype = torch.bfloat16 if step == HALF else torch.float32
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_(), ids, texts


def record(case: Case) -> list[dict[str, Any]]:
    """Return the numbers of each step: value, statistics, gradients, state."""
    torch.manual_seed(0)
    loss_fn = case.build()
    # small enough that no temperature leaves its bounds by far; those of samples have gradients of 1/B
    rates = {0: 5e-4, 1: 0.1, 2: 0.05}
    groups = [{"params": [p], "lr": rates[p.ndim]} for p in loss_fn.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(groups or [torch.zeros(1)], lr=0.05)
    steps = []
    for step in range(len(SMALL) + 1):
        x, y, ids, texts = inputs(case, step)
        loss_fn.train(step != EVALUATION)
        optimizer.zero_grad()
        loss = loss_fn(x, y, ids, texts) if case.text_ids else loss_fn(x, y, ids)
        loss.dot(torch.linspace(0.5, 1.5, len(loss)).to(loss)).backward() if loss.ndim else loss.backward()
        steps.append(
            {
                "loss": digest(loss),
                "statistics": {k: [float(v)] for k, v in loss_fn.statistics.items()},
                "gradients": {
                    name: digest(p.grad)
                    for name, p in (("x", x), ("y", y), *loss_fn.named_parameters())
                    if p.grad is not None
                },
                "state": {k: digest(v) for k, v in loss_fn.state_dict().items()},
            }
        )
        if step != EVALUATION:
            optimizer.step()
    return steps


def digest(value: Tensor) -> list[float]:
    """Return a number itself; of more, the norm, a sum with fixed weights, and how many are not finite."""
    value = value.to_dense() if value.is_sparse else value
    flat = value.detach().double().flatten()
    if value.ndim == 0:
        return flat.tolist()
    known = torch.where(flat.isfinite(), flat, 0.0)
    weights = torch.arange(len(flat), dtype=torch.float64).cos()
    return [float(known.norm()), float(known @ weights), float((~flat.isfinite()).sum())]


# ------------------------------------------------------------------------------------------------------- whole data sets
def record_exact() -> dict[str, list[float]]:
    """Return what `sogclr.exact` says of 60 samples in three views, and of a small encoder."""
    draw = torch.Generator().manual_seed(7)
    common = torch.randn(60, D, generator=draw)
    z = torch.stack([common + 0.7 * torch.randn(60, D, generator=draw) for _ in range(3)])
    temperatures = torch.linspace(0.1, 0.5, 60)
    encoder = nn.Linear(D, 5)
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    found: dict[str, list[float]] = {}
    for name, tau in (("0.1", 0.1), ("0.02", 0.02), ("each", temperatures)):
        for dtype in (None, torch.float64):
            words = f"{name} {dtype or 'as it is'}"
            found[f"normalizers {words}"] = digest(sogclr.exact.normalizers(z, tau, dtype))
            for variant in ("F1", "F2"):
                found[f"objective {variant} {words}"] = [sogclr.exact.objective(z, tau, variant, dtype)]
                gradient = sogclr.exact.gradient(encoder, z, tau, variant, dtype=dtype, batch_size=50)
                found |= {f"gradient {variant} {words} {k}": digest(v) for k, v in gradient.items()}
    return found


def rounded(value: Any) -> Any:
    """Return nested numbers with nine digits, which is all that float32 has."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.9g}") if math.isfinite(value) else str(value)


def main() -> None:
    """Write the stored numbers."""
    torch.set_num_threads(1)
    cases = {name: rounded(record(case)) for name, case in CASES.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(steps, separators=(',', ':'))}" for name, steps in cases.items()]
    exact = json.dumps(rounded(record_exact()), separators=(",", ":"))
    STORED.write_text(f'{{"exact": {exact},\n"losses": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
