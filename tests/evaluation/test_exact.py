"""Whole-data values against brute force in float64, and the diagnosis against what is known of each estimator."""

import math

import pytest
import torch
from reference import SlowPairs, unit
from torch import nn

import sogclr
from sogclr.errors import BadInput
from sogclr.evaluation import exact, exact_pairs
from sogclr.evaluation.diagnosis import _BatchSampler, diagnose, flatten
from sogclr.losses import (
    DecoupledContrastiveLoss,
    GlobalContrastiveLoss,
    MoCoLoss,
    NTXentLoss,
    TwoTowerGlobalContrastiveLoss,
)
from sogclr.losses.estimators import MiniBatch
from sogclr.losses.temperatures import PerSample

V, N, D, TAU = 3, 7, 4, 0.3


def views(seed=0, v=V, n=N, width=5):
    return torch.randn(v, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_normalizers(z, tau):
    z = [unit(row) for row in z]
    out = torch.zeros(len(z), len(z[0]), dtype=torch.float64)
    for v, i in [(v, i) for v in range(len(z)) for i in range(len(z[0]))]:
        terms = [math.exp(float(z[v][i] @ z[w][j]) / tau[i]) for w in range(len(z)) for j in range(len(z[0])) if j != i]
        out[v, i] = math.log(sum(terms) / len(terms))
    return out


def brute_objective(z, tau, variant):
    """Differentiable, by loops."""
    z = [unit(row) for row in z]
    total = 0.0
    for i in range(len(z[0])):
        pairs = [z[v][i] @ z[w][i] for v in range(len(z)) for w in range(len(z)) if v != w]
        g = [
            torch.stack([torch.exp(z[v][i] @ z[w][j] / tau) for w in range(len(z)) for j in range(len(z[0])) if j != i])
            for v in range(len(z))
        ]
        log_g = (
            torch.log(torch.stack([t.mean() for t in g]).mean())
            if variant == "F2"
            else torch.stack([t.mean().log() for t in g]).mean()
        )
        total = total - torch.stack(pairs).mean() + tau * log_g
    return total / len(z[0])


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(exact, "_ENTRIES", 2 * V * V * N)


# things 0 to 6 of one space of ids, in pairs that share some; of hard negatives one is in a pair, one comes twice
FIRST, SECOND = torch.tensor([0, 1, 2, 0, 3, 4, 5]), torch.tensor([3, 6, 5, 6, 1, 2, 4])
KNOWN = torch.cat([FIRST, torch.tensor([2, 4])]), torch.cat([SECOND, torch.tensor([6, 3])])
HARD_IDS = torch.tensor([[7], [8], [6], [7], [2], [9], [8]])


@pytest.mark.parametrize("same_kind", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_the_normalizers_of_pairs_are_those_of_loops(same_kind, known, hard, monkeypatch):
    monkeypatch.setattr(exact_pairs, "_ENTRIES", 20)  # chunks of two pairs
    x, y, of_hard = views(v=3)
    more = (of_hard[:, None], HARD_IDS) if hard else ()
    pairs = list(zip(*(ids.tolist() for ids in KNOWN), strict=True)) if known else ()
    slow = SlowPairs("global", TAU, 1.0, pairs, same_kind, share=True)
    slow(x, y, FIRST, SECOND, *more)
    flat = {"negatives": of_hard, "negative_ids": HARD_IDS.flatten()} if hard else {}
    positives = KNOWN if known else None
    found = sogclr.exact.pair_normalizers(x, y, FIRST, SECOND, TAU, positives=positives, same_kind=same_kind, **flat)
    assert found.dtype == torch.float64
    for ids, log_g, u in zip((FIRST, SECOND), found, slow.u, strict=True):
        for i in ids.unique():
            assert float(log_g[ids == i].exp().mean()) == pytest.approx(u[int(i)], rel=1e-12)


@pytest.mark.parametrize("same_kind", [False, True])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_normalizers_of_pairs_are_those_of_loops_whatever_ids_share(same_kind, more, seed):
    """Of many pairs of few things, where the known pairs are the rows, or more than they."""
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 7, (2, 14), generator=draw)
    first, second = drawn[:, drawn[0] != drawn[1]] + torch.tensor([[0], [0 if same_kind else 3]])
    x, y = torch.randn(2, len(first), 4, generator=draw, dtype=torch.float64)
    known = torch.cat([first, torch.tensor([1, 20])]), torch.cat([second, torch.tensor([5, 9])])
    known = known if more else (first, second)
    slow = SlowPairs("global", TAU, 1.0, list(zip(*(ids.tolist() for ids in known), strict=True)), same_kind)
    slow(x, y, first, second)
    found = exact.pair_normalizers(x, y, first, second, TAU, positives=known, same_kind=same_kind)
    for ids, log_g, u in zip((first, second), found, slow.u, strict=True):
        for i in ids.unique():
            assert float(log_g[ids == i].exp().mean()) == pytest.approx(u[int(i)], rel=1e-9)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_the_normalizers_of_pairs_take_learned_temperatures_and_say_how_far_they_are(known, each, monkeypatch):
    monkeypatch.setattr(exact_pairs, "_ENTRIES", 20)
    monkeypatch.setattr(exact_pairs, "_BLOCK", 20)
    x, y = views(v=2)
    tau = 0.1 + 0.05 * torch.arange(14.0).view(2, 7) if each else torch.tensor(TAU)
    done = []
    options = {"positives": KNOWN if known else None, "progress": lambda *so_far: done.append(so_far)}
    found = exact.pair_normalizers(x, y, FIRST, SECOND, tau, **options)
    for side in (0, 1):
        for row in range(7):
            at = float(tau[side, row] if each else tau)
            alone = exact.pair_normalizers(x, y, FIRST, SECOND, at, positives=options["positives"])
            torch.testing.assert_close(found[side, row], alone[side, row], rtol=1e-6, atol=1e-6)
    assert done == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_a_loss_that_sees_all_pairs_at_once_has_the_exact_normalizers():
    """And none of them moves when it sees them again after a warm start."""
    x, y, of_hard = views(v=3).float()
    options = {"positives": KNOWN, "same_kind": True, "share_negatives": True}
    loss = TwoTowerGlobalContrastiveLoss(10, TAU, 0.3, **options)
    loss(x, y, FIRST, SECOND, of_hard, HARD_IDS)
    warm = TwoTowerGlobalContrastiveLoss(10, TAU, 0.3, **options)
    options.pop("share_negatives")
    log_g = exact.pair_normalizers(
        x, y, FIRST, SECOND, TAU, negatives=of_hard, negative_ids=HARD_IDS.flatten(), **options
    )
    for estimator, values, ids in ((warm.image_estimator, log_g[0], FIRST), (warm.text_estimator, log_g[1], SECOND)):
        estimator.warm_start(values, ids)
    for _ in range(2):
        for of_loss, of_warm in (
            (loss.image_estimator, warm.image_estimator),
            (loss.text_estimator, warm.text_estimator),
        ):
            torch.testing.assert_close(of_loss.log_u, of_warm.log_u)
        warm(x, y, FIRST, SECOND, of_hard, HARD_IDS)


def test_pairs_that_do_not_fit_are_refused():
    x = views()[0]
    with pytest.raises(BadInput, match=r"have \(7, 5\), \(6, 5\), \(7,\) and \(7,\)"):
        exact.pair_normalizers(x, x[1:], FIRST, SECOND, TAU)
    with pytest.raises(BadInput, match="temperature must be greater than 0 and was 0"):
        exact.pair_normalizers(x, x, FIRST, SECOND, 0)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, D)).double()


