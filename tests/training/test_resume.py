"""A run that is killed, anywhere, and resumed is bit for bit the run that never stopped."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from digits import SMALL, environment, sogclr, sogclr_here, words, write_digits

import sogclr as package
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder, load_checkpoint

RUN = SMALL | {"epochs": 12, "save_every": 4, "log_every": 3, "eval_every": 3, "gamma_schedule": "cosine"}  # 60 steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("data") / "digits")
    (folder / "3" / "broken.png").write_bytes((folder / "3" / "0013.png").read_bytes()[:120])  # found when it is read
    return folder


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    return package.train(data, tmp_path_factory.mktemp("runs") / "whole", max_bad=0.1, quiet=True, **RUN)


def assert_equal_runs(run: RunFolder, other: RunFolder) -> None:
    a, b = (load_checkpoint(r.latest_checkpoint()) for r in (run, other))
    assert a["step"] == b["step"] == 60
    for part in ("model", "loss"):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), key
    assert str(a["optimizer"]) == str(b["optimizer"])
    metrics = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (run, other)]
    assert metrics[0] == metrics[1]
    assert run.bad_file.read_text() == other.bad_file.read_text()
    assert np.array_equal(run.log_u(), other.log_u())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_run(workers, data, uninterrupted, tmp_path):
    run = package.train(data, tmp_path / "run", max_bad=0.1, quiet=True, **(RUN | {"workers": workers}))
    assert_equal_runs(run, uninterrupted)


def start(data, out, **options):
    command = [sys.executable, "-m", "sogclr", "train", data, "--out", out, "--max-bad", "0.1", *words(RUN | options)]
    return subprocess.Popen(
        [str(w) for w in command], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def steps_written(run):
    return max((row["step"] for row in run.metrics()), default=0)


@pytest.mark.integration
@pytest.mark.slow
def test_kill_9_in_mid_epoch_twice_then_resume(data, uninterrupted, tmp_path):
    run = RunFolder(tmp_path / "run")
    process = start(data, run.path, workers=2)
    wait_for(lambda: steps_written(run) >= 9, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.latest_checkpoint() is not None
    assert not run.encoder_file.exists()

    again = subprocess.Popen(
        [sys.executable, "-m", "sogclr", "resume", str(run.path), "--workers", "1"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: steps_written(run) >= 33, again)
    again.send_signal(signal.SIGKILL)
    again.communicate()

    with open(run.metrics_file, "a") as file:
        file.write('{"kind": "train", "step": 3')  # a line that the kill cut off
    result = sogclr_here("resume", run.path, "--workers", 0, check=0)
    assert "resuming" in result.stderr
    assert_equal_runs(run, uninterrupted)
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_ends_with_130(number, data, uninterrupted, tmp_path):
    run = RunFolder(tmp_path / "run")
    process = start(data, run.path, workers=1, save_every=1000)
    wait_for(lambda: steps_written(run) >= 6, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"continue with `sogclr resume {run.path}`" in error
    assert "Traceback" not in error
    assert load_checkpoint(run.latest_checkpoint())["step"] >= 6
    package.resume(run.path, quiet=True)
    assert_equal_runs(run, uninterrupted)


def test_resume_before_the_first_checkpoint_starts_again(data, uninterrupted, tmp_path):
    """All that a kill right after the start leaves: the configuration, the manifest, the first state."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for file in (uninterrupted.config_file, uninterrupted.manifest_file):
        shutil.copy(file, run.path)
    package.resume(run.path, quiet=True)
    assert_equal_runs(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.integration
def test_a_finished_run_is_left_alone(uninterrupted):
    before = uninterrupted.metrics_file.read_bytes()
    result = sogclr_here("resume", uninterrupted.path, check=0)
    assert "is finished" in result.stderr
    assert uninterrupted.metrics_file.read_bytes() == before


@pytest.fixture
def stopped(data, tmp_path):
    """A run of its own data folder that still has steps to do."""
    shutil.copytree(data, tmp_path / "data")
    run = package.train(tmp_path / "data", tmp_path / "run", max_bad=0.1, quiet=True, **(RUN | {"epochs": 2}))
    run.encoder_file.unlink()
    return run, tmp_path / "data"


def test_resume_names_what_changed_in_the_folder(stopped):
    run, folder = stopped
    victim = sorted((folder / "4").iterdir())[0]
    victim.rename(folder / "4" / "zzz.png")
    with pytest.raises(
        BadInput, match=rf"1 added \(first: 4/zzz.png\), 1 removed \(first: 4/{victim.name}\).*--init-from"
    ):
        package.resume(run.path, quiet=True)


@pytest.mark.slow
@pytest.mark.integration
def test_init_from_takes_weights_and_the_normalizers_of_common_images(stopped, tmp_path):
    run, folder = stopped
    sorted((folder / "4").iterdir())[0].rename(folder / "4" / "zzz.png")
    options = RUN | {"epochs": 1, "lr": 1e-12, "gamma_schedule": "constant", "gamma": 1e-6}
    result = sogclr_here(
        "train",
        folder,
        "--out",
        tmp_path / "next",
        "--init-from",
        run.path,
        "--max-bad",
        0.1,
        "--warm-start",
        "none",
        *words(options),
        check=0,
    )
    assert "with 40 normalizers; 1 added (first: 4/zzz.png), 1 removed" in result.stderr
    first = load_checkpoint(run.latest_checkpoint())
    then = load_checkpoint(RunFolder(tmp_path / "next").checkpoint_files()[0])
    names = {run.manifest().relative(i): i for i in range(len(run.manifest()))}
    manifest = RunFolder(tmp_path / "next").manifest()
    for i in range(len(manifest)):
        if manifest.relative(i) in names:
            new, old = then["loss"]["estimator.log_u"][i], first["loss"]["estimator.log_u"][names[manifest.relative(i)]]
            assert torch.isclose(new, old, atol=1e-2) or torch.isneginf(old)
    torch.testing.assert_close(then["model"]["backbone.conv1.weight"], first["model"]["backbone.conv1.weight"])


def test_truncated_foreign_and_other_versions_checkpoints_are_refused(stopped):
    run, _ = stopped
    *older, newest = run.checkpoint_files()
    for checkpoint in older:
        checkpoint.unlink()
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cannot be read as a checkpoint"):
        package.resume(run.path, quiet=True)
    torch.save({"format": "sogclr-checkpoint-0", "step": 3}, newest)
    with pytest.raises(BadInput, match="has format 'sogclr-checkpoint-0' and this version reads 'sogclr-checkpoint-1'"):
        package.resume(run.path, quiet=True)
    torch.save({"step": 3}, newest)
    with pytest.raises(BadInput, match="has format None"):
        package.resume(run.path, quiet=True)


@pytest.mark.integration
@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint(data, tmp_path):
    """The limit on a file's size stands for a full disk: the write fails half way."""
    import resource

    run = RunFolder(tmp_path / "run")
    process = start(data, run.path)
    wait_for(lambda: steps_written(run) >= 9, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    before = {p.name: p.read_bytes() for p in run.checkpoint_files()}
    limited = sogclr(
        "resume",
        run.path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY)),
    )
    assert limited.returncode == 1, limited.stderr
    assert "could not be written ([Errno 27] File too large); free some space" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert {p.name: p.read_bytes() for p in run.checkpoint_files()} == before
    assert not list(run.path.rglob("*.tmp"))
    package.resume(run.path, quiet=True)
    assert run.encoder_file.exists()


