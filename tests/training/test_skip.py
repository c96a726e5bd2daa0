"""A step that is left out by the device itself changes nothing, and the next one is as if it had not been."""

import copy

import pytest
import torch

from sogclr.config.objective import OptimConfig
from sogclr.training.optim import build_optimizer
from sogclr.training.skip import copy_where_, grads_finite, load_optimizer_state, step_where, use_fused

YES, NO = torch.tensor(True), torch.tensor(False)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


def configured(name):
    return lambda model: build_optimizer(model, OptimConfig(optimizer=name, lr=0.1, weight_decay=0.1))


MAKERS = {
    "lars": configured("lars"),
    "sgd": configured("sgd"),
    "adamw": configured("adamw"),
    "adam": lambda model: torch.optim.Adam(model.parameters(), fused=True),
    "plain": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "elsewhere": lambda model: torch.optim.AdamW(model.parameters()),  # as on devices without fused kernels
}


def train(make, steps):
    """Parameters and state after steps, each True, False (gradients of NaN and infinity) or None (unguarded)."""
    model = net()
    optimizer = make(model)
    taken = 0
    for ok in steps:
        for i, p in enumerate(model.parameters()):
            bad = (float("nan"), float("inf"))[i % 2]
            p.grad = torch.linspace(-1, i + 1, p.numel()).view_as(p).sin() * (taken + 1 if ok in (True, None) else bad)
        taken += ok is not False
        if ok is None:
            optimizer.step()
        else:
            step_where(YES if ok else NO, optimizer)
    return list(model.parameters()), optimizer.state_dict()["state"]


def assert_same(a, b):
    for mine, theirs in zip(a[0], b[0], strict=True):
        assert torch.equal(mine, theirs)
    for key, values in b[1].items():
        for name, value in values.items():
            assert torch.equal(a[1][key][name], value) if value is not None else a[1][key][name] is None


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_step_that_is_left_out_changes_nothing(name, where):
    """Also the first, in which optimizers make their state."""
    taken = train(MAKERS[name], [True] * 3)
    assert not torch.equal(taken[0][0], net()[0].weight)
    assert_same(taken, train(MAKERS[name], [None] * 3))
    steps = [True] * 3
    steps.insert(where, False)
    assert_same(train(MAKERS[name], steps), taken)


def test_nothing_but_steps_left_out_leaves_the_weights():
    for make in MAKERS.values():
        parameters, state = train(make, [False, False])
        assert all(torch.equal(p, q) for p, q in zip(parameters, net().parameters(), strict=True))
        assert all(not v.any() for values in state.values() for v in values.values() if v is not None)


def test_sparse_gradients_are_left_out_too():
    tau = torch.nn.Parameter(torch.arange(1.0, 7.0))
    optimizer = torch.optim.SGD([tau], lr=0.5)
    for ok, factor, expected in ((NO, float("nan"), [1, 2, 3, 4, 5, 6]), (YES, 1.0, [1, 1.5, 3, 4, 4, 6])):
        optimizer.zero_grad()
        (torch.gather(tau, 0, torch.tensor([4, 1, 4]), sparse_grad=True).sum() * factor).backward()
        assert tau.grad.is_sparse
        step_where(ok, optimizer)
        assert tau.tolist() == expected


def test_a_step_runs_no_number_past_the_host():
    """What torch's fused kernels are told is a tensor, and it does not stay behind."""
    model = net()
    optimizer = configured("adamw")(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    step_where(YES, optimizer)
    assert not hasattr(optimizer, "found_inf")
    assert optimizer.param_groups[0]["fused"]
    assert use_fused(list(net().to("meta").parameters())) is None


def test_a_state_is_loaded_whether_or_not_it_is_of_a_fused_optimizer():
    """A checkpoint of another device: how steps are made is this machine's."""
    for first, second in (("elsewhere", "adamw"), ("adamw", "elsewhere")):
        model = net()
        old, new = MAKERS["elsewhere"](model), torch.optim.AdamW(model.parameters(), fused=True)
        source, target = (old, new) if first == "elsewhere" else (new, old)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        source.step()
        state = copy.deepcopy(source.state_dict())
        load_optimizer_state(target, state)
        assert bool(target.param_groups[0]["fused"]) == (second == "adamw")
        assert state["param_groups"][0]["fused"] == source.param_groups[0]["fused"]  # what was given is as it was
        before = model[0].weight.detach().clone()
        step_where(NO, target)
        assert torch.equal(model[0].weight, before)
        step_where(YES, target)
        assert not torch.equal(model[0].weight, before)
        assert float(next(iter(target.state.values()))["step"]) == 2
    optimizer = MAKERS["lars"](net())
    load_optimizer_state(optimizer, MAKERS["sgd"](net()).state_dict())
    assert all("fused" not in group for group in optimizer.param_groups)
    with pytest.raises(ValueError, match="number of parameter groups"):
        load_optimizer_state(MAKERS["plain"](net()), optimizer.state_dict())


def test_finite_looks_at_dense_and_sparse_gradients():
    dense, sparse = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    one = torch.tensor(1.0)
    assert bool(grads_finite(one, [dense]))
    assert not bool(grads_finite(one / 0, []))
    for value in (1.0, float("nan"), float("inf")):
        dense.grad, sparse.grad = torch.ones(3), None
        (torch.gather(sparse, 0, torch.tensor([1]), sparse_grad=True).sum() * value).backward()
        assert bool(grads_finite(one, [dense, sparse])) == (value == 1.0)


def test_put_copies_always_or_where_it_is_told():
    for unless, expected in ((None, 1.0), (NO, 1.0), (YES, 2.0)):
        into = [torch.full((2, 3), 2.0), torch.tensor(2)]
        copy_where_([torch.ones(2, 3), torch.tensor(1)], into=into, unless=unless)
        assert [float(t.float().mean()) for t in into] == [expected] * 2
    copy_where_([], into=[])
