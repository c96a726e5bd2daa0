"""Runs that version 0.1.0 wrote go on, and are read, as that version would have done: nothing that a user has may change."""

import json
import shutil
import tomllib

import numpy as np
import pytest
import saved_runs as saved
import torch

import sogclr
from sogclr.cli import main
from sogclr.commands.report.run_summary import RunSummary
from sogclr.run_folder import RunFolder

TOLERANCE = 1e-4  # of trained weights and metrics, relative: machines sum in different orders
# the same of a whole run: its steps make a rounding large, and sums over small batches are rounded otherwise since
AMPLIFIED = 0.1
ELSEWHERE = 0.5  # of a whole run, on processors with other instructions: what differs at first grows step by step


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """All runs as they were stored; not to be written to."""
    return saved.unpack(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def finished(stored, tmp_path_factory):
    """Name -> the folder of a finished run, with its data where its files say."""
    root = tmp_path_factory.mktemp("finished")
    return {name: saved.lay_out(stored / f"{name}-finished", root) for name in saved.FINISHED}


def close(found: dict, wanted: dict, tolerance: float) -> dict:
    """What differs between two lines of metrics."""
    assert found.keys() == wanted.keys()
    return {
        key: (found[key], value)
        for key, value in wanted.items()
        if found[key] != value and found[key] != pytest.approx(value, rel=tolerance, abs=tolerance / 10)
    }


def assert_as_expected(run, wanted, tolerance=TOLERANCE):
    """A run's end is the one that version 0.1.0 came to."""
    found = saved.summary(run)
    assert found["step"] == wanted["step"] == saved.STEPS
    for part, tensors in wanted["state"].items():
        assert found["state"][part].keys() == tensors.keys(), f"names of the {part}'s state"
        ours = found["state"][part]
        differ = {k: (ours[k], v) for k, v in tensors.items() if not saved.close(ours[k], v, tolerance)}
        assert not differ, part
    assert found["state"].keys() == wanted["state"].keys()
    assert found["rows"] == wanted["rows"]
    for kind in ("train", "eval", "diagnosis"):
        assert (kind in found["last"]) == (kind in wanted["last"])
    assert not close(found["last"]["train"], wanted["last"]["train"], tolerance)
    assert found["last"]["eval"] == pytest.approx(wanted["last"]["eval"], rel=0.05, abs=0.1)  # counts of neighbours
    if "diagnosis" in wanted["last"]:
        assert not close(found["last"]["diagnosis"], wanted["last"]["diagnosis"], tolerance)


@pytest.mark.parametrize("name", saved.KEPT)
def test_the_same_command_makes_the_same_run(name, stored, tmp_path):
    """With it what resuming does not need: first weights, defaults, the schedules' beginnings."""
    old = saved.lay_out(stored / f"{name}-interrupted", tmp_path / "old")
    options = saved.COMMON | saved.RUNS[name] | {"lr_rule": "sqrt", "gradient_scale": 1.0}  # the only ones in 0.1
    if name in saved.PAIRS:
        options["known_pairs"] = False  # 0.1 did not look for what matches by another pair
    if "pretrained" in options:
        options["pretrained"] = saved.STORED / options["pretrained"]
    run = sogclr.train(tmp_path / "old" / saved.source_of(name), tmp_path / "new", quiet=True, **options).path
    alike = saved.expected()["processor"] == torch.backends.cpu.get_cpu_capability()
    wanted = saved.expected()["runs"][name]
    assert (run / "start.safetensors").is_file() == ("pretrained" in options)
    if "pretrained" in options:  # 0.1 did not score the weights that a run started from
        wanted = wanted | {"rows": [["eval", 0], *wanted["rows"]]}
    assert_as_expected(run, wanted, AMPLIFIED if alike else ELSEWHERE)
    tables = [tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")) for folder in (run, old)]
    left_out = ["out", "pretrained", "balanced"] + ["queue"] * (saved.RUNS[name].get("method") != "moco")
    for section in ("data", "model", "loss", "optim", "run", "pairs"):
        found, wanted = ({k: v for k, v in t[section].items() if k not in left_out} for t in tables)
        assert wanted.items() <= found.items(), section


@pytest.mark.parametrize("name", saved.KEPT)
def test_an_interrupted_run_is_resumed_to_the_same_end(name, stored, tmp_path):
    run = saved.lay_out(stored / f"{name}-interrupted", tmp_path)
    wanted = saved.expected()["runs"][name]
    sogclr.resume(run, quiet=True)
    assert_as_expected(run, wanted)
    assert sogclr.load_encoder(run).info.name == "compat_net"
    if name in saved.PAIRS:
        assert (run / "two_tower.safetensors").is_file()


@pytest.mark.parametrize("name", saved.REMOVED)
def test_a_run_with_an_option_that_is_gone_is_refused_in_a_sentence(name, stored, tmp_path, capsys):
    """Nor is its configuration trained with anew, as if the option had not been there."""
    run = saved.lay_out(stored / f"{name}-interrupted", tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = f"was made with {saved.REMOVED[name]}, which sogclr 0.2 no longer has; install sogclr 0.1 to go on with it"
    assert main(["resume", str(run)]) == 2
    refused = capsys.readouterr().err
    assert f"{run} {words}" in refused
    assert refused.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(["train", "--config", str(run / "config.toml"), "--out", str(tmp_path / "next")]) == 2
    assert f"{run / 'config.toml'} {words}" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("name", ["boosted", "cosine-full", "pairs-memory"])
def test_a_finished_run_with_an_option_that_is_gone_is_read(name, stored, finished, tmp_path, capsys):
    """Its encoder does not depend on it: the end of another run of the same kind, with the configuration of this one."""
    other = "pairs-siglip" if name in saved.PAIRS else "sogclr"
    run, data = shutil.copytree(finished[other], tmp_path / "run"), finished[other].parents[1] / "data"
    table = (stored / f"{name}-interrupted" / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(table, encoding="utf-8")
    assert main(["resume", str(run)]) == 0  # it is finished
    assert main(["report", str(run), "--workers", "0"]) == 0
    shown = {"boosted": "SogCLR, boosted", "cosine-full": "SogCLR, γ 1 → 0.3", "pairs-memory": "SogCLR, memory"}[name]
    assert RunSummary.read(RunFolder(run)).method.replace("\xa0", " ") == shown
    page = (run / "report.html").read_text(encoding="utf-8").replace("\xa0", " ")
    assert all(part in page for part in shown.split(", "))
    assert main(["embed", str(run), str(data), "--out", str(tmp_path / "e.npz"), "--workers", "0"]) == 0
    source = data / "captions.csv" if name in saved.PAIRS else data
    capsys.readouterr()
    assert main(["eval", str(run), str(source), "--json", "--workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "encoder.safetensors")]) == 0
    assert main(["inspect", str(run), "--json"]) == 0


@pytest.mark.parametrize("name", ["moco", "pairs-isogclr"])
def test_the_command_resumes(name, stored, tmp_path, capsys):
    run = saved.lay_out(stored / f"{name}-interrupted", tmp_path)
    assert main(["resume", str(run), "--workers", "0"]) == 0
    assert f"resuming {run} at step {saved.CUT} of {saved.STEPS}" in " ".join(capsys.readouterr().err.split())
    assert saved.summary(run)["step"] == saved.STEPS


def test_a_resumed_run_writes_a_configuration_of_the_same_tables(stored, tmp_path):
    run = saved.lay_out(stored / "sogclr-interrupted", tmp_path)
    before = (run / "config.toml").read_bytes()
    sogclr.resume(run, quiet=True)
    assert (run / "config.toml").read_bytes() == before


def test_finished_runs_are_left_alone(finished, capsys):
    for run in finished.values():
        before = (run / "metrics.jsonl").read_bytes()
        assert main(["resume", str(run)]) == 0
        assert "is finished" in capsys.readouterr().err
        assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", saved.FINISHED)
def test_embeddings_are_as_they_were(name, finished, tmp_path):
    run, out = finished[name], tmp_path / "embeddings.npz"
    assert main(["embed", str(run), str(run.parents[1] / "data"), "--out", str(out), "--workers", "0"]) == 0
    found = np.load(out)["embedding"].astype(np.float64)
    wanted = np.load(saved.STORED / "embeddings.npz")[name].astype(np.float64)
    assert found.shape == wanted.shape
    cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 0.9999
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.linalg.norm(wanted, axis=1), rel=1e-4)


@pytest.mark.parametrize("name", saved.FINISHED)
def test_commands_read_finished_runs(name, finished, tmp_path, capsys):
    run = shutil.copytree(finished[name], tmp_path / "run")
    data = finished[name].parents[1] / "data"
    assert main(["inspect", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["report", str(run), "--workers", "0"]) == 0
    assert (run / "report.html").stat().st_size > 10_000
    source = data / "captions.csv" if name in saved.PAIRS else data
    capsys.readouterr()
    assert main(["eval", str(run), str(source), "--json", "--workers", "0"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert ("image_to_text_r1" if name in saved.PAIRS else "knn_top1") in scores
    assert json.loads((run / "eval.json").read_text()) == scores
    assert main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "encoder.safetensors")]) == 0
    encoder = sogclr.load_encoder(tmp_path / "encoder.safetensors")
    assert encoder.info == sogclr.load_encoder(run).info
    assert main(["inspect", str(tmp_path / "encoder.safetensors")]) == 0


@pytest.mark.parametrize("name", [name for name in saved.FINISHED if name in saved.PAIRS])
def test_finished_runs_on_pairs_are_searched(name, finished, tmp_path, capsys):
    run = finished[name]
    data, page = run.parents[1] / "data", tmp_path / "page.html"
    words = ["search", str(run), "the digit three", "--in", str(data), "--top", "3", "--out", str(page)]
    assert main([*words, "--workers", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert page.is_file()
    towers = sogclr.load_two_tower(run)
    rows = towers.encode_texts(["the digit three", "the digit four"])
    assert rows.shape == (2, 16)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", ["sogclr", "isogclr", "pairs-frozen"])
def test_a_new_run_starts_from_an_old_one(name, finished, tmp_path):
    run = finished[name]
    old = checkpoints(run)[-1]
    options = saved.COMMON | saved.RUNS[name] | {"max_steps": 1, "init_from": run}
    options.pop("pretrained", None)
    new = sogclr.train(run.parents[1] / saved.source_of(name), tmp_path / "next", quiet=True, **options).path
    first = checkpoints(new)[0]
    assert first["step"] == 0
    for key in old["model"]:
        assert torch.equal(first["model"][key], old["model"][key]), key
    for key in (k for k in old["loss"] if k.endswith(("log_u", "tau"))):
        assert torch.equal(first["loss"][key], old["loss"][key]), key


def checkpoints(run):
    files = sorted((run / "checkpoints").glob("step-*.pt"))
    return [torch.load(file, weights_only=True) for file in files]