@pytest.mark.usefixtures("small_chunks")
def test_normalizers_equal_brute_force_in_chunks():
    z = views(width=D)
    torch.testing.assert_close(exact.normalizers(z, TAU), brute_normalizers(z, [TAU] * N))
    tau = 0.1 + 0.05 * torch.arange(N)
    torch.testing.assert_close(exact.normalizers(z, tau), brute_normalizers(z, tau.tolist()), rtol=1e-6, atol=1e-6)
    assert exact.normalizers(z.float(), TAU, dtype=torch.float64).dtype == torch.float64
    assert exact.normalizers(z.half(), TAU).dtype == torch.float32


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("variant", ["F1", "F2"])
def test_objective_and_gradient_equal_brute_force(variant, encoder):
    x = views()
    expected = brute_objective(encoder(x.flatten(0, 1)).unflatten(0, (V, N)), TAU, variant)
    assert exact.objective(exact.embed_views(encoder, x), TAU, variant) == pytest.approx(expected.item(), rel=1e-12)
    wanted = torch.autograd.grad(expected, list(encoder.parameters()))
    got = exact.gradient(encoder, x, TAU, variant, batch_size=4)
    for (name, value), want in zip(got.items(), wanted, strict=True):
        torch.testing.assert_close(value, want, msg=name)
    assert all(p.grad is None for p in encoder.parameters())
    single = exact.gradient(encoder.float(), x, TAU, variant, dtype=torch.float64)
    for value, want in zip(single.values(), wanted, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-7)  # weights were rounded to float32


