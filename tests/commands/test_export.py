"""`export`: each format computes what PyTorch does, and nothing that does not is kept."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from digits import environment
from safetensors.torch import load_file, save_file

from sogclr import cli
from sogclr.commands import export as module
from sogclr.commands.export import export
from sogclr.commands.export_formats import SUFFIXES, run_torchscript
from sogclr.errors import BadInput, RunFailed
from sogclr.models import torchvision_cpu
from sogclr.models.backbone import create_backbone
from sogclr.models.encoder import Encoder, EncoderInfo, load_encoder, save_encoder
from sogclr.run_folder import RunFolder


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the run, to be written to."""
    return shutil.copytree(digits_run, tmp_path / "run")


def encoder_file(folder, name, size):
    """An encoder by timm name as a file; weights and BatchNorm statistics drawn."""
    torch.manual_seed(3)
    backbone = create_backbone(name, size)
    for buffer_name, buffer in backbone.named_buffers():
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    path = folder / f"{name}.safetensors"
    save_encoder(path, backbone, EncoderInfo(name, size))
    return path


PLAIN_TIMM = """
import runpy, sys, torch
folder, repair = sys.argv[1:]
timm = runpy.run_path(repair)["import_timm"]()  # for CPU builds of torch, where torchvision does not import by itself
for name, file, images, options in torch.load(folder + "/todo.pt"):
    model = timm.create_model(name, num_classes=0, checkpoint_path=file, **options).eval()
    torch.save(model(images), file + ".features")
assert not any(m.split(".")[0] == "sogclr" for m in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.integration
def test_timm_alone_loads_the_files(tmp_path):
    """In a process that has never heard of this project; create_model is strict about names and shapes."""
    todo, expected = [], []
    for name, size, options in [
        ("resnet18", 96, {}),
        ("test_vit", 64, {"img_size": 64}),
        ("test_efficientnet", 64, {}),
    ]:
        source = encoder_file(tmp_path, name, size)
        images = torch.randn(2, 3, size, size)
        todo.append((name, str(export(source, "timm", tmp_path / f"{name}-out.safetensors")), images, options))
        expected.append(load_encoder(source)(images))
    torch.save(todo, tmp_path / "todo.pt")
    words = ["-W", "ignore", "-c", PLAIN_TIMM, str(tmp_path), torchvision_cpu.__file__]
    environ = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, *words], check=True, env=environ)
    for (_, file, _, _), features in zip(todo, expected, strict=True):
        torch.testing.assert_close(torch.load(f"{file}.features"), features)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("format", SUFFIXES)
def test_every_format_agrees_with_the_encoder(format, run):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path = export(run, format)
    assert path == run / f"encoder{SUFFIXES[format]}"
    encoder = load_encoder(run)
    for count in (1, 5):  # other batch sizes than it was traced with
        images = torch.randn(count, 3, 16, 16)
        if format == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
        elif format == "torchscript":
            found = run_torchscript(path, images)
        else:
            found = load_encoder(path)(images)
        torch.testing.assert_close(found, encoder(images), rtol=1e-4, atol=1e-4)
    assert not [p for p in run.iterdir() if ".tmp" in p.name]


def test_the_file_of_a_run_is_checked_and_left_as_it_is(run):
    before = (run / "encoder.safetensors").read_bytes()
    assert export(run) == run / "encoder.safetensors"
    assert (run / "encoder.safetensors").read_bytes() == before


def test_an_exported_file_is_an_encoder_again(run, tmp_path):
    path = export(run, "safetensors", tmp_path / "a.safetensors")
    again = export(path, "timm", tmp_path / "b.safetensors")
    first, second = load_encoder(run), load_encoder(again)
    assert first.info == second.info
    assert first.fingerprint() == second.fingerprint()
    assert export(path, "torchscript") == tmp_path / "a.pt"  # beside the file it comes from


@pytest.mark.parametrize("format", ["torchscript", "timm"])
def test_a_file_that_computes_something_else_is_not_kept(format, run, tmp_path, monkeypatch):
    """The weights that are written are tampered with on the way."""

    write = getattr(module, f"write_{format}")

    def tampered(path, of, *example):
        info = load_encoder(run).info
        other = create_backbone(info.name, info.image_size).eval()
        write(path, Encoder(other, info) if isinstance(of, Encoder) else other, *example)

    monkeypatch.setattr(module, f"write_{format}", tampered)
    with pytest.raises(RunFailed, match=r"exported resnet10_mini differs from PyTorch by .*; nothing was written"):
        export(run, format, tmp_path / f"out{SUFFIXES[format]}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_features_that_are_no_numbers_are_not_exported(run, tmp_path):
    weights = load_file(run / "encoder.safetensors")
    from safetensors import safe_open

    with safe_open(run / "encoder.safetensors", framework="pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "checksum"}
    weights["conv1.weight"].fill_(float("nan"))
    save_file(weights, run / "encoder.safetensors", metadata=metadata)
    with pytest.raises(BadInput, match="not finite"):
        export(run, "torchscript")
    assert not (run / "encoder.pt").exists()


def test_bad_input_is_one_sentence_and_nothing_is_written(run, tmp_path):
    (tmp_path / "empty").mkdir()
    weights = load_file(run / "encoder.safetensors")
    save_file(weights, tmp_path / "foreign.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((run / "encoder.safetensors").read_bytes()[:-100])
    (tmp_path / "folder.pt").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for args, message in [
        ((tmp_path / "nowhere",), "there is no run or encoder file"),
        ((tmp_path / "empty",), "holds no finished encoder"),
        ((tmp_path / "foreign.safetensors",), "is marked None"),
        ((tmp_path / "cut.safetensors",), "truncated"),
        (
            (run, "jpg"),
            "there is no format 'jpg'; give one of timm, safetensors, torchscript, onnx, sentence-transformers",
        ),
        ((run, "sentence-transformers"), "--format sentence-transformers is for runs on pairs"),
        ((run, "onnx", tmp_path / "a.pt"), "ends in '.pt'; give a name in .onnx"),
        ((run, "timm", tmp_path / "no" / "a.safetensors"), "there is no folder"),
        ((run, "torchscript", tmp_path / "folder.pt"), "is a folder"),
    ]:
        with pytest.raises(BadInput) as error:
            export(*args)
        assert message in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before, message


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BadInput, match=r"needs the package onnx.*pip install 'sogclr\[onnx\]'"):
        export(run, "onnx")
    assert not list(run.glob("*onnx*"))


def test_the_command_prints_the_file(run, capfd):
    assert cli.main(["export", str(run), "--format", "torchscript"]) == 0
    out, err = capfd.readouterr()
    assert out == f"{run / 'encoder.pt'}\n"
    assert err.splitlines()[1:] == ["import torch", f"model = torch.jit.load('{run}/encoder.pt')"]
    export(run, "torchscript", quiet=True)
    assert tuple(capfd.readouterr()) == ("", "")


AS_SHOWN = """
import os, runpy, sys, torch
sys.modules["sogclr"] = None
runpy.run_path(sys.argv[2])["import_timm"]()  # for CPU builds of torch, where torchvision does not import by itself
os.chdir(sys.argv[1])
for name, images, lines in torch.load("todo.pt"):
    scope = {}
    exec(lines, scope)
    torch.save(scope["model"](images), name + ".features")
