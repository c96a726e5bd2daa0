"""What was an option of sogclr 0.1 and is research now, against its formula, by slow loops in float64."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

import sogclr
from research.estimators import BoostedAverage, MemoryContrastiveLoss

N, D, TAU = 12, 5, 0.2


def unit(z: Tensor) -> Tensor:
    return z.double() / z.double().norm(dim=1, keepdim=True)


def batch_normalizer(z: list[Tensor], ids: list[int], view: int, row: int) -> Tensor:
    """ĝ_a: mean of exp(s_ab / tau) over all views of all other samples in the batch."""
    others = [(v, other) for v in range(2) for other in range(len(ids)) if ids[other] != ids[row]]
    return torch.stack([torch.exp(torch.dot(z[view][row], z[v][other]) / TAU) for v, other in others]).mean()


class SlowMemory:
    """The loss with a memory, from its derivation: value and gradient by one pair of embeddings at a time.

    What is added for a as a negative of the queue's anchors has a gradient and no value.
    """

    def __init__(self, tau: float, queue: int, steps: int | None = None, boost: float = 1.0) -> None:
        self.tau, self.size, self.rows, self.u, self.running = tau, queue, [], {}, [0.0, 0.0]
        self.steps, self.boost, self.step = steps, boost, 0

    def normalizer(self, i: int, g: float, total: float, here: int, there: int) -> float:
        """exp(nu): over batch and queue together, or a moving average of the batch's, gamma from 1 to 0.1."""
        if self.steps is None:
            return (here * g + total) / (here + there)
        gamma = 0.1 + 0.9 * self.falling()
        return g if i not in self.u else (1 - gamma) * self.u[i] + gamma * g

    def falling(self) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.steps)))

    def __call__(self, z0: Tensor, z1: Tensor, index: Tensor) -> Tensor:
        z, ids = [unit(z0), unit(z1)], index.tolist()
        anchors = [(view, row) for row in range(len(ids)) for view in range(2)]
        g = {a: batch_normalizer(z, ids, *a) for a in anchors}
        keys = {(v, r): [(i, k) for i, k in self.rows if i != ids[r]] for v, r in anchors}
        exps = {(v, r): [torch.exp(torch.dot(z[v][r], k) / self.tau) for _, k in keys[v, r]] for v, r in anchors}
        here = {(v, r): 2 * sum(i != ids[r] for i in ids) for v, r in anchors}
        held = {a: float(g[a].detach()) for a in anchors}  # as numbers
        sums = {a: sum(float(e.detach()) for e in exps[a]) for a in anchors}
        u = {a: self.normalizer(ids[a[1]], held[a], sums[a], here[a], len(exps[a])) for a in anchors}
        nu = {a: math.log(u[a]) for a in anchors}
        stored = defaultdict(list)
        for row, i in enumerate(ids):
            stored[i].append((math.exp(nu[0, row]) + math.exp(nu[1, row])) / 2)
        self.u |= {i: sum(values) / len(values) for i, values in stored.items()}
        if self.rows:
            means = [sum(held.values()), sum(sums[a] / len(exps[a]) for a in anchors)]
            for k in range(2):
                self.running[k] += 0.02 * (means[k] / len(anchors) - self.running[k])
        rise = 1.0
        if self.steps is not None:
            rise = 1 - self.falling()
            nu = {a: value - math.log(1 + (self.boost - 1) * self.falling()) for a, value in nu.items()}
        total, self.step = torch.zeros((), dtype=torch.float64), self.step + 1
        for v, r in anchors:
            a, count = (v, r), len(exps[v, r])
            total = total - torch.dot(z[0][r], z[1][r]) + self.tau * (nu[a] - 1)
            if not count:
                total = total + self.tau * g[a] / math.exp(nu[a])
                continue
            lam = min(1.0, self.running[1] / self.running[0]) ** 3 * rise * count / (count + here[a])
            q = sum(exps[a]) / count
            back = sum(e / self.u[i] for e, (i, _) in zip(exps[a], keys[a], strict=True)) / count
            weight = ((1 - lam) * g[a] + lam * q) / math.exp(nu[a])
            total = total + self.tau * (weight + lam * (back - back.detach()))
        self.rows += [(i, row.detach()) for view in z for i, row in zip(ids, view, strict=True)]
        self.rows = self.rows[-self.size :]
        return total / (2 * len(ids))


