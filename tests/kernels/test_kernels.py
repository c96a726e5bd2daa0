"""Log-sums over negatives: every kernel against one float64 reference, in value, gradient, memory and order."""

import math
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import normalize

from sogclr import kernels
from sogclr.errors import BadInput
from sogclr.kernels import dense, operators, tiled

KERNELS = ("dense", "tiled")
KINDS = ((), (2,))  # one id a row, or two: a pair's image and text
TAUS = (0.005, 0.01, 0.05, 0.3, 1.0)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 32 rows: many of them, and a ragged last one, at sizes that a test can afford."""
    monkeypatch.setattr(tiled, "TILE", 32)


def reference(x, y, x_ids, y_ids, taus):
    """Row log-sums straight from the formula; x and y as given, everything else in float64."""
    rows = []
    for a in range(len(x)):
        different = y_ids != x_ids[a]
        others = y[different.view(len(y), -1).all(dim=1)]  # in every kind of ids
        rows.append((others @ x[a] / taus[a]).logsumexp(0))
    return torch.stack(rows)


def rows(count, width=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator), dim=1).to(dtype).requires_grad_()


def ids_and_weights(count, seed=0, kinds=()):
    """Ids with repeats, and weights of both signs: what a loss may send back. kinds: (), or (2,) for two ids a row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, count // 2, (count, *kinds), generator=generator)
    return ids, torch.rand(count, generator=generator) - 0.2


def error(got, expected):
    return float((got.double() - expected).abs().max() / expected.abs().max())


def limits(dtype):
    return (1e-4, 1e-5) if dtype == torch.float32 else (1e-4, 1e-2)  # log-sum, gradient


