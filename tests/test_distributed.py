"""Several real processes over gloo: value, gradient and state are those of one process with the same global batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from sogclr.errors import BadInput
from sogclr.losses import DecoupledContrastiveLoss, GlobalContrastiveLoss, MemoryContrastiveLoss, MoCoLoss, NTXentLoss
from sogclr.losses.estimators import AdaptiveGamma, Dictionary, MovingAverage, Neural
from sogclr.losses.temperatures import Global, PerSample

BATCH, STEPS, N = 16, 4, 30
NAMES = (
    "per_view", "per_sample", "ntxent", "dcl", "moco", "adaptive", "dictionary", "queue_average", "neural", "isogclr",
    "global_tau", "memory",
)  # fmt: skip


def build(name):
    return {
        "per_view": lambda: GlobalContrastiveLoss(N, 0.2, 0.3),
        "per_sample": lambda: GlobalContrastiveLoss(N, 0.2, 0.3, convention="per_sample"),
        "ntxent": lambda: NTXentLoss(0.2),
        "dcl": lambda: DecoupledContrastiveLoss(0.2),
        "memory": lambda: MemoryContrastiveLoss(N, 4, 48, 0.2),
        "moco": lambda: MoCoLoss(4, 24, 0.2),
        "adaptive": lambda: GlobalContrastiveLoss(N, 0.2, AdaptiveGamma(-1.0)),
        "dictionary": lambda: GlobalContrastiveLoss(N, 0.2, estimator=Dictionary(48, 4)),
        "queue_average": lambda: GlobalContrastiveLoss(
            N, 0.2, estimator=MovingAverage(N, 0.3, dictionary=Dictionary(48, 4))
        ),
        "neural": lambda: GlobalContrastiveLoss(N, 0.2, estimator=Neural(4, 20)),
        "isogclr": lambda: GlobalContrastiveLoss(N, PerSample(N, 0.2), 0.3),
        "global_tau": lambda: GlobalContrastiveLoss(N, Global(0.2), 0.3),
    }[name]()


def run(name, rank, ranks):
    """A few steps of gradient descent; this rank's share of each batch."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4, dtype=torch.float64)
    model = DistributedDataParallel(net) if ranks > 1 else net
    loss, values = build(name), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    learned = torch.optim.SGD(loss.parameters(), lr=0.05) if list(loss.parameters()) else None
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x0, x1 = (torch.randn(BATCH, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        index = torch.randint(0, N, (BATCH,), generator=generator)  # repeats, also across ranks
        mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
        optimizer.zero_grad()
        value = loss(*model(torch.cat([x0[mine], x1[mine]])).chunk(2), index[mine])
        value.backward()
        optimizer.step()
        if learned is not None:
            learned.step()
            learned.zero_grad()
        values.append(float(value.detach()))
    return {
        "values": torch.tensor(values),
        "weight": net.weight.detach(),
        "grad": net.weight.grad,
        **loss.state_dict(),
    }


def worker(rank, ranks, port, names, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for name in names:
        torch.save(run(name, rank, ranks), f"{folder}/{name}-{rank}.pt")
    z = torch.eye(8)[: 4 + rank]
    with pytest.raises(BadInput, match="the ranks hold batches of"):
        NTXentLoss()(z, z, torch.arange(4 + rank))
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_n_ranks_equal_one(ranks, tmp_path):
    names = NAMES if ranks == 2 else NAMES[:3]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(worker, (ranks, port, names, str(tmp_path)), nprocs=ranks, start_method="spawn")
    for name in names:
        expected = run(name, 0, 1)
        for rank in range(ranks):
            got = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert got.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(got[key], value, msg=lambda m, name=name, key=key: f"{name} {key}: {m}")
