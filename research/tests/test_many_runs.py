"""The batched harness against the library: the same losses, the same exact values, one run at a time."""

import pytest
import torch
from torch.nn.functional import normalize

import sogclr
from research import gradient_error, many_runs, measure, problems
from research.estimators import (
    BalancedLoss,
    BoostedAverage,
    DispersedLoss,
    MemoryContrastiveLoss,
    QueueAverage,
    RatioAverage,
)
from research.rules import build_rule


def small():
    images = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return problems.build("toy", images, torch.zeros(60).long().numpy(), views=3, strength=1.0)


RULES = {
    "simclr": ({"rule": "simclr"}, lambda n: sogclr.NTXentLoss()),
    "dcl": ({"rule": "dcl"}, lambda n: sogclr.DecoupledContrastiveLoss()),
    "average": ({"rule": "sogclr", "end": 0.3}, lambda n: sogclr.GlobalContrastiveLoss(n, gamma=0.3)),
    "per_sample": (
        {"rule": "sogclr", "end": 0.3, "convention": "per_sample"},
        lambda n: sogclr.GlobalContrastiveLoss(n, gamma=0.3, convention="per_sample"),
    ),
    "balanced": (
        {"rule": "defensive", "end": 0.3, "b_start": 0.3, "b_end": 0.3, "balance": 1.0},
        lambda n: BalancedLoss(n, gamma=0.3),
    ),
    "boosted": (
        {"rule": "defensive", "start": 1.0, "end": 0.1, "b_end": 0.1, "boost": 1.6},
        lambda n: sogclr.GlobalContrastiveLoss(n, estimator=BoostedAverage(n, 21)),
    ),
    "scent": (
        {"rule": "scent", "alpha": -1.0},
        lambda n: sogclr.GlobalContrastiveLoss(n, gamma=sogclr.estimators.AdaptiveGamma(-1.0)),
    ),
    "queue": (
        {"rule": "queue", "size": 64, "end": 0.5},
        lambda n: sogclr.GlobalContrastiveLoss(n, estimator=QueueAverage(n, 0.5, 64, 32)),
    ),
    "ratio": (
        {"rule": "ratio", "size": 64, "end": 0.3},
        lambda n: sogclr.GlobalContrastiveLoss(n, estimator=RatioAverage(n, 0.3, 64, 32)),
    ),
    "dispersed": ({"rule": "dispersed", "lam": 2.0, "end": 0.3}, lambda n: DispersedLoss(n, lam=2.0, gamma=0.3)),
    "memory": (
        {"rule": "queue", "size": 64, "end": 1.0, "auto": 3.0},
        lambda n: MemoryContrastiveLoss(n, 32, 64),
    ),
    "boosted memory": (
        {"rule": "queue", "size": 64, "start": 1.0, "end": 0.1, "auto": 3.0, "feed": False, "boost": 1.6, "ramp": True},
        lambda n: MemoryContrastiveLoss(n, 32, 64, steps=21),
    ),
}


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_has_the_gradient_of_the_library_along_a_training(name):
    spec, make = RULES[name]
    problem = small()
    jobs = [many_runs.Job(spec, lr, seed) for lr in (3e-3, 1e-2) for seed in (0, 1)]
    runs = many_runs.ManyRuns(problem, jobs, batch=8, epochs=3)
    losses = [make(60) for _ in jobs]
    gradient = runs.gradient
    errors = []

    def compared(z, index):
        dz = gradient(z, index)
        for k, loss in enumerate(losses):
            rows = z[k].clone().requires_grad_()
            with torch.enable_grad():
                value = loss(rows[:8], rows[8:], index[k]) * (0.1 if loss.per_temperature else 1.0)
            (want,) = torch.autograd.grad(value, rows)
            got = dz[k] - (dz[k] * z[k]).sum(dim=1, keepdim=True) * z[k]  # the loss normalises, which projects
            errors.append(float((got - want).norm() / want.norm()))
        return dz

    runs.gradient = compared
    list(runs.run())
    assert len(errors) == 4 * 21
    tolerance = 0.02 if "memory" in name else 1e-4  # the library leaves the anchor's own sample out of its share
    assert max(errors) < tolerance


def test_exact_values_are_those_of_the_library():
    runs = many_runs.ManyRuns(small(), [many_runs.Job({"rule": "dcl"}, 1e-2, 0)], batch=8, epochs=1)
    list(runs.run())
    z = runs.embeddings(0)
    f1, f2, log_g = measure.exact(z, 0.1)
    assert f1 == pytest.approx(sogclr.exact.objective(z, 0.1, "F1"), abs=1e-5)
    assert f2 == pytest.approx(sogclr.exact.objective(z, 0.1, "F2"), abs=1e-5)
    torch.testing.assert_close(log_g, sogclr.exact.normalizers(z, 0.1), rtol=1e-5, atol=1e-5)
    for variant in ("F1", "F2"):
        dz, _ = gradient_error.exact_dz(z, 0.1, variant)
        dz = dz - (dz * z).sum(dim=2, keepdim=True) * z
        torch.testing.assert_close(dz, sogclr.exact.embedding_gradient(z, 0.1, variant), rtol=1e-3, atol=1e-7)


def test_the_mean_of_an_exact_rules_gradient_has_no_bias():
    """u held at the exact values and gamma near 0: what is left is chance."""
    rule = {"rule": "sogclr", "end": 1e-6}
    runs = many_runs.ManyRuns(small(), [many_runs.Job(rule, 1e-2, 0)], batch=8, epochs=20)
    list(runs.run())
    _, _, log_g = measure.exact(runs.embeddings(0), 0.1)
    rules = {"exact": runs.rules[0][1], "mini": build_rule({"rule": "dcl"}, 1, 60, 8, 0.1)}
    rules["exact"].log_u.copy_((log_g.logsumexp(dim=0) - torch.log(torch.tensor(3.0)))[None])
    found = gradient_error.gradient_error(runs, rules, 1500)
    assert found["exact"]["nu_rmse"][0] < 0.01
    assert found["exact"]["bias"][0] < 0.5 * found["mini"]["bias"][0]
    assert found["mini"]["noise"][0] < found["exact"]["noise"][0]


def test_runs_side_by_side_do_not_touch_each_other():
    problem = small()
    job = many_runs.Job({"rule": "sogclr", "end": 0.5}, 5e-3, 1)
    other = many_runs.Job({"rule": "dcl"}, 2e-2, 0)
    alone = many_runs.ManyRuns(problem, [job], 8, 2)
    together = many_runs.ManyRuns(problem, [other, job], 8, 2)
    list(alone.run())
    list(together.run())
    torch.testing.assert_close(alone.embeddings(0), together.embeddings(1), rtol=1e-3, atol=1e-4)
    assert normalize(alone.features(0), dim=1).shape == (60, 64)
