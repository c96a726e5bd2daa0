"""`torchrun ... -m sogclr train`: two real processes train one model; killed, stopped and resumed; equal to one process."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, environment, words, write_digits

import sogclr as package
from sogclr.data.sampler import ResumableSampler
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training import build
from sogclr.training.image_task import ImageTask

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc"),
]

RUN = SMALL | {"epochs": 8, "save_every": 4, "log_every": 2, "eval_every": 4, "max_bad": 0.1}  # 40 steps
PLAIN = SMALL | {
    "model": "test_vit",
    "image_size": 32,
    "precision": "fp32",
    "optimizer": "sgd",
    "lr": 0.05,
    "max_steps": 6,
    "log_every": 1,
    "labels": "none",
    "eval_every": 3,
    "diagnose_every": 3,
}
ON_PAIRS = {k: v for k, v in PLAIN.items() if k not in ("labels", "diagnose_every")} | PAIRS
ON_PAIRS |= {"model": PLAIN["model"], "image_size": 32, "method": "isogclr", "optimizer": "sgd", "max_steps": 4}

# the same command, with a head without BatchNorm, whose statistics depend on how a batch is split, and one bad sample
WITHOUT_BATCH_NORM = """
import sys
from torch import nn
from sogclr.cli import main
from sogclr.training import build
from sogclr.training.image_task import ImageTask

build_image_model, make = build.build_image_model, ImageTask.inputs

def without_batch_norm(*args):
    model = build_image_model(*args)
    model.head = nn.Sequential(*(m for m in model.head if not isinstance(m, nn.BatchNorm1d)))
    return model

def inputs(self, batch):
    (views,) = make(self, batch)
    views[:len(batch.index)][(batch.index == POISONED) & (batch.step == 3)] = float("nan")
    return (views,)

build.build_image_model, ImageTask.inputs = without_batch_norm, inputs
if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
"""


# from Python, in a process group of the caller's: several runs, one after the other; all ranks must end with the same state
MANY_METHODS = """
import json, sys
import torch
import sogclr
from sogclr import distributed
from sogclr.models import features, two_tower
from sogclr.training import pair_task
from sogclr.training.trainer import Trainer

finish, evaluate, ended = Trainer.finish, Trainer.evaluate, []
Trainer.finish = lambda self: (finish(self), ended.append(self))

def evaluate_both_ways(self):
    together = self.task.evaluate()
    alone = distributed.run_on_rank0(self.task.evaluate)
    assert not distributed.is_rank0() or together == alone, (together, alone)
    return evaluate(self)

step = Trainer.train_step

def poisoned_once(self, batches):
    # the gradient of the second step is NaN on one rank, and so on both: it changes nothing, as both learn later
    if self.step == 0 and not distributed.is_rank0():
        next(self.model.parameters()).register_hook(lambda gradient: gradient * (float("nan") if self.step == 1 else 1.0))
    state = [*self.model.parameters(), *self.loss.state_dict().values()]
    before = [value.detach().clone() for value in state]
    step(self, batches)
    assert self.step != 2 or all(torch.equal(a, b) for a, b in zip(state, before, strict=True))

Trainer.evaluate, Trainer.train_step = evaluate_both_ways, poisoned_once
features.features_over_ranks.__kwdefaults__["batch_size"] = pair_task.BATCH = 6  # several for each process
features.TEXTS_AT_ONCE = two_tower.TEXTS_AT_ONCE = 4
data, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with distributed.process_group():
    for name, chosen in options.items():
        sogclr.train(chosen.pop("data", data), f"{out}/{name}", quiet=True, **chosen)
        state = [*ended[-1].model.parameters(), *ended[-1].loss.state_dict().values()]
        ranks = distributed.all_gather_object([value.detach() for value in state])
        assert len(ranks) == 2
        assert all(torch.equal(a, b) for a, b in zip(*ranks, strict=True)), name
        overflows = chosen.get("precision") == "fp16"  # its scale is lowered, which is no news
        assert distributed.all_gather_object(ended[-1].counts["skipped"]) == [0 if overflows else 1] * 2
"""

# the command itself, several times in the same processes, which saves their start
COMMANDS = """
import json, sys
from sogclr import distributed
from sogclr.cli import main

with distributed.process_group():
    for code, command in json.loads(sys.argv[1]):
        assert main(command) == code, command
