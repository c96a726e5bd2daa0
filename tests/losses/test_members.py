"""Every estimator and rival against its formula, by slow loops in float64, over many steps; and on two ranks."""

import copy
import math

import numpy as np
import pytest
import torch
from reference import SlowGlobalLoss, SlowMoCo, SlowNeural, slow_decoupled, slow_ntxent

import sogclr
from sogclr.config.methods import ESTIMATORS
from sogclr.config.rows import construct
from sogclr.errors import BadInput
from sogclr.losses import DecoupledContrastiveLoss, GlobalContrastiveLoss, MoCoLoss, NTXentLoss
from sogclr.losses.estimators import AdaptiveGamma, MovingAverage, Neural
from sogclr.losses.queue import EmbeddingQueue

N, D, TAU = 12, 5, 0.2
PAIRS = {
    "per_view": (lambda: GlobalContrastiveLoss(N, TAU, 0.3), lambda: SlowGlobalLoss(TAU, 0.3)),
    "per_sample": (
        lambda: GlobalContrastiveLoss(N, TAU, 0.3, "per_sample"),
        lambda: SlowGlobalLoss(TAU, 0.3, "per_sample"),
    ),
    "adaptive": (
        lambda: GlobalContrastiveLoss(N, TAU, AdaptiveGamma(-1.0)),
        lambda: SlowGlobalLoss(TAU, lambda u: math.exp(-1) * u / (1 + math.exp(-1) * u)),
    ),
    "adaptive_per_sample": (
        lambda: GlobalContrastiveLoss(N, TAU, AdaptiveGamma(0.5), "per_sample"),
        lambda: SlowGlobalLoss(TAU, lambda u: math.exp(0.5) * u / (1 + math.exp(0.5) * u), "per_sample"),
    ),
    "neural": (
        lambda: GlobalContrastiveLoss(N, TAU, estimator=Neural(D, 17, restart=6)),
        lambda: SlowNeural(TAU, 17, D, restart=6),
    ),
    "moco": (lambda: MoCoLoss(D, 23, TAU), lambda: SlowMoCo(TAU, 23)),
    "dcl": (lambda: DecoupledContrastiveLoss(TAU), lambda: lambda *batch: slow_decoupled(*batch, tau=TAU)),
    "ntxent": (lambda: NTXentLoss(TAU), lambda: lambda *batch: slow_ntxent(*batch, tau=TAU)),
}
MANY = [(name, views) for name in PAIRS for views in (2, 3, 4) if views == 2 or name != "moco"]


def batches(steps=15, b=5, views=2):
    """Seen and unseen samples mixed; every fourth batch may hold one twice."""
    generator = np.random.default_rng(3)
    for step in range(steps):
        index = torch.from_numpy(generator.choice(N, b, replace=step % 4 == 3))
        if (index != index[0]).any():
            yield *(torch.from_numpy(generator.standard_normal((b, D))).requires_grad_() for _ in range(views)), index


