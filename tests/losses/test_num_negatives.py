"""A positive that stands in the denominator beside m negatives: the softmax loss of a batch of any size, at any batch size."""

import math

import pytest
import torch
from digits import SMALL, words, write_digits

import sogclr
from sogclr.cli import main
from sogclr.errors import BadInput
from sogclr.losses.estimators import MiniBatch
from sogclr.run_folder import RunFolder, load_checkpoint

TAU = 0.1


def embeddings(seed=0, batch=12, width=8):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, batch, width, generator=generator, dtype=torch.float64)
    z[1] = z[0] + 0.5 * z[1]  # positives that are alike
    return z[0].clone().requires_grad_(), z[1].clone().requires_grad_()


def value_and_gradient(loss, z):
    value = loss(*z, torch.arange(len(z[0])))
    return value.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(value, z)])


@pytest.mark.parametrize("batch", [2, 12])
def test_with_the_batchs_normalizer_it_is_the_softmax_loss(batch):
    z = embeddings(batch=batch)
    pairs = sogclr.TwoTowerGlobalContrastiveLoss(batch, TAU, estimator=MiniBatch(), num_negatives=batch - 1)
    views = sogclr.GlobalContrastiveLoss(batch, TAU, estimator=MiniBatch(), num_negatives=2 * batch - 2)
    for ours, theirs, m in ((pairs, sogclr.ClipLoss(TAU), batch - 1), (views, sogclr.NTXentLoss(TAU), 2 * batch - 2)):
        value, gradient = value_and_gradient(ours, z)
        expected, wanted = value_and_gradient(theirs, z)
        torch.testing.assert_close(value, TAU * (expected - math.log(m)))
        torch.testing.assert_close(gradient, TAU * wanted)


@pytest.mark.parametrize("m", [1e12, 1e300])
def test_with_endlessly_many_it_is_the_loss_without_the_positive(m):
    for kind in (sogclr.TwoTowerGlobalContrastiveLoss, sogclr.GlobalContrastiveLoss):
        z = embeddings()
        torch.testing.assert_close(
            value_and_gradient(kind(12, TAU, num_negatives=m), z), value_and_gradient(kind(12, TAU), z)
        )


def test_with_exact_normalizers_a_small_batch_has_the_gradient_of_the_whole_data():
    """The mean over all batches of two pairs is the softmax loss of all pairs, where gamma tends to 0."""
    n = 6
    x, y = embeddings(batch=n)
    loss = sogclr.TwoTowerGlobalContrastiveLoss(n, TAU, gamma=1e-12, num_negatives=n - 1).double()
    log_g = sogclr.exact.pair_normalizers(x, y, torch.arange(n), torch.arange(n), TAU, dtype=torch.float64)
    loss.image_estimator.log_u.copy_(log_g[0])
    loss.text_estimator.log_u.copy_(log_g[1])
    total = torch.zeros((), dtype=torch.float64)
    batches = [(i, j) for i in range(n) for j in range(i)]
    for rows in batches:
        index = torch.tensor(rows)
        total = total + loss(x[index], y[index], index) / len(batches)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(total, (x, y))])
    _, wanted = value_and_gradient(sogclr.ClipLoss(TAU), (x, y))
    torch.testing.assert_close(gradient, TAU * wanted, rtol=1e-6, atol=1e-9)


def test_an_anchor_that_has_won_counts_less():
    x = torch.eye(4, dtype=torch.float64).requires_grad_()
    y = torch.eye(4, dtype=torch.float64)
    y[0] = y[1]  # the first positive is far away
    y.requires_grad_()
    loss = sogclr.TwoTowerGlobalContrastiveLoss(4, TAU, estimator=MiniBatch(), num_negatives=3)
    loss(x, y, torch.arange(4)).backward()
    assert x.grad[0].norm() > 100 * x.grad[3].norm()


@pytest.mark.slow
def test_the_command_trains_with_it(tmp_path, capsys):
    """With the mini-batch's normalizer it is SimCLR: its gradient times tau, which Adam's ratio takes out."""
    data = write_digits(tmp_path / "digits")
    how = SMALL | {"max_steps": 6, "labels": "none", "precision": "fp32"}
    how |= {"optimizer": "adamw", "lr_rule": "sqrt", "weight_decay": 0.0}
    runs = {}
    for name, options in {
        "softmax": {"estimator": "mini-batch", "num_negatives": 14},
        "simclr": {"method": "simclr"},
        "sogclr": {"estimator": "mini-batch"},
    }.items():
        assert main(["train", str(data), "--out", str(tmp_path / name), *words(how | options)]) == 0
        runs[name] = load_checkpoint(RunFolder(tmp_path / name).latest_checkpoint())["model"]
    assert "mini-batch normalizer, the positive beside 14 negatives" in " ".join(capsys.readouterr().err.split())
    far, near = (
        sum((runs[name][k].double() - v.double()).norm() for k, v in runs["simclr"].items() if k.endswith("weight"))
        for name in ("sogclr", "softmax")
    )
    assert near < 0.1 * far


@pytest.mark.parametrize("m", [0, -1.0, math.nan])
def test_what_is_no_number_of_negatives_is_refused(m):
    with pytest.raises(BadInput, match="num_negatives must be greater than 0 and was"):
        sogclr.GlobalContrastiveLoss(10, num_negatives=m)


def test_infinitely_many_negatives_leave_the_positive_out():
    assert sogclr.GlobalContrastiveLoss(4, num_negatives=math.inf).num_negatives is None
