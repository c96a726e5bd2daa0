import math

import pytest
import torch

from sogclr.config.objective import OptimConfig
from sogclr.config.toml import from_options
from sogclr.errors import BadInput
from sogclr.losses.estimators import CosineGamma
from sogclr.models.backbone import create_backbone
from sogclr.models.two_view import ContrastiveModel
from sogclr.training.optim import LR_SCALE, build_optimizer, warmup_cosine
from sogclr.training.rates import begins_small, learning_rate, resolve_optim


@pytest.mark.parametrize("batch", [32, 256, 4096])
def test_rules_are_the_papers(batch):
    assert learning_rate("lars", "sqrt", batch) == pytest.approx(0.075 * math.sqrt(batch))
    assert learning_rate("lars", "linear", batch) == pytest.approx(0.3 * batch / 256)
    assert learning_rate("lars", "auto", batch) == learning_rate("lars", "sqrt", batch)


def test_small_views_get_a_higher_rate_by_auto_alone():
    assert learning_rate("lars", "auto", 16, small=True) == pytest.approx(3 * 0.3)
    assert learning_rate("adamw", "auto", 16, small=True) == pytest.approx(30 * 2.5e-4)
    for optimizer, rule in (("lars", "sqrt"), ("lars", "linear"), ("adamw", "sqrt"), ("sgd", "auto")):
        assert learning_rate(optimizer, rule, 16, small=True) == learning_rate(optimizer, rule, 16)


@pytest.mark.parametrize(
    ("model", "kind", "size", "optimizer", "small"),
    [
        ("resnet10_mini", "images", 32, "lars", True),
        ("resnet10_mini", "images", 224, "lars", False),
        ("resnet10_mini", "images", 32, "adamw", True),
        ("resnet10_mini", "pairs", 32, "adamw", False),  # a transformer of texts beside it does not take that rate
        ("test_vit", "images", 64, "adamw", False),
        ("convnext_atto", "images", 32, "adamw", False),
        ("own:Net", "images", 32, "adamw", False),  # nobody knows
    ],
)
def test_adamw_has_the_higher_rate_with_batchnorm_and_without_texts_alone(model, kind, size, optimizer, small):
    config = from_options({"data": "x", "out": "y", "model": model})
    assert begins_small(config, optimizer, kind, size) == small
    tuned = from_options({"data": "x", "out": "y", "model": model, "init_from": "z"})
    assert not begins_small(tuned, optimizer, kind, size)


@pytest.mark.parametrize(
    ("model", "kind", "patches", "chosen"),
    [
        ("resnet10_mini", "images", False, "lars"),
        ("own:Net", "images", False, "lars"),
        ("convnext_atto", "images", False, "adamw"),
        ("test_vit", "images", True, "adamw"),
        ("resnet10_mini", "pairs", False, "adamw"),
    ],
)
def test_lars_is_chosen_for_networks_with_batchnorm_on_images_alone(model, kind, patches, chosen):
    config = from_options({"data": "x", "out": "y", "model": model})
    assert resolve_optim(config, 100, kind, patches, None, 32).optimizer == chosen
    given = from_options({"data": "x", "out": "y", "model": model, "optimizer": "sgd"})
    assert resolve_optim(given, 100, kind, patches, None, 32).optimizer == "sgd"


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


def test_schedule_stands_still_first_and_then_is_that_of_the_rest():
    factor, rest = warmup_cosine(total=100, warmup=10, still=20), warmup_cosine(total=80, warmup=10)
    assert [factor(step) for step in range(20)] == [0.0] * 20
    assert [factor(step) for step in range(20, 101)] == [rest(step) for step in range(81)]


@pytest.mark.parametrize(
    "arguments", [{"end": 0.0, "steps": 3}, {"end": 0.5, "steps": 3, "start": 0.4}, {"end": 0.5, "steps": 0}]
)
def test_bad_gamma_schedules_are_refused(arguments):
    with pytest.raises(BadInput, match="a gamma schedule needs"):
        CosineGamma(**arguments)


def vision_transformer(**options):
    torch.manual_seed(0)
    model = ContrastiveModel(create_backbone("test_vit", 32), torch.nn.Linear(64, 8))
    config = OptimConfig(optimizer="adamw", lr=0.1, weight_decay=0.5, **options)
    groups = build_optimizer(model, config).param_groups
    names = {p: name for name, p in model.named_parameters()}
    return [(g[LR_SCALE], g["weight_decay"], {names[p] for p in g["params"]}) for g in groups], set(names.values())


def test_the_rate_decays_from_layer_to_layer_of_the_backbone():
    groups, names = vision_transformer(layer_decay=0.5)
    scale = {name: s for s, _, members in groups for name in members}
    assert scale.keys() == names
    assert scale["head.weight"] == 1.0
    blocks = [scale[f"backbone.blocks.{k}.attn.qkv.weight"] for k in range(6)]
    assert blocks == [0.5 ** (5 - k) for k in range(6)]
    assert scale["backbone.pos_embed"] == scale["backbone.patch_embed.proj.weight"] == 0.5**6


def test_positions_and_tokens_are_not_decayed_but_in_older_runs():
    for options, spared in (({"layer_decay": 1.0}, True), ({}, False)):
        groups, names = vision_transformer(**options)
        assert [(s, d) for s, d, _ in groups] == [(1.0, 0.5), (1.0, 0.0)]
        assert ({"backbone.pos_embed", "backbone.cls_token"} <= groups[1][2]) is spared
        assert groups[0][2] | groups[1][2] == names