def temperature_of(kind, tau, count):
    if kind == "number":
        return tau, torch.full((count,), tau, dtype=torch.float64)
    if kind == "tensor":
        t = torch.tensor(tau, requires_grad=True)
    else:
        t = (tau * torch.linspace(0.7, 1.5, count)).requires_grad_()
    return t, t.detach().double().expand(count)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["number", "tensor", "each"])
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("kinds", KINDS)
def test_one_tower(kernel, kind, tau, kinds):
    count = 75
    z = rows(count)
    ids, weight = ids_and_weights(count, kinds=kinds)
    temperature, taus = temperature_of(kind, tau, count)
    got = kernels.log_sum_negatives(z, ids, temperature, kernel)
    (got * weight).sum().backward()
    z64, taus = z.detach().double().requires_grad_(), taus.clone().requires_grad_()
    expected = reference(z64, z64, ids, ids, taus)
    (expected * weight.double()).sum().backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-4)
    assert error(z.grad, z64.grad) < 1e-5
    if kind == "tensor":
        torch.testing.assert_close(temperature.grad.double(), taus.grad.sum(), rtol=1e-4, atol=1e-5)
    elif kind == "each":
        assert error(temperature.grad, taus.grad) < 2e-5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["number", "tensor", "each"])
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("kinds", KINDS)
def test_two_towers(kernel, kind, tau, kinds):
    n, m = 41, 70
    x, y = rows(n), rows(m, seed=1)
    (x_ids, x_weight), (y_ids, y_weight) = ids_and_weights(n, 0, kinds), ids_and_weights(m, 1, kinds)
    temperature, x_taus = temperature_of(kind, tau, n)
    y_temperature, y_taus = temperature_of(kind, tau, m)
    pair = (temperature, y_temperature) if kind == "each" else temperature
    got = kernels.log_sum_between(x, y, x_ids, y_ids, pair, kernel)
    ((got[0] * x_weight).sum() + (got[1] * y_weight).sum()).backward()
    x64, y64 = (z.detach().double().requires_grad_() for z in (x, y))
    x_taus, y_taus = (t.clone().requires_grad_() for t in (x_taus, y_taus))
    expected = reference(x64, y64, x_ids, y_ids, x_taus), reference(y64, x64, y_ids, x_ids, y_taus)
    ((expected[0] * x_weight.double()).sum() + (expected[1] * y_weight.double()).sum()).backward()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-4)
    assert error(x.grad, x64.grad) < 1e-5
    assert error(y.grad, y64.grad) < 1e-5
    if kind == "each":
        assert error(temperature.grad, x_taus.grad) < 2e-5
        assert error(y_temperature.grad, y_taus.grad) < 2e-5
    elif kind == "tensor":
        torch.testing.assert_close(
            temperature.grad.double(), x_taus.grad.sum() + y_taus.grad.sum(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["number", "tensor", "each"])
@pytest.mark.parametrize("queue_learns", [False, True])
def test_candidates_that_are_no_anchors(kernel, kind, queue_learns):
    n, m = 35, 50
    x, queue = rows(n), rows(m, seed=1)
    (x_ids, weight), (y_ids, _) = ids_and_weights(n), ids_and_weights(m, seed=1)
    temperature, taus = temperature_of(kind, 0.05, n)
    queue.requires_grad_(queue_learns)
    got = kernels.log_sum_rows(x, queue, x_ids, y_ids, temperature, kernel)
    (got * weight).sum().backward()
    x64, q64 = (z.detach().double().requires_grad_() for z in (x, queue))
    taus = taus.clone().requires_grad_()
    expected = reference(x64, q64, x_ids, y_ids, taus)
    (expected * weight.double()).sum().backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-5)
    assert error(x.grad, x64.grad) < 1e-5
    assert queue.grad is None if not queue_learns else error(queue.grad, q64.grad) < 1e-5
    if kind == "each":
        assert error(temperature.grad, taus.grad) < 1e-5
    elif kind == "tensor":
        torch.testing.assert_close(temperature.grad.double(), taus.grad.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tau", [0.005, 0.1, 1.0])
def test_half_precisions(kernel, dtype, tau):
    z = rows(75, dtype=dtype)
    ids, weight = ids_and_weights(75)
    got = kernels.log_sum_negatives(z, ids, tau, kernel)
    (got * weight).sum().backward()
    z64 = z.detach().double().requires_grad_()
    expected = reference(z64, z64, ids, ids, torch.full((75,), tau, dtype=torch.float64))
    (expected * weight.double()).sum().backward()
    assert got.dtype == torch.float32
    assert z.grad.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-4)
    assert error(z.grad, z64.grad) < 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_float64_is_exact_to_its_own_rounding(kernel, tau):
    z = rows(75).detach().double().requires_grad_()
    ids, weight = ids_and_weights(75)
    (kernels.log_sum_negatives(z, ids, tau, kernel) * weight).sum().backward()
    other = z.detach().clone().requires_grad_()
    expected = reference(other, other, ids, ids, torch.full((75,), tau, dtype=torch.float64))
    (expected * weight.double()).sum().backward()
    assert error(z.grad, other.grad) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tau", [0.005, 0.1])
@pytest.mark.parametrize("kind", ["number", "each"])
@pytest.mark.parametrize("kinds", KINDS)
def test_an_anchor_without_negatives_is_minus_infinity_and_sends_no_gradient(kernel, tau, kind, kinds):
    x, y = rows(3), rows(40, seed=1)
    temperature, _ = temperature_of(kind, tau, 3)
    x_ids, y_ids = torch.tensor([0, 1, 2]), torch.zeros(40, dtype=torch.int64)
    if kinds:  # row 0 shares the one with half of the candidates, and the other with the other half
        x_ids, y_ids = torch.stack([x_ids, x_ids + 7], dim=1), torch.tensor([[0, 5], [6, 7]]).repeat(20, 1)
    got = kernels.log_sum_rows(x, y, x_ids, y_ids, temperature, kernel)
    torch.logaddexp(got, torch.zeros(3)).sum().backward()
    assert got[0] == -math.inf
    assert torch.isfinite(got[1:]).all()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(y.grad).all()
    assert not x.grad[0].any()
    assert x.grad[1].any()
    if kind == "each":
        assert torch.isfinite(temperature.grad).all()


