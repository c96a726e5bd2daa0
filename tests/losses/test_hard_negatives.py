"""Hard negatives and several positives of a thing: exact, without false negatives and without counting anything twice."""

import gc
import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import SlowPairs, unit
from torch.nn.parallel import DistributedDataParallel

from sogclr.errors import BadInput
from sogclr.losses import (
    ClipLoss,
    NonFinite,
    SigLipLoss,
    TwoTowerGlobalContrastiveLoss,
    temperatures,
)
from sogclr.losses.candidates import KnownPairs
from sogclr.losses.estimators import MiniBatch, Neural

N, TAU = 12, 0.2
IDS = torch.tensor([0, 0, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 3, 4, 4])
HARD_IDS = torch.tensor([[7, 8], [7, 7], [-1, 9], [2, 10], [8, -1], [-1, -1]])  # a repeated one, one of the batch
PAIRS = torch.tensor([0, 0, 2, 3, 4, 5, 2, 0, 3]), torch.tensor([0, 1, 2, 3, 4, 4, 3, 8, 7])


def rows(b=6, h=2, d=5, seed=0, dtype=torch.float64):
    """Embeddings of both kinds, and hard negatives."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((b, d), (b, d), (b, h, d))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def losses(tau=TAU, dim=5, **options):
    return {
        "sogclr": lambda: TwoTowerGlobalContrastiveLoss(N, tau, 0.3, **options),
        "mini_batch": lambda: TwoTowerGlobalContrastiveLoss(N, tau, estimator=MiniBatch(), **options),
        "neural": lambda: TwoTowerGlobalContrastiveLoss(N, tau, estimator=Neural(dim, prototypes=6), **options),
        "global_tau": lambda: TwoTowerGlobalContrastiveLoss(N, temperatures.Global(tau, minimum=0.005), 0.3, **options),
        "per_sample_tau": lambda: TwoTowerGlobalContrastiveLoss(
            N, temperatures.PerSample(N, tau, minimum=0.005), 0.3, **options
        ),
        "clip": lambda: ClipLoss(tau, **options),
        "siglip": lambda: SigLipLoss(tau, -1.0, **options),
    }


ALL = tuple(losses())
SLOW = {"sogclr": ("global", 0.3), "clip": ("clip", 1.0), "siglip": ("siglip", 1.0)}


def slow(name, pairs=(), same_kind=False, share=False):
    kind, gamma = SLOW[name]
    return SlowPairs(kind, TAU, gamma, pairs, same_kind, share, -1.0)


def as_set(pairs):
    return {(int(a), int(b)) for a, b in zip(*pairs, strict=True)}


def assert_same(value, expected, inputs):
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for z in inputs:
        got, want = (torch.autograd.grad(v, z, retain_graph=True, allow_unused=True)[0] for v in (value, expected))
        want = torch.zeros_like(z) if want is None else want
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


@st.composite
def batches(draw):
    """Ids of a batch, of hard negatives and of the known pairs of the data set, the batch's own among them."""
    b, h = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    x_ids, y_ids = ([draw(st.integers(0, most)) for _ in range(b)] for most in (3, 5))
    assume(len(set(x_ids)) > 1 and len(set(y_ids)) > 1)
    hard = [[draw(st.integers(-1, 7)) for _ in range(h)] for _ in range(b)]
    more = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=6))
    return x_ids, y_ids, hard, [*zip(x_ids, y_ids, strict=True), *more]


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(sorted(SLOW)), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_value_gradient_and_state_equal_the_slow_ones(batch, name, with_hard, with_pairs, same_kind, share):
    x_ids, y_ids, hard_ids, pairs = batch
    reference = slow(name, pairs if with_pairs else (), same_kind, share)
    here = hard_ids if with_hard else [[]] * len(x_ids)
    assume(any(any(reference.negatives(a, x_ids, y_ids, here)) for a in range(len(x_ids))))
    known = tuple(torch.tensor(ids) for ids in zip(*pairs, strict=True)) if with_pairs else None
    loss = losses(positives=known, same_kind=same_kind, share_negatives=share)[name]()
    index = torch.tensor(x_ids), torch.tensor(y_ids)
    hard_index = torch.tensor(hard_ids)
    for seed in range(2):
        z = rows(len(x_ids), hard_index.shape[1], seed=seed)
        more = (z[2], hard_index) if with_hard else ()
        value, expected = loss(*z[:2], *index, *more), reference(*z[:2], *index, *more)
        assert_same(value, expected, z if with_hard else z[:2])
    if name != "sogclr":
        return
    for estimator, u in zip((loss.image_estimator, loss.text_estimator), reference.u, strict=True):
        seen = torch.isfinite(estimator.log_u).nonzero().flatten().tolist()
        assert seen == sorted(u)
        assert estimator.log_u[seen].tolist() == pytest.approx([math.log(u[i]) for i in seen], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", sorted(SLOW))
def test_a_batch_with_all_that_can_be(name, share):
    """Texts twice, images twice, hard negatives in the batch, twice, known as matches, and missing."""
    loss, reference = losses(positives=PAIRS, share_negatives=share)[name](), slow(name, as_set(PAIRS), False, share)
    for seed in range(3):
        z = rows(seed=seed)
        value = loss(*z[:2], *IDS, z[2], HARD_IDS)
        assert_same(value, reference(*z[:2], *IDS, z[2], HARD_IDS), z)
        assert torch.autograd.grad(value, z[2])[0][3, 0].abs().max() == 0  # text 2 is in the batch


def test_the_mean_over_an_anchors_rows_is_that_of_all_its_positives():
    """Image 0 with three texts, a row each: the mean of -s over them, and one set of negatives."""
    x_ids, y_ids = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 2, 3, 1])  # text 1 is image 2's too
    x, y, _ = rows(5)
    x = torch.cat([x[:1], x[:1], x[:1], x[3:]])
    loss = TwoTowerGlobalContrastiveLoss(N, TAU, estimator=MiniBatch(), reduction="none", positives=(x_ids, y_ids))
    loss(x, y, x_ids, y_ids)
    u, v, nu = unit(x), unit(y), loss.nu[0]
    assert torch.equal(nu[:3], nu[:1].expand(3))
    torch.testing.assert_close(nu[0], u[0] @ v[3] / TAU)  # text 3 alone is no match
    _, s_pos, log_g, tau, _ = loss._last
    value = (-s_pos + tau * log_g[0])[:3].mean()
    torch.testing.assert_close(value, -(u[0] @ v[:3].T).mean() + TAU * nu[0])


