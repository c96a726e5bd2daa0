"""The losses and scores that lightly and open_clip have too, against theirs as installed: values and gradients in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sogclr
from sogclr.evaluation.retrieval import retrieval

lightly = pytest.importorskip("lightly.loss")
open_clip = pytest.importorskip("open_clip.loss")
train = pytest.importorskip("open_clip_train.train")

pytestmark = [pytest.mark.integration, pytest.mark.slow]
# a batch, a width, a temperature, a seed, how far the second side is from the first, and how long rows are
BATCHES = {
    "b": st.integers(2, 33),
    "d": st.integers(2, 40),
    "tau": st.floats(0.02, 5.0),
    "seed": st.integers(0, 10_000),
    "apart": st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    "scale": st.sampled_from([1e-3, 1.0, 1e3]),
}
MANY = settings(max_examples=200, deadline=None)


def sides(b, d, seed, apart, scale):
    first, noise = scale * torch.randn(2, b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return first.requires_grad_(), (first.detach() + apart * noise).requires_grad_()


def check_the_same(ours, theirs, z):
    """Values, and the gradient of each side as far as float64 goes."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for mine, other in zip(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-9 * float(other.abs().max()) + 1e-12)


@pytest.mark.parametrize("name", ["ntxent", "dcl"])
@given(**BATCHES)
@MANY
def test_lightlys_losses_on_views(name, b, d, tau, seed, apart, scale):
    z = sides(b, d, seed, apart, scale)
    if name == "ntxent":
        ours, theirs = sogclr.NTXentLoss(tau), lightly.NTXentLoss(tau)
    else:
        ours, theirs = sogclr.DecoupledContrastiveLoss(tau), lightly.DCLLoss(tau)
    check_the_same(ours(*z, torch.arange(b)), theirs(*z), z)


@given(**BATCHES)
@MANY
def test_open_clips_clip(b, d, tau, seed, apart, scale):
    z = sides(b, d, seed, apart, scale)
    rows = [torch.nn.functional.normalize(side, dim=1) for side in z]
    theirs = open_clip.ClipLoss()(*rows, torch.tensor(1 / tau, dtype=torch.float64))
    check_the_same(sogclr.ClipLoss(tau)(*z, torch.arange(b)), theirs, z)


@given(bias=st.floats(-20, 5), **BATCHES)
@MANY
def test_open_clips_siglip(bias, b, d, tau, seed, apart, scale):
    """The gradients of scale and bias too."""
    z = sides(b, d, seed, apart, scale)
    loss = sogclr.SigLipLoss(tau, bias).double()
    rows = [torch.nn.functional.normalize(side, dim=1) for side in z]
    theirs = open_clip.SigLipLoss()(*rows, loss.log_scale.exp(), loss.bias)
    check_the_same(loss(*z, torch.arange(b)), theirs, [*z, loss.log_scale, loss.bias])


@given(**BATCHES)
@MANY
def test_open_clips_retrieval(b, d, tau, seed, apart, scale):
    """Its median is rounded down; among n pairs of an odd n both are the same."""
    n = 2 * b + 1
    rows = [torch.nn.functional.normalize(side.detach(), dim=1) for side in sides(n, d, seed, apart, scale)]
    theirs = train.get_clip_metrics(*rows, 1 / tau)
    ours = retrieval(*rows, np.arange(n), np.arange(n))
    for way in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert ours[f"{way}_r{k}"] == theirs[f"{way}_R@{k}"]
        assert ours[f"{way}_median_rank"] == theirs[f"{way}_median_rank"]
