"""Several real processes over gloo: value, gradient and state are those of one process with the same global batch."""

import gc
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from sogclr import distributed as distributed_module
from sogclr import kernels
from sogclr.errors import BadInput
from sogclr.kernels import ranks as rank_sums
from sogclr.losses import (
    DecoupledContrastiveLoss,
    GlobalContrastiveLoss,
    MoCoLoss,
    NonFinite,
    NTXentLoss,
    SigLipLoss,
    TwoTowerGlobalContrastiveLoss,
)
from sogclr.losses.estimators import AdaptiveGamma, MovingAverage, Neural, sharded
from sogclr.losses.temperatures import Global, PerSample

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BATCH, STEPS, N = 16, 4, 30
NAMES = (
    "per_view",
    "per_sample",
    "ntxent",
    "dcl",
    "moco",
    "adaptive",
    "neural",
    "isogclr",
    "global_tau",
    "sharded",
    "sharded_adaptive",
    "views",
    "views_ntxent",
    "views_isogclr",
)
UNEVEN = (
    "per_view",
    "ntxent",
    "isogclr",
    "moco",
    "sharded",
    "two_towers",
    "two_towers_isogclr",
    "siglip",
    "captions",
    "fsdp",
    "views",
    "views_ntxent",
)
DIVIDED = ("sharded", "sharded_adaptive", "captions")
SIZES = {2: [[13, 3], [8, 8], [1, 15], [16, 0]], 4: [[7, 1, 0, 8], [4, 4, 4, 4], [1, 1, 1, 13], [0, 0, 9, 7]]}


def build(name):
    """The loss of a name; with `sharded`, its log u divided among the ranks, with `views`, of three views."""
    name = {"views": "per_view"}.get(name, name.removeprefix("views_"))
    return {
        "sharded": lambda: GlobalContrastiveLoss(N, 0.2, estimator=MovingAverage(N, 0.3, sharded=True)),
        "sharded_adaptive": lambda: GlobalContrastiveLoss(
            N, 0.2, estimator=MovingAverage(N, AdaptiveGamma(-1.0), "per_sample", sharded=True)
        ),
        "per_view": lambda: GlobalContrastiveLoss(N, 0.2, 0.3),
        "per_sample": lambda: GlobalContrastiveLoss(N, 0.2, 0.3, convention="per_sample"),
        "ntxent": lambda: NTXentLoss(0.2),
        "dcl": lambda: DecoupledContrastiveLoss(0.2),
        "moco": lambda: MoCoLoss(4, 24, 0.2),
        "adaptive": lambda: GlobalContrastiveLoss(N, 0.2, AdaptiveGamma(-1.0)),
        "neural": lambda: GlobalContrastiveLoss(N, 0.2, estimator=Neural(4, 20)),
        "isogclr": lambda: GlobalContrastiveLoss(N, PerSample(N, 0.2), 0.3),
        "global_tau": lambda: GlobalContrastiveLoss(N, Global(0.2), 0.3),
        "fsdp": lambda: GlobalContrastiveLoss(N, 0.2, 0.3),
        "two_towers": lambda: TwoTowerGlobalContrastiveLoss(N, 0.2, 0.3),
        "two_towers_isogclr": lambda: TwoTowerGlobalContrastiveLoss(N, PerSample(N, 0.2), 0.3),
        "siglip": SigLipLoss,
        "captions": lambda: TwoTowerGlobalContrastiveLoss(
            N, 0.2, num_texts=9, estimator=(MovingAverage(N, 0.3, sharded=True), MovingAverage(9, 0.3, sharded=True))
        ),
    }[name]()