@pytest.mark.parametrize("kernel", [None, *KERNELS])
def test_an_empty_queue_adds_nothing(kernel):
    x, queue = rows(5), torch.empty(0, 8)
    with kernels.use(kernel) if kernel else nullcontext():
        got = kernels.log_sum_rows(x, queue, torch.arange(5), torch.empty(0, dtype=torch.int64), 0.1)
    torch.logaddexp(got, torch.zeros(5)).sum().backward()
    assert torch.equal(got, torch.full((5,), -math.inf))
    assert not x.grad.any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_are_not_of_norm_one_do_not_overflow(kernel):
    z = (rows(50).detach() * 9).requires_grad_()
    ids, weight = torch.arange(50), torch.rand(50, generator=torch.Generator().manual_seed(0))
    got = kernels.log_sum_negatives(z, ids, 0.1, kernel)
    (got * weight).sum().backward()
    z64 = z.detach().double().requires_grad_()
    expected = reference(z64, z64, ids, ids, torch.full((50,), 0.1, dtype=torch.float64))
    (expected * weight.double()).sum().backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-4)
    assert error(z.grad, z64.grad) < 3e-5


def test_a_non_finite_row_is_seen():
    z = rows(70).detach()
    z[3, 0] = math.nan
    for kernel in KERNELS:
        assert not torch.isfinite(kernels.log_sum_negatives(z, torch.arange(70), 0.1, kernel)).any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_results_repeat_bit_for_bit(kernel, tau):
    def once():
        z = rows(300, 32)
        got = kernels.log_sum_negatives(z, torch.arange(150).repeat(2), tau, kernel)
        got.sum().backward()
        return got.detach(), z.grad

    first, second = once(), once()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("temperature", [0.1, 0.01, torch.linspace(0.05, 0.2, 70)])
def test_compiled_in_one_graph_equals_eager(kernel, temperature):
    def value(z, ids, weight):
        return (kernels.log_sum_negatives(z, ids, temperature, kernel) * weight).sum()

    compiled = torch.compile(value, backend="aot_eager", fullgraph=True)
    ids, weight = ids_and_weights(70)
    a, b = rows(70), rows(70)
    value(a, ids, weight).backward()
    compiled(b, ids, weight).backward()
    assert error(b.grad, a.grad.double()) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_towers_compile_in_one_graph(kernel):
    def value(x, y, ids):
        a, b = kernels.log_sum_between(x, y, ids, ids, 0.1, kernel)
        return a.mean() + b.mean()

    compiled = torch.compile(value, backend="aot_eager", fullgraph=True)
    x, y, ids = rows(70), rows(70, seed=1), torch.arange(70)
    expected = torch.autograd.grad(value(x, y, ids), (x, y))
    got = torch.autograd.grad(compiled(x, y, ids), (x, y))
    for a, b in zip(got, expected, strict=True):
        assert error(a, b.double()) < 1e-5


def test_the_operators_keep_pytorch_s_rules():
    z, y = rows(40), rows(20, seed=1)
    ids, y_ids = torch.arange(40), torch.arange(20)
    each = torch.rand(40).add(0.5).requires_grad_()
    torch.library.opcheck(operators.log_sums, (z, None, ids, None, None, None, True, "tiled"))
    torch.library.opcheck(operators.log_sums, (z, y, ids, y_ids, None, None, True, "tiled"))
    torch.library.opcheck(operators.log_sums, (z, y, ids, y_ids, each, None, False, "tiled"))


def test_without_gradients_the_second_pass_never_runs(monkeypatch):
    def refuse(*args):
        raise AssertionError("the gradient was computed")

    monkeypatch.setattr(tiled, "log_sums_gradient", refuse)
    z, ids = rows(70), torch.arange(70)
    with torch.no_grad():
        assert not kernels.log_sum_negatives(z, ids, 0.1, "tiled").requires_grad
    kept = kernels.log_sum_negatives(z, ids, 0.1, "tiled")
    with pytest.raises(AssertionError, match="the gradient was computed"):
        kept.sum().backward()


