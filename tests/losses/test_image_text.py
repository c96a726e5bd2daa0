import gc
import math
import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reference import check_finite_on_near_duplicates, unit
from torch.nn.parallel import DistributedDataParallel

import sogclr
from sogclr import kernels
from sogclr.errors import BadInput
from sogclr.losses import (
    ClipLoss,
    NonFinite,
    SigLipLoss,
    TwoTowerGlobalContrastiveLoss,
    functional,
    temperatures,
)
from sogclr.losses.estimators import CosineGamma, MiniBatch, MovingAverage, Neural


def embeddings(b=6, d=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2)]


def losses(n=60, temperature=0.2, dim=5):
    return {
        "sogclr": TwoTowerGlobalContrastiveLoss(n, temperature, 0.3),
        "cosine": TwoTowerGlobalContrastiveLoss(n, temperature, CosineGamma(0.2, 5)),
        "global_tau": TwoTowerGlobalContrastiveLoss(n, temperatures.Global(temperature, minimum=0.005), 0.3),
        "per_sample_tau": TwoTowerGlobalContrastiveLoss(n, temperatures.PerSample(n, temperature, minimum=0.005), 0.3),
        "mini_batch": TwoTowerGlobalContrastiveLoss(n, temperature, estimator=MiniBatch()),
        "clip": ClipLoss(temperature),
        "siglip": SigLipLoss(temperature, bias=-2.0),
    }


ALL = tuple(losses())


# ---------------------------------------------------------------------------------------- the slow ones, straight loops
def negatives(x_ids, y_ids, a):
    return [b for b in range(len(x_ids)) if x_ids[b] != x_ids[a] and y_ids[b] != y_ids[a]]


def slow_normalizers(x, y, x_ids, y_ids, tau):
    """ĝ of the images' anchors and of the texts', None where there is no negative."""
    found = []
    for anchors, candidates in ((x, y), (y, x)):
        of_tower = []
        for a in range(len(x_ids)):
            terms = [torch.exp(torch.dot(anchors[a], candidates[b]) / tau) for b in negatives(x_ids, y_ids, a)]
            of_tower.append(torch.stack(terms).mean() if terms else None)
        found.append(of_tower)
    return found


class SlowTwoTower:
    """In float64, with u itself as the state: one for each image and one for each text."""

    def __init__(self, tau, gamma):
        self.tau, self.gamma, self.u = tau, gamma, ({}, {})

    def __call__(self, x, y, index, text_index=None):
        rows = [unit(x), unit(y)]
        ids = [index.tolist(), (index if text_index is None else text_index).tolist()]
        total = torch.zeros((), dtype=torch.float64)
        for tower, g in enumerate(slow_normalizers(*rows, *ids, self.tau)):
            known = [float(v.detach()) for v in g if v is not None]
            mean, stored = torch.tensor(sum(known) / len(known), dtype=torch.float64), {}
            for a, i in enumerate(ids[tower]):
                value, before = mean if g[a] is None else g[a], self.u[tower].get(i)
                new = float(value.detach())
                u = new if before is None else (1 - self.gamma) * before + self.gamma * new
                stored.setdefault(i, []).append(u)
                total = total - torch.dot(rows[0][a], rows[1][a]) + self.tau * (value / u + math.log(u) - 1)
            self.u[tower].update({i: sum(v) / len(v) for i, v in stored.items()})
        return total / (2 * len(index))


def slow_clip(x, y, x_ids, y_ids, tau):
    x, y = unit(x), unit(y)
    total = torch.zeros((), dtype=torch.float64)
    for g in slow_normalizers(x, y, x_ids.tolist(), y_ids.tolist(), tau):
        for a in range(len(x)):
            positive = torch.exp(torch.dot(x[a], y[a]) / tau)
            others = 0 if g[a] is None else g[a] * len(negatives(x_ids.tolist(), y_ids.tolist(), a))
            total = total - torch.log(positive / (positive + others))
    return total / (2 * len(x))


def slow_siglip(x, y, x_ids, y_ids, tau, bias):
    x, y = unit(x), unit(y)
    total = torch.zeros((), dtype=torch.float64)
    for a in range(len(x)):
        total = total - torch.log(torch.sigmoid(torch.dot(x[a], y[a]) / tau + bias))
        for b in negatives(x_ids.tolist(), y_ids.tolist(), a):
            total = total - torch.log(torch.sigmoid(-(torch.dot(x[a], y[b]) / tau + bias)))
    return total / len(x)