def test_f1_is_at_most_f2_and_equal_when_views_do_not_matter():
    z = views(width=D)
    assert exact.objective(z, TAU, "F1") < exact.objective(z, TAU, "F2")
    same = z[:1].expand(V, N, D)
    assert exact.objective(same, TAU, "F1") == pytest.approx(exact.objective(same, TAU, "F2"), rel=1e-12)


def test_batch_statistics_are_refused_and_frozen_ones_are_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.1), nn.Linear(6, D)).double()
    net(views()[0])
    net[3].eval()
    with pytest.raises(BadInput, match=r"1 \(BatchNorm1d\) normalises by the batch.*frozen"):
        exact.gradient(net, views(), TAU)
    net[1].eval()
    with pytest.raises(BadInput, match="2 drops out at random"):
        exact.gradient(net, views(), TAU)
    net[1].train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with exact.eval_mode(net):
        a, b = (exact.gradient(net, views(), TAU, batch_size=size) for size in (2, 100))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name])
    assert [m.training for m in net] == [True, True, True, False]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_the_whole_data_set_as_one_batch_has_neither_bias_nor_variance(encoder):
    """Two views, all samples in the batch: DCL's gradient is F1's, the averaged normalizer's is F2's."""
    x = views(v=2)
    for loss, variant in (
        (DecoupledContrastiveLoss(TAU), "F1"),
        (GlobalContrastiveLoss(N, TAU, estimator=MiniBatch()), "F1"),
        (GlobalContrastiveLoss(N, TAU, 1.0, "per_sample"), "F2"),
    ):
        found = diagnose(loss, encoder, x, batch_size=N, batches=4, single_batches=3, variant=variant)
        assert found["bias"] < 1e-6, type(loss)
        assert found["variance"] < 1e-12
        assert found["cosine"] == pytest.approx(1)
        assert found["cosine_batch"] == pytest.approx(1)
    assert found["normalizer_rmse"] == pytest.approx(0, abs=1e-6)


def set_to_exact(loss, encoder, x):
    log_g = exact.normalizers(exact.embed_views(encoder, x), TAU)
    loss.estimator.log_u.copy_(log_g.logsumexp(dim=0) - math.log(len(x)))
    return loss


@pytest.mark.slow
def test_bias_and_variance_are_what_the_theory_says(encoder):
    """With u exact and a vanishing gamma SogCLR's gradient has no bias for F2; the mini-batch's has one even for F1, which
    falls as the batch grows."""
    x, counts = views(v=3, n=24), {"batches": 1500, "single_batches": 200}
    exact_u = set_to_exact(GlobalContrastiveLoss(24, TAU, 1e-9), encoder, x)
    ours = diagnose(exact_u, encoder, x, batch_size=4, **counts)
    mini = diagnose(GlobalContrastiveLoss(24, TAU, 1.0), encoder, x, batch_size=4, variant="F1", **counts)
    large = diagnose(GlobalContrastiveLoss(24, TAU, 1.0), encoder, x, batch_size=12, variant="F1", **counts)
    assert ours["bias"] < 2 * ours["bias_noise"]
    assert mini["bias"] > 2 * max(mini["bias_noise"], large["bias"])
    assert large["variance"] < mini["variance"] / 2
    assert ours["normalizer_rmse"] < 1e-5
    assert mini["normalizer_rmse"] > 0.1
    assert mini["normalizer_bias"] < -0.01  # Jensen: E log ĝ < log g
    assert ours["F1"] <= ours["F2"]
    assert {"images": 24, "views": 3, "batches": 1500}.items() <= ours.items()


