import gc
import importlib
import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SlowGlobalLoss, check_finite_on_near_duplicates, exact_objective, slow_ntxent, unit

import sogclr
from sogclr.errors import BadInput
from sogclr.losses import (
    DecoupledContrastiveLoss,
    GlobalContrastiveLoss,
    MoCoLoss,
    NonFinite,
    NTXentLoss,
    candidates,
    clip,
    functional,
    image_text,
    moco,
    queue,
    rollback,
    temperatures,
    two_view,
)
from sogclr.losses.estimators import AdaptiveGamma, CosineGamma, MiniBatch, MovingAverage, Neural
from sogclr.losses.rollback import StatefulModule
from sogclr.losses.temperatures import Global, PerSample

CONVENTIONS = ("per_view", "per_sample")


def embeddings(b=6, d=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(b, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2))


def losses(n=40, temperature=0.2, dim=5):
    """Every loss, and the global one with every estimator and kind of temperature."""

    def of(estimator):
        return GlobalContrastiveLoss(n, temperature, estimator=estimator)

    return {
        "per_view": GlobalContrastiveLoss(n, temperature, 0.3),
        "per_sample": GlobalContrastiveLoss(n, temperature, 0.3, convention="per_sample"),
        "cosine": GlobalContrastiveLoss(n, temperature, CosineGamma(0.2, 5)),
        "adaptive": GlobalContrastiveLoss(n, temperature, AdaptiveGamma(-1.0)),
        "mini_batch": of(MiniBatch()),
        "neural": of(Neural(dim, 24, restart=7)),
        "isogclr": GlobalContrastiveLoss(n, PerSample(n, temperature, minimum=0.001), 0.3),
        "global_tau": GlobalContrastiveLoss(n, Global(temperature, minimum=0.001), 0.3),
        "ntxent": NTXentLoss(temperature),
        "dcl": DecoupledContrastiveLoss(temperature),
        "moco": MoCoLoss(dim, 32, temperature),
    }


ALL = tuple(losses())


# ------------------------------------------------------------------------------------------------- against slow loops
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("gamma", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_value_gradient_and_u_over_many_steps(convention, gamma, tau):
    """Seen and unseen samples mixed, and from time to time one twice in a batch."""
    n, generator = 12, np.random.default_rng(3)
    fast, slow = GlobalContrastiveLoss(n, tau, gamma, convention), SlowGlobalLoss(tau, gamma, convention)
    for step in range(15):
        index = torch.from_numpy(generator.choice(n, 5, replace=step % 4 == 3))
        if (index == index[0]).all():
            continue
        z0, z1 = embeddings(5, seed=step)
        value, expected = fast(z0, z1, index), slow(z0, z1, index)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)  # u is float32, all else float64
        for z in (z0, z1):
            got, want = (
                torch.autograd.grad(value, z, retain_graph=True)[0],
                torch.autograd.grad(expected, z, retain_graph=True)[0],
            )
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    seen = torch.tensor(sorted(slow.u))
    torch.testing.assert_close(
        fast.estimator.log_u[seen].double(),
        torch.tensor([math.log(slow.u[int(i)]) for i in seen]).double(),
        rtol=1e-5,
        atol=1e-6,
    )
    unseen = torch.ones(n, dtype=torch.bool)
    unseen[seen] = False
    assert torch.isneginf(fast.estimator.log_u[unseen]).all()


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_ntxent_equals_the_slow_one(tau):
    z0, z1 = embeddings(7)
    index = torch.tensor([4, 1, 4, 9, 2, 0, 3])
    value, expected = NTXentLoss(tau)(z0, z1, index), slow_ntxent(z0, z1, index, tau=tau)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, z0)[0], torch.autograd.grad(expected, z0)[0])