def run(name, rank, ranks, sizes=None):
    """A few steps of gradient descent; this rank's share of each batch."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4, dtype=torch.float64)
    model = net
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        model = fully_shard(net, mesh=mesh) if name == "fsdp" else DistributedDataParallel(net)
    loss, values = build(name), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    learned = torch.optim.SGD(loss.parameters(), lr=0.05) if list(loss.parameters()) else None
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        views = 3 if name.startswith("views") else 2
        x = [torch.randn(BATCH, 6, generator=generator, dtype=torch.float64) for _ in range(views)]
        index = torch.randint(0, N, (BATCH,), generator=generator)  # repeats, also across ranks
        split = sizes[step] if sizes else [BATCH // ranks] * ranks
        mine = slice(sum(split[:rank]), sum(split[: rank + 1]))
        optimizer.zero_grad()
        texts = (index[mine] % 9,) if name == "captions" else ()
        z = model(torch.cat([rows[mine] for rows in x])).chunk(views)
        value = loss(*z, index[mine], *texts) if views == 2 else loss.of_views(z, index[mine])
        value.backward()
        optimizer.step()
        if learned is not None:
            learned.step()
            learned.zero_grad()
        values.append(float(value.detach()))
    return {
        "values": torch.tensor(values),
        "weight": whole(net.weight.detach()),
        "grad": whole(net.weight.grad),
        **sharded.whole_state(loss),
    }


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class GatherThenScatter(torch.autograd.Function):
    """The other way to the exact gradient: gathered rows carry gradient, which is summed where the rows came from."""

    @staticmethod
    def forward(ctx, z):
        return rank_sums.gather(z.detach())

    @staticmethod
    def backward(ctx, grad):
        own = torch.empty_like(grad.chunk(dist.get_world_size())[0])
        collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        collective(own, grad.contiguous())
        return own


def log_sums(rank, ranks):
    """Gradients of rows and temperatures for weights of any sign: one tower, two, a queue; and by the other way."""
    generator = torch.Generator().manual_seed(5)
    z = torch.nn.functional.normalize(torch.randn(2, BATCH, 6, generator=generator, dtype=torch.float64), dim=2)
    queue = torch.nn.functional.normalize(torch.randn(9, 6, generator=generator, dtype=torch.float64), dim=1)
    index = torch.randint(0, N, (BATCH,), generator=generator)
    key_ids = torch.randint(0, N, (9,), generator=generator)
    weight = torch.rand(2, BATCH, generator=generator, dtype=torch.float64) - 0.3
    taus = 0.1 + torch.rand(2, BATCH, generator=generator, dtype=torch.float64)
    mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    results = {}

    def record(name, function, *temperatures):
        local = [view[mine].clone().requires_grad_() for view in z]
        leaves = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in temperatures]
        value = function(*map(rank_sums.gather, local), *leaves)
        learned = [t for t in leaves if isinstance(t, torch.Tensor)]
        grads = torch.autograd.grad((value * weight).sum(), [*local, *learned])
        results[name] = {"value": value.detach(), "rows": torch.stack(grads[:2]), "taus": list(grads[2:])}

    def one(x, y, tau):
        return rank_sums.log_sum_negatives((x, y), index, tau)

    def two(x, y, *tau):
        return torch.stack(rank_sums.log_sum_between(x, y, index, tau if len(tau) == 2 else tau[0]))

    def keys(x, y, tau):
        return rank_sums.log_sum_keys(torch.cat([x, y]), queue, index.repeat(2), key_ids, tau, views=2).view(2, -1)

    for name, function in (("one", one), ("two", two), ("keys", keys)):
        record(f"{name} number", function, 0.2)
        record(f"{name} tensor", function, torch.tensor(0.2, dtype=torch.float64))
    record("one each", one, taus[0])
    record("two each", two, *taus)
    record("keys each", keys, taus.flatten())

    local = torch.stack([view[mine].clone() for view in z]).requires_grad_()
    rows = local.flatten(0, 1)
    candidates = rows if ranks == 1 else GatherThenScatter.apply(rows)
    ids = index[mine].repeat(2)
    own = kernels.log_sum_rows(rows, candidates, ids, rank_sums.gather(ids), 0.2)
    results["scattered"] = torch.autograd.grad((own * weight[:, mine].flatten()).sum(), local)[0]
    return results


def compare_log_sums(got, expected, first, rank, ranks):
    mine = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    torch.testing.assert_close(got.pop("scattered"), expected["one number"]["rows"][:, mine])
    for name, result in got.items():
        assert torch.equal(result["value"], first[name]["value"])  # bit for bit the same on all ranks
        torch.testing.assert_close(result["value"], expected[name]["value"])
        torch.testing.assert_close(result["rows"], expected[name]["rows"][:, mine], msg=name)
        torch.testing.assert_close(result["taus"], expected[name]["taus"], msg=name)


def divided_state(rank, ranks):
    """Read, written, undone, put together and loaded: with every exchange what one log u of all samples gives."""
    log_u = torch.randn(N, generator=torch.Generator().manual_seed(9))
    log_u[::7] = -torch.inf
    whole, divided = (MovingAverage(N, AdaptiveGamma(-1.0), sharded=divided) for divided in (False, True))
    for estimator in (whole, divided):
        estimator.load_state_dict({"log_u": log_u, "step": torch.tensor(3)})
    assert len(divided.log_u) == -(-N // ranks) + 1
    for size in (BATCH, 13, 3, 1):  # also fewer ids than ranks
        index = torch.randint(0, N, (size,), generator=torch.Generator().manual_seed(size))
        for exchange in ("all-to-all", "all-reduce"):
            assert torch.equal(sharded.read(divided.log_u, index, divided.part, exchange), log_u[index])
        before = divided.log_u.clone()
        divided.begin_step()
        log_g = torch.randn(2, size, generator=torch.Generator().manual_seed(size))
        assert torch.equal(divided(log_g, index, True), whole(log_g, index, True))
        log_u = whole.log_u.clone()
        after = divided.log_u.clone()
        divided.rollback()
        assert torch.equal(divided.log_u, before)
        divided.log_u.copy_(after)
    divided.step.copy_(whole.step)
    torch.testing.assert_close(divided.current_gamma(), whole.current_gamma())
    sharded.CHUNK = 3  # several, and a shorter one
    state = sharded.whole_state(divided)
    assert set(state) == ({"log_u", "step"} if rank == 0 else {"step"})
    assert rank or all(torch.equal(state[key], value) for key, value in whole.state_dict().items())
    again = MovingAverage(N, 0.3)
    again.load_state_dict(whole.state_dict())
    again.divide()
    again.divide()  # once is enough
    assert torch.equal(again.log_u, divided.log_u)
    again.load_state_dict(divided.state_dict())
    with pytest.raises(BadInput, match=f"is the part that rank {rank} of {ranks} kept, and this one keeps all of it"):
        MovingAverage(N, 0.3).load_state_dict(divided.state_dict())
    theirs = divided.state_dict() | {"kept_by": torch.tensor([(rank + 1) % ranks, ranks])}
    with pytest.raises(BadInput, match=f"keeps that of rank {rank} of {ranks}"):
        again.load_state_dict(theirs)
    with pytest.raises(BadInput, match="saved for 31 samples"):
        again.load_state_dict({"log_u": torch.zeros(N + 1), "step": torch.tensor(0)})

    def alone():
        with pytest.raises(BadInput, match=f"divided among {ranks} ranks and 1 compute"):
            divided(log_g, index, False)

    distributed_module.run_on_rank0(alone)


def errors(rank, ranks):
    """An error is everyone's; and so is what only all ranks together can know."""
    z, index = torch.eye(8)[: 4 + rank], torch.arange(4 + rank)
    with pytest.raises(BadInput, match="index 34 is out of range"):
        GlobalContrastiveLoss(N)(z, z, index + 30 if rank == 1 else index)
    with pytest.raises(NonFinite) as raised:
        NTXentLoss()(z.log() if rank == 0 else z, z, index)
    assert raised.value.rows == [0, 1, 2, 3]
    NTXentLoss()(z, z, torch.full_like(index, rank))
    with pytest.raises(BadInput, match=f"all {sum(range(4, 4 + ranks))} rows of the batch have id 5"):
        NTXentLoss()(z, z, torch.full_like(index, 5))
    with pytest.raises(BadInput, match="a batch of 1 has no negatives"):
        NTXentLoss()(z[: rank == 0], z[: rank == 0], index[: rank == 0])
    z = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(DecoupledContrastiveLoss()(z, z, index), z, create_graph=True)
    with pytest.raises(BadInput, match="no second derivative"):
        torch.autograd.grad(first.sum(), z)


