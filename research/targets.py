"""A momentum target, and averaged weights, in the trainer: does either help SogCLR or SimCLR at a small batch?

    python -m research.targets --data DIR [--only NAME ...] [--seeds N] [--quick] [--report]

With a momentum target queries of the model stand against keys of an average of its weights and of BatchNorm's statistics, in the positive and in the negatives; a
predictor may follow the queries' head. The speed of the average and the predictor are chosen by kNN accuracy on a seed that is not shown, each loss for itself. Averaged weights
are those of the same run as the weights beside them. Runs and DIR are as in research.extras; every run is a line of research/cache/targets.jsonl. Writes
docs/results/targets.md and .csv.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import pages
from sogclr.losses import functional as F
from sogclr.losses.contrastive import Anchors
from sogclr.losses.two_view import TwoViewLoss
from sogclr.models.encoder import save_encoder
from sogclr.run_folder import RunFolder
from sogclr.training import build
from sogclr.training.image_task import ImageTask
from sogclr.training.task import Encode

from .extras import DATA, EPOCHS, RESNET, SCALED, SHOWN, Case
from .measure import Cache
from .paired import difference
from .points import Point, cell, write_points
from .trainer_runs import PHOTOGRAPHS, Job, Places, head, make, parser_of, train_and_score

BATCH, SEEDS, TUNING_SEED = 16, 6, 100
LOSSES = (SCALED, "SimCLR")
MOMENTA = (0.9, 0.99, 0.999)
PREDICTORS = (False, True)
AVERAGES = (0.99, 0.999)  # of 3,000 steps the last 100, and the last third


# ------------------------------------------------------------------------------------------------------------ the method
class Average(nn.Module):
    """An exponential moving average of a model's weights and buffers, in evaluation mode: its BatchNorm has averaged statistics.

    Args:
        model: what is averaged.
        momentum: m of  average <- m average + (1 - m) model.

    Source: EMAN, 2101.08482.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__()
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(momentum)
        self.average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.requires_grad_(False).eval()

    @property
    def model(self) -> Any:
        """Return the averaged model."""
        return self.average.module

    def follow(self, model: nn.Module) -> None:
        """Move towards the model, of which the first call makes a copy."""
        self.average.update_parameters(model)


def predictor(width: int) -> nn.Module:
    """Return BYOL's predictor of keys from queries, (N, width) -> (N, width): 2006.07733."""
    return nn.Sequential(
        nn.Linear(width, 4 * width, bias=False), nn.BatchNorm1d(4 * width), nn.ReLU(), nn.Linear(4 * width, width)
    )


