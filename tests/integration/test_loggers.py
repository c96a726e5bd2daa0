"""The metrics of a run go to experiment trackers, by the real packages and without network. See `make test-integrations`."""

import json
import sqlite3
import sys
from contextlib import closing

import pytest
from digits import SMALL, sogclr, words, write_digits

import sogclr as package
from sogclr.errors import BadInput
from sogclr.training import loggers

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]
RUN = SMALL | {"max_steps": 4, "log_every": 1, "save_every": 2, "labels": "none", "quiet": True}


def stopped_and_resumed(logger, tmp_path):
    """A run of four steps that was stopped after three, of which two are saved."""

    def stop(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    data = write_digits(tmp_path / "digits", per_digit=2)
    with pytest.raises(KeyboardInterrupt):
        package.train(data, tmp_path / "run", logger=logger, on_metrics=stop, **RUN)
    return package.resume(tmp_path / "run", quiet=True)


def objectives(run):
    return {row["step"]: row["objective"] for row in run.metrics() if "objective" in row}


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = stopped_and_resumed("wandb", tmp_path)
    identity = (run.path / "logger_id.txt").read_text()
    folders = list((run.path / "wandb").glob(f"offline-run-*-{identity}"))
    assert folders
    assert all(list(folder.glob("*.wandb")) for folder in folders)


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = stopped_and_resumed("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    found = client.get_run((run.path / "logger_id.txt").read_text())
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
    assert found.data.params["batch_size"] == "8"
    history = client.get_metric_history(found.info.run_id, "train/objective")
    assert {m.step: m.value for m in history} == pytest.approx(objectives(run))


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    run = stopped_and_resumed("trackio", tmp_path)
    assert (run.path / "logger_id.txt").read_text() == "run"
    (file,) = tmp_path.rglob("sogclr.db")
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    found = [(step, json.loads(metrics)) for _, step, metrics in rows]
    written = {step: values["train/objective"] for step, values in found if "train/objective" in values}
    assert written == pytest.approx(objectives(run))
    assert {name for name, *_ in rows} == {"run"}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_package_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    data = write_digits(tmp_path / "digits", per_digit=2)
    with pytest.raises(BadInput, match=f"--logger {name} needs .*: pip install {name}"):
        package.train(data, tmp_path / "run", logger=name, **RUN)
    assert not (tmp_path / "run").exists()


def test_the_option_is_refused_where_it_is_no_tracker(tmp_path):
    result = sogclr("train", tmp_path, "--out", tmp_path / "run", "--logger", "paper", *words(SMALL), check=2)
    assert "paper" in result.stderr


def test_rows_become_numbers():
    row = {"kind": "train", "step": 3, "epoch": 0.5, "objective": None, "lr": 0.1, "timing": {"seconds": 2.0}}
    assert loggers.numbers(json.loads(json.dumps(row))) == {"train/epoch": 0.5, "train/lr": 0.1, "train/seconds": 2.0}
    assert loggers.numbers({"kind": "skipped", "step": 1, "epoch": 0.0, "ids": [1], "reason": "x"}) == {
        "skipped/epoch": 0.0
    }