"""
METHODS = {
    "moco": {"method": "moco", "queue": 24, "symmetric": True, "key_schedule": "cosine"},
    "isogclr": {"method": "isogclr", "accumulate": 2},
    "neuclip": {"method": "neuclip", "prototypes": 20},
    "softmax": {"num_negatives": 15.0, "workers": 1},
    "micro": {"temperature_mode": "global", "micro_batch": 4, "precision": "bf16"},
    "simclr": {"method": "simclr", "precision": "fp16", "labels": "auto"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("data") / "digits")
    (folder / "3" / "broken.png").write_bytes((folder / "3" / "0013.png").read_bytes()[:120])  # found when it is read
    return folder


def torchrun(*args, program=("-m", "sogclr"), ranks=2):
    """The command on several processes, started."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *program]
    return subprocess.Popen(
        [str(word) for word in (*launcher, *args)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process, code=0):
    out, error = process.communicate(timeout=240)
    assert (process.returncode == 0) == (code == 0), (out, error)
    return out, error


def wait_for_step(run, step, process):
    deadline = time.monotonic() + 120
    while max((row["step"] for row in run.metrics()), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def pid_of_rank(process, rank):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )


def state_of(run):
    return load_checkpoint(run.latest_checkpoint())


def assert_equal_runs(run, other):
    a, b = state_of(run), state_of(other)
    assert a["step"] == b["step"] == 40
    for part in ("model", "loss"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items()), part
    assert str(a["optimizer"]) == str(b["optimizer"])
    metrics = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (run, other)]
    assert metrics[0] == metrics[1]
    assert run.bad_file.read_text() == other.bad_file.read_text()


def assert_near(run, other):
    a, b = state_of(run), state_of(other)
    for part in ("model", "loss"):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
            torch.testing.assert_close(b[part][key], value, atol=1e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    out, error = finished(torchrun("train", data, "--out", run.path, *words(RUN)))
    assert out.count("encoder ") == 1
    assert error.count("trained 8 epochs") == error.count("skipping 3/broken.png") == error.count("processes 2") == 1
    assert "Warning" not in error
    return run


def test_two_processes_leave_one_run(uninterrupted):
    assert {p.name for p in uninterrupted.path.iterdir()} == {
        "config.toml",
        "manifest.parquet",
        "metrics.jsonl",
        "checkpoints",
        "encoder.safetensors",
        "bad_files.txt",
    }
    rows = uninterrupted.metrics()
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(2, 41, 2))
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [20, 40]
    assert torch.isfinite(torch.from_numpy(uninterrupted.log_u())).sum() == 40  # all but the broken one
    assert package.load_encoder(uninterrupted.path)(torch.zeros(2, 3, 16, 16)).shape[0] == 2


def test_killed_or_told_to_stop_a_run_resumes_bit_for_bit(data, uninterrupted, tmp_path):
    """A process that dies takes the run down; a signal to any stops all, with the state saved. Each time it goes on.

    With the normalizers divided among the processes, which changes nothing but where they are.
    """
    run = RunFolder(tmp_path / "run")
    process = torchrun("train", data, "--out", run.path, *words(RUN), "--shard-state")
    wait_for_step(run, 9, process)
    os.kill(pid_of_rank(process, 1), signal.SIGKILL)
    finished(process, code=1)
    died = state_of(run)["step"]
    assert 8 <= died < 30
    assert not run.encoder_file.exists()
    assert not list(run.path.rglob("*.tmp*"))
    single = RunFolder(shutil.copytree(run.path, tmp_path / "single"))

    process = torchrun("resume", run.path)
    wait_for_step(run, died + 3, process)
    os.kill(pid_of_rank(process, 1), signal.SIGTERM)
    _, error = finished(process, code=130)
    assert error.count(f"continue with `sogclr resume {run.path}`") == 1
    assert "exitcode  : 130" in error
    assert died + 3 <= state_of(run)["step"] < 40

    finished(torchrun("resume", run.path))
    assert_equal_runs(run, uninterrupted)
    package.resume(single.path, quiet=True)  # on one process: state is per sample, so it carries over
    seen = torch.from_numpy(uninterrupted.log_u()).isfinite()
    assert torch.equal(torch.from_numpy(single.log_u()).isfinite(), seen)
    objectives = [[row["objective"] for row in r.metrics() if row["kind"] == "train"][-1] for r in (single, run)]
    assert objectives[0] == pytest.approx(objectives[1], abs=0.2)  # BatchNorm's statistics are of 8 images, not 4


