"""Batches of neighbours: the same run however often it is killed, on one process or two, and near samples together."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import two_ranks as on_two
from digits import SMALL, environment, words, write_digits

import sogclr as package
from sogclr import distributed
from sogclr.config.schema import RunConfig
from sogclr.data.sampler import ResumableSampler
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.neighbours import Neighbours, neighbour_lines

RUN = SMALL | {"epochs": 3, "batches": "neighbours", "save_every": 7, "log_every": 3, "labels": "none", "eval_every": 3}
STEPS = 3 * 25  # of 200 images; those of the tree are 128 at least
TEXTS = {
    "epochs": 3,
    "batch_size": 10,
    "batches": "neighbours",
    "columns": "definition,word",
    "text_width": 32,
    "text_layers": 1,
    "vocab_size": 300,
    "save_every": 7,
    "log_every": 1,
    "device": "cpu",
    "precision": "fp32",
    "lr": 3e-3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("data") / "digits", per_digit=20)
    (folder / "3" / "broken.png").write_bytes((folder / "3" / "0013.png").read_bytes()[:120])  # found when it is read
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """200 pairs of a sentence and two words."""
    path = tmp_path_factory.mktemp("texts") / "pairs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["definition", "word"])
        for i in range(200):
            writer.writerow([f"a thing of kind {i % 20} and of size {i // 20}", f"kind{i % 20} size{i // 20}"])
    return path


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    return package.train(data, tmp_path_factory.mktemp("runs") / "whole", max_bad=0.1, quiet=True, **RUN)


def state(run):
    return load_checkpoint(run.latest_checkpoint())


def assert_equal_runs(run, other):
    a, b = state(run), state(other)
    assert a["step"] == b["step"]
    for part in ("model", "loss", "neighbours"):
        for key, value in a[part].items():
            same = (
                torch.equal(value.nan_to_num(9), b[part][key].nan_to_num(9))
                if key != "epoch"
                else value == b[part][key]
            )
            assert same, key
    metrics = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (run, other)]
    assert metrics[0] == metrics[1]


def killed_after(run, step, folder):
    """Return a copy of a finished run as a kill after `step` would have left it."""
    part = RunFolder(shutil.copytree(run.path, folder))
    for path in part.checkpoint_files():
        if load_checkpoint(path)["step"] > step:
            path.unlink()
    for path in (part.encoder_file, part.two_tower_file):
        path.unlink(missing_ok=True)
    assert state(part)["step"] == step
    return part


def start(*arguments):
    command = [sys.executable, "-m", "sogclr", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at(run, step, process):
    while max((row["step"] for row in run.metrics()), default=0) < step:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.integration
@pytest.mark.slow
def test_killed_in_two_epochs_and_resumed_with_other_workers(data, uninterrupted, tmp_path):
    """Readers are ahead of training when it is killed, and would be in the next epoch if they were let."""
    run = RunFolder(tmp_path / "run")
    kill_at(run, 33, start("train", data, "--out", run.path, "--max-bad", 0.1, *words(RUN | {"workers": 2})))
    assert state(run)["neighbours"]["epoch"] == 1
    kill_at(run, 57, start("resume", run.path, "--workers", 1))
    assert state(run)["neighbours"]["epoch"] == 2
    package.resume(run.path, workers=0, quiet=True)
    assert state(run)["step"] == STEPS
    assert_equal_runs(run, uninterrupted)


@pytest.fixture(scope="module")
def all_kept(data, tmp_path_factory):
    options = RUN | {"save_every": 1, "keep": 99, "max_bad": 0.1, "quiet": True, "max_steps": 53}
    return package.train(data, tmp_path_factory.mktemp("runs") / "kept", **options)


@pytest.mark.parametrize("step", [25, 28, 49, 50])
def test_resumed_at_the_edge_of_an_epoch_and_within(step, all_kept, tmp_path):
    part = killed_after(all_kept, step, tmp_path / "part")
    package.resume(part.path, quiet=True)
    assert_equal_runs(all_kept, part)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "moco", "queue": 32},
        {"method": "moco", "queue": 32, "symmetric": True},
        {"method": "simclr", "micro_batch": 4, "precision": "bf16"},
        {"method": "isogclr", "accumulate": 2},
        {"method": "dcl", "accumulate": 3},
    ],
    ids=str,
)
def test_every_kind_of_step_resumes_bit_for_bit(options, data, tmp_path):
    options = RUN | {"save_every": 1, "keep": 99, "max_bad": 0.1, "quiet": True} | options
    whole = package.train(data, tmp_path / "whole", **options)
    part = killed_after(whole, state(whole)["step"] * 5 // 9, tmp_path / "part")
    package.resume(part.path, quiet=True)
    assert_equal_runs(whole, part)
    kept = state(whole)["neighbours"]["rows"][:, 0].isfinite()
    assert kept.sum() == 200  # all but the one that cannot be read


@pytest.mark.parametrize("options", [{}, {"method": "clip"}, {"method": "siglip", "micro_batch": 5}], ids=str)
def test_pairs_resume_bit_for_bit(options, table, tmp_path):
    whole = package.train(table, tmp_path / "whole", **(TEXTS | {"keep": 99, "quiet": True} | options))
    part = killed_after(whole, 42, tmp_path / "part")
    package.resume(part.path, quiet=True)
    assert_equal_runs(whole, part)


def test_near_pairs_meet(table, tmp_path):
    run = package.train(table, tmp_path / "run", quiet=True, **TEXTS)
    found = state(run)["neighbours"]
    rows, order = found["rows"].float(), found["ids"].long()
    assert order.sort().values.tolist() == list(range(200))
    # the last epoch has moved the embeddings only so far: those that were near before it are near after it
    groups = [
        rows[ids].view(-1, 5, rows.shape[1])
        for ids in (order, torch.randperm(200, generator=torch.Generator().manual_seed(0)))
    ]
    near, by_chance = (torch.cdist(group, group).mean() for group in groups)
    assert near < 0.9 * by_chance


def test_the_first_epoch_and_a_run_without_are_as_they_were(data, uninterrupted, tmp_path):
    plain = package.train(
        data, tmp_path / "run", max_bad=0.1, quiet=True, **{k: v for k, v in RUN.items() if k != "batches"}
    )
    assert "neighbours" not in state(plain)
    values = [[row["objective"] for row in run.metrics() if row["kind"] == "train"] for run in (plain, uninterrupted)]
    assert values[0][:8] == values[1][:8]  # 24 steps of 25
    assert values[0][9:] != values[1][9:]
    last = state(uninterrupted)["neighbours"]["ids"].numpy()
    random = ResumableSampler(plain.manifest().usable, 8, 0).permutation(2)
    assert np.array_equal(np.sort(last), np.sort(random))
    assert np.array_equal(last[200:], random[200:])


def test_the_mean_of_two_unit_embeddings_is_kept_where_it_is_finite():
    neighbours = Neighbours(6, 4, seed=0)
    z = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    z[1, 3] = torch.nan
    index = torch.tensor([5, 2])
    outputs = neighbours.watch(lambda x: x, index)(z)  # two views of two samples, one of them not finite
    assert outputs is z
    assert neighbours.rows.isfinite().all(dim=1).tolist() == [False, False, False, False, False, True]
    neighbours.watch(lambda x: (x[:2], x[2:], x), index)(z.nan_to_num(0.5) * 7)
    mean = torch.nn.functional.normalize(z.nan_to_num(0.5), dim=1).view(2, 2, 32).mean(dim=0)
    kept = neighbours.rows[index].float()
    assert torch.cosine_similarity(mean @ neighbours._projection, kept, dim=1).min() > 0.999
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 2}, "half a batch with near samples and --batch-size was 2; give 4 or more"),
        ({"batch_size": 110}, "among 128 images or more and an epoch has 110; leave it out"),
        ({"epochs": 1}, "begins with the second epoch and this run ends in its first, of 25 batches; leave it out"),
        ({"max_steps": 8, "accumulate": 3}, "this run ends in its first"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_sentence(options, sentence, data, tmp_path):
    with pytest.raises(BadInput, match=sentence):
        package.train(data, tmp_path / "run", max_bad=0.1, quiet=True, **(RUN | options))
    assert not (tmp_path / "run").exists()


def test_a_run_says_so():
    assert neighbour_lines(RunConfig(), "images") == []
    (line,) = neighbour_lines(RunConfig(batches="neighbours", batch_size=32), "pairs")
    assert "from the second epoch on of groups of 16 pairs that are near" in line


# ------------------------------------------------------------------------------------------------------------ two ranks
def two_ranks(folder: Path) -> None:
    """Keep half a batch on each rank and compare order and embeddings with those of one process."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    here, alone = Neighbours(400, 8, seed=1), Neighbours(400, 8, seed=1)
    z = torch.randn(50, 2, 8, 32, generator=torch.Generator().manual_seed(0))
    part = slice(4 * distributed.rank(), 4 * distributed.rank() + 4)
    for step in range(50):
        index = torch.arange(8) * 50 + step
        here.keep(tuple(z[step, :, part]), index[part])
        alone.keep(tuple(z[step]), index)  # both ranks send all of it, so each row comes twice
    assert torch.equal(here.rows, alone.rows)
    if not distributed.is_rank0():
        here.rows = here.rows.flip(0)  # it is rank 0's order that counts
    permutation = np.random.default_rng(0).permutation(400)
    order = here.order(permutation, 1)
    assert all(np.array_equal(order, other) for other in distributed.all_gather_object(order))
    assert np.array_equal(order, alone._order(permutation, 1))


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_keep_and_order_what_one_does(tmp_path):
    on_two.run(__file__, tmp_path)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_stopped_in_mid_epoch_go_on_as_if_they_never_were(table, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sogclr"]

    def torchrun(*arguments):
        environment_of = environment() | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        process = [*command, *map(str, arguments)]
        result = subprocess.run(process, env=environment_of, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr

    whole = RunFolder(tmp_path / "whole")
    torchrun("train", table, "--out", whole.path, *words(TEXTS | {"keep": 99}))
    part = killed_after(whole, 42, tmp_path / "part")
    torchrun("resume", part.path)
    assert state(part)["neighbours"]["epoch"] == 2
    assert_equal_runs(whole, part)
