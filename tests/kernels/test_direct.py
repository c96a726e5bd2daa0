"""The way in one step of autograd from embeddings to log ĝ: the same numbers as the kernels, in fewer operations."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sogclr
from sogclr import kernels
from sogclr.kernels import direct, products
from sogclr.losses import NonFinite

IDS = {"apart": [3, 0, 7, 5, 1, 9], "twice": [3, 0, 3, 5, 0, 9]}
LOSSES = {
    "global": lambda: sogclr.GlobalContrastiveLoss(10, 0.1, 0.5),
    "balanced": lambda: sogclr.GlobalContrastiveLoss(10, 0.1, 0.5, balanced=True),
    "ntxent": lambda: sogclr.NTXentLoss(0.1),
    "decoupled": lambda: sogclr.DecoupledContrastiveLoss(0.1),
    "two towers": lambda: sogclr.TwoTowerGlobalContrastiveLoss(10, 0.1, 0.5),
    "clip": lambda: sogclr.ClipLoss(0.1),
}


def embeddings(dtype=torch.float64, rows=6):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, rows, 5, generator=generator, dtype=torch.float64)
    return [(3 * v).to(dtype).requires_grad_() for v in z]


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("towers", [direct.one_tower, direct.two_towers])
def test_gradient_of_all_outputs(towers, ids):
    index = torch.tensor(IDS[ids])
    assert torch.autograd.gradcheck(
        lambda x, y: towers(x, y, None if ids == "apart" else index, 0.5, 0.2), embeddings(), atol=1e-7
    )


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("name", LOSSES)
def test_as_by_the_kernels(name, ids, monkeypatch):
    """Three steps, so that the state is followed too; the last with matrix products by oneDNN where there is it."""
    index, ways = torch.tensor(IDS[ids]), []
    for kernel in ("dense", "tiled"):
        loss_fn, steps = LOSSES[name](), []
        with kernels.use(kernel):
            assert loss_fn.is_direct(torch.zeros(6, 5), 1) == (kernel == "dense")
            for _ in range(3):
                x, y = embeddings()
                loss = loss_fn(x, y, index)
                steps += [loss.detach(), *torch.autograd.grad(loss, [x, y])]
        ways.append([*steps, *loss_fn.state_dict().values(), *loss_fn.statistics.values()])
    for got, expected in zip(*ways, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)])
def test_other_dtypes(name, dtype, limit, monkeypatch):
    monkeypatch.setattr(products, "SMALLEST", 0)
    index = torch.tensor(IDS["apart"])
    rows = embeddings(dtype)
    got = torch.autograd.grad(LOSSES[name]()(*rows, index), rows)
    exact = [z.detach().double().requires_grad_() for z in rows]
    expected = torch.autograd.grad(LOSSES[name]()(*exact, index), exact)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == dtype
        assert float((g.double() - e).abs().max() / e.abs().max()) < limit


@pytest.mark.parametrize("name", ["global", "two towers"])
def test_what_is_not_finite_is_named_and_changes_nothing(name):
    loss_fn, (x, y) = LOSSES[name](), embeddings(torch.float32)
    before = {key: value.clone() for key, value in loss_fn.state_dict().items()}
    with torch.no_grad():
        y[4, 2] = math.inf
    with pytest.raises(NonFinite, match=r"rows 4, ids 1\)"):
        loss_fn(x, y, torch.tensor(IDS["apart"]))
    for key, value in loss_fn.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("temperature", "normalize"), [(0.01, True), (sogclr.temperatures.Global(), True), (0.1, False)]
)
def test_what_it_is_not_for(temperature, normalize):
    """Exponents beyond float32, a temperature that is learned, rows of unknown length."""
    assert not sogclr.NTXentLoss(temperature, normalize=normalize).is_direct(torch.zeros(6, 5), 2)


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "most"), [("global", 80), ("ntxent", 62), ("two towers", 97), ("clip", 67)])
def test_a_step_is_few_operations(name, most):
    loss_fn, (x, y), index = LOSSES[name](), embeddings(torch.float32), torch.tensor(IDS["apart"])
    with Count() as count:
        loss_fn(x, y, index).backward()
    assert count.operations <= most
