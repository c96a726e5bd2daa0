"""The GPU kernel against the tiled one, in Triton's interpreter where there is no GPU: `make test-triton`."""

import math
import os
import subprocess
import sys

import numpy
import pytest
import torch
from torch.nn.functional import normalize

from sogclr import kernels

CUDA = torch.cuda.is_available()
if not CUDA:
    if tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("Triton's interpreter needs numpy < 2.4: make test-triton", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
pytest.importorskip("triton")
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = [
    pytest.mark.integration,
    # the interpreter's arithmetic is numpy's, which warns where a GPU does not
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning"),
]
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)


def rows(count, width, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator), dim=1).to(DEVICE, dtype).requires_grad_()


def exact(z):
    return z.detach().double().cpu().requires_grad_()


def check(got, expected, limit):
    assert float((got.double().cpu() - expected).abs().max() / expected.abs().max()) < limit


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("count", "width"), [(40, 16), (150, 48), (90, 200)])
@pytest.mark.parametrize("tau", [0.005, 0.1, 1.0])
def test_one_tower(dtype, count, width, tau):
    z, ids = rows(count, width, 0, dtype), torch.randint(0, count, (count,)).to(DEVICE)
    weight = torch.rand(count).to(DEVICE) - 0.2
    got = kernels.log_sum_negatives(z, ids, tau, "triton")
    (got * weight).sum().backward()
    z64 = exact(z)
    expected = kernels.log_sum_negatives(z64, ids.cpu(), tau, "tiled")
    (expected * weight.double().cpu()).sum().backward()
    torch.testing.assert_close(got.double().cpu(), expected, rtol=1e-5, atol=1e-4)
    assert z.grad.dtype == dtype
    # a logit of 1 / τ is rounded to a float32, whatever the kernel; each softmax weight errs by as much
    check(z.grad, z64.grad, max(LIMITS[dtype], torch.finfo(torch.float32).eps / tau))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("tau", [0.01, 0.1])
@pytest.mark.parametrize("kinds", [(), (2,)])
def test_two_towers_with_a_temperature_for_each(dtype, tau, kinds):
    n, m = 70, 45
    x, y = rows(n, 32, 0, dtype), rows(m, 32, 1, dtype)
    x_ids, y_ids = torch.arange(n).to(DEVICE), torch.arange(m).to(DEVICE)
    if kinds:  # ids of two kinds, with repeats
        x_ids, y_ids = (torch.randint(0, 20, (k, 2)).to(DEVICE) for k in (n, m))
    taus = [(tau * torch.linspace(0.8, 1.5, k)).to(DEVICE).requires_grad_() for k in (n, m)]
    taus64 = [exact(t) for t in taus]
    x64, y64 = exact(x), exact(y)
    got = kernels.log_sum_between(x, y, x_ids, y_ids, tuple(taus), "triton")
    expected = kernels.log_sum_between(x64, y64, x_ids.cpu(), y_ids.cpu(), tuple(taus64), "tiled")
    for value, other in (got, expected):
        (value.sum() + 2 * other.sum()).backward()
    for value, right in zip(got, expected, strict=True):
        torch.testing.assert_close(value.double().cpu(), right, rtol=1e-5, atol=1e-4)
    check(x.grad, x64.grad, LIMITS[dtype])
    check(y.grad, y64.grad, LIMITS[dtype])
    for t, t64 in zip(taus, taus64, strict=True):
        check(t.grad, t64.grad, 2e-5)


@pytest.mark.parametrize("learns", [False, True])
def test_candidates_that_are_no_anchors(learns):
    x, queue = rows(50, 16, 0, torch.float32), rows(80, 16, 1, torch.float32).requires_grad_(learns)
    x_ids, ids = torch.arange(50).to(DEVICE), torch.zeros(80, dtype=torch.int64, device=DEVICE)
    got = kernels.log_sum_rows(x, queue, x_ids, ids, 0.1, "triton")
    assert got[0] == -math.inf
    torch.logaddexp(got, torch.zeros_like(got)).sum().backward()
    x64, q64 = exact(x), exact(queue)
    expected = kernels.log_sum_rows(x64, q64, x_ids.cpu(), ids.cpu(), 0.1, "tiled")
    torch.logaddexp(expected, torch.zeros_like(expected)).sum().backward()
    check(x.grad, x64.grad, 1e-5)
    assert queue.grad is None if not learns else check(queue.grad, q64.grad, 1e-5) is None


def test_results_repeat_and_rows_may_be_strided():
    z = torch.cat([rows(60, 16, 0, torch.float32), torch.zeros(60, 16, device=DEVICE)], dim=1).detach()[:, :16]
    ids = torch.arange(60).to(DEVICE)
    results = []
    for source in (z, z, z.contiguous()):
        leaf = source.detach().requires_grad_()
        value = kernels.log_sum_negatives(leaf, ids, 0.1, "triton")
        results.append((value.detach(), *torch.autograd.grad(value.sum(), leaf)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_choice_on_a_gpu():
    if not CUDA:
        pytest.skip("no CUDA device")
    for dtype, width, kernel in (
        (torch.float32, 128, "triton"),
        (torch.float32, 256, "tiled"),  # three TF32 products of rows so wide do not fit a program
        (torch.bfloat16, 256, "triton"),
        (torch.bfloat16, 768, "tiled"),
    ):
        assert kernels.choose(*[torch.empty(4096, width, dtype=dtype, device="cuda")] * 2) == kernel


@pytest.mark.parametrize("switch", ["fp32_precision", "allow_tf32"])
def test_tf32_follows_the_new_switch_and_the_old(switch):
    """In a process of its own: the two may not be mixed, and reading the old one after the new one was set raises."""
    code = f"""
import torch
from sogclr.kernels.triton import _blocks
z, matmul = torch.zeros(4, 16), torch.backends.cuda.matmul
assert _blocks(z)["PRECISION"] == "tf32x3"
if not hasattr(matmul, {switch!r}):
    raise SystemExit  # torch before 2.9
setattr(matmul, {switch!r}, "tf32" if {switch!r} == "fp32_precision" else True)
assert _blocks(z)["PRECISION"] == "tf32"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
