"""Learned temperatures: gradients against finite differences and the closed form, bounds, who moves, memory."""

import gc

import pytest
import torch

from sogclr.errors import BadInput
from sogclr.losses import GlobalContrastiveLoss, NTXentLoss, functional
from sogclr.losses.estimators import MiniBatch
from sogclr.losses.temperatures import Global, PerSample

INDEX = torch.tensor([3, 0, 5, 3, 7])


def unit_views(b=5, d=4):
    generator = torch.Generator().manual_seed(0)
    return (functional.normalize(torch.randn(b, d, generator=generator, dtype=torch.float64)) for _ in range(2))


def kinds():
    return {"per_sample": PerSample(9, 0.2, rho=0.4, minimum=0.01), "global": Global(0.2, rho=0.4)}


def objective(z0, z1, tau, nu, rho):
    log_g = functional.log_mean_negatives(z0, z1, INDEX, tau)
    return (functional.dual_loss(functional.positive_similarity(z0, z1), log_g, nu, tau) + rho * tau).mean()


@pytest.mark.parametrize("shape", [(), (5,)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_gradient_equals_finite_differences(shape, shift):
    """Of the dual value at a fixed normalizer, be it the batch's own or another one."""
    z0, z1 = unit_views()
    tau = 0.2 + 0.05 * torch.arange(5, dtype=torch.float64)
    tau = (tau if shape else tau[0]).requires_grad_()
    nu = functional.log_mean_negatives(z0, z1, INDEX, tau.detach()) + shift
    assert torch.autograd.gradcheck(lambda t: objective(z0, z1, t, nu, 0.4), (tau,))


def closed_form(z0, z1, tau, log_u, rho):
    """log u_i + rho - sum of p s / tau, mean over the views, p the weights exp(s / tau) / (m u); for each sample."""
    tau, log_u = tau.detach(), log_u.detach()
    z, total = [z0, z1], []
    for row, i in enumerate(INDEX.tolist()):
        value = 0.0
        for view in range(2):
            s = torch.stack([z[view][row] @ z[v][j] for v in range(2) for j in range(5) if INDEX[j] != i])
            p = torch.exp(s / tau[row] - log_u[view, row]) / len(s)
            value += float(log_u[view, row] + rho - (p * s).sum() / tau[row]) / 2
        total.append(value)
    return torch.tensor(total, dtype=torch.float64)


def test_gradient_is_the_published_closed_form():
    """With u = ĝ exactly; otherwise what the dual adds, w - 1, has mean zero wherever u is the true mean of ĝ."""
    z0, z1 = unit_views()
    tau = (0.2 + 0.05 * torch.arange(5, dtype=torch.float64)).requires_grad_()
    log_g = functional.log_mean_negatives(z0, z1, INDEX, tau)
    got = torch.autograd.grad(objective(z0, z1, tau, log_g.detach(), 0.4), tau)[0]
    torch.testing.assert_close(5 * got, closed_form(z0, z1, tau, log_g, 0.4))
    nu = log_g.detach() + 0.3
    got = torch.autograd.grad(objective(z0, z1, tau, nu, 0.4), tau)[0]
    weight = torch.exp(log_g - nu).mean(dim=0) - 1
    torch.testing.assert_close(5 * got, closed_form(z0, z1, tau, nu, 0.4) + weight)


def test_gradient_is_not_what_published_code_computes():
    """FastCLIP counts the inner term twice; LibAUC's global one is positive always. Ours has both signs."""
    z0, z1 = unit_views()
    signs = set()
    for rho in (0.0, 3.0):
        tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        log_g = functional.log_mean_negatives(z0, z1, INDEX, tau)
        got = torch.autograd.grad(objective(z0, z1, tau, log_g.detach(), rho), tau)[0]
        inner, outer = tau.detach() * torch.autograd.grad(log_g.mean(), tau)[0], log_g.mean().detach() + rho
        torch.testing.assert_close(got, outer + inner)
        assert abs(got - (outer + 2 * inner)) > 0.1
        signs.add(float(got) > 0)
    assert signs == {True, False}


@pytest.mark.parametrize("name", list(kinds()))
def test_the_loss_gives_the_modules_their_gradient(name):
    z0, z1 = unit_views()
    temperature = kinds()[name]
    loss = GlobalContrastiveLoss(9, temperature, estimator=MiniBatch())
    loss(z0, z1, INDEX).backward()
    grad = temperature.tau.grad
    each = closed_form(
        z0,
        z1,
        torch.full((5,), 0.2),
        functional.log_mean_negatives(z0, z1, INDEX, temperature.tau[()] if name == "global" else 0.2),
        0.4,
    )
    if name == "global":
        assert float(grad) == pytest.approx(float(each.mean()), rel=1e-5)
    else:
        want = torch.zeros(9, dtype=torch.float64).index_add(0, INDEX, each / 5)
        torch.testing.assert_close(grad.to_dense().double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.SparseAdam])
def test_samples_that_are_not_visited_do_not_move(optimizer):
    temperature = PerSample(9)
    loss = GlobalContrastiveLoss(9, temperature)
    optimizer = optimizer(temperature.parameters(), lr=0.01)
    z0, z1 = unit_views()
    loss(z0, z1, INDEX).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = temperature.tau.detach().clone()
    loss(z0[:2], z1[:2], torch.tensor([0, 1])).backward()
    assert temperature.tau.grad.is_sparse
    assert temperature.tau.grad._nnz() == 2
    optimizer.step()
    assert (temperature.tau != before).nonzero().flatten().tolist() == [0, 1]


def test_an_optimizer_that_would_move_all_of_them_is_refused():
    temperature = PerSample(9)
    GlobalContrastiveLoss(9, temperature)(*unit_views(), INDEX).backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        torch.optim.Adam(temperature.parameters()).step()


@pytest.mark.parametrize("name", list(kinds()))
def test_bounds_are_kept_and_can_be_left_again(name):
    temperature = kinds()[name]
    with torch.no_grad():
        temperature.tau.fill_(50.0)
    high = temperature(INDEX)
    assert torch.all(high == temperature.maximum)
    high.sum().backward()  # what is at a bound still has a gradient
    assert torch.any(temperature.tau.grad.to_dense() > 0)
    temperature.eval()
    with torch.no_grad():
        temperature.tau.fill_(50.0)
        assert torch.all(temperature(INDEX) == 50)  # evaluation changes nothing
    assert torch.all(temperature.tau == 50)


@pytest.mark.parametrize(("rho", "rises"), [(0.01, True), (3.0, False)])
def test_tau_moves_until_the_divergence_is_rho(rho, rises):
    z0, z1 = unit_views()
    temperature = Global(0.2, rho=rho, maximum=5.0)
    loss = GlobalContrastiveLoss(9, temperature, estimator=MiniBatch())
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        loss(z0, z1, INDEX).backward()
        optimizer.step()
    assert bool(temperature.tau > 0.2) == rises
    if rises:
        assert abs(float(temperature.tau.grad)) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", list(kinds()))
def test_nothing_is_kept_from_step_to_step(name):
    temperature = kinds()[name]
    loss = GlobalContrastiveLoss(9, temperature, 0.3)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.01)

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    counts = []
    for step in range(30):
        optimizer.zero_grad()
        loss(*unit_views(), INDEX).backward()
        optimizer.step()
        if step in (4, 29):
            counts.append(tensors())
    assert counts[1] <= counts[0]
    assert not any(b.requires_grad for b in loss.buffers())


