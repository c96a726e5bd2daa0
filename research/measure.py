"""What is measured at the end of a run, and the cache of results: one JSON line a run, appended, never computed twice."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sogclr.evaluation.knn import knn_predict
from sogclr.evaluation.linear import few_label_top1, linear_top1

from .many_runs import Job, ManyRuns
from .problems import Problem

CACHE = Path(__file__).parent / "cache"


@torch.no_grad()
def exact(z: Tensor, tau: float, rows: int = 32) -> tuple[float, float, Tensor]:
    """Return F1, F2 and log g, (V, n): embeddings (V, n, D), the negatives of an anchor are all V views of the n - 1 others."""
    views, n, _ = z.shape
    flat = z.reshape(views * n, -1)
    turned = (flat / tau).T.contiguous()
    total = []
    for k in range(0, views * n, rows):
        e = (flat[k : k + rows] @ turned).exp_().view(-1, views, n)
        anchor = torch.arange(k, k + len(e))
        e[anchor - k, :, anchor % n] = (
            0.0  # its own views; to subtract them from the sum would lose it at a low temperature
        )
        total.append(e.sum(dim=(1, 2)))
    log_g = (torch.cat(total).view(views, n) / (views * (n - 1))).log()
    sim = torch.einsum("vnd,wnd->vwn", z, z).mean(dim=2).double()
    s = float((sim.sum() - sim.diagonal().sum()) / (views * (views - 1)))
    f1 = -s + tau * float(log_g.double().mean())
    f2 = -s + tau * float((log_g.double().logsumexp(dim=0) - math.log(views)).mean())
    return f1, f2, log_g


def split(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that teach the probes and those that test them, half of the images each."""
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(labels))
    order = order[:6000]
    return order[: len(order) // 2], order[len(order) // 2 :]


def accuracy(features: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Return kNN and linear accuracy of frozen features, and linear with ten labels a class (mean of 5 draws)."""
    train, test = split(labels)
    x = features.numpy()
    classes = int(labels.max()) + 1
    knn = knn_predict(x[train], labels[train], x[test], num_classes=classes)
    linear = linear_top1(x[train], labels[train], x[test], labels[test])
    few, _ = few_label_top1(x[train], labels[train], x[test], labels[test], 10)
    return {"knn": float((knn == labels[test]).mean()), "linear": linear, "linear10": few}


def key_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


class Cache:
    """`research/cache/<name>.jsonl`: {"key", "config", "result"} a line."""

    def __init__(self, name: str, quick: bool = False) -> None:
        """Read what was run; when quick, begin empty and write nothing."""
        self.path, self.quick = CACHE / f"{name}.jsonl", quick
        self.found: dict[str, dict[str, Any]] = {}
        if self.path.exists() and not quick:
            for line in self.path.read_text().splitlines():
                entry = json.loads(line)
                self.found[entry["key"]] = entry

    @property
    def hours(self) -> float:
        """Return the hours of all runs in it."""
        return sum(entry["result"]["seconds"] for entry in self.found.values()) / 3600

    def get(self, config: dict[str, Any]) -> dict[str, Any] | None:
        entry = self.found.get(key_of(config))
        return None if entry is None else entry["result"]

    def put(self, config: dict[str, Any], result: dict[str, Any]) -> None:
        entry = {"key": key_of(config), "config": config, "result": result}
        self.found[entry["key"]] = entry
        if self.quick:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")


def config_of(problem: str, job: Job, batch: int, epochs: int, strength: float = 1.0) -> dict[str, Any]:
    """Return what decides a run."""
    return {
        "problem": problem,
        "strength": strength,
        "batch": batch,
        "epochs": epochs,
        "rule": job.rule,
        "lr": job.lr,
        "seed": job.seed,
    }


def ensure(
    cache: Cache, problem: Problem, jobs: list[Job], batch: int, epochs: int, strength: float = 1.0, at_once: int = 36
) -> None:
    """Run what the cache lacks, at most `at_once` runs side by side."""
    missing = [j for j in jobs if cache.get(config_of(problem.name, j, batch, epochs, strength)) is None]
    missing.sort(key=lambda j: (json.dumps(j.rule, sort_keys=True), j.lr, j.seed))
    for k in range(0, len(missing), at_once):
        part = missing[k : k + at_once]
        begun = time.monotonic()
        runs = ManyRuns(problem, part, batch, epochs)
        for _ in runs.run():
            pass
        trained = time.monotonic() - begun
        for r, job in enumerate(part):
            f1, f2, _ = exact(runs.embeddings(r), runs.tau)
            features = runs.features(r)
            if math.isfinite(f2):
                result = {"F1": f1, "F2": f2, **accuracy(features, problem.labels)}
            else:
                result = {"F1": math.inf, "F2": math.inf, "knn": 0.0, "linear": 0.0, "linear10": 0.0}
            result["seconds"] = trained / len(part)
            cache.put(config_of(problem.name, job, batch, epochs, strength), result)
        print(
            f"{problem.name} B {batch}, {epochs} epochs: {len(part)} runs in {trained:.0f} s + {time.monotonic() - begun - trained:.0f} s",
            flush=True,
        )