def test_the_shortcut_through_the_embeddings_is_the_mean_over_batches(encoder):
    """Every number once more, from each batch's own backward pass."""
    x, loss = views(v=3, n=10), GlobalContrastiveLoss(10, TAU, 1.0)
    found = diagnose(loss, encoder, x, batch_size=3, batches=20, single_batches=20, seed=5)
    draws, grads = _BatchSampler(10, 3, 3, 5), []
    for _ in range(20):
        rows, (v0, v1) = draws()
        assert (v0 != v1).all()
        value = loss(encoder(x[v0, rows]), encoder(x[v1, rows]), rows)
        grads.append(flatten(dict(enumerate(torch.autograd.grad(value, list(encoder.parameters()))))))
    grads, truth = torch.stack(grads), flatten(exact.gradient(encoder, x, TAU))
    spread, distance = grads.var(dim=0).sum(), (grads.mean(dim=0) - truth).square().sum()
    assert found["gradient_norm"] == pytest.approx(float(truth.norm()))
    assert found["variance"] == pytest.approx(float(spread / truth.norm() ** 2), rel=1e-5)
    assert found["bias"] == pytest.approx(float((distance - spread / 20).clamp(min=0).sqrt() / truth.norm()), rel=1e-4)
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(grads.mean(dim=0), truth, dim=0)), rel=1e-5)


@pytest.mark.parametrize(
    "loss", [NTXentLoss(TAU), MoCoLoss(D, 16, TAU), GlobalContrastiveLoss(12, PerSample(12, TAU), 0.5)]
)
def test_any_loss_can_be_diagnosed_and_stays_as_it_was(loss, encoder):
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    found = diagnose(loss, encoder, views(n=9), index=torch.arange(9) + 2, batch_size=4, batches=40, single_batches=20)
    assert all(math.isfinite(v) for v in found.values())
    assert found["cosine"] > 0.3
    assert loss.training
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())
    again = diagnose(loss, encoder, views(n=9), index=torch.arange(9) + 2, batch_size=4, batches=40, single_batches=20)
    assert found == again


def test_a_settled_state_has_the_estimators_own_error(encoder):
    """u from other weights is far off; after some passes at these it is as near as gamma allows. The loss itself stays."""
    x, settings = views(v=2, n=24), {"batch_size": 4, "batches": 200, "single_batches": 2}
    loss = GlobalContrastiveLoss(24, TAU, 0.05)
    loss.estimator.log_u.fill_(5.0)
    stale, settled = (diagnose(loss, encoder, x, settle=passes, **settings)["normalizer_rmse"] for passes in (0, 200))
    mini = diagnose(GlobalContrastiveLoss(24, TAU, 1.0), encoder, x, **settings)["normalizer_rmse"]
    assert stale > 2
    assert settled < mini / 2
    assert torch.all(loss.estimator.log_u == 5)


def test_cross_entropies_are_put_on_the_objectives_scale(encoder):
    x = views(n=9)
    settings = {"batch_size": 4, "batches": 30, "single_batches": 10}
    a = diagnose(DecoupledContrastiveLoss(TAU), encoder, x, **settings)
    b = diagnose(GlobalContrastiveLoss(9, TAU, 1.0), encoder, x, **settings)
    assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: exact.objective(torch.randn(1, 4, 3), 0.1),
            r"at least 2 views of at least 2 samples, and are \(1, 4, 3\)",
        ),
        (lambda: exact.normalizers(torch.randn(2, 4, 3), torch.ones(5)), "5 temperatures for 4 samples"),
        (lambda: exact.normalizers(torch.randn(2, 4, 3), 0.0), "greater than 0 and was 0.0"),
        (lambda: exact.objective(torch.randn(2, 4, 3), 0.1, "F3"), "'F1' or 'F2' and was 'F3'"),
        (lambda: diagnose(NTXentLoss(), nn.Linear(3, 3), torch.randn(2, 4, 3), batch_size=5), "got 5 of 4"),
        (lambda: diagnose(nn.Identity(), nn.Linear(3, 3), torch.randn(2, 4, 3), batch_size=3), "no attribute `temp"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call()


def test_public_names():
    assert sogclr.exact is exact
    assert sogclr.diagnose is diagnose