def test_gradient_is_the_derivative_at_constant_nu():
    z0, z1 = embeddings(4, 3)
    nu = torch.randn(2, 4, dtype=torch.float64)
    index = torch.arange(4)

    def value(a, b):
        a, b = functional.normalize(a), functional.normalize(b)
        log_g = functional.log_mean_negatives(a, b, index, 0.3)
        return functional.dual_loss(functional.positive_similarity(a, b), log_g, nu, 0.3).mean()

    assert torch.autograd.gradcheck(value, (z0, z1))


# --------------------------------------------------------------------------------------------- the faults of the peers
@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_goes_on_bit_for_bit(name, tmp_path):
    loss, other = losses()[name], losses()[name]

    def steps(loss, first, last):
        return [
            loss(*embeddings(8, seed=s, dtype=torch.float32), torch.arange(8) + s % 30).item()
            for s in range(first, last)
        ]

    steps(loss, 0, 10)
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert steps(loss, 10, 30) == steps(other, 10, 30)
    for key, value in loss.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_state_of_another_number_of_samples_is_refused():
    state = GlobalContrastiveLoss(10).state_dict()
    with pytest.raises(BadInput, match="saved for 10 samples and this loss is built for 11"):
        GlobalContrastiveLoss(11).load_state_dict(state)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_first_visit_is_decided_sample_by_sample(convention):
    loss = GlobalContrastiveLoss(8, 0.2, 0.1, convention)
    z0, z1 = embeddings(4)
    loss(z0, z1, torch.arange(4))
    z0, z1 = embeddings(4, seed=1)
    loss(z0, z1, torch.tensor([0, 1, 6, 7]))
    alone = GlobalContrastiveLoss(8, 0.2, 1.0, convention)
    alone(z0, z1, torch.tensor([0, 1, 6, 7]))
    assert torch.equal(loss.estimator.log_u[6:], alone.estimator.log_u[6:])  # ĝ itself, not gamma ĝ
    assert not torch.equal(loss.estimator.log_u[:2], alone.estimator.log_u[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_finite_at_temperature_0_005_with_near_duplicates(name, dtype):
    check_finite_on_near_duplicates(losses(temperature=0.005, dim=16)[name], dtype)


def test_gradient_is_right_where_u_underflows_in_plain_space():
    """Aligned positives at tau 0.01: u is near exp(-100), and the gradient still agrees with float64."""
    torch.manual_seed(0)
    z = torch.randn(16, 32)
    z0, z1 = (z + 0.01 * torch.randn(16, 32)).requires_grad_(), z + 0.01 * torch.randn(16, 32)
    loss, slow = GlobalContrastiveLoss(16, 0.01, 0.5), SlowGlobalLoss(0.01, 0.5, "per_view")
    for _ in range(3):
        got = torch.autograd.grad(loss(z0, z1, torch.arange(16)), z0)[0].double()
        want = torch.autograd.grad(slow(z0, z1, torch.arange(16)), z0)[0].double()
    assert torch.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.999
    assert float(got.norm() / want.norm()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_gradient_norm_does_not_depend_on_the_batch_size(name):
    norms = []
    for b in (32, 512):
        z0, z1 = (torch.randn(b, 64, generator=torch.Generator().manual_seed(v), requires_grad=True) for v in (1, 2))
        losses(n=b, temperature=0.5, dim=64)[name](z0, z1, torch.arange(b)).backward()
        norms.append(float(z0.grad.norm()) * b**0.5)  # a mean over B rows: each row's gradient is 1/B of its own
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_memory_is_flat_over_steps(name):
    """No graph, and nothing else, is kept from step to step."""
    loss = losses()[name]

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    counts = []
    for step in range(30):
        z0, z1 = embeddings(8, seed=step, dtype=torch.float32)
        loss(z0, z1, torch.arange(8)).backward()
        if step in (4, 29):
            counts.append(tensors())
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("variance", [0.0, 0.02])
def test_the_value_estimates_the_global_objective(convention, variance):
    """With embeddings held still, batches of 4 report the objective over all samples: the mini-batch loss does not."""
    n, tau = 40, 0.3
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(n, 8, generator=generator)
    z = torch.stack([base + variance * torch.randn(n, 8, generator=generator) for _ in range(2)])
    loss, values = GlobalContrastiveLoss(n, tau, 0.02, convention), []
    for epoch in range(200):
        for index in torch.randperm(n, generator=generator).split(4):
            value = float(loss(z[0, index], z[1, index], index))
            if epoch >= 150:
                values.append(value)
    exact = exact_objective(z, tau)
    mini = np.mean([float(losses(n, tau)["mini_batch"](z[0, i], z[1, i], i)) for i in torch.arange(n).split(4)])
    assert np.mean(values) == pytest.approx(exact, abs=0.01)
    assert abs(mini - exact) > 0.02


@given(gamma=st.floats(0.01, 1.0), g=st.floats(1e-3, 1e3))
@settings(max_examples=12, deadline=None)
def test_constant_normalizer_is_a_fixed_point(gamma, g):
    """200 visits at a constant ĝ return ĝ for every gamma (storing the sum of the views diverges for gamma <= 0.5)."""
    for convention in CONVENTIONS:
        estimator = MovingAverage(3, gamma, convention)
        log_g, index = torch.full((2, 3), math.log(g)), torch.arange(3)
        for _ in range(200):
            nu = estimator(log_g, index, True)
        torch.testing.assert_close(nu, log_g, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(estimator.log_u, log_g[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_one_id_twice_is_no_negative_of_itself(name):
    """Were it one, the copies' similarity of 1 would dominate ĝ at tau 0.02."""
    z = torch.eye(8)[:5].double()
    loss = losses(temperature=0.02, dim=8)[name]
    z = torch.cat([z, z[:1]])
    loss(z, z, torch.tensor([0, 1, 2, 3, 4, 0]))
    assert float(loss.statistics["objective"]) == pytest.approx(-1.0, abs=1e-6)  # -1 + tau log(mean of exp(0))


def test_duplicates_are_stored_alike_whatever_their_order():
    index = torch.tensor([3, 1, 3, 2, 3])
    results = []
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
        loss = GlobalContrastiveLoss(5, 0.2, 0.5)
        z0, z1 = embeddings(5, dtype=torch.float64)
        loss(z0[order], z1[order], index[order])
        results.append(loss.estimator.log_u)
    torch.testing.assert_close(results[0], results[1])


def test_memory_is_quadratic_in_the_batch_at_most():
    """No all-pairs index tensors: the largest tensor made for B = 256 has (2B)^2 entries."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    z0, z1 = embeddings(256, 16, dtype=torch.float32)
    with Watch():
        GlobalContrastiveLoss(256)(z0, z1, torch.arange(256)).backward()
    assert largest == (2 * 256) ** 2


def estimator_modules():
    names = ("protocol", "gamma", "mini_batch", "moving_average", "prototypes")
    return [importlib.import_module(f"sogclr.losses.estimators.{name}") for name in names]


def test_nothing_waits_for_the_device():
    """What a step runs on CUDA holds no read-back: those calls stand only behind a check for the CPU."""
    modules = (candidates, clip, functional, two_view, image_text, moco, queue, rollback, temperatures)
    for module in (*modules, *estimator_modules()):
        source = inspect.getsource(module)
        for call in (".item(", ".cpu(", ".tolist(", ".nonzero(", "float(z", "bool("):
            assert call not in source, (module.__name__, call)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_no_synchronisation_on_cuda(name, no_waits):
    loss = losses(n=1000, dim=32)[name].cuda()
    z0, z1 = (torch.randn(64, 32, device="cuda", requires_grad=True) for _ in range(2))
    index = torch.arange(64, device="cuda")
    loss(z0, z1, index).backward()
    with no_waits():
        loss(z0, z1, index).backward()


# ---------------------------------------------------------------------------------------------------- what users rely on
@pytest.mark.parametrize("name", ALL)
def test_order_of_the_batch_does_not_matter(name):
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    z0, z1 = embeddings()
    a, b = losses()[name], losses()[name]
    torch.testing.assert_close(a(z0, z1, torch.arange(6)), b(z0[order], z1[order], order))


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_autocast_compute_in_float32(name):
    z0, z1 = embeddings(dtype=torch.bfloat16)
    plain, cast = losses()[name], losses()[name]
    expected = plain(z0.float(), z1.float(), torch.arange(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cast(z0, z1, torch.arange(6, dtype=torch.int32))
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("name", ALL)
def test_reductions(name):
    z0, z1 = embeddings()
    each = losses()[name]
    each.reduction = "none"
    values = each(z0, z1, torch.arange(6))
    assert values.shape == (6,)
    for reduction, expected in (("mean", values.mean()), ("sum", values.sum())):
        loss = losses()[name]
        loss.reduction = reduction
        torch.testing.assert_close(loss(z0, z1, torch.arange(6)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_compiled_equals_eager(name):
    eager, compiled = losses()[name], losses()[name]
    call = torch.compile(compiled, backend="aot_eager")
    for step in range(3):
        z0, z1 = embeddings(8, seed=step, dtype=torch.float32)
        index = torch.arange(8) + step
        a, b = eager(z0, z1, index), call(z0, z1, index)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(torch.autograd.grad(a, z0)[0], torch.autograd.grad(b, z0)[0])
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(value, compiled.state_dict()[key], msg=key)


def test_gamma_one_is_the_mini_batch_loss():
    z0, z1 = embeddings()
    a = GlobalContrastiveLoss(6, 0.2, 1.0)
    b = GlobalContrastiveLoss(6, 0.2, estimator=MiniBatch())
    for _ in range(2):
        torch.testing.assert_close(a(z0, z1, torch.arange(6)), b(z0, z1, torch.arange(6)))


@pytest.mark.parametrize("name", ALL)
def test_evaluation_mode_leaves_the_state_alone(name):
    loss = losses()[name]
    z0, z1 = embeddings()
    loss(z0, z1, torch.arange(6))
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss.eval()
    loss(z1, z1, torch.arange(6))
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_rollback_undoes_the_updates_of_a_step(name):
    """Of two forward passes with samples in common; except where it is told not to; and then keeps nothing more."""
    loss = losses()[name]
    for step in range(5):  # a queue of 32 is full after 4
        loss(*embeddings(seed=step), torch.arange(6) + step)
    before = {k: v.clone() for k, v in loss.state_dict().items()}

    def same(state):
        return all(torch.equal(state[k], v) for k, v in loss.state_dict().items())

    for unless in (torch.tensor(True), torch.tensor(False), None):
        loss.load_state_dict(before)
        loss.begin_step()
        loss(*embeddings(seed=9), torch.arange(3, 9))
        loss(*embeddings(seed=10), torch.arange(5, 11))
        after = {k: v.clone() for k, v in loss.state_dict().items()}
        assert not before or not same(before)
        loss.rollback(unless)
        assert same(after if unless is not None and unless else before)
        loss.rollback()  # nothing is kept any more
        assert same(after if unless is not None and unless else before)


def test_a_batch_that_is_refused_is_rolled_back_with_those_before_it():
    loss = losses()["neural"]
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss.begin_step()
    loss(*embeddings(), torch.arange(6))
    z0, z1 = embeddings()
    with pytest.raises(NonFinite):
        loss(z0 * math.inf, z1, torch.arange(6))
    loss.rollback()
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())


def test_a_step_is_rolled_back_although_its_ids_were_overwritten():
    """A loop may keep one tensor of ids and write each batch's into it."""
    loss, index = losses()["per_view"], torch.arange(6)
    before = loss.estimator.log_u.clone()
    loss.begin_step()
    loss(*embeddings(), index)
    loss(*embeddings(seed=9), index.copy_(torch.arange(6, 12)))
    index.zero_()
    loss.rollback()
    assert torch.equal(before, loss.estimator.log_u)


@pytest.mark.parametrize("name", ALL)
def test_a_loop_that_never_begins_a_step_keeps_nothing(name):
    loss = losses()[name]
    for step in range(3):
        loss(*embeddings(seed=step), torch.arange(6))
    assert all(part._changes is None for part in loss.modules() if isinstance(part, StatefulModule))


def test_cosine_gamma_falls_from_start_to_end_and_stays():
    schedule = CosineGamma(0.2, 10)
    values = [float(schedule(torch.tensor(step))) for step in range(15)]
    assert values[0] == 1.0
    assert values[5] == pytest.approx(0.6)
    assert values == sorted(values, reverse=True)
    assert values[10:] == pytest.approx([0.2] * 5)


def test_statistics_say_what_the_normalizer_does():
    loss = losses()["per_view"]
    z0, z1 = embeddings()
    value = loss(z0, z1, torch.arange(6))
    assert float(loss.statistics["objective"]) == pytest.approx(value.item())
    assert float(loss.statistics["weight_max"]) == pytest.approx(1.0)  # first visit: nu = log ĝ
    log_g = functional.log_mean_negatives(unit(z0), unit(z1), torch.arange(6), 0.2)
    assert float(loss.statistics["normalizer_mean"]) == pytest.approx(log_g.mean().item())
    assert float(loss.statistics["normalizer_std"]) == pytest.approx(log_g.std().item())


def test_it_moves_and_trains_like_any_module():
    """Plain gradient descent on free embeddings lowers the exact global objective, at a batch of 4."""
    torch.manual_seed(0)
    z = torch.randn(2, 16, 8, requires_grad=True)
    loss, optimizer = GlobalContrastiveLoss(16, 0.2, 0.5), torch.optim.SGD([z], lr=2.0)
    before = exact_objective(z.detach(), 0.2)
    for _ in range(30):
        for index in torch.randperm(16).split(4):
            optimizer.zero_grad()
            loss(z[0, index], z[1, index], index).backward()
            optimizer.step()
    assert exact_objective(z.detach(), 0.2) < before - 0.5
    assert set(loss.state_dict()) == {"estimator.log_u", "estimator.step"}


# -------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z0": torch.randn(6, 4)}, r"\(6, 4\) and \(6, 5\)"),
        ({"z0": torch.randn(6, 5, 1)}, r"must be \(B, D\)"),
        ({"z0": torch.tensor(1.0), "z1": torch.tensor(1.0)}, r"must be \(B, D\)"),
        ({"z0": torch.ones(6, 5, dtype=torch.int64)}, "must be floating and are torch.int64"),
        ({"index": torch.arange(5)}, r"index must be \(6,\).* is \(5,\)"),
        ({"index": list(range(6))}, r"index must be a torch.Tensor and is a list; convert it with torch.as_tensor"),
        ({"index": np.arange(6)}, r"index must be a torch.Tensor and is a numpy.ndarray; convert it"),
        ({"z1": np.ones((6, 5))}, r"each of the two views' embeddings must be a torch.Tensor and is a numpy.ndarray"),
        ({"z0": torch.ones(6, 0), "z1": torch.ones(6, 0)}, r"the two views' embeddings are 0 wide, \(6, 0\)"),
        ({"index": torch.arange(6.0)}, "int64 or int32 and is torch.float32"),
        (
            {"index": torch.arange(6) + 5},
            r"index 10 is out of range for a loss built for 10 samples \(valid: 0..9\)",
        ),
        ({"index": torch.arange(6) - 1}, "index -1 is out of range"),
        ({"index": torch.zeros(6, dtype=torch.int64)}, "all 6 rows of the batch have id 0"),
        (
            {"z0": torch.randn(1, 5), "z1": torch.randn(1, 5), "index": torch.arange(1)},
            "a batch of 1 has no negatives",
        ),
    ],
)
def test_bad_batches_are_refused_with_both_values(change, message):
    loss = GlobalContrastiveLoss(10)
    batch = {"z0": torch.randn(6, 5), "z1": torch.randn(6, 5), "index": torch.arange(6)} | change
    with pytest.raises(BadInput, match=message):
        loss(**batch)
    assert torch.isneginf(loss.estimator.log_u).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_never_enters_the_state(bad):
    loss = GlobalContrastiveLoss(10)
    z0, z1 = (torch.randn(6, 5) for _ in range(2))
    z0[2, 1] = bad
    with pytest.raises(NonFinite, match=r"1 of 6 embeddings are not finite \(rows 2, ids 7\)") as caught:
        loss(z0, z1, torch.arange(6) + torch.tensor([0, 0, 5, 0, 0, 0]))
    assert caught.value.rows == [2]
    assert torch.isneginf(loss.estimator.log_u).all()


def test_the_state_stays_finite_even_without_the_check():
    """On CUDA nothing is raised; the estimator itself keeps NaN out."""
    estimator = MovingAverage(4, 0.5)
    index = torch.arange(4)
    estimator(torch.zeros(2, 4), index, True)
    log_g = torch.ones(2, 4)
    log_g[0, 1] = float("nan")
    estimator(log_g, index, True)
    assert estimator.log_u[1] == 0
    assert torch.isfinite(estimator.log_u).all()
    assert (estimator.log_u[[0, 2, 3]] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be greater than 0 and was 0"),
        ({"temperature": float("nan")}, "temperature must be greater than 0"),
        ({"temperature": float("inf")}, "temperature must be a finite number and was inf"),
        ({"temperature": 1e300}, "temperature must be from 1e-37 to 1e\\+37, for float32 to hold it, and was 1e\\+300"),
        ({"temperature": "x"}, "temperature must be a number or a module of sogclr.temperatures and was 'x'"),
        ({"gamma": "x"}, "gamma must be a number, a CosineGamma or an AdaptiveGamma and was 'x'"),
        ({"gamma": None}, "gamma must be a number, a CosineGamma or an AdaptiveGamma and was None"),
        ({"gamma": float("nan")}, r"gamma must be in \(0, 1\] and was nan"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\] and was 0.0"),
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\] and was 1.5"),
        ({"num_samples": 1}, "num_samples must be 2 or more and was 1"),
        ({"num_samples": 2.5}, "num_samples must be an integer and was 2.5"),
        ({"num_samples": None}, "num_samples must be an integer and was None"),
        ({"num_samples": 2.5, "estimator": MiniBatch()}, "num_samples must be an integer and was 2.5"),
        ({"convention": "both"}, "convention must be 'per_view' or 'per_sample' and was 'both'"),
        ({"reduction": "max"}, "reduction must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        GlobalContrastiveLoss(**({"num_samples": 10} | arguments))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_saved_state_that_is_not_finite_is_refused(bad):
    """It would stay: a sample's average never loses NaN again."""
    loss = GlobalContrastiveLoss(10)
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    loss.load_state_dict(state)  # -inf is unseen
    state["estimator.log_u"][[3, 7]] = bad
    with pytest.raises(BadInput, match="log_u that is NaN or infinite for 2 of 10 samples"):
        loss.load_state_dict(state)
    assert torch.isneginf(loss.estimator.log_u).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_a_row_of_zeros_has_a_finite_gradient(name, dtype):
    """The length of 0 is no number to divide by, and 1e12, for 0, is none of float16's."""
    z0, z1 = (z.detach().to(dtype) for z in embeddings())
    z0[2] = 0
    z0.requires_grad_()
    losses()[name](z0, z1, torch.arange(6)).backward()
    assert torch.isfinite(z0.grad).all()
    assert (z0.grad[[0, 1, 3, 4, 5]] != 0).any()


def test_public_names():
    assert sogclr.GlobalContrastiveLoss is GlobalContrastiveLoss
    assert sogclr.estimators.MovingAverage is MovingAverage
    with pytest.raises(AttributeError):
        sogclr.nothing_of_the_kind  # noqa: B018