def test_two_processes_equal_one_without_batch_norm(tmp_path, monkeypatch):
    """A skipped step with its state restored, the diagnosis, and micro-batches (on the two) included."""
    data = write_digits(tmp_path / "digits", per_digit=2)
    script = tmp_path / "without_batch_norm.py"
    second = ResumableSampler(np.arange(20), 8, seed=0).permutation(1)[8:16]  # the batch of step 3; its end is rank 1's
    script.write_text(WITHOUT_BATCH_NORM.replace("POISONED", str(second[6])))
    runs = [RunFolder(tmp_path / name) for name in ("one", "two")]
    finished(torchrun("train", data, "--out", runs[1].path, *words(PLAIN | {"micro_batch": 3}), program=(script,)))
    for owner, name in ((build, "build_image_model"), (ImageTask, "inputs")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    runpy.run_path(str(script))
    package.train(data, runs[0].path, quiet=True, **PLAIN)
    assert_near(*runs)
    first = load_checkpoint(runs[0].checkpoint_files()[0])["model"]
    assert any(
        (state_of(runs[0])["model"][key] - value).abs().max() > 1e-2 for key, value in first.items()
    )  # it has trained
    skipped = [[row for row in run.metrics() if row["kind"] == "skipped"] for run in runs]
    assert [len(rows) for rows in skipped] == [1, 1]
    assert skipped[0][0]["ids"] == skipped[1][0]["ids"]
    assert sorted(skipped[0][0]["ids"]) == sorted(second)
    objectives = [[row["objective"] for row in run.metrics() if "objective" in row] for run in runs]
    assert objectives[0] == pytest.approx(objectives[1], abs=1e-4)


@pytest.fixture(scope="module")
def commands(data, uninterrupted, tmp_path_factory):
    """Commands one after the other on two processes: the folder of their runs, and what they said."""
    folder = tmp_path_factory.mktemp("commands")
    held_out = write_digits(folder / "held_out", 6, start=8)
    start = {"epochs": 1, "init_from": uninterrupted.path, "validation": held_out}
    given = {
        "refused": (2, data, RUN | {"batch_size": 9}),
        "gone": (2, folder / "nowhere", RUN),
        "pairs": (0, write_pairs(folder / "captioned", per_digit=2), ON_PAIRS),
        "started": (0, data, RUN | start),
    }
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    typed = [
        (code, ["train", str(source), "--out", str(folder / name), *words(options)])
        for name, (code, source, options) in given.items()
    ]
    _, error = finished(torchrun(json.dumps(typed), program=(script,)))
    return folder, error


def test_two_processes_equal_one_on_pairs(commands, tmp_path):
    """Neither tower has BatchNorm here, and every image and text has a temperature of its own."""
    folder, _ = commands
    runs = [package.train(folder / "captioned" / "captions.csv", tmp_path / "one", quiet=True, **ON_PAIRS)]
    runs.append(RunFolder(folder / "pairs"))
    assert_near(*runs)
    assert state_of(runs[0])["loss"]["text_temperature.tau"].std() > 0


def test_every_rank_ends_with_the_same_state(data, tmp_path):
    settings = SMALL | {"max_steps": 6, "log_every": 4, "labels": "none", "max_bad": 0.1, "precision": "fp32"}
    script = tmp_path / "many_methods.py"
    script.write_text(MANY_METHODS)
    options = {name: settings | chosen for name, chosen in METHODS.items()}
    pairs = {k: v for k, v in settings.items() if k not in ("labels", "max_bad")} | PAIRS | {"max_steps": 6}
    options["pairs"] = pairs | {"data": str(write_pairs(tmp_path / "captioned", per_digit=2))}
    finished(torchrun(data, tmp_path, json.dumps(options), program=(script,)))
    for name in options:
        rows = [row for row in RunFolder(tmp_path / name).metrics() if row["kind"] == "train"]
        assert [row["step"] for row in rows] == [4, 6]
        skipped = [row for row in RunFolder(tmp_path / name).metrics() if row["kind"] == "skipped"]
        assert [(row["step"], len(set(row["ids"])) > 4) for row in skipped] == [(2, True)] * (name != "simclr")
        assert all(np.isfinite(row["objective"]) for row in rows if "objective" in row)


def test_a_start_is_kept_and_scored_once(commands, uninterrupted):
    folder, error = commands
    run = RunFolder(folder / "started")
    assert [(row["kind"], row["step"]) for row in run.metrics() if row["kind"] == "eval"] == [("eval", 0), ("eval", 5)]
    assert (
        error.count("on validation images, whose weights the run keeps")
        + error.count("nothing was better than the start")
        == 1
    )
    assert error.count("epoch 0: knn_top1") == 1
    start = package.load_encoder(run.path, mix=0)
    assert start.fingerprint() == package.load_encoder(uninterrupted.path).fingerprint()


def test_what_cannot_be_used_is_refused_once(commands):
    folder, error = commands
    assert error.count("--batch-size 9 is the batch of all processes together") == 1
    assert "give 8" in error
    assert error.count("sogclr: ") == 2  # the second found by the main process alone, and told to the other
    assert not [name for name in ("refused", "gone") if (folder / name).exists()]