def test_a_run_goes_on_from_its_newest_whole_checkpoint_and_clears_what_a_kill_left(
    data, uninterrupted, tmp_path, capsys
):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(uninterrupted.path, run.path)
    run.encoder_file.unlink()
    newest = run.latest_checkpoint()
    newest.write_bytes(newest.read_bytes()[:-1000])
    left = run.checkpoints / f".{newest.stem}.999999999-00ff.tmp.pt"
    left.write_bytes(b"half of a checkpoint")
    package.resume(run.path)
    assert "step-00000060.pt is damaged, and is now damaged-step-00000060.pt" in capsys.readouterr().err
    assert_equal_runs(run, uninterrupted)
    assert not left.exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('device = "cpu"', 'device = "cuda:99"', "--device cuda:99 is not there .*; give --device auto"),
        ("[loss]", "[loss]\nflux = 3", r"config.toml is changed, or of another version: \[loss\] .* no option 'flux'"),
        ("temperature = 0.1", "temperature = -1", "config.toml is changed, .*: --temperature must be greater than 0"),
        ("temperature = 0.1", "", r"\[loss\] temperature is left out of the configuration, .*; put it back"),
    ],
    ids=[
        "a machine without its device",
        "an option of a newer version",
        "a value that cannot be",
        "a choice taken out",
    ],
)
def test_a_configuration_that_cannot_go_on_here_is_said(old, new, said, uninterrupted, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(uninterrupted.path, run.path)
    run.encoder_file.unlink()
    text = run.config_file.read_text()
    assert old in text
    run.config_file.write_text(text.replace(old, new, 1))
    before = sorted(run.path.rglob("*"))
    with pytest.raises(BadInput, match=said):
        package.resume(run.path, quiet=True)
    assert sorted(run.path.rglob("*")) == before