def test_own_and_shared_hard_negatives_by_hand():
    z = torch.eye(4, dtype=torch.float64)
    x, y, hard = z[:2], z[:2], torch.stack([z[0], z[2]])
    loss = ClipLoss(1.0, reduction="none")
    # of each image: its hard negative, which for image 0 is like itself, and the other's where they are shared
    for share, of_images in ((False, [math.e, 1]), (True, [math.e + 1, 2])):
        loss.share_negatives = share
        value = loss(x, y, torch.arange(2), negatives=hard, negative_index=torch.tensor([5, 6]))
        want = [(math.log(1 + (1 + more) / math.e) + math.log(1 + 1 / math.e)) / 2 for more in of_images]
        assert value.tolist() == pytest.approx(want)


def test_two_columns_of_one_kind_hold_no_negative_that_is_the_anchor_itself():
    """Rows (0, 1), (1, 2) and (3, 4): text 1 is candidate and anchor."""
    x, y, _ = rows(3)
    loss = TwoTowerGlobalContrastiveLoss(N, TAU, estimator=MiniBatch(), same_kind=True)
    loss(x, y, torch.tensor([0, 1, 3]), torch.tensor([1, 2, 4]))
    u, v = unit(x), unit(y)
    torch.testing.assert_close(loss.nu[0, 1], u[1] @ v[2] / TAU)  # not y of row 0, which it is
    torch.testing.assert_close(loss.nu[1, 0], v[0] @ u[2] / TAU)  # not x of row 1
    torch.testing.assert_close(loss.nu[0, 0], (u[0] @ v[1:].T / TAU).logsumexp(0) - math.log(2))


def test_hard_negatives_that_do_not_count_change_nothing_and_may_hold_anything():
    z = rows()
    for name in ALL:
        hard = z[2].detach().clone()
        hard[:, 0], hard[:, 1] = float("nan"), float("inf")
        hard.requires_grad_()
        value = losses()[name]()(*z[:2], *IDS, hard, torch.full((6, 2), -1))
        expected = losses()[name]()(*z[:2], *IDS)
        torch.testing.assert_close(value, expected)
        value.backward()
        assert hard.grad.abs().max() == 0
        assert torch.isfinite(z[0].grad).all()