def test_the_kernel_can_be_named_and_wrong_names_are_refused():
    z, ids = rows(40), torch.arange(40)
    assert kernels.choose(z, z) == "dense"
    with kernels.use("tiled"):
        assert kernels.choose(z, z) == "tiled"
        assert kernels.choose(z, z, "dense") == "dense"
    assert kernels.choose(z, z) == "dense"
    big = torch.empty(5000, 8)
    assert kernels.choose(big, big) == "tiled"
    with pytest.raises(BadInput, match="kernel must be one of dense, tiled, triton and was 'fast'"):
        kernels.log_sum_negatives(z, ids, 0.1, "fast")
    with pytest.raises(BadInput, match="need as many ids"):
        kernels.log_sum_negatives(z, ids[:3], 0.1)
    with pytest.raises(BadInput, match="and are"):
        kernels.log_sum_between(z, rows(40, 9), ids, ids, 0.1)


def test_gradient_of_rows_is_their_share_of_the_whole():
    """What a process computes for its own rows from everybody's log-sums and weights."""
    z, (ids, weight) = rows(75), ids_and_weights(75)
    taus = torch.linspace(0.1, 0.3, 75)
    for temperature in (0.2, taus.clone().requires_grad_()):
        z.grad = None
        lse = kernels.log_sum_negatives(z, ids, temperature, "tiled")
        (lse * weight).sum().backward()
        mine, lse = slice(20, 45), lse.detach()
        temperatures = 0.2 if isinstance(temperature, float) else (taus[mine], taus)
        d_z, d_temperature = kernels.gradient_of_rows(
            z.detach()[mine], z.detach(), ids[mine], ids, temperatures, (lse[mine], lse), (weight[mine], weight)
        )
        torch.testing.assert_close(d_z, z.grad[mine], rtol=1e-4, atol=1e-5)
        if not isinstance(temperature, float):
            torch.testing.assert_close(d_temperature, temperature.grad[mine], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weights", ["constant", "with a graph"])
def test_a_second_derivative_is_refused_and_never_silently_zero(kernel, weights):
    z, (ids, weight) = rows(20, seed=1), ids_and_weights(20)
    x, y = rows(20, seed=2), rows(12, seed=3)
    y_ids = torch.arange(12) + 50
    for sums, inputs in (
        ((kernels.log_sum_negatives(z, ids, 0.2, kernel),), (z,)),
        (kernels.log_sum_between(x, y, ids, y_ids, 0.2, kernel), (x, y)),
    ):
        total = sum((s.exp() if weights == "with a graph" else s * weight[: len(s)]).sum() for s in sums)
        first = torch.autograd.grad(total, inputs, create_graph=True)
        assert all(g.requires_grad for g in first)
        for g in first:
            with pytest.raises(BadInput, match="no second derivative"):
                torch.autograd.grad(g.sum(), inputs, retain_graph=True)


def test_needs_no_shift_looks_at_the_rows():
    z = rows(10).detach()
    assert dense.needs_no_shift(z, z)
    assert dense.needs_no_shift(z * 9, z * 9)
    assert not dense.needs_no_shift(z * 10, z * 10)
    assert not dense.needs_no_shift(z * math.nan, z)


PEAK = """
import sys, torch
import sogclr
from sogclr import kernels
torch.set_num_threads(1)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
def one_tower(batch):
    z = torch.nn.functional.normalize(torch.randn(2 * batch, 4), dim=1).requires_grad_()
    kernels.log_sum_negatives(z, torch.arange(batch).repeat(2), 0.1).mean().backward()
def two_towers(batch):
    x, y = torch.randn(2, 2 * batch, 4, requires_grad=True)
    ids = torch.arange(batch).repeat(2), torch.arange(2 * batch) // 2
    loss = sogclr.TwoTowerGlobalContrastiveLoss(batch, num_texts=batch)
    loss(x, y, *ids).backward()
call = {"one tower": one_tower, "two towers": two_towers}[sys.argv[1]]
call(600)
before = peak()
call(int(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", ["one tower", "two towers"])
def test_memory_is_linear_in_the_batch(what):
    """8,192 rows: all similarities would take 256 MiB."""
    result = subprocess.run([sys.executable, "-c", PEAK, what, "4096"], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 32
