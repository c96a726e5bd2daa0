"""Training on pairs by the same commands: it learns, resumes bit for bit, freezes towers, and refuses what cannot be."""

import json
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import environment, sogclr_here, words

import sogclr as package
from sogclr.cli import main
from sogclr.commands.export import export
from sogclr.config.toml import from_options
from sogclr.data.pairs import Pairs
from sogclr.errors import BadInput
from sogclr.models.two_tower import load_two_tower
from sogclr.progress import Progress
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.build import build
from sogclr.training.resolve import resolve
from sogclr.training.trainer import Trainer

RUN = PAIRS | {"epochs": 4, "batch_size": 16, "save_every": 4, "log_every": 2, "eval_every": 2}  # 20 steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = write_pairs(tmp_path_factory.mktemp("data") / "digits")
    with open(path, "a", encoding="utf-8") as file:
        file.write("zero/gone.png,lost\nthree/0013.png,\n")
    return path


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return package.train(data, tmp_path_factory.mktemp("runs") / "whole", max_bad=0.1, quiet=True, **RUN)


def test_a_run_leaves_what_is_needed_to_use_it(run, data):
    assert {p.name for p in run.path.iterdir()} == {
        "config.toml",
        "manifest.parquet",
        "pairs",
        "text",
        "metrics.jsonl",
        "checkpoints",
        "encoder.safetensors",
        "two_tower.safetensors",
        "bad_files.txt",
    }
    assert run.bad_file.read_text() == "captions.csv:83\thas an empty caption\nzero/gone.png\tdoes not exist\n"
    kinds = [row["kind"] for row in run.metrics()]
    assert kinds.count("eval") == 2
    last = [row for row in run.metrics() if row["kind"] == "eval"][-1]
    assert 0 <= last["image_to_text_r1"] <= last["image_to_text_r5"] <= 1
    state = load_checkpoint(run.latest_checkpoint())["loss"]
    assert torch.isfinite(state["image_estimator.log_u"]).sum() == 40  # and not the missing one
    assert len(state["text_estimator.log_u"]) == 21
    towers = load_two_tower(run.path)
    rows = towers.encode_texts(["the digit three", "another text, long and in no caption at all ünd ändere", ""])
    assert rows.shape == (3, 128)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3))
    assert package.load_encoder(run.path).num_features == 128


def assert_equal_runs(run, other):
    a, b = (load_checkpoint(r.latest_checkpoint()) for r in (run, other))
    assert a["step"] == b["step"] == 20
    for part in ("model", "loss"):
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), key
    metrics = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (run, other)]
    assert metrics[0] == metrics[1]


@pytest.mark.integration
@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_run_bit_for_bit(run, data, tmp_path):
    """In another process, with another number of reader processes."""
    other = RunFolder(tmp_path / "run")
    command = [
        sys.executable,
        "-m",
        "sogclr",
        "train",
        data,
        "--out",
        other.path,
        "--max-bad",
        0.1,
        *words(RUN | {"workers": 1}),
    ]
    process = subprocess.Popen([str(w) for w in command], env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while max((row["step"] for row in other.metrics()), default=0) < 6:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not other.encoder_file.exists()
    assert "resuming" in sogclr_here("resume", other.path, "--workers", 0, check=0).stderr
    assert_equal_runs(run, other)


def test_a_changed_table_is_named_on_resume(data, run, tmp_path):
    path = write_pairs(tmp_path / "data", digits=4)
    unfinished = package.train(path, tmp_path / "run", quiet=True, **RUN)
    unfinished.two_tower_file.unlink()
    path.write_text(path.read_text().replace("a handwritten two", "a drawn two", 1))
    with pytest.raises(BadInput, match=r"1 added \(first: two/.*: a drawn two\), 1 removed"):
        package.resume(unfinished.path, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "clip"},
        {"method": "siglip"},
        {"method": "isogclr"},
        {"temperature_mode": "global"},
        {"method": "neuclip"},
        {"gamma_schedule": "cosine", "gamma": 0.2},
        {"num_negatives": 15.0},
        {"accumulate": 2},
        {"precision": "fp16"},
        {"method": "isogclr", "accumulate": 2, "precision": "fp16"},
        {"method": "siglip", "precision": "fp16"},
    ],
    ids=str,
)
def test_every_method_trains_and_resumes(options, data, tmp_path):
    """What the loss itself learns moves, and is the same after a stop."""
    how = RUN | {"max_steps": 6, "max_bad": 0.1, "quiet": True, "save_every": 3} | options
    whole = package.train(data, tmp_path / "whole", **how)
    state = load_checkpoint(whole.latest_checkpoint())
    assert all(torch.isfinite(v).all() for v in state["model"].values() if v.is_floating_point())
    learned = {k: v for k, v in state["loss"].items() if k.split(".")[-1] in ("tau", "log_scale", "bias")}
    assert all(not torch.all(v == v.flatten()[0]) or v.ndim == 0 for v in learned.values())
    if options.get("method") in ("siglip", "isogclr") or "temperature_mode" in options:
        assert learned
        first = 0.1 if "siglip" not in options.values() else None
        assert first is None or all((v != first).any() for v in learned.values())
    whole.two_tower_file.unlink()
    whole.latest_checkpoint().unlink()
    again = package.resume(whole.path, quiet=True)
    for key, value in load_checkpoint(again.latest_checkpoint())["loss"].items():
        assert torch.equal(value, state["loss"][key]), key