class AveragedTask(ImageTask):
    """Images for the trainer, with averages of the model, and perhaps one of them as the target of its queries.

    Args:
        momentum: of the target; None for no target.
        predict: whether a predictor follows the queries.

    The other arguments are those of `ImageTask`.
    """

    def __init__(self, *args: Any, momentum: float | None, predict: bool) -> None:
        super().__init__(*args)
        width = next(m.out_features for m in reversed(list(self.model.head)) if isinstance(m, nn.Linear))
        # of the model, so that it is trained too
        self.model.predictor = predictor(width).to(self.device) if predict else nn.Identity()
        self.averages = {m: Average(self.model, m).to(self.device) for m in AVERAGES}
        self.target = None if momentum is None else Average(self.model, momentum).to(self.device)

    def loss(self, encode: Encode, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of queries of both views against keys of the target; without one that of the trainer."""
        if self.target is None:
            return super().loss(encode, inputs, ids)
        (views,), (index,), loss = inputs, ids, self.loss_fn
        assert isinstance(loss, TwoViewLoss)
        assert isinstance(loss.temperature, float)
        queries = loss.rows(self.model.predictor(encode(views)))
        with torch.no_grad():
            keys = loss.rows(self.target.model(views))
        return loss.reduce(loss.per_sample(anchors_of(queries, keys, index.to(queries.device), loss.temperature)))

    def after_step(self, step: int, ok: Tensor) -> None:
        """Let all averages follow the model."""
        for average in (*self.averages.values(), *([] if self.target is None else [self.target])):
            average.follow(self.model)

    def finish(self, run: RunFolder) -> None:
        """Write the encoder, and the averaged ones beside it."""
        super().finish(run)
        for momentum, average in self.averages.items():
            save_encoder(run.path / file_of(momentum), average.model.backbone, self.info)


def anchors_of(queries: Tensor, keys: Tensor, index: Tensor, tau: float) -> Anchors:
    """Return what a loss sees of queries against keys.

    Args:
        queries: (2 B, D) unit rows, the first views before the second.
        keys: (2 B, D) unit rows of the same views.
        index: (B,) ids.
        tau: temperature.
    """
    similarity = queries @ keys.T
    own = index.repeat(2)[:, None] == index.repeat(2)[None, :]
    log_sum = (similarity / tau).masked_fill(own, -torch.inf).logsumexp(dim=1).view(2, -1)
    negatives = F.negatives_of(index, 2).to(queries.dtype)
    (q0, q1), (k0, k1) = queries.chunk(2), keys.chunk(2)
    positives = torch.stack([F.positive_similarity(q0, k1), F.positive_similarity(q1, k0)])[None]
    z = torch.stack([q0, q1])
    return Anchors(z, index, tau, positives.mean(dim=(0, 1)), log_sum - negatives.log(), negatives, positives)


# -------------------------------------------------------------------------------------------------------------- the runs
def file_of(momentum: float) -> str:
    """Return the name of the encoder with averaged weights in the folder of a run."""
    return f"average-{momentum:g}.safetensors"


def run_and_score(folder: Path, options: dict[str, Any], device: str) -> dict[str, Any]:
    """Train, and return the scores of the weights and, in `averages`, of their averages by momentum."""
    options = dict(options)
    task = partial(AveragedTask, momentum=options.pop("target"), predict=options.pop("predict"))
    with mock.patch.object(build, "ImageTask", task):
        return train_and_score(folder, options, device, {f"{m:g}": file_of(m) for m in AVERAGES})


def job(data: str, loss: str, target: float | None, predict: bool, seed: int) -> Job:
    """Return a run."""
    plain = Case(data, RESNET, BATCH).job(loss, seed)
    return Job(data, plain.options | {"target": target, "predict": predict})


def tuning() -> list[Job]:
    """Return the runs by which targets are chosen."""
    return [job(PHOTOGRAPHS, *c, TUNING_SEED) for c in itertools.product(LOSSES, MOMENTA, PREDICTORS)]


def chosen(cache: Cache, loss: str) -> tuple[float, bool]:
    """Return momentum and predictor with the highest kNN accuracy, of the tuning seed."""

    def score(choice: tuple[float, bool]) -> float:
        result = cache.get(job(PHOTOGRAPHS, loss, *choice, TUNING_SEED).config())
        return 0.0 if result is None else float(result["knn"])

    return max(itertools.product(MOMENTA, PREDICTORS), key=score)


def rows_of(cache: Cache, data: str, loss: str) -> dict[str, dict[int, dict[str, float]]]:
    """Return the results by seed of a loss's plain runs, of their averaged weights, and of runs with a target."""
    plain = {s: r for s in range(SEEDS) if (r := cache.get(job(data, loss, None, False, s).config())) is not None}
    if not plain:
        return {}
    target = chosen(cache, loss)
    rows = {loss: plain}
    for m in AVERAGES:
        rows[f"{loss}, averaged weights, {m:g}"] = {s: r["averages"][f"{m:g}"] for s, r in plain.items()}
    name = f"{loss}, target of momentum {target[0]:g}{', predictor' if target[1] else ''}"
    rows[name] = {s: r for s in range(SEEDS) if (r := cache.get(job(data, loss, *target, s).config())) is not None}
    return {name: found for name, found in rows.items() if found}


# -------------------------------------------------------------------------------------------------------------- the page
def report(cache: Cache) -> None:
    """Write page and CSV from the runs of the cache."""
    titles = " | ".join(f"{title} | difference" for title in SHOWN.values())
    text = [
        *head("A momentum target, averaged weights", "research.targets --data DIR", cache),
        f"{RESNET}, B = {BATCH}, {EPOCHS} epochs of two views, gamma 0.9, tau 0.1, LARS at 0.3 sqrt(B), which falls to 0 by a cosine; mean ± standard deviation over seeds, and the mean "
        "difference from the same loss without a target, of the weights themselves, paired by seed, with its 95 % interval. In percent. A target costs one more forward pass of every view.",
    ]
    points = []
    for data in DATA:
        rows = {name: (loss, of) for loss in LOSSES for name, of in rows_of(cache, data, loss).items()}
        if not rows:
            continue
        text += ["", f"## {data[0].upper()}{data[1:]}", "", f"| | seeds | {titles} |"]
        text.append("|---" * (2 + 2 * len(SHOWN)) + "|")
        for name, (loss, of) in rows.items():
            base = rows[loss][1]
            both = sorted(of.keys() & base.keys())
            cells = []
            for score in SHOWN:
                against = name != loss and len(both) > 1
                less = difference([(of[s], base[s]) for s in both], score) if against else ""
                cells += [cell([r[score] for r in of.values()], 1), less]
                values = [r[score] / 100 for r in of.values()]
                points.append(Point(data, name, BATCH, EPOCHS, None, score, values, {"model": RESNET}))
            text.append(f"| {name} | {len(of)} | {' | '.join(cells)} |")
    text += ["", *tuned(cache)]
    write_points("targets.csv", points)
    pages.write_page("targets.md", "\n".join([*text, ""]))


def tuned(cache: Cache) -> list[str]:
    """Return the table of the runs by which targets were chosen."""
    lines = [
        "## How the target was chosen",
        "",
        f"Photographs, one seed that is not shown above; kNN, by which it was chosen, and linear accuracy, %.{'' if all(cache.get(j.config()) for j in tuning()) else ' Not all were run.'}",
        "",
        f"| | {' | '.join(f'{m:g}' for m in MOMENTA)} |",
        "|---" * (1 + len(MOMENTA)) + "|",
    ]
    for loss, predict in itertools.product(LOSSES, PREDICTORS):
        found = [cache.get(job(PHOTOGRAPHS, loss, m, predict, TUNING_SEED).config()) for m in MOMENTA]
        cells = ["" if r is None else f"{r['knn']:.1f}, {r['linear']:.1f}" for r in found]
        lines.append(f"| {loss}{', predictor' if predict else ''} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = parser_of(__doc__, DATA, SEEDS)
    options = parser.parse_args()
    cache, places = Cache("targets", options.quick), Places(options.data, options.fashion)
    run = partial(make, cache=cache, places=places, device=options.device, at_once=options.at_once, run=run_and_score)
    if options.quick:
        one = job(options.only[0], SCALED, 0.99, True, 0)
        run([Job(one.data, one.options | {"epochs": 1})])
        return
    if not options.report:
        run(tuning())
        for data in options.only:
            choices = [(loss, *choice) for loss in LOSSES for choice in ((None, False), chosen(cache, loss))]
            run([job(data, *choice, seed) for seed, choice in itertools.product(range(options.seeds), choices)])
    report(cache)


if __name__ == "__main__":
    main()