def batches(steps=15, b=5):
    """Seen and unseen samples mixed; every fourth batch may hold one twice."""
    generator = np.random.default_rng(3)
    for step in range(steps):
        index = torch.from_numpy(generator.choice(N, b, replace=step % 4 == 3))
        if (index != index[0]).any():
            yield *(torch.from_numpy(generator.standard_normal((b, D))).requires_grad_() for _ in range(2)), index


@pytest.mark.parametrize("steps", [None, 4])
def test_the_memorys_value_and_gradient_over_many_steps(steps):
    fast, slow = MemoryContrastiveLoss(N, D, 23, TAU, steps=steps), SlowMemory(TAU, 23, steps, 1.6)
    for z0, z1, index in batches():
        values = [fast(z0, z1, index), slow(z0, z1, index)]
        assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5, abs=1e-6)
        for got, want in zip(*(torch.autograd.grad(value, [z0, z1]) for value in values), strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_the_memorys_gradient_is_exact_when_the_memory_is_the_whole_data_set():
    """Embeddings held still, each view of each sample in the queue once, nu exact: a tenth of the weight is the batch's."""
    n, d = 10, 4
    z = torch.randn(2, n, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss = MemoryContrastiveLoss(n, d, 2 * n, TAU)
    truth = sogclr.exact.embedding_gradient(z, TAU, "F1")
    with torch.no_grad():
        for _ in range(3):
            loss(*z, torch.arange(n))
    got = torch.zeros_like(z)
    loss.eval()
    loss.share.running.fill_(0.0)
    loss.estimator.log_u.copy_(sogclr.exact.normalizers(z, TAU).logsumexp(dim=0) - math.log(2))
    for start in range(0, n, 2):
        rows = torch.arange(start, start + 2)
        pair = z[:, rows].requires_grad_()
        # nu from batch and queue counts the batch twice: hold it at the exact value instead
        exact_nu = sogclr.exact.normalizers(z, TAU)[:, rows]
        loss.estimator.forward = lambda *args, nu=exact_nu, **kwargs: nu
        got[:, rows] = torch.autograd.grad(loss(*pair, rows), pair)[0] * 2 / n
    cosine = torch.nn.functional.cosine_similarity(got.flatten(), truth.flatten(), dim=0)
    assert cosine > 0.99


def test_a_late_memory_counts_less():
    generator = torch.Generator().manual_seed(4)
    shares = {}
    for drift in (0.0, 1.0):
        loss = MemoryContrastiveLoss(64, 8, 64, TAU)
        start = torch.randn(2, 64, 8, generator=generator)
        for step in range(40):
            rows = torch.randperm(64, generator=generator)[:8]
            away = torch.zeros(8)
            away[step % 8] = 4 * drift  # all embeddings move together, elsewhere every step
            loss(start[0, rows] + away, start[1, rows] + away, rows)
        shares[drift] = float(loss.statistics["queue_share"])
    assert shares[1.0] < 0.5 * shares[0.0], shares


def test_a_boosted_average_multiplies_the_repulsion_and_ends_as_the_plain_one():
    steps, index = 8, torch.arange(4)
    z = torch.randn(steps + 1, 2, 4, D, generator=torch.Generator().manual_seed(5))
    boosted = sogclr.GlobalContrastiveLoss(4, TAU, estimator=BoostedAverage(4, steps, boost=3.0, end=0.2))
    plain = sogclr.GlobalContrastiveLoss(4, TAU, sogclr.estimators.CosineGamma(0.2, steps))
    for step in range(steps + 1):
        b = 1 + 2 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for loss in (boosted, plain):
            loss(*z[step], index)
        assert torch.exp(plain.nu - boosted.nu).mean().item() == pytest.approx(b, rel=1e-5)
    torch.testing.assert_close(boosted.estimator.log_u, plain.estimator.log_u)