"""


@pytest.mark.slow
@pytest.mark.integration
def test_the_lines_that_are_shown_load_the_file_without_this_package(tmp_path, capfd):
    todo, expected = [], {}
    sizes = {
        "resnet10_mini": 16,
        "resnet18_small": 32,
        "resnet18_stride2": 32,
        "resnet50_small": 32,
        "resnet18": 96,
        "test_vit": 64,
    }
    for name, size in sizes.items():
        source, images = encoder_file(tmp_path, name, size), torch.randn(2, 3, size, size)
        capfd.readouterr()
        assert cli.main(["export", str(source)]) == 0
        _card, *lines = capfd.readouterr().err.splitlines()
        assert "\n".join(lines).replace(f"{tmp_path}/", "") in (tmp_path / "README.md").read_text()
        assert len(lines) <= 5
        todo.append((name, images, "\n".join(lines)))
        expected[name] = load_encoder(source)(images)
    torch.save(todo, tmp_path / "todo.pt")
    words = ["-W", "ignore", "-c", AS_SHOWN, str(tmp_path), torchvision_cpu.__file__]
    environ = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, *words], check=True, env=environ)
    for name, features in expected.items():
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.features"), features)


def test_the_model_card_says_what_is_known_and_no_place(run, tmp_path):
    (run / "eval.json").write_text('{"knn_top1": 0.75, "split": "test"}')
    export(run, quiet=True)
    card = (run / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n")
    assert "| knn_top1 | 0.75 |" in card
    assert f"fingerprint `{RunFolder(run).manifest().fingerprint}`" in card
    assert 'optimizer = "adamw"' in card
    assert "timm.create_model('resnet18', num_classes=0, layers=(1, 1, 1, 1)" in card
    assert str(RunFolder(run).config().data.data) not in card
    # it is written anew, unless it is somebody else's
    export(run, "torchscript", quiet=True)
    assert "torch.jit.load('encoder.pt')" in (run / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    export(run, "timm", tmp_path / "e.safetensors", quiet=True)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_onnx_file_says_how_images_become_inputs(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = export(run, "onnx", tmp_path / "e.onnx", quiet=True)
    found = {p.key: json.loads(p.value) for p in onnx.load(str(path)).metadata_props if p.key in ("mean", "image_size")}
    assert found == {"mean": [0.485, 0.456, 0.406], "image_size": 16}
