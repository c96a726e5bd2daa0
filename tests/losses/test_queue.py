"""Log-sums over a queue: by slow loops in float64, with empty places; memory linear in anchors and keys."""

import math

import pytest
import torch

from sogclr.losses import MoCoLoss
from sogclr.losses import functional as F

B, K, D = 6, 20, 5


def slow(z, index, keys, ids, tau):
    """(V, B) sums' logarithms and (B,) counts, term by term."""
    sums = torch.full(z.shape[:2], -math.inf, dtype=torch.float64)
    rows = [[torch.zeros((), dtype=torch.float64) for _ in index] for _ in z]
    for v, view in enumerate(z):
        for a, anchor in enumerate(view):
            for key, id in zip(keys, ids, strict=True):
                if id >= 0 and id != index[a]:
                    rows[v][a] = rows[v][a] + torch.exp(anchor @ key / tau[a])
    sums = torch.stack([torch.stack([x.log() for x in row]) for row in rows])
    counts = [sum(int(id >= 0 and id != i) for id in ids) for i in index]
    return sums, torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["number", "one each"])
@pytest.mark.parametrize("looks", [True, False])  # at the ids, which on a GPU would wait
def test_sums_over_keys(kind, looks, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z, keys = torch.randn(2, B, D, generator=generator), torch.randn(K, D, generator=generator)
    z, keys = (torch.nn.functional.normalize(x.to(dtype), dim=-1) for x in (z, keys))
    index, ids = torch.arange(B), torch.randint(-4, 9, (K,), generator=generator).clamp(min=-1)
    keys[ids < 0] = 0
    tau = 0.005 + 0.1 * torch.rand(B, generator=generator, dtype=torch.float64).to(dtype)
    if kind != "one each":
        tau = torch.full_like(tau, 0.02)
    monkeypatch.setattr(F, "can_sync", lambda z: looks)
    given = [x.clone().requires_grad_() for x in (z, tau)]
    temperature = given[1] if kind == "one each" else 0.02
    got, count = F.log_sum_keys(given[0], index, keys, ids, temperature)
    exact = [x.double().clone().requires_grad_() for x in (z, tau)]
    expected, counts = slow(exact[0], index, keys.double(), ids, exact[1])
    torch.testing.assert_close(count, counts.to(dtype))
    torch.testing.assert_close(
        got.double(), expected.detach(), rtol=2e-5 if dtype == torch.float32 else 1e-10, atol=1e-5
    )
    weight = torch.randn(2, B, generator=generator, dtype=torch.float64)
    (got * weight.to(dtype)).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs in list(zip(given, exact, strict=True))[: 2 if kind == "one each" else 1]:
        error = (mine.grad.double() - theirs.grad).abs().max() / theirs.grad.abs().max()
        assert error < (1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("looks", [True, False])
def test_without_a_key_there_is_no_sum(looks, monkeypatch):
    monkeypatch.setattr(F, "can_sync", lambda z: looks)
    z = torch.nn.functional.normalize(torch.ones(1, 3, D), dim=-1).requires_grad_()
    ids = torch.tensor([-1, 1, -1])
    log_sum, count = F.log_sum_keys(z, torch.arange(3), torch.zeros(3, D), ids, 0.1)
    assert log_sum.tolist() == [[0.0, -math.inf, 0.0]]
    assert count.tolist() == [1, 0, 1]
    log_sum, count = F.log_sum_keys(z, torch.arange(3), torch.zeros(3, D), torch.full((3,), -1), 0.1)
    assert bool(torch.isneginf(log_sum).all())
    assert count.tolist() == [0, 0, 0]


def test_memory_is_linear_in_anchors_and_keys():
    """1,024 x 65,536 similarities would be 256 MiB; what is kept for the backward pass is the keys and little more."""
    loss, index = MoCoLoss(32, 1 << 16), torch.arange(1024)
    z = torch.randn(1024, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for _ in range(2):
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss(z, z.detach().roll(1, 0), index)
        torch.autograd.grad(value, z)
        assert 0 < sum(kept.values()) < 12 * 2**20