@pytest.mark.parametrize("name", ALL)
def test_without_what_could_be_hidden_the_kernels_serve(name):
    """Bit for bit the loss without the arguments: one match each, no hidden match in the batch, no thing twice."""
    z, one = rows(), (torch.arange(N), torch.arange(N))
    expected = losses()[name]()(*z[:2], torch.arange(6))
    assert losses(positives=one)[name]().known is None
    assert torch.equal(losses(positives=one)[name]()(*z[:2], torch.arange(6)), expected)
    extra = torch.cat([one[0], torch.tensor([0])]), torch.cat([one[1], torch.tensor([9])])
    assert torch.equal(losses(positives=extra)[name]()(*z[:2], torch.arange(6)), expected)
    assert torch.equal(losses(same_kind=True)[name]()(*z[:2], torch.arange(6)), expected)
    hidden = torch.cat([one[0], torch.tensor([0])]), torch.cat([one[1], torch.tensor([3])])
    assert not torch.equal(losses(positives=hidden)[name]()(*z[:2], torch.arange(6)), expected)


@pytest.mark.parametrize("name", ALL)
def test_order_of_the_batch_does_not_matter(name):
    """Where a hard negative that comes again is embedded as before."""
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    x, y, hard = rows()
    hard = torch.randn(N, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[HARD_IDS]
    for share in (False, True):
        a, b = (losses(share_negatives=share, positives=PAIRS)[name]() for _ in range(2))
        a, b = (loss if name != "neural" else loss.eval() for loss in (a, b))
        mixed = x[order], y[order], IDS[0][order], IDS[1][order], hard[order], HARD_IDS[order]
        torch.testing.assert_close(a(x, y, *IDS, hard, HARD_IDS), b(*mixed))
        torch.testing.assert_close(b(x, y, *IDS, hard.flip(1), HARD_IDS.flip(1)), b(*mixed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [name for name in ALL if name != "neural"])
def test_finite_at_temperature_0_005_with_near_duplicates(name, dtype):
    base = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    z = (base[:1] + 1e-3 * base).to(dtype).requires_grad_()
    loss = losses(0.005, 16, positives=PAIRS, share_negatives=True)[name]()
    for step in range(5):
        value = loss(z if step % 2 else -z, z, torch.arange(8), None, z, torch.arange(8) + 3)
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", ["global_tau", "per_sample_tau", "clip_tau"])
def test_gradient_of_learned_temperatures(name):
    """By finite differences, of all anchors' own."""
    z = [v.detach() for v in rows()]
    tau = temperatures.Global(TAU, 0.3) if name == "global_tau" else temperatures.PerSample(N, TAU, 0.3)
    if name == "clip_tau":
        loss = ClipLoss(tau.double(), positives=PAIRS, share_negatives=True)
    else:
        loss = TwoTowerGlobalContrastiveLoss(
            N, tau.double(), estimator=MiniBatch(), positives=PAIRS, share_negatives=True
        )
    loss(*z[:2], *IDS, z[2], HARD_IDS).backward()
    for parameter in loss.parameters():
        gradient = parameter.grad.to_dense().flatten()
        assert gradient.abs().max() > 1e-3
        flat = parameter.data.view(-1)
        for k in range(len(flat)):
            values = []
            for step in (1e-6, -1e-6):
                flat[k] += step
                values.append(loss(*z[:2], *IDS, z[2], HARD_IDS).item())
                flat[k] -= step
            # at nu = log ĝ the derivative at constant nu is the whole one
            assert float(gradient[k]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_an_anchor_without_negatives_only_pulls_at_its_positive():
    """Image 0 knows all texts of the batch; a direction in which nobody has any stays finite."""
    x_ids, pairs = torch.arange(3), (torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 2, 1, 2]))
    for name in ("sogclr", "clip"):
        x, y, _ = rows(3)
        loss = losses(positives=pairs)[name]()
        loss.reduction = "none"
        value = loss(x, y, x_ids)
        grad = torch.autograd.grad(value[0], (x, y))
        assert all(torch.isfinite(g).all() for g in grad)
        assert grad[1][1:].abs().max() == 0
        of_two = losses(positives=(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])))[name]()
        with pytest.raises(BadInput, match="none of the 2 rows of the batch has a negative"):
            of_two(x[:2], y[:2], x_ids[:2])
        value = of_two(x[:2], y[:2], x_ids[:2], None, y[1:], torch.tensor([5, -1]))
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (x, y)))


