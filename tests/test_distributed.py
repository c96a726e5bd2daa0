"""Several real processes over gloo: value, gradient and state are those of one process with the same global batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from sogclr import distributed, kernels
from sogclr.errors import BadInput
from sogclr.losses import GlobalContrastiveLoss, NTXentLoss

BATCH, STEPS, N = 16, 3, 30


def build(name):
    return {
        "per_view": lambda: GlobalContrastiveLoss(N, 0.2, 0.3),
        "per_sample": lambda: GlobalContrastiveLoss(N, 0.2, 0.3, convention="per_sample"),
        "ntxent": lambda: NTXentLoss(0.2),
    }[name]()


def run(name, rank, ranks):
    """A few steps of gradient descent; this rank's share of each batch."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4, dtype=torch.float64)
    model = DistributedDataParallel(net) if ranks > 1 else net
    loss, values = build(name), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x0, x1 = (torch.randn(BATCH, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        index = torch.randint(0, N, (BATCH,), generator=generator)  # repeats, also across ranks
        mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
        optimizer.zero_grad()
        value = loss(*model(torch.cat([x0[mine], x1[mine]])).chunk(2), index[mine])
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return {
        "values": torch.tensor(values),
        "weight": net.weight.detach(),
        "grad": net.weight.grad,
        **loss.state_dict(),
    }


class GatherThenScatter(torch.autograd.Function):
    """The other way to the exact gradient: gathered rows carry gradient, which is summed where the rows came from."""

    @staticmethod
    def forward(ctx, z):
        return distributed.gather(z.detach())

    @staticmethod
    def backward(ctx, grad):
        own = torch.empty_like(grad.chunk(dist.get_world_size())[0])
        collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        collective(own, grad.contiguous())
        return own


def log_sums(rank, ranks):
    """Gradients of rows and temperatures for weights of any sign, one tower and two, by both ways."""
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(2, BATCH, 6, generator=generator, dtype=torch.float64)
    z = torch.nn.functional.normalize(z, dim=2)
    index = torch.randint(0, N, (BATCH,), generator=generator)
    weight = torch.rand(2, BATCH, generator=generator, dtype=torch.float64) - 0.3
    taus = 0.1 + torch.rand(2, BATCH, generator=generator, dtype=torch.float64)
    mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    results = {}

    def record(name, value, *leaves):
        results[name] = [value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)]

    for kind in ("number", "tensor", "each"):
        x, y = (view[mine].clone().requires_grad_() for view in z)
        if kind == "number":
            one = two = 0.2
            leaves = (x, y)
        elif kind == "tensor":
            one = two = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
            leaves = (x, y, one)
        else:
            one, other = (t[mine].clone().requires_grad_() for t in taus)
            two = (one, other)
            leaves = (x, y, one)
        record(f"one {kind}", distributed.log_sum_negatives(x, y, index[mine], one), *leaves)
        leaves = (x, y, *two) if kind == "each" else leaves
        record(f"two {kind}", torch.stack(distributed.log_sum_between(x, y, index[mine], two)), *leaves)

    x, y = (view[mine].clone().requires_grad_() for view in z)
    local = torch.cat([x, y])
    candidates = local if ranks == 1 else GatherThenScatter.apply(local)
    ids = distributed.gather(index[mine].repeat(2))
    own = kernels.log_sum_rows(local, candidates, index[mine].repeat(2), ids, 0.2)
    results["scattered"] = torch.autograd.grad((own * weight[:, mine].flatten()).sum(), (x, y))
    return results


def compare_log_sums(got, expected, rank, ranks):
    mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    for name, values in expected.items():
        for k, value in enumerate(values):
            whole = value.ndim == 2 and value.shape[0] == 2  # log-sums: the same everywhere; gradients: own rows
            if value.ndim:
                torch.testing.assert_close(got[name][k], value if whole else value[mine], msg=f"{name} {k}")


def worker(rank, ranks, port, names, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for name in names:
        torch.save(run(name, rank, ranks), f"{folder}/{name}-{rank}.pt")
    torch.save(log_sums(rank, ranks), f"{folder}/log_sums-{rank}.pt")
    z = torch.eye(8)[: 4 + rank]
    with pytest.raises(BadInput, match="the ranks hold batches of"):
        NTXentLoss()(z, z, torch.arange(4 + rank))
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_n_ranks_equal_one(ranks, tmp_path):
    names = ("per_view", "per_sample", "ntxent")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(worker, (ranks, port, names, str(tmp_path)), nprocs=ranks, start_method="spawn")
    expected = log_sums(0, 1)
    torch.testing.assert_close(expected["scattered"], tuple(expected["one number"][1:]))
    everybody = [torch.load(tmp_path / f"log_sums-{rank}.pt", weights_only=True) for rank in range(ranks)]
    for rank, got in enumerate(everybody):
        compare_log_sums(got, expected, rank, ranks)
        for name in ("one number", "two each"):
            assert torch.equal(got[name][0], everybody[0][name][0])
    for name in ("one tensor", "two tensor"):  # a shared temperature's gradient is the sum over ranks
        torch.testing.assert_close(sum(got[name][3] for got in everybody), expected[name][3])
    for name in names:
        expected = run(name, 0, 1)
        for rank in range(ranks):
            got = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert got.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(got[key], value, msg=lambda m, name=name, key=key: f"{name} {key}: {m}")
