import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from sogclr.checkpoint_file import DamagedCheckpoint
from sogclr.errors import BadInput
from sogclr.files import atomic_folder, atomic_write, check_output, clear_leftovers
from sogclr.run_folder import RunFolder, load_checkpoint, load_newest, save_checkpoint


def test_a_run_folder_says_where_it_is_and_how_far(tmp_path):
    run = RunFolder(tmp_path / "photos")
    assert repr(run) == f"RunFolder({str(tmp_path / 'photos')!r}, no run yet, step 0)"
    for step in (40, 1200):
        save_checkpoint(run, {"step": step, "weights": torch.ones(2)}, keep=1)
    run.config_file.touch()
    assert repr(run).endswith(", unfinished, step 1,200)")
    run.encoder_file.touch()
    assert repr(run).endswith(", finished, step 1,200)")
    assert os.fspath(run) == str(run.path)
    assert load_checkpoint(run.checkpoint_file(1200))["weights"].tolist() == [1, 1]


def test_a_run_folder_is_described_without_torch(tmp_path):
    code = f"import sys; from sogclr.run_folder import RunFolder; RunFolder({str(tmp_path)!r}).step; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --------------------------------------------------------------------------------------------------------------- damage
def test_a_flipped_bit_is_noticed_wherever_it_counts(tmp_path):
    run = RunFolder(tmp_path)
    path = save_checkpoint(run, {"step": 3, "weights": torch.arange(40.0), "name": "a"}, keep=1)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for at in rng.choice(8 * len(whole), 200, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        try:
            state = load_checkpoint(path)
        except BadInput:
            refused += 1
        else:  # what fills the file up to 64 bytes, or a date
            assert torch.equal(state["weights"], torch.arange(40.0))
            assert (state["step"], state["name"]) == (3, "a")
    assert refused > 20


def test_the_newest_whole_checkpoint_is_taken_and_it_is_said(tmp_path):
    run, said = RunFolder(tmp_path), []
    assert load_newest(run, said.append) is None
    for step in (4, 8, 12):
        save_checkpoint(run, {"step": step}, keep=3)
    for step in (8, 12):
        path = run.checkpoint_file(step)
        path.write_bytes(path.read_bytes()[:-200])
    path, state = load_newest(run, said.append)
    assert (path.name, state["step"]) == ("step-00000004.pt", 4)
    assert len(said) == 2
    assert said[0].endswith("going on from step-00000004.pt")
    assert run.step == 4  # the damaged ones have another name, and push no whole one out
    save_checkpoint(run, {"step": 6}, keep=1)
    assert load_newest(run, said.append)[1]["step"] == 6
    path = run.checkpoint_file(6)
    path.write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="truncated, damaged, or not one of ours"):
        load_newest(run, said.append)


def test_the_best_is_linked_before_the_checkpoint_has_its_name(tmp_path):
    """A kill between the two loses neither: this process is killed at each of the two renames."""
    code = """
import os, signal, sys
from sogclr import files
from sogclr.run_folder import RunFolder, save_checkpoint
run, at = RunFolder(sys.argv[1]), int(sys.argv[2])
save_checkpoint(run, {"step": 1}, keep=2)
real, count = os.replace, 0
def replace(a, b):
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(a, b)
os.replace = replace
save_checkpoint(run, {"step": 2}, keep=2, best=True)
"""
    for at, steps in ((1, (1, None)), (2, (1, 2)), (3, (2, 2))):
        run = RunFolder(tmp_path / str(at))
        subprocess.run([sys.executable, "-c", code, str(run.path), str(at)], check=False)
        best = load_checkpoint(run.best_checkpoint)["step"] if run.best_checkpoint.is_file() else None
        assert (run.step, best) == steps
        clear_leftovers(run.path)
        assert {p.name[:4] for p in run.checkpoints.iterdir()} <= {"step", "best"}


# ------------------------------------------------------------------------------------------------------ temporary files
def test_leftovers_of_killed_processes_are_cleared_and_no_others(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    inside = tmp_path / "checkpoints"
    inside.mkdir()
    for name in (f".step-1.{int(ended.stdout)}-00ff.tmp.pt", f".config.{int(ended.stdout)}.tmp.toml"):
        (inside / name).touch()
    kept = {f".report.{os.getppid()}-00ff.tmp.html", ".hidden.tmp", "mine.tmp", ".lock"}
    for name in kept:
        (inside / name).touch()
    clear_leftovers(tmp_path)
    assert {p.name for p in inside.iterdir()} == kept


def test_nobodys_link_is_followed_by_a_temporary_file(tmp_path, monkeypatch):
    """Even if the name were guessed."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("sogclr.files.secrets.token_hex", lambda size: "guessed")
    (tmp_path / f".out.{os.getpid()}-guessed.tmp.txt").symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "out.txt") as temporary:
        temporary.write_text("yours")
    (tmp_path / f".folder.{os.getpid()}-guessed.tmp").symlink_to(tmp_path)
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "folder"):
        pass
    assert victim.read_text() == "mine"


def test_what_a_killed_start_on_pairs_left_is_not_taken_for_the_next_runs(tmp_path):
    run = RunFolder(tmp_path / "run")
    for folder in (run.pairs_folder, run.validation.pairs_folder):
        folder.mkdir(parents=True)
        for name in ("captions", "rejected", "pairs"):
            (folder / f"{name}.arrow").touch()
    run.validation.manifest_file.touch()
    run.check_free()
    run.clear_remains()
    assert not run.holds_pairs()
    assert not run.validation.path.exists()
    run.pairs_folder.mkdir()
    (run.pairs_folder / "mine.csv").touch()
    with pytest.raises(BadInput, match=r"pairs holds other files \(mine.csv\); give a new or an empty --out"):
        run.clear_remains()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_folder_that_may_not_be_written_is_told_before_the_work(tmp_path):
    check_output(tmp_path / "e.npz", [".npz"])
    tmp_path.chmod(0o555)
    with pytest.raises(BadInput, match=r"e.npz lies in a folder that may not be written or is read-only; give another"):
        check_output(tmp_path / "e.npz", [".npz"])
    tmp_path.chmod(0o755)