def test_known_pairs_are_data_and_not_state():
    loss, plain = (losses(**options)["sogclr"]() for options in ({"positives": PAIRS}, {}))
    assert loss.state_dict().keys() == plain.state_dict().keys()
    loss.load_state_dict(plain.state_dict())
    known = KnownPairs(*PAIRS)
    first, second = torch.meshgrid(torch.arange(-2, 14), torch.arange(-2, 14), indexing="ij")
    found = set(zip(first[known(first, second)].tolist(), second[known(first, second)].tolist(), strict=True))
    assert found == as_set(PAIRS)
    both = KnownPairs(*PAIRS, same_kind=True)
    assert bool(both(torch.tensor(8), torch.tensor(0)))
    with pytest.raises(BadInput, match="whose pairs int64 cannot number"):
        KnownPairs(torch.tensor([2**40]), torch.tensor([2**40]))


def test_rollback_undoes_a_step_with_hard_negatives():
    loss, z = losses(positives=PAIRS)["sogclr"](), rows(dtype=torch.float32)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss.begin_step()
    loss(*z[:2], *IDS, z[2], HARD_IDS)
    assert any(not torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    loss.rollback()
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())


@pytest.mark.parametrize("name", [name for name in ALL if name != "per_sample_tau"])
def test_no_value_is_read_back_from_a_device(name, monkeypatch):
    """On torch's device `meta`, which has no values to read."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it does not know the device
    loss = losses(positives=PAIRS, same_kind=True, share_negatives=True)[name]().to("meta")
    x, y, hard = (v.detach().to("meta").requires_grad_() for v in rows(dtype=torch.float32))
    loss(x, y, *IDS, hard, HARD_IDS).backward()
    assert hard.grad.shape == hard.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sogclr", "clip", "siglip"])
def test_compiled_equals_eager(name):
    eager, compiled = (losses(positives=PAIRS, same_kind=True, share_negatives=True)[name]() for _ in range(2))
    call = torch.compile(compiled, backend="aot_eager")
    for step in range(2):
        z = rows(seed=step, dtype=torch.float32)
        a, b = eager(*z[:2], *IDS, z[2], HARD_IDS), call(*z[:2], *IDS, z[2], HARD_IDS)
        torch.testing.assert_close(a, b)
        for v in (z[0], z[2]):
            torch.testing.assert_close(
                torch.autograd.grad(a, v, retain_graph=True), torch.autograd.grad(b, v, retain_graph=True)
            )


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative_index": None}, "negative_index is missing; hard negatives are embeddings and their ids"),
        ({"negatives": None}, "negatives is missing"),
        ({"negatives": torch.zeros(6, 2, 4)}, r"\(B, D\) \(6, 5\), and are \(6, 2, 4\)"),
        ({"negatives": torch.zeros(12, 5)}, r"and are \(12, 5\)"),
        ({"negatives": torch.zeros(6, 2, 5, dtype=torch.int64)}, "must be floating and on cpu, and are torch.int64"),
        ({"negative_index": torch.zeros(6, 3, dtype=torch.int64)}, r"must be \(6, 2\), .* and is \(6, 3\)"),
        ({"negative_index": torch.zeros(6, 2)}, "negative_index must be int64 or int32 and is torch.float32"),
        ({"negative_index": [[0, 1]] * 6}, "negative_index must be a torch.Tensor and is a list"),
        ({"negative_index": torch.full((6, 2), 12)}, r"negative_index 12 is out of range \(valid: 0\.\.11"),
        ({"negative_index": torch.full((6, 2), -2)}, "negative_index -2 is out of range"),
    ],
)
def test_bad_hard_negatives_are_refused_with_both_values(change, message):
    x, y, hard = rows()
    loss = losses()["sogclr"]()
    with pytest.raises(BadInput, match=message):
        loss(x, y, *IDS, **({"negatives": hard, "negative_index": HARD_IDS} | change))
    assert torch.isneginf(loss.image_estimator.log_u).all()


def test_hard_negatives_that_are_not_finite_are_named():
    x, y, hard = rows(dtype=torch.float32)
    hard = hard.detach()
    hard[4, 0, 1] = hard[2, 0, 0] = float("nan")  # the second has no id
    with pytest.raises(NonFinite, match=r"1 of 12 hard negatives are not finite \(rows 4, ids 8\)") as raised:
        ClipLoss()(x, y, *IDS, hard, HARD_IDS)
    assert raised.value.rows == [4]
    with pytest.raises(BadInput, match=r"negative_index -3 is out of range \(valid: 0 or more"):
        ClipLoss()(x, y, *IDS, hard, HARD_IDS - 2)


@pytest.mark.parametrize(
    ("positives", "message"),
    [
        ((torch.arange(3), torch.arange(4)), r"must be two tensors of ids, \(P,\) each, and are \[\(3,\), \(4,\)\]"),
        ((torch.zeros(3), torch.arange(3)), "positives must be int64 or int32 and are torch.float32"),
        (([0, 1], [0, 1]), "each of positives must be a torch.Tensor and is a list"),
        ((torch.arange(0), torch.arange(0)), "positives hold no pairs"),
        ((torch.arange(13), torch.arange(13)), "positives hold id 12, out of range for a loss of 12 things"),
        ((torch.arange(3), torch.arange(3) - 1), "positives hold id -1"),
    ],
)
def test_bad_positives_are_refused(positives, message):
    with pytest.raises(BadInput, match=message):
        losses(positives=positives)["sogclr"]()


# --------------------------------------------------------------------------------------------------------- several ranks
BATCH, SIZES = 12, ([6, 6], [9, 3], [12, 0])
DISTRIBUTED = tuple((name, share) for name in ("sogclr", "per_sample_tau", "clip", "siglip") for share in (False, True))


def run(name, share, rank, ranks):
    """A few steps of gradient descent; this rank's share of each batch, which is not the other's."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4, dtype=torch.float64)
    model = DistributedDataParallel(net) if ranks > 1 else net
    generator = torch.Generator().manual_seed(9)
    pairs = torch.randint(0, N, (30,), generator=generator), torch.randint(0, N, (30,), generator=generator)
    loss, values = losses(positives=pairs, share_negatives=share)[name]().double(), []
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1)
    for step, sizes in enumerate(SIZES):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, BATCH, 6, generator=generator, dtype=torch.float64)
        drawn = torch.randint(0, 30, (BATCH,), generator=generator)
        hard_ids = torch.randint(-1, N, (BATCH, 2), generator=generator)
        mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])) if ranks > 1 else slice(None)
        optimizer.zero_grad()
        z = model(x[:, mine].flatten(0, 1)).view(4, -1, 4)
        hard = z[2:].transpose(0, 1)
        value = loss(z[0], z[1], pairs[0][drawn][mine], pairs[1][drawn][mine], hard, hard_ids[mine])
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return {"values": torch.tensor(values), "weight": net.weight.detach(), **loss.state_dict()}


