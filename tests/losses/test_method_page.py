"""What docs/method.md says with a number of its own, measured."""

import pytest
import torch

from sogclr import exact
from sogclr.losses import GlobalContrastiveLoss, TwoTowerGlobalContrastiveLoss
from sogclr.losses import functional as F

N, WIDTH, BATCH, TAU = 256, 8, 16, 0.1


@pytest.fixture(scope="module")
def views():
    """Return (2, N, D) unit rows: random directions, each twice with a little noise."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(N, 1, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(N, 2, WIDTH, generator=generator, dtype=torch.float64)
    return F.normalize(samples + 0.3 * noise).transpose(0, 1)


def batches(passes):
    generator = torch.Generator().manual_seed(1)
    return [index for _ in range(passes) for index in torch.randperm(N, generator=generator).split(BATCH)]


@pytest.mark.parametrize(("gamma", "below"), [(1.0, 0.059), (0.9, 0.054), (0.5, 0.033), (0.1, 0.010), (1e-6, 0.0)])
def test_the_watched_value_lies_below_f2_by_what_the_page_says(views, gamma, below):
    """With gamma 1e-6 nu does not depend on the batch, and the value has no bias."""
    loss = GlobalContrastiveLoss(N, TAU, gamma).double().eval()
    loss.estimator.log_u.copy_(F.log_mean(exact.normalizers(views, TAU)))
    with torch.no_grad():
        values = torch.stack([loss(*views[:, index], index) for index in batches(60)])
    assert float(exact.objective(views, TAU, "F2") - values.mean()) == pytest.approx(below, abs=0.002)


def difference(views, gamma):
    """Return the mean over batches of ‖theirs − ours‖ / ‖ours‖, gradients by the rows of a batch, u exact."""
    sums = exact.pair_normalizers(*views, *[torch.arange(N)] * 2, TAU)
    loss = TwoTowerGlobalContrastiveLoss(N, TAU, gamma).double().eval()
    loss.image_estimator.log_u.copy_(sums[0])
    loss.text_estimator.log_u.copy_(sums[1])
    found = []
    for index in batches(3):
        x, y = (z[index].clone().requires_grad_() for z in views)
        ours = torch.cat(torch.autograd.grad(loss(x, y, index), (x, y)))
        x, y = (z[index].clone().requires_grad_() for z in views)
        unit_x, unit_y = F.normalize(x), F.normalize(y)
        s = F.positive_similarity(unit_x, unit_y)
        log_g = F.log_mean_negatives_two_towers(unit_x, unit_y, index, index, TAU)
        inside = log_g - s / TAU  # log of the mean of exp((s_ab - s_pos) / tau)
        nu = F.moving_average(torch.stack([u[index] for u in sums]) - (s / TAU).detach(), inside.detach(), gamma)
        theirs = torch.cat(torch.autograd.grad(TAU * torch.exp(inside - nu).mean(), (x, y), retain_graph=True))
        weight = torch.exp(log_g - loss.nu).detach()
        balanced = torch.cat(torch.autograd.grad((weight * (-s + TAU * log_g)).mean(), (x, y)))
        torch.testing.assert_close(theirs, balanced, rtol=1e-6, atol=1e-9)
        found.append(float((theirs - ours).norm() / ours.norm()))
    return sum(found) / len(found)


@pytest.mark.parametrize(("gamma", "share"), [(1.0, 0.0), (0.9, 0.16), (0.5, 0.31)])
def test_a_positive_inside_u_is_another_estimator(views, gamma, share):
    """FastCLIP's, LibAUC v2's and iSogCLR's two towers: the gradient of balanced weights, and not SogCLR's."""
    assert difference(views, gamma) == pytest.approx(share, abs=0.02)
