import math

import pytest
import torch

from sogclr.config.schema import OptimConfig
from sogclr.errors import BadInput
from sogclr.losses.estimators import CosineGamma
from sogclr.training.optim import build_optimizer, learning_rate, warmup_cosine


@pytest.mark.parametrize("batch", [32, 256, 4096])
def test_rules_are_the_papers(batch):
    assert learning_rate("lars", "sqrt", batch) == pytest.approx(0.075 * math.sqrt(batch))
    assert learning_rate("lars", "linear", batch) == pytest.approx(0.3 * batch / 256)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


def steps(optimizer_name, lr=0.1, weight_decay=0.5, count=1):
    model = net()
    optimizer = build_optimizer(model, OptimConfig(optimizer=optimizer_name, lr=lr, weight_decay=weight_decay))
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    for _ in range(count):
        for i, p in enumerate(model.parameters()):
            p.grad = torch.full_like(p, 0.1 * (i + 1))
        optimizer.step()
    return before, dict(model.named_parameters())


def test_lars_adapts_matrices_and_leaves_1d_parameters_to_plain_momentum():
    before, after = steps("lars")
    for i, (name, old) in enumerate(before.items()):
        grad = torch.full_like(old, 0.1 * (i + 1))
        if old.ndim == 1:
            expected = old - 0.1 * grad  # no decay, no trust ratio
        else:
            trust = 0.001 * old.norm() / (grad.norm() + 0.5 * old.norm())
            expected = old - 0.1 * trust * (grad + 0.5 * old)
        torch.testing.assert_close(after[name].detach(), expected)


def test_lars_adapts_without_weight_decay_too():
    before, after = steps("lars", weight_decay=0.0)
    old = before["0.weight"]
    trust = 0.001 * old.norm() / torch.full_like(old, 0.1).norm()
    torch.testing.assert_close(after["0.weight"].detach(), old - 0.1 * trust * 0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_no_decay_on_1d_parameters(name):
    model = net()
    groups = build_optimizer(model, OptimConfig(optimizer=name, lr=0.1, weight_decay=0.5)).param_groups
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert all(p.ndim < 2 for p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_schedule_warms_up_then_falls_to_zero():
    factor = warmup_cosine(total=100, warmup=10)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1.0
    assert values[55] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0.0)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert warmup_cosine(total=10, warmup=0)(0) == 1.0


@pytest.mark.parametrize(
    "arguments", [{"end": 0.0, "steps": 3}, {"end": 0.5, "steps": 3, "start": 0.4}, {"end": 0.5, "steps": 0}]
)
def test_bad_gamma_schedules_are_refused(arguments):
    with pytest.raises(BadInput, match="a gamma schedule needs"):
        CosineGamma(**arguments)