def beside_a_gpu_group(rank):
    """Where the group knows no tensors of the host, sizes are exchanged by one more, made once."""
    z, index, known = torch.eye(8)[: 4 + rank], torch.arange(4 + rank), dist.get_backend_config
    before = len(dist.distributed_c10d._world.pg_map)
    expected = NTXentLoss()(z, z, index)
    dist.get_backend_config = lambda group=None: "cuda:nccl"
    assert torch.equal(NTXentLoss()(z, z, index), expected)
    assert torch.equal(NTXentLoss()(z, z, index), expected)
    dist.get_backend_config = known
    assert len(dist.distributed_c10d._world.pg_map) == before + 1


def worker(rank, ranks, port, names, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for name in names:
        torch.save(run(name, rank, ranks), f"{folder}/{name}-{rank}.pt")
    for name in UNEVEN:
        torch.save(run(name, rank, ranks, SIZES[ranks]), f"{folder}/uneven-{name}-{rank}.pt")
    torch.save(log_sums(rank, ranks), f"{folder}/log_sums-{rank}.pt")
    divided_state(rank, ranks)
    errors(rank, ranks)
    beside_a_gpu_group(rank)
    gc.collect()  # models that still hold on to the group would end its threads at exit, by an abort
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_n_ranks_equal_one(ranks, tmp_path):
    names = NAMES if ranks == 2 else (*NAMES[:3], "sharded")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(worker, (ranks, port, names, str(tmp_path)), nprocs=ranks, start_method="spawn")
    expected = log_sums(0, 1)
    torch.testing.assert_close(expected["scattered"], expected["one number"]["rows"])
    everybody = [torch.load(tmp_path / f"log_sums-{rank}.pt", weights_only=True) for rank in range(ranks)]
    for rank, got in enumerate(everybody):
        compare_log_sums(got, expected, everybody[0], rank, ranks)
    for name, uneven in [*((name, "") for name in names), *((name, "uneven-") for name in UNEVEN)]:
        expected = run(name, 0, 1)
        for rank in range(ranks):
            got = torch.load(tmp_path / f"{uneven}{name}-{rank}.pt", weights_only=True)
            missing = {key for key in expected if key.endswith("log_u")} if name in DIVIDED and rank else set()
            assert got.keys() == expected.keys() - missing
            for key, value in ((key, expected[key]) for key in got):
                torch.testing.assert_close(
                    got[key], value, msg=lambda m, name=uneven + name, key=key: f"{name} {key}: {m}"
                )