def assert_same(value, expected, inputs, rtol=1e-5, atol=1e-7):
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for z in inputs:
        got = torch.autograd.grad(value, z, retain_graph=True)[0]
        want = torch.autograd.grad(expected, z, retain_graph=True)[0]
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("texts", [False, True])
def test_value_gradient_and_both_states_over_many_steps(gamma, texts):
    """Images seen and unseen; with ids of their own for the texts, images and captions come twice in a batch."""
    generator = np.random.default_rng(3)
    fast, slow = TwoTowerGlobalContrastiveLoss(12, 0.2, gamma, num_texts=20), SlowTwoTower(0.2, gamma)
    for step in range(15):
        index = torch.from_numpy(generator.choice(12, 8, replace=texts))
        text_index = torch.from_numpy(generator.choice(20, 8, replace=True)) if texts else None
        z = embeddings(8, seed=step)
        assert_same(fast(*z, index, text_index), slow(*z, index, text_index), z)
    for estimator, u in zip((fast.image_estimator, fast.text_estimator), slow.u, strict=True):
        seen = torch.isfinite(estimator.log_u).nonzero().flatten().tolist()
        assert seen == sorted(u)
        assert estimator.log_u[seen].tolist() == pytest.approx([math.log(u[i]) for i in seen], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_clip_and_siglip_equal_the_slow_ones(tau):
    z = embeddings(7)
    x_ids, y_ids = torch.tensor([4, 1, 4, 9, 2, 0, 3]), torch.tensor([0, 1, 2, 3, 3, 5, 6])
    assert_same(ClipLoss(tau)(*z, x_ids, y_ids), slow_clip(*z, x_ids, y_ids, tau), z)
    assert_same(SigLipLoss(tau, -1.0)(*z, x_ids, y_ids), slow_siglip(*z, x_ids, y_ids, tau, -1.0), z, rtol=1e-4)


def test_clip_without_shared_ids_is_the_cross_entropy_of_the_published_one():
    x, y = embeddings(6)
    logits = unit(x) @ unit(y).T / 0.07
    target = torch.arange(6)
    expected = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    torch.testing.assert_close(ClipLoss(0.07)(x, y, target), expected / 2)


def test_siglip_learns_its_scale_and_bias():
    loss = SigLipLoss(0.2, -2.0).double()
    x, y = embeddings(6)
    loss(x, y, torch.arange(6)).backward()
    for parameter in (loss.log_scale, loss.bias):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step
                values.append(loss(x, y, torch.arange(6)).item())
                parameter -= step
        assert float(parameter.grad) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    assert not list(filter(lambda p: p.requires_grad, SigLipLoss(learnable=False).parameters()))


@pytest.mark.parametrize("kind", ["global", "per_sample"])
def test_the_gradient_of_learned_temperatures_is_that_of_the_robust_objective(kind):
    """By finite differences of  mean of -s + tau log ĝ + rho tau,  each anchor with the tau of its image or of its text."""
    n, rho, x_ids, y_ids = 6, 0.3, torch.tensor([0, 0, 2, 3, 4, 5]), torch.tensor([1, 2, 3, 0, 4, 4])
    x, y = (v.detach() for v in embeddings(n))

    def objective(of_images, of_texts):
        x1, y1, total = unit(x), unit(y), 0.0
        for a in range(n):
            for z, others, tau in ((x1, y1, of_images[int(x_ids[a])]), (y1, x1, of_texts[int(y_ids[a])])):
                g = [torch.exp(z[a] @ others[b] / tau) for b in negatives(x_ids.tolist(), y_ids.tolist(), a)]
                total += float(-(x1[a] @ y1[a]) + tau * torch.stack(g).mean().log() + rho * tau)
        return total / (2 * n)

    make = {
        "global": lambda: temperatures.Global(0.2, rho),
        "per_sample": lambda: temperatures.PerSample(n, 0.2, rho),
    }[kind]
    loss = TwoTowerGlobalContrastiveLoss(n, make().double(), estimator=MiniBatch())
    value = loss(x, y, x_ids, y_ids)
    assert value.item() == pytest.approx(objective([0.2] * n, [0.2] * n))
    value.backward()
    step, found = 1e-6, dict(loss.named_parameters())
    if kind == "global":
        expected = (objective([0.2 + step] * n, [0.2 + step] * n) - objective([0.2 - step] * n, [0.2 - step] * n)) / (
            2 * step
        )
        assert set(found) == {"temperature.tau"}
        assert float(found["temperature.tau"].grad) == pytest.approx(expected, rel=1e-5)
        return
    assert set(found) == {"temperature.tau", "text_temperature.tau"}
    for i in range(n):
        up, down = ([0.2 + sign * step * (k == i) for k in range(n)] for sign in (1, -1))
        same = [0.2] * n
        of_image = (objective(up, same) - objective(down, same)) / (2 * step)
        of_text = (objective(same, up) - objective(same, down)) / (2 * step)
        assert float(found["temperature.tau"].grad.to_dense()[i]) == pytest.approx(of_image, rel=1e-4, abs=1e-8)
        assert float(found["text_temperature.tau"].grad.to_dense()[i]) == pytest.approx(of_text, rel=1e-4, abs=1e-8)


def test_texts_of_their_own_need_temperatures_of_their_own():
    with pytest.raises(BadInput, match="serves 10 images and the loss has 12 texts; give two"):
        TwoTowerGlobalContrastiveLoss(10, temperatures.PerSample(10), num_texts=12)
    both = temperatures.PerSample(10), temperatures.PerSample(12)
    loss = TwoTowerGlobalContrastiveLoss(10, both, num_texts=12)
    loss(*embeddings(), torch.arange(6), torch.arange(6) + 6).backward()
    assert loss.text_temperature.tau.grad.to_dense().nonzero().flatten().tolist() == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("kinds", ["GG", "GP", "PG", "PP"])
def test_each_tower_may_have_a_temperature_of_any_kind_and_its_own_rho(kinds, kernel):
    make = {"G": temperatures.Global, "P": lambda tau, rho: temperatures.PerSample(6, tau, rho)}
    x, y = embeddings(6)
    both = make[kinds[0]](0.2, 0.3).double(), make[kinds[1]](0.1, 0.5).double()
    loss = TwoTowerGlobalContrastiveLoss(6, both, estimator=MiniBatch())
    with kernels.use(kernel):
        value = loss(x, y, torch.arange(6))
        value.backward()
    tau, rho = torch.tensor([[0.2], [0.1]], dtype=torch.float64, requires_grad=True), torch.tensor([[0.3], [0.5]])
    sim = unit(x.detach()) @ unit(y.detach()).T
    others = (torch.stack([sim, sim.T]) / tau[..., None]).masked_fill(torch.eye(6, dtype=torch.bool), -math.inf)
    log_g = others.logsumexp(dim=2) - math.log(5)
    expected = (tau * log_g + rho * tau - sim.diagonal()).mean()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    for part, gradient in zip(both, tau.grad.flatten(), strict=True):
        torch.testing.assert_close(part.tau.grad.to_dense().sum(), gradient, rtol=1e-5, atol=0)


def test_two_temperatures_are_two_modules():
    with pytest.raises(BadInput, match="two temperatures are two modules"):
        TwoTowerGlobalContrastiveLoss(6, (0.1, temperatures.PerSample(6)))


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
def test_one_temperature_a_pair_serves_both_ways(kernel):
    x, y = embeddings(6)
    with kernels.use(kernel):
        value = ClipLoss(temperatures.PerSample(6, 0.2).double())(x, y, torch.arange(6))
    torch.testing.assert_close(value, ClipLoss(0.2)(x, y, torch.arange(6)))


def test_an_anchor_without_negatives_only_pulls_at_its_positive():
    """Row 0 shares its image with row 1 and its text with row 2: nothing is left to push away."""
    x_ids, y_ids = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    for name in ("sogclr", "clip"):
        x, y = embeddings(3)
        loss = losses()[name]
        loss.reduction = "none"
        value = loss(x, y, x_ids, y_ids)
        grad = torch.autograd.grad(value[0], (x, y))
        assert torch.isfinite(value).all()
        assert all(torch.isfinite(g).all() for g in grad)
        assert all(float(g[1:].abs().max()) == 0 for g in grad)  # no other row is moved
        if name == "sogclr":
            want = torch.autograd.grad(-(unit(x)[0] * unit(y)[0]).sum(), x)[0]
            torch.testing.assert_close(grad[0], want)
            assert torch.isfinite(loss.image_estimator.log_u[:2]).all()


def test_pairs_with_ids_below_zero_are_told_apart():
    """Where ids are any, as hashes are; no two of these pairs share an image or a text."""
    ids = torch.stack([torch.tensor([1, 0, 5, -6]), torch.tensor([-1, 0, -5, 6])], dim=1)
    assert functional.count_different(ids).tolist() == [3, 3, 3, 3]


def test_gradient_is_the_derivative_at_constant_nu():
    nu, ids = torch.randn(2, 4, dtype=torch.float64), (torch.tensor([0, 1, 1, 3]), torch.arange(4))

    def value(a, b):
        a, b = functional.normalize(a), functional.normalize(b)
        log_g = functional.log_mean_negatives_two_towers(a, b, *ids, 0.3)
        return functional.dual_loss(functional.positive_similarity(a, b), log_g, nu, 0.3).mean()

    assert torch.autograd.gradcheck(value, embeddings(4, 3))


# --------------------------------------------------------------------------------------------- the faults of the peers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tau", [0.01, 0.005])
def test_gradient_is_right_with_aligned_positives_at_low_temperature(tau, dtype):
    """u is near exp(-1/tau); compared with float64 on the same, rounded numbers."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(16, 32, generator=generator)
    x, y = ((z + 0.1 * torch.randn(16, 32, generator=generator)).to(dtype).requires_grad_() for _ in range(2))
    wide = [v.detach().double().requires_grad_() for v in (x, y)]
    loss, slow = TwoTowerGlobalContrastiveLoss(16, tau, 0.5), SlowTwoTower(tau, 0.5)
    for _ in range(3):
        got = torch.autograd.grad(loss(x, y, torch.arange(16)), (x, y))
        want = torch.autograd.grad(slow(*wide, torch.arange(16)), wide)
        for a, b in zip(got, want, strict=True):
            assert torch.cosine_similarity(a.double().flatten(), b.flatten(), dim=0) > 0.999
            assert float(a.double().norm() / b.norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_finite_at_temperature_0_005_with_near_duplicates(name, dtype):
    check_finite_on_near_duplicates(losses(temperature=0.005, dim=16)[name], dtype)


@pytest.mark.parametrize("name", ["sogclr", "mini_batch", "clip"])
def test_gradient_norm_does_not_depend_on_the_batch_size(name):
    norms = []
    for b in (32, 512):
        x, y = (torch.randn(b, 64, generator=torch.Generator().manual_seed(v), requires_grad=True) for v in (1, 2))
        losses(n=b, temperature=0.5)[name](x, y, torch.arange(b)).backward()
        norms.append(float(x.grad.norm()) * b**0.5)
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_goes_on_bit_for_bit(name, tmp_path):
    loss, other = losses()[name], losses()[name]

    def steps(loss, first, last):
        return [
            loss(*embeddings(8, seed=s, dtype=torch.float32), torch.arange(8) + s % 30, torch.arange(8)).item()
            for s in range(first, last)
        ]

    steps(loss, 0, 10)
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert steps(loss, 10, 30) == steps(other, 10, 30)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in loss.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_memory_is_flat_over_steps(name):
    loss, counts = losses()[name], []
    for step in range(30):
        loss(*embeddings(8, seed=step, dtype=torch.float32), torch.arange(8)).backward()
        if step in (4, 29):
            gc.collect()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert counts[1] <= counts[0]


@pytest.mark.slow
def test_the_value_estimates_the_global_objective():
    """With embeddings held still, batches of 4 report the two-way objective over all pairs: CLIP's loss does not."""
    n, tau, generator = 40, 0.3, torch.Generator().manual_seed(5)
    base = torch.randn(n, 8, generator=generator)
    x, y = (base + 0.3 * torch.randn(n, 8, generator=generator) for _ in range(2))
    loss, values = TwoTowerGlobalContrastiveLoss(n, tau, 0.02), []
    for epoch in range(200):
        for index in torch.randperm(n, generator=generator).split(4):
            value = float(loss(x[index], y[index], index))
            if epoch >= 150:
                values.append(value)
    ids = list(range(n))
    normalizers = slow_normalizers(unit(x), unit(y), ids, ids, tau)
    log_g = sum(math.log(g) for tower in normalizers for g in tower) / (2 * n)
    exact = -float((unit(x) * unit(y)).sum(dim=1).mean()) + tau * log_g
    mini = np.mean([float(losses(n, tau)["mini_batch"](x[i], y[i], i)) for i in torch.arange(n).split(4)])
    assert np.mean(values) == pytest.approx(exact, abs=0.01)
    assert abs(mini - exact) > 0.02


# ---------------------------------------------------------------------------------------------------- what users rely on
@pytest.mark.parametrize("name", ALL)
def test_order_of_the_batch_does_not_matter(name):
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    x, y = embeddings()
    ids = torch.tensor([0, 0, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 3, 4, 4])
    a, b = losses()[name], losses()[name]
    torch.testing.assert_close(a(x, y, *ids), b(x[order], y[order], ids[0][order], ids[1][order]))


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_autocast_compute_in_float32(name):
    x, y = embeddings(dtype=torch.bfloat16)
    expected = losses()[name](x.float(), y.float(), torch.arange(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = losses()[name](x, y, torch.arange(6, dtype=torch.int32))
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("name", ALL)
def test_reductions(name):
    z = embeddings()
    each = losses()[name]
    each.reduction = "none"
    values = each(*z, torch.arange(6))
    assert values.shape == (6,)
    for reduction, expected in (("mean", values.mean()), ("sum", values.sum())):
        loss = losses()[name]
        loss.reduction = reduction
        torch.testing.assert_close(loss(*z, torch.arange(6)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sogclr", "siglip"])
def test_compiled_equals_eager(name):
    eager, compiled = losses()[name], losses()[name]
    call = torch.compile(compiled, backend="aot_eager")
    for step in range(3):
        z, index = embeddings(8, seed=step, dtype=torch.float32), torch.arange(8) + step
        a, b = eager(*z, index, torch.arange(8)), call(*z, index, torch.arange(8))
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(torch.autograd.grad(a, z[0])[0], torch.autograd.grad(b, z[0])[0])


def test_evaluation_mode_leaves_the_state_alone_and_two_estimators_may_be_given():
    loss = TwoTowerGlobalContrastiveLoss(10, estimator=(MovingAverage(10, 0.5), MovingAverage(30, 0.1)), num_texts=30)
    z = embeddings()
    loss(*z, torch.arange(6), torch.arange(6) + 20)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    assert int(torch.isfinite(before["text_estimator.log_u"]).nonzero()[0]) == 20
    loss.eval()
    loss(*z, torch.arange(6), torch.arange(6) + 20)
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())
    shared = TwoTowerGlobalContrastiveLoss(10, estimator=MovingAverage(10, 0.5))
    assert shared.image_estimator is not shared.text_estimator


def test_statistics_say_what_the_normalizer_does():
    for name in ALL:
        loss, z = losses()[name], embeddings()
        loss(*z, torch.arange(6))
        assert set(loss.statistics) == {
            "objective",
            "normalizer_mean",
            "normalizer_std",
            "weight_max",
            "temperature",
        }
        log_g = functional.log_mean_negatives_two_towers(*map(unit, z), torch.arange(6), torch.arange(6), 0.2)
        assert float(loss.statistics["normalizer_mean"]) == pytest.approx(log_g.mean().item(), rel=1e-5)


# -------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeddings": torch.randn(6, 4)}, r"image and text embeddings must be .* \(6, 5\) and \(6, 4\)"),
        ({"index": torch.arange(6) + 5}, "index 10 is out of range for a loss built for 10 samples"),
        ({"text_index": torch.arange(6) + 8}, r"index 1[23] is out of range for a loss built for 12 samples"),
        ({"text_index": torch.zeros(6, dtype=torch.int64)}, "all 6 rows of the batch have id 0"),
        ({"text_index": torch.arange(5)}, r"index must be \(6,\)"),
    ],
)
def test_bad_batches_are_refused_with_both_values(change, message):
    loss = TwoTowerGlobalContrastiveLoss(10, num_texts=12)
    batch = {"image_embeddings": torch.randn(6, 5), "text_embeddings": torch.randn(6, 5), "index": torch.arange(6)}
    with pytest.raises(BadInput, match=message):
        loss(**(batch | change))
    assert torch.isneginf(loss.image_estimator.log_u).all()


def test_what_is_not_finite_is_named_and_never_enters_the_state():
    loss = TwoTowerGlobalContrastiveLoss(10)
    x, y = (torch.randn(6, 5) for _ in range(2))
    y[2, 1] = float("nan")
    with pytest.raises(NonFinite, match=r"1 of 6 embeddings are not finite \(rows 2, ids 2\)"):
        loss(x, y, torch.arange(6))
    assert torch.isneginf(loss.text_estimator.log_u).all()


@pytest.mark.parametrize("name", ["sogclr", "cosine"])
def test_rollback_undoes_the_updates_of_a_step(name):
    """Of two forward passes, with ids of the texts' own; except where it is told not to."""
    loss = losses()[name]
    for step in range(4):
        loss(*embeddings(seed=step, dtype=torch.float32), torch.arange(6), torch.arange(6) + step)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    for unless in (torch.tensor(True), torch.tensor(False), None):
        loss.load_state_dict(before)
        loss.begin_step()
        for seed in (9, 10):
            loss(*embeddings(seed=seed, dtype=torch.float32), torch.arange(6) + 20, torch.arange(6) + seed)
        after = {k: v.clone() for k, v in loss.state_dict().items()}
        assert any(not torch.equal(v, before[k]) for k, v in after.items())
        loss.rollback(unless)
        wanted = after if unless is not None and unless else before
        assert all(torch.equal(v, wanted[k]) for k, v in loss.state_dict().items())


def test_prototypes_are_of_the_other_tower():
    """They stand for an anchor's negatives: texts for images, images for texts."""
    loss = TwoTowerGlobalContrastiveLoss(10, 0.2, estimator=Neural(5, prototypes=6))
    x, y = embeddings(6)
    loss(x, y, torch.arange(6))
    torch.testing.assert_close(loss.image_estimator.prototypes, unit(y).float(), check_dtype=False)
    torch.testing.assert_close(loss.text_estimator.prototypes, unit(x).float(), check_dtype=False)


def test_an_estimator_for_another_number_is_refused():
    with pytest.raises(BadInput, match="MovingAverage is built for 10 samples and the loss for 12 texts; give two"):
        TwoTowerGlobalContrastiveLoss(10, num_texts=12, estimator=MovingAverage(10))
    TwoTowerGlobalContrastiveLoss(10, num_texts=12, estimator=(MovingAverage(10), MovingAverage(12)))


def test_bad_arguments_are_refused():
    with pytest.raises(BadInput, match="temperature must be greater than 0 and was -1"):
        ClipLoss(-1)
    with pytest.raises(BadInput, match="bias must be finite"):
        SigLipLoss(bias=float("nan"))
    assert sogclr.TwoTowerGlobalContrastiveLoss is TwoTowerGlobalContrastiveLoss


# --------------------------------------------------------------------------------------------------------- several ranks
BATCH, N = 12, 30
DISTRIBUTED = ("sogclr", "global_tau", "cosine", "clip", "siglip")


def run(name, rank, ranks):
    """A few steps of gradient descent; this rank's share of each batch."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4, dtype=torch.float64)
    model = DistributedDataParallel(net) if ranks > 1 else net
    loss, values = losses(N, dim=4)[name].double(), []
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(BATCH, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        index, text_index = (torch.randint(0, N, (BATCH,), generator=generator) for _ in range(2))  # repeats too
        mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
        optimizer.zero_grad()
        value = loss(*model(torch.cat([x[mine], y[mine]])).chunk(2), index[mine], text_index[mine])
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return {"values": torch.tensor(values), "weight": net.weight.detach(), **loss.state_dict()}


def worker(rank, ranks, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for name in DISTRIBUTED:
        torch.save(run(name, rank, ranks), f"{folder}/{name}-{rank}.pt")
    gc.collect()  # models that still hold on to the group would end its threads at exit, by an abort
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(worker, (2, port, str(tmp_path)), nprocs=2, start_method="spawn")
    for name in DISTRIBUTED:
        expected = run(name, 0, 1)
        for rank in range(2):
            got = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for key, value in expected.items():
                torch.testing.assert_close(got[key], value, msg=lambda m, name=name, key=key: f"{name} {key}: {m}")
