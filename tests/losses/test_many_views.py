"""More than two views of each sample: what the slow loops of test_members do not see."""

import math

import pytest
import torch
from reference import batch_normalizer, positives, unit

import sogclr
from sogclr.errors import BadInput
from sogclr.evaluation import exact
from sogclr.losses import (
    DecoupledContrastiveLoss,
    GlobalContrastiveLoss,
    MoCoLoss,
    NonFinite,
    NTXentLoss,
)
from sogclr.losses.estimators import Neural
from sogclr.losses.temperatures import Global, PerSample

N, B, D, TAU = 20, 6, 5, 0.2
LOSSES = {
    "per_view": lambda: GlobalContrastiveLoss(N, TAU, 0.3),
    "per_sample": lambda: GlobalContrastiveLoss(N, TAU, 0.3, "per_sample"),
    "num_negatives": lambda: GlobalContrastiveLoss(N, TAU, 0.3, num_negatives=30),
    "isogclr": lambda: GlobalContrastiveLoss(N, PerSample(N, TAU), 0.3),
    "global_tau": lambda: GlobalContrastiveLoss(N, Global(TAU), 0.3),
    "neural": lambda: GlobalContrastiveLoss(N, TAU, estimator=Neural(D, 24)),
    "ntxent": lambda: NTXentLoss(TAU),
    "dcl": lambda: DecoupledContrastiveLoss(TAU),
}


def batch(views, seed=0, b=B, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(views, b, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return z, torch.randperm(N, generator=generator)[:b]


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_views_are_the_call_on_two_to_the_last_bit(name, dtype):
    losses = [LOSSES[name]() for _ in range(2)]
    for step in range(4):
        (z, index), (same, _) = batch(2, step, dtype=dtype), batch(2, step, dtype=dtype)
        values = losses[0](*z, index), losses[1].of_views(same, index)
        assert torch.equal(*values)
        assert torch.equal(torch.autograd.grad(values[0], z)[0], torch.autograd.grad(values[1], same)[0])
    for key, value in losses[0].state_dict().items():
        assert torch.equal(value, losses[1].state_dict()[key]), key
    assert torch.equal(losses[0].nu, losses[1].nu) if losses[0].nu is not None else True


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_order_of_the_views_does_not_matter_and_a_list_is_as_good_as_a_tensor(name):
    if name == "neural":
        pytest.skip("embeddings become prototypes in their order")
    losses = [LOSSES[name]() for _ in range(3)]
    for step in range(3):
        z, index = batch(4, step)
        values = (
            losses[0].of_views(z, index),
            losses[1].of_views(z[[2, 0, 3, 1]], index),
            losses[2].of_views([*z], index),
        )
        grads = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in values]
        torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-8)
        assert torch.equal(values[2], values[0])
        assert torch.equal(grads[2], grads[0])


@pytest.mark.parametrize("views", [3, 4])
@pytest.mark.parametrize("name", ["per_view", "per_sample", "isogclr", "global_tau", "ntxent", "dcl"])
def test_the_gradient_is_that_of_the_value_at_fixed_normalizers(name, views):
    loss = LOSSES[name]().double()
    z, index = batch(views, b=3)
    if isinstance(loss, GlobalContrastiveLoss):
        nu = torch.randn(views, 3, dtype=torch.float64)
        loss.estimator.forward = lambda *_: nu
    assert torch.autograd.gradcheck(lambda x: loss.of_views(x, index), z, atol=1e-6)


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("negatives", [4.0, 100.0])
def test_a_positive_beside_m_negatives_by_slow_loops(views, negatives):
    loss = GlobalContrastiveLoss(N, TAU, 0.3, num_negatives=negatives)
    for step in range(3):
        z, index = batch(views, step)
        value = loss.of_views(z, index)
        rows, total = [unit(v) for v in z], 0.0
        for v in range(views):
            for row in range(B):
                g, nu = batch_normalizer(rows, index.tolist(), v, row, TAU), float(loss.nu[v, row])
                for s in positives(rows, v, row):
                    ahead = s / TAU - nu - math.log(negatives)
                    held = torch.sigmoid(-ahead).detach()
                    total += -s + TAU * (torch.log1p(torch.exp(ahead)) + nu + held * (g * math.exp(-nu) - 1))
        expected = total / (views * (views - 1) * B)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        got, wanted = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (value, expected))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("views", [2, 3, 5])
def test_a_batch_of_all_samples_has_the_exact_objective_and_gradient(views):
    z, _ = batch(views, b=N)
    loss = GlobalContrastiveLoss(N, TAU, gamma=1.0, convention="per_sample")
    value = loss.of_views(z, torch.arange(N))
    assert value.item() == pytest.approx(exact.objective(z, TAU, "F2"), rel=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(value, z)[0], exact.embedding_gradient(z, TAU, "F2"), rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(
        loss.estimator.log_u.double(), exact.normalizers(z, TAU).logsumexp(0) - math.log(views), rtol=1e-6, atol=1e-6
    )


def test_more_views_in_a_batch_are_nearer_to_the_same_exact_gradient():
    """The objective is one of all views, whatever a batch holds: at exact normalizers the bias is chance's, the variance falls."""
    torch.manual_seed(0)
    encoder = torch.nn.Linear(4, D, dtype=torch.float64)
    x = torch.randn(1, N, 4, dtype=torch.float64) + 0.5 * torch.randn(6, N, 4, dtype=torch.float64)
    loss = GlobalContrastiveLoss(N, TAU, gamma=1e-9, convention="per_sample").double()
    z = exact.embed_views(encoder, x)
    loss.estimator.log_u.copy_(exact.normalizers(z, TAU).logsumexp(0) - math.log(6))
    found = {v: sogclr.diagnose(loss, encoder, x, batch_size=4, batches=400, views_per_batch=v) for v in (2, 3, 6)}
    for row in found.values():
        assert row["bias"] < 3 * row["bias_noise"]
        assert row["cosine"] > 0.98
    assert found[2]["F2"] == found[6]["F2"]
    assert found[2]["variance"] > found[3]["variance"] > found[6]["variance"]
    with pytest.raises(BadInput, match="views_per_batch must be from 2 to the 6 views of a sample and was 7"):
        sogclr.diagnose(loss, encoder, x, batch_size=4, views_per_batch=7)


def test_what_cannot_be_used_is_refused():
    loss, (z, index) = LOSSES["per_view"](), batch(3)
    with pytest.raises(BadInput, match=r"a positive is another view .* there is 1 view; give embeddings of 2 or more"):
        loss.of_views(z[:1], index)
    with pytest.raises(
        BadInput, match=r"the 3 views' embeddings must be \(B, D\) and alike, and are \(6, 5\) and \(4, 5\)"
    ):
        loss.of_views([z[0], z[1], z[2, :4]], index)
    with pytest.raises(BadInput, match="MoCo's loss takes a query and a key of each sample and was given 3 views"):
        MoCoLoss(D, 16, TAU).of_views(z, index)
    poisoned = z.detach().clone()
    poisoned[2, 4, 0] = math.nan
    with pytest.raises(NonFinite, match="1 of 6 embeddings are not finite") as error:
        loss.of_views(poisoned, index)
    assert error.value.rows == [4]
    assert torch.isneginf(loss.estimator.log_u).all()
