"""The batched harness for pairs against the library's losses and optimizers, one run at a time."""

import math

import pytest
import torch
from torch.nn.functional import normalize

import sogclr
from research import many_pairs
from sogclr.losses.temperatures import Global, PerSample

N, BATCH, EPOCHS = 40, 8, 4


def toy():
    g = torch.Generator().manual_seed(2)
    views, texts = torch.randn(N, 3, 10, generator=g), torch.randn(N, 6, generator=g)
    return many_pairs.PairProblem("toy", views, texts, {"test": (views[:20, 0], texts[:20])})


def cosine():
    return sogclr.estimators.CosineGamma(0.2, (N // BATCH) * EPOCHS // 2)


METHODS = {
    "clip": ({"rule": "clip"}, lambda: sogclr.ClipLoss(0.1)),
    "siglip": ({"rule": "siglip"}, lambda: sogclr.SigLipLoss(0.1)),
    "constant": ({"rule": "sogclr", "end": 0.9}, lambda: sogclr.TwoTowerGlobalContrastiveLoss(N, 0.1, 0.9)),
    "cosine": (
        {"rule": "sogclr", "start": 1.0, "end": 0.2},
        lambda: sogclr.TwoTowerGlobalContrastiveLoss(N, 0.1, cosine()),
    ),
    "per-sample": (
        {"rule": "sogclr", "end": 0.9, "temperature": "per-sample", "rho": 1.0},
        lambda: sogclr.TwoTowerGlobalContrastiveLoss(N, PerSample(N, 0.1, 1.0), 0.9),
    ),
    "global": (
        {"rule": "sogclr", "start": 1.0, "end": 0.2, "temperature": "global", "rho": 1.0},
        lambda: sogclr.TwoTowerGlobalContrastiveLoss(N, Global(0.1, 1.0), cosine()),
    ),
}


def optimizer_of(loss, kind):
    """As the trainer has it."""
    if kind == "per-sample":
        return torch.optim.SGD(loss.parameters(), 0.01 * 2 * BATCH)
    if kind in ("global", "siglip"):
        return torch.optim.Adam(loss.parameters(), {"global": 2e-4, "siglip": 1e-3}[kind])
    return None


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_is_the_librarys_loss_along_a_training(name):
    """Value and gradient of every step, with all that the loss keeps and learns on the way."""
    rule, make = METHODS[name]
    first = {"rule": "clip" if name != "clip" else "siglip"}
    jobs = [many_pairs.Job(first, 1e-2, 0), *(many_pairs.Job(rule, lr, s) for lr in (3e-3, 1e-2) for s in (0, 1))]
    runs = many_pairs.ManyPairs(toy(), jobs, BATCH, EPOCHS)
    losses = [make() for _ in jobs[1:]]
    optimizers = [optimizer_of(loss, name) for loss in losses]
    values, steps = runs.values, []

    def compared(x, y, index):
        got = values(x, y, index)
        dx, dy = torch.autograd.grad(got.mean(dim=1).sum(), (x, y), retain_graph=True)
        for k, (loss, optimizer) in enumerate(zip(losses, optimizers, strict=True), 1):
            own = [z[k].detach().clone().requires_grad_() for z in (x, y)]
            value = loss(*own, index[k])
            loss.zero_grad()
            value.backward()
            if optimizer is not None:
                optimizer.step()
            torch.testing.assert_close(got[k].mean(), value, rtol=1e-4, atol=1e-5)
            for mine, rows in ((dx[k], own[0]), (dy[k], own[1])):
                mine = mine - (mine * rows).sum(dim=1, keepdim=True) * rows  # the loss normalises, which projects
                torch.testing.assert_close(mine, rows.grad, rtol=1e-3, atol=1e-5)
        steps.append(1)
        return got

    runs.values = compared
    while runs.step < runs.total:
        runs.train_step()
    assert len(steps) == 20


def test_the_objective_is_that_of_a_slow_loop():
    g = torch.Generator().manual_seed(3)
    x, y = normalize(torch.randn(2, 5, 4, generator=g), dim=2), normalize(torch.randn(5, 4, generator=g), dim=1)
    a, b, tau, terms = x.double(), y.double(), 0.1, []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        of_text = sum(math.exp(a[v, j] @ b[i] / tau) for v in range(2) for j in others) / (2 * len(others))
        for v in range(2):
            of_image = sum(math.exp(a[v, i] @ b[j] / tau) for j in others) / len(others)
            terms.append(-float(a[v, i] @ b[i]) + tau * (math.log(of_image) + math.log(of_text)) / 2)
    assert many_pairs.exact_objective(x, y, tau, rows=2) == pytest.approx(sum(terms) / len(terms), abs=1e-6)


def test_runs_side_by_side_do_not_touch_each_other():
    job, other = (many_pairs.Job({"rule": "sogclr"}, 5e-3, 1), many_pairs.Job({"rule": "clip"}, 2e-2, 0))
    found = []
    for jobs in ([job], [other, job]):
        runs = many_pairs.ManyPairs(toy(), jobs, BATCH, EPOCHS)
        before = runs.result(len(jobs) - 1)["objective"]
        while runs.step < runs.total:
            runs.train_step()
        found.append(runs.result(len(jobs) - 1))
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert found[0]["objective"] < before - 0.04  # and they learn