def test_cross_entropies_take_them_too():
    temperature = Global(0.2)
    NTXentLoss(temperature)(*unit_views(), INDEX).backward()
    assert torch.isfinite(temperature.tau.grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerSample(1), "num_samples must be 2 or more and was 1"),
        (lambda: PerSample(9, 0.01), r"minimum 0.05, initial 0.01"),
        (lambda: Global(0.1, rho=-1.0), "rho must be 0 or more and was -1.0"),
        (lambda: Global(0.1, rho=float("inf")), "rho must be a finite number and was inf"),
        (lambda: Global(0.1, maximum=float("inf")), "all finite, and got minimum 0.01, initial 0.1, maximum inf"),
        (lambda: PerSample(2.5), "num_samples must be an integer and was 2.5"),
        (lambda: GlobalContrastiveLoss(9, PerSample(8)), "PerSample is built for 8 samples and the loss for 9"),
        (lambda: PerSample(9).load_state_dict(PerSample(8).state_dict()), "saved for 8 samples .* built for 9"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@pytest.mark.parametrize("temperature", [[0.1, 0.2], "warm", 0.0, torch.tensor([0.1, 0.2])])
def test_a_temperature_that_is_none(temperature):
    with pytest.raises(BadInput, match="temperature must be"):
        NTXentLoss(temperature)