def test_ids_may_lie_in_memory_as_they_like():
    x, y, hard = rows(dtype=torch.float32)
    for share in (False, True):
        found = [
            losses(share_negatives=share)["sogclr"]()(x, y, *IDS, hard, ids)
            for ids in (HARD_IDS, HARD_IDS.T.contiguous().T)
        ]
        assert torch.equal(*found)


def worker(rank, ranks, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for name, share in DISTRIBUTED:
        torch.save(run(name, share, rank, ranks), f"{folder}/{name}-{share}-{rank}.pt")
    x, y, hard = rows(dtype=torch.float32)
    with pytest.raises(BadInput, match="negative_index 40 is out of range"):  # on the other rank too
        losses()["sogclr"]()(x, y, *IDS, hard, HARD_IDS if rank else torch.full((6, 2), 40))
    gc.collect()  # models that still hold on to the group would end its threads at exit, by an abort
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(worker, (2, port, str(tmp_path)), nprocs=2, start_method="spawn")
    for name, share in DISTRIBUTED:
        expected = run(name, share, 0, 1)
        got = [torch.load(tmp_path / f"{name}-{share}-{rank}.pt", weights_only=True) for rank in range(2)]
        for key, value in expected.items():
            assert torch.equal(got[0][key], got[1][key])
            torch.testing.assert_close(got[0][key], value, msg=lambda m, name=name, key=key: f"{name} {key}: {m}")
