"""`inspect` says what is there: images with their bad files, a run, an encoder."""

import json
import math
import shutil

import numpy as np
import pytest
from digits import SMALL, sogclr_here, write_digits

import sogclr as package
from sogclr.cli import main
from sogclr.commands.inspect import inspect
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("data") / "digits", digits=3)
    empty, truncated = sorted((folder / "1").iterdir())[:2]
    empty.write_bytes(b"")
    truncated.write_bytes(truncated.read_bytes()[:90])
    misnamed = sorted((folder / "2").iterdir())[0]
    misnamed.rename(misnamed.with_suffix(".jpg"))
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    options = SMALL | {"batch_size": 4, "max_steps": 3, "max_bad": 0.5, "log_every": 1}
    return package.train(data, out, quiet=True, **options)


def test_a_folder_of_images(data):
    found = inspect(data)
    assert (found.kind, found.images) == ("images", 12)
    assert found.folders == {"0": 4, "1": 4, "2": 4}
    assert found.classes == ["0", "1", "2"]
    assert found.shorter_side == {"smallest": 16, "median": 16.0, "largest": 16}
    assert list(found.bad.values()) == ["is empty (0 bytes)"]
    assert list(found.notes.values()) == ["holds PNG data under the name .jpg; it is used"]
    assert found.bytes == sum(p.stat().st_size for p in data.rglob("*") if p.is_file())


def test_decoding_finds_the_truncated_ones_too(data):
    done = []
    found = inspect(data, decode=True, progress=lambda *counts: done.append(counts))
    assert len(found.bad) == 2
    assert any("truncated" in reason for reason in found.bad.values())
    assert done[-1] == (11, 11)
    assert found.checked == "decoded"


def test_a_run(run):
    found = inspect(run.path)
    assert (found.kind, found.state, found.step, found.steps) == ("run", "finished", 3, 3)
    assert found.config["run"]["batch_size"] == 4
    assert found.log_u["seen"] + found.log_u["unseen"] == 12
    assert found.log_u["seen"] == int(np.isfinite(run.log_u()).sum())
    assert found.checkpoints == [p.name for p in run.checkpoint_files()]


def test_an_encoder(run):
    found = inspect(run.encoder_file)
    assert (found.kind, found.name, found.image_size) == ("encoder", "resnet10_mini", 16)
    assert found.parameters == sum(p.numel() for p in package.load_encoder(run.path).parameters())


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("what", ["data", "run", "encoder"])
def test_the_command_prints_json_and_a_table(what, data, run, capsys):
    path = {"data": data, "run": run.path, "encoder": run.encoder_file}[what]
    assert json.loads(sogclr_here("inspect", path, "--json", check=0).stdout) == json.loads(
        json.dumps(inspect(path).to_json())
    )
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for word in {"data": ["12", "is empty"], "run": ["finished", "batch_size 4"], "encoder": ["resnet10_mini"]}[what]:
        assert word in shown


def test_what_cannot_be_inspected(run, tmp_path):
    with pytest.raises(BadInput, match="there is nothing at"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is a run and --decode reads images"):
        inspect(run.path, decode=True)
    (tmp_path / "x.safetensors").write_bytes(b"rubbish")
    with pytest.raises(BadInput, match="no readable safetensors file"):
        inspect(tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="holds no images"):
        inspect(tmp_path)


@pytest.mark.integration
def test_a_damaged_checkpoint_is_told_and_hides_nothing_else(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    newest = RunFolder(copy).latest_checkpoint()
    newest.write_bytes(newest.read_bytes()[:100])
    found = inspect(copy)
    assert found.images == 12
    assert found.log_u is None
    assert newest.name in found.damaged_checkpoint
    result = sogclr_here("inspect", copy)
    assert result.returncode == 0
    assert "damaged" in result.stdout


@pytest.mark.integration
@pytest.mark.slow
def test_advice_is_measured_on_the_images(tmp_path):
    data = write_digits(tmp_path / "digits", digits=3, per_digit=50)
    found = json.loads(sogclr_here("inspect", data, "--advise", "--minutes", "0.05", "--json", check=0).stdout)[
        "advice"
    ]
    assert list(found["rates"]) == ["16"]
    assert found["rates"]["16"] > 0
    assert found["batch_size"] == 16
    assert found["seconds"]["100"] == pytest.approx(100 * found["images"] / found["rates"]["16"])
    assert found["chosen"]["model"] == "resnet18_small"
    assert (found["chosen"]["gamma"], found["chosen"]["views"]) == (0.9, 2)
    assert [path.name for path in data.parent.iterdir()] == ["digits"]


def test_advice_needs_images_enough_and_no_run(data, run):
    with pytest.raises(BadInput, match="at least 128 images to measure on and found 11"):
        inspect(data, advise=True, quiet=True)
    for minutes in (0, math.nan, math.inf):  # the last two would train for ever
        with pytest.raises(BadInput, match=f"--minutes must be a finite number greater than 0 and was {minutes}"):
            inspect(data, advise=True, minutes=minutes, quiet=True)
    with pytest.raises(BadInput, match="is a run and --advise trains on images"):
        inspect(run.path, advise=True)