@pytest.mark.parametrize(("name", "views"), MANY)
def test_value_and_gradient_over_many_steps(name, views):
    """Of the embeddings, and of the prototypes where there are any; both sides then take a step with their own."""
    fast, slow = (make() for make in PAIRS[name])
    learned = [[*fast.parameters()], [slow.c] if hasattr(slow, "c") else []]
    for *z, index in batches(views=views):
        values = [fast(*z, index) if views == 2 else fast.of_views(z, index), slow(*z, index)]
        assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5, abs=1e-6)  # the state is float32
        grads = [
            torch.autograd.grad(value, [*z, *mine], allow_unused=True, materialize_grads=True)
            for value, mine in zip(values, learned, strict=True)
        ]
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for mine, its in zip(learned, grads, strict=True):
                for parameter, grad in zip(mine, its[views:], strict=True):
                    parameter -= 0.5 * grad
    for a, b in zip(*learned, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_decoupled_gradient_is_the_global_one_with_the_batchs_normalizer():
    z0, z1, index = next(batches())
    a = torch.autograd.grad(DecoupledContrastiveLoss(TAU)(z0, z1, index), z0)[0]
    b = torch.autograd.grad(GlobalContrastiveLoss(N, TAU, gamma=1.0)(z0, z1, index), z0)[0]
    torch.testing.assert_close(TAU * a, b)


def test_scents_step_is_the_proximal_one():
    """u <- u (1 + e^alpha ĝ) / (1 + e^alpha u), its closed form."""
    alpha, u, g = -2.0, 3.0, 7.0
    estimator = MovingAverage(4, AdaptiveGamma(alpha))
    index = torch.arange(4)
    estimator(torch.full((2, 4), math.log(u)), index, True)
    estimator(torch.full((2, 4), math.log(g)), index, True)
    expected = u * (1 + math.exp(alpha) * g) / (1 + math.exp(alpha) * u)
    assert estimator.log_u.exp().tolist() == pytest.approx([expected] * 4, rel=1e-5)
    gamma = math.exp(alpha) * expected / (1 + math.exp(alpha) * expected)
    assert float(estimator.current_gamma()) == pytest.approx(gamma, rel=1e-5)


@pytest.mark.parametrize("convention", ["per_view", "per_sample"])
@pytest.mark.parametrize(("log_u", "log_g"), [(100.0, -5.0), (17.5, -30.0), (-100.0, 5.0), (-120.0, 130.0)])
def test_scents_step_holds_where_gamma_rounds_to_one_or_zero(convention, log_u, log_g):
    """float32's sigmoid of 96 is 1, and with it u would be ĝ."""
    alpha, index = -4.0, torch.arange(4)
    estimator = MovingAverage(4, AdaptiveGamma(alpha), convention)
    estimator(torch.full((2, 4), log_u), index, True)
    estimator(torch.full((2, 4), log_g), index, True)
    expected = log_u + np.logaddexp(0, alpha + log_g) - np.logaddexp(0, alpha + log_u)
    assert estimator.log_u.tolist() == pytest.approx([expected] * 4, rel=1e-5, abs=1e-4)


def test_keys_get_no_gradient_and_a_sample_in_the_queue_is_no_negative_of_itself():
    z = torch.eye(8)[:6].double().requires_grad_()
    loss = MoCoLoss(8, 64, 0.02)
    for _ in range(3):  # from the second step on each key is in the queue
        loss(z, z.detach(), torch.arange(6))
    assert float(loss.statistics["objective"]) == pytest.approx(-1.0, abs=1e-6)
    keys = torch.randn(6, 8, requires_grad=True)
    loss(z.float(), keys, torch.arange(6)).backward()
    assert keys.grad is None


def test_the_queue_holds_the_last_ones():
    queue = EmbeddingQueue(5, 2)
    for step in range(4):
        queue.push(torch.full((2, 2), float(step)), torch.tensor([2 * step, 2 * step + 1]))
    assert sorted(queue.ids.tolist()) == [3, 4, 5, 6, 7]
    assert [queue.keys[queue.ids == i, 0].item() for i in (3, 4, 7)] == [1.0, 2.0, 3.0]
    queue.push(torch.arange(14.0).view(7, 2), torch.arange(10, 17))  # more than it holds
    assert sorted(queue.ids.tolist()) == [12, 13, 14, 15, 16]
    queue.push(torch.tensor([[float("nan"), 0.0]]), torch.tensor([99]))
    assert 99 not in queue.ids.tolist()
    assert torch.isfinite(queue.keys).all()


def create(name, num_samples, dim, **values):
    """The estimator of a row of the table."""
    common = {"num_samples": num_samples, "dim": dim, "gamma": 0.9, "convention": "per_view"}
    return construct(ESTIMATORS[name].builder, common | values)


@pytest.mark.slow
def test_what_remembers_finds_a_better_normalizer_than_the_batch():
    """Embeddings held still: the error of nu against log g over all samples, from batches of 4."""
    n, generator = 64, torch.Generator().manual_seed(0)
    z = torch.randn(2, n, 8, generator=generator)
    truth = sogclr.losses.functional.log_mean_negatives(*sogclr.losses.functional.normalize(z), torch.arange(n), TAU)
    errors = {}
    for name in ("mini-batch", "moving-average", "neural"):
        estimator = create(name, n, 8, gamma=0.1, prototypes=64)
        loss, squares = GlobalContrastiveLoss(n, TAU, estimator=estimator), []
        optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3) if name == "neural" else None
        for epoch in range(60):
            for index in torch.randperm(n, generator=generator).split(4):
                value = loss(z[0, index], z[1, index], index)
                if optimizer is not None:
                    optimizer.zero_grad()
                    if value.requires_grad:
                        value.backward()
                        optimizer.step()
                if epoch >= 50:
                    squares.append((loss.nu - truth[:, index]).square().mean())
        errors[name] = float(torch.stack(squares).mean().sqrt())
    for name in ("moving-average", "neural"):
        assert errors[name] < 0.8 * errors["mini-batch"], errors


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_name_makes_an_estimator(name):
    loss = GlobalContrastiveLoss(N, TAU, estimator=create(name, N, D, prototypes=10))
    assert all(torch.isfinite(loss(*batch)) for batch in batches())
    before, batch = {k: v.clone() for k, v in loss.state_dict().items()}, next(batches())

    def unchanged():
        return all(torch.equal(before[k], v) for k, v in loss.state_dict().items())

    loss.eval()
    loss(*batch)
    assert unchanged(), "evaluation mode changed the state"
    loss.train()
    loss.begin_step()
    loss(*batch)
    assert not before or not unchanged()
    loss.rollback()
    assert unchanged(), "the step was not taken back"
    again = copy.deepcopy(loss)
    for buffer in (*again.parameters(), *again.buffers()):
        buffer.detach().zero_()
    again.load_state_dict(before)
    assert torch.equal(again(*batch), loss(*batch)), "what is not in state_dict() counts"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddingQueue(0, 4), "a size and a width of 1 or more"),
        (lambda: AdaptiveGamma(float("nan")), "alpha must be a finite number"),
        (
            lambda: GlobalContrastiveLoss(N, TAU, estimator=MovingAverage(N + 1)),
            "MovingAverage is built for 13 samples and the loss for 12",
        ),
        (lambda: Neural(4, 0), "prototypes of 1 or more"),
        (lambda: MoCoLoss(4)(torch.randn(3, 5), torch.randn(3, 5), torch.arange(3)), "are 5 wide .* built for 4"),
        (lambda: MoCoLoss(4)(*torch.randn(2, 3, 4), torch.tensor([-3, 4, 5])), "index -3 is below 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()