def test_steps_of_several_batches_see_as_many_pairs(data, tmp_path):
    """Two batches a step: 10 of 16 are the 80 pairs twice, so each state is updated 10 times and has seen all."""
    how = RUN | {"max_bad": 0.1, "quiet": True, "accumulate": 2, "max_steps": 5}
    run = package.train(data, tmp_path / "run", **how)
    state = load_checkpoint(run.latest_checkpoint())["loss"]
    assert (int(state["image_estimator.step"]), int(state["text_estimator.step"])) == (10, 10)
    assert torch.isfinite(state["image_estimator.log_u"]).sum() == 40
    assert torch.isfinite(state["text_estimator.log_u"]).sum() == 20


@pytest.mark.slow
@pytest.mark.parametrize("what", ["image", "gradient"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2},
        {"method": "isogclr", "accumulate": 2},
        {"method": "siglip"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_a_step_without_finite_gradient_changes_nothing(options, what, data, tmp_path):
    """Both towers, both states of the loss and its temperatures are those from before; the next step is taken."""
    config, _ = resolve(
        from_options({"data": str(data), "out": str(tmp_path / "run"), "max_bad": 0.1, **RUN, **options}),
        Pairs.scan(data),
    )
    (tmp_path / "run").mkdir()
    trainer = Trainer(build(config, Pairs.scan(data), RunFolder(tmp_path / "run"), Progress(quiet=True)))
    poisoned, augment, states, step = 3, trainer.task.augment, [], trainer.train_step

    class Poison:
        recipe, image_size, seed = augment.recipe, augment.image_size, augment.seed

        def __call__(self, crops, index, epoch, view):
            images = augment(crops, index, epoch, view)
            return images * (float("nan") if trainer.step == poisoned else 1.0)

    def recorded(batches):
        state = {"model": trainer.model.state_dict(), "loss": trainer.loss.state_dict()}
        states.append({f"{part} {k}": v.clone() for part in state for k, v in state[part].items()})
        return step(batches)

    if what == "image":  # which the loss sees
        trainer.task.augment = Poison()
    else:  # which the device alone sees
        trainer.model.text_head.weight.register_hook(lambda g: g * (float("nan") if trainer.step == poisoned else 1))
    trainer.train_step = recorded
    trainer.fit(lambda: False)
    before, after, later = states[poisoned : poisoned + 3]
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    learned = "loss bias" if "siglip" in options.values() else "loss text_estimator.log_u"
    for key in ("model head.weight", "model text_head.weight", learned):
        assert not torch.equal(after[key], later[key]), key


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("format", ["torchscript", "onnx", "timm"])
def test_the_image_tower_is_exported(format, run, tmp_path):
    """TorchScript and ONNX with the projection: what they give is what the texts' rows are compared with."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    folder = shutil.copytree(run.path, tmp_path / "run")
    path = export(folder, format)
    towers, images = load_two_tower(folder), torch.randn(5, 3, 16, 16)
    if format == "timm":
        assert path == folder / "encoder.safetensors"
        found, expected = package.load_encoder(path)(images), towers.model.backbone(images)
    elif format == "torchscript":
        assert path == folder / "image_tower.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = torch.jit.load(path)(images), towers.images(images)
    else:
        import onnxruntime

        assert path == folder / "image_tower.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found, expected = (
            torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0]),
            towers.images(images),
        )
    assert found.shape == (5, 128)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if format != "timm":
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
        assert (found @ towers.encode_texts(["the digit three"]).T).shape == (5, 1)


@pytest.mark.slow
def test_it_learns_what_the_words_mean(tmp_path):
    """Digits that were not in training are named by the nearest sentence."""
    data = write_pairs(tmp_path / "train", per_digit=40)
    test = write_pairs(tmp_path / "test", per_digit=10, start=60)
    run = package.train(data, tmp_path / "run", quiet=True, **(PAIRS | {"epochs": 12, "batch_size": 32, "lr": 3e-3}))
    scores = package.evaluate(run.path, test, device="cpu", workers=0)
    assert scores["zero_shot_top1"] > 0.5
    assert scores.baselines["chance"]["zero_shot_top1"] == pytest.approx(0.1)
    assert scores["image_to_text_r1"] > 0.5  # either of two sentences among twenty
    assert scores["text_to_image_r1"] > 0.5
    assert scores.images == 100
    assert scores.captions == 20
    on_images = package.evaluate(run.path, tmp_path / "test", device="cpu", workers=0)
    assert on_images["zero_shot_top1"] > 0.5
    assert "knn_top1" in on_images


def test_inspect_says_what_is_in_a_table_and_in_a_run(run, data, capsys):
    assert main(["inspect", str(data), "--json", "--decode"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["pairs"], found["images"], found["captions"]) == ("pairs", 81, 41, 21)
    assert found["rejected"] == {"captions.csv:83": "has an empty caption"}
    assert found["bad"] == {"zero/gone.png": "does not exist"}
    assert main(["inspect", str(data)]) == 0
    assert "81 of 21 captions" in capsys.readouterr().out
    assert main(["inspect", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["pairs"], found["log_u"]["seen"]) == ("run", 81, 40)


# -------------------------------------------------------------------------------------------------------- frozen towers
def test_a_frozen_image_tower_is_looked_up_and_left_alone(run, data, tmp_path):
    frozen = package.train(
        data,
        tmp_path / "run",
        max_bad=0.1,
        quiet=True,
        **(RUN | {"pretrained": str(run.encoder_file), "image_rate": 0.0}),
    )
    features = np.load(frozen.features_folder / "images.npy")
    assert features.shape == (41, 128)
    assert np.isnan(features).all(axis=1).sum() == 1  # the missing file
    before, after = package.load_encoder(run.path), package.load_encoder(frozen.path)
    assert before.fingerprint() == after.fingerprint()
    frozen.two_tower_file.unlink()
    frozen.latest_checkpoint().unlink()
    assert_equal_runs(package.resume(frozen.path, quiet=True), frozen)


def test_rates_of_the_towers(run, data, tmp_path):
    """A text tower at a tiny rate hardly moves, while its projection and the images' tower do."""
    other = package.train(
        data, tmp_path / "run", max_bad=0.1, quiet=True, **(RUN | {"text_rate": 1e-6, "max_steps": 4})
    )
    first = load_checkpoint(other.latest_checkpoint())["model"]
    start = package.train(data, tmp_path / "start", max_bad=0.1, quiet=True, **(RUN | {"max_steps": 1, "lr": 1e-12}))
    begun = load_checkpoint(start.latest_checkpoint())["model"]
    moved = {k: float((first[k] - begun[k]).abs().max()) for k in first if k.endswith("weight")}
    assert max(v for k, v in moved.items() if k.startswith("text_backbone.")) < 1e-7
    assert min(moved["head.weight"], moved["text_head.weight"], moved["backbone.conv1.weight"]) > 1e-6


@pytest.mark.slow
@pytest.mark.integration
def test_a_run_can_start_from_another(run, data, tmp_path):
    path = write_pairs(tmp_path / "data", per_digit=5)
    result = sogclr_here(
        "train",
        path,
        "--out",
        tmp_path / "next",
        "--init-from",
        run.path,
        *words(RUN | {"max_steps": 1, "lr": 1e-12}),
        check=0,
    )
    assert "with 40 normalizers" in result.stderr
    old, new = (load_checkpoint(r.latest_checkpoint())["model"] for r in (run, RunFolder(tmp_path / "next")))
    torch.testing.assert_close(new["text_backbone.token.weight"], old["text_backbone.token.weight"])


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "moco"}, "--method moco does not work on pairs"),
        ({"queue": 40}, "--queue 40 does not go with --method sogclr, but with --method moco; leave it out"),
        (
            {"method": "clip", "temperature_mode": "per-sample"},
            "--temperature-mode per-sample does not go with --method clip",
        ),
        (
            {"method": "siglip", "temperature_mode": "global"},
            "does not go with --method siglip, which always learns its own",
        ),
        ({"method": "clip", "num_negatives": 15}, "--num-negatives 15.0 does not go with --method clip"),
        ({"image_rate": 0.0}, "freezes an encoder that knows nothing"),
        ({"text_rate": 0.0}, "freezes a text tower that knows nothing"),
        ({"text_model": "nowhere/at/all"}, "is neither a folder with a config.json nor an installed package"),
        ({"caption_column": "words"}, "has no column 'words'; its columns are image, caption"),
        ({"max_bad": 0.01}, "2 of 82 pairs cannot be read, more than --max-bad 1.0%, first: captions.csv:83"),
        ({"batch_size": 500}, "80 usable pairs, fewer than one batch of 500"),
        (
            {"batch_size": 20, "accumulate": 5},
            "80 usable pairs, fewer than the 100 of one step: .*; give --accumulate 4 or",
        ),
        ({"text_width": 100}, None),
        ({"text_width": 200}, "--text-width must be a multiple of 64"),
        ({"diagnose_every": 1}, "--diagnose-every measures losses on two views"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(options, message, data, tmp_path):
    if message is None:
        return
    with pytest.raises(BadInput, match=message):
        package.train(data, tmp_path / "run", quiet=True, **(RUN | {"max_bad": 0.1} | options))
    assert not (tmp_path / "run").exists()


def test_options_of_pairs_are_refused_on_images(data, tmp_path):
    with pytest.raises(BadInput, match="--caption-column is for pairs"):
        package.train(data.parent, tmp_path / "run", quiet=True, **(PAIRS | {"caption_column": "x", "text_width": 256}))
    with pytest.raises(BadInput, match="--method clip does not work on images alone"):
        package.train(data.parent, tmp_path / "run", quiet=True, **{"method": "clip", "batch_size": 8})
