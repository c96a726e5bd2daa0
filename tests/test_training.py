import json
import math
import os

import numpy as np
import pytest
import torch
from digits import SMALL, sogclr, words, write_digits

import sogclr as package
from sogclr import workflow
from sogclr.checkpoint import load_checkpoint
from sogclr.config import from_options
from sogclr.data.manifest import Manifest
from sogclr.defaults import choose_device, choose_precision, choose_threads, image_size_for, resolve
from sogclr.errors import BadInput, RunFailed
from sogclr.run_folder import RunFolder
from sogclr.screen import Screen
from sogclr.training import SKIPS_IN_A_ROW, Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def trainer_for(data, out, **options):
    """A trainer as `train` makes it, before its first step."""
    manifest = Manifest.scan(data)
    config, _ = resolve(from_options({"data": str(data), "out": str(out), **SMALL, **options}), manifest)
    out.mkdir()
    return Trainer(config, RunFolder(out), manifest, None, Screen(quiet=True))


def test_a_run_learns_and_leaves_everything_where_it_belongs(data, tmp_path):
    run = package.train(data, tmp_path / "run", epochs=15, optimizer="adamw", lr=3e-3, quiet=True, **SMALL)
    assert {p.name for p in run.path.iterdir()} == {
        "config.toml", "manifest.parquet", "metrics.jsonl", "tensorboard", "checkpoints", "encoder.safetensors",
    }  # fmt: skip
    rows = run.metrics()
    train = [row for row in rows if row["kind"] == "train"]
    assert train[-1]["objective"] < train[0]["objective"] - 0.1
    assert {"normalizer_mean", "normalizer_std", "weight_max", "grad_norm", "lr", "gamma"} <= train[-1].keys()
    assert [row["kind"] for row in rows][-1] == "end"
    scores = [row["knn_top1"] for row in rows if row["kind"] == "eval"]
    assert scores[-1] > 0.3  # 0.1 is chance
    assert list(run.tensorboard.glob("events*"))
    assert np.isfinite(run.log_u()).all()
    assert len(run.checkpoint_files()) == 2
    assert run.best_checkpoint.exists()
    encoder = package.load_encoder(run.path)
    assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, encoder.num_features)


def test_without_labels_health_is_reported(data, tmp_path):
    run = package.train(data, tmp_path / "run", epochs=1, labels="none", quiet=True, **SMALL)
    scores = next(row for row in run.metrics() if row["kind"] == "eval")
    assert {"rankme", "alignment", "uniformity"} <= scores.keys()
    assert 1 <= scores["rankme"] <= 40


@pytest.mark.parametrize(
    "options",
    [
        {"method": "simclr"},
        {"estimator": "mini-batch"},
        {"convention": "per_sample", "gamma_schedule": "cosine", "gamma": 0.3},
        {"optimizer": "sgd", "clip_grad": 1.0, "head_layers": 3, "accumulate": 2},
        {"precision": "bf16", "channels_last": False},
        {"precision": "fp16"},
        {"model": "vit_tiny_patch16_224", "image_size": 32, "labels": "none"},
    ],
)
def test_every_choice_trains(options, data, tmp_path):
    run = package.train(data, tmp_path / "run", quiet=True, **(SMALL | {"max_steps": 4, "log_every": 1} | options))
    objectives = [row["objective"] for row in run.metrics() if row["kind"] == "train" and "objective" in row]
    assert objectives
    assert all(math.isfinite(v) for v in objectives)
    assert (run.log_u() is None) == ("method" in options or "estimator" in options)


def test_a_step_without_finite_gradient_changes_nothing(data, tmp_path):
    """Weights, statistics of BatchNorm, momentum and u are those from before; the next step is taken."""
    trainer = trainer_for(data, tmp_path / "run", epochs=4)
    poisoned, augment = 3, trainer.augment

    class Poison:
        recipe, image_size, seed = augment.recipe, augment.image_size, augment.seed

        def __call__(self, crops, index, epoch, view):
            images = augment(crops, index, epoch, view)
            if trainer.step == poisoned:
                images = images.clone()
                images[1, 0, 0, 0] = float("nan")
            return images

    trainer.augment = Poison()
    states = []
    step = trainer.train_step
    trainer.train_step = lambda batches: (states.append(copy_of(trainer)), step(batches))[1]
    trainer.fit(lambda: False)
    before, after = states[poisoned], states[poisoned + 1]
    for part in ("model", "loss", "optimizer"):
        assert before[part] == after[part], part
    assert states[poisoned + 1]["model"] != states[poisoned + 2]["model"]
    skipped = [row for row in trainer.run.metrics() if row["kind"] == "skipped"]
    assert len(skipped) == 1
    assert skipped[0]["step"] == poisoned + 1
    assert len(skipped[0]["ids"]) == 8
    assert "not finite" in skipped[0]["reason"]
    assert trainer.counts["skipped"] == 1


def copy_of(trainer):
    state = trainer.state_dict()
    state["optimizer"] = state["optimizer"]["state"]  # the learning rate is a function of the step
    return {
        part: str([(k, v.tolist() if hasattr(v, "tolist") else v) for k, v in state[part].items()])
        for part in ("model", "loss", "optimizer")
    }


def test_ten_skipped_steps_in_a_row_stop_the_run_with_advice(data, tmp_path):
    result = sogclr(
        "train", data, "--out", tmp_path / "run", *words(SMALL | {"lr": 1e38, "epochs": 5, "optimizer": "sgd"}), check=1
    )
    assert f"{SKIPS_IN_A_ROW} steps in a row had no finite gradient" in result.stderr
    assert "lower --lr (now 1e+38)" in result.stderr
    assert "Traceback" not in result.stderr
    rows = RunFolder(tmp_path / "run").metrics()
    assert sum(row["kind"] == "skipped" for row in rows) == SKIPS_IN_A_ROW


def test_bad_files_are_skipped_counted_and_listed(tmp_path):
    folder = write_digits(tmp_path / "digits")
    victims = [sorted((folder / str(d)).iterdir())[0] for d in (2, 5)]
    victims[0].write_bytes(b"")  # found by its header
    victims[1].write_bytes(victims[1].read_bytes()[:90])  # found when it is decoded
    run = package.train(folder, tmp_path / "run", epochs=3, max_bad=0.06, quiet=True, **SMALL)
    listed = run.bad_file.read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [str(v.relative_to(folder)) for v in victims]
    assert run.encoder_file.exists()
    assert np.isneginf(run.log_u()).sum() == 2
    with pytest.raises(BadInput, match=r"1 of 40 images cannot be read, more than --max-bad 1.0%, first: 2/"):
        package.train(folder, tmp_path / "strict", epochs=1, quiet=True, **SMALL)
    assert not (tmp_path / "strict").exists()
    with pytest.raises(RunFailed, match=r"2 of 40 images cannot be read, more than --max-bad 3.0%"):
        package.train(folder, tmp_path / "late", epochs=3, max_bad=0.03, quiet=True, **SMALL)


def test_a_train_part_is_used_alone(tmp_path):
    write_digits(tmp_path / "data" / "train")
    write_digits(tmp_path / "data" / "test", start=4, per_digit=1)
    run = package.train(tmp_path / "data", tmp_path / "run", max_steps=2, quiet=True, **SMALL)
    assert len(run.manifest()) == 40
    assert run.manifest().root == tmp_path / "data" / "train"


def test_configuration_file_and_options_agree(data, tmp_path):
    first = package.train(data, tmp_path / "first", max_steps=2, quiet=True, **(SMALL | {"seed": 5}))
    table = first.config_table()
    assert table["run"]["seed"] == 5
    assert table["versions"]["torch"] == torch.__version__
    sogclr("train", data, "--out", tmp_path / "second", "--config", first.config_file, check=0)
    second = RunFolder(tmp_path / "second")
    assert second.config_table() | {"data": None} == table | {"data": None}
    a, b = (load_checkpoint(run.latest_checkpoint())["model"] for run in (first, second))
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_custom_recipe_comes_from_the_configuration(data, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[data]\nrecipe = "small"\n[recipe]\nflip = 0.0\ncrop_scale = [0.5, 1.0]\n[run]\nmax_steps = 1\n')
    options = {k: v for k, v in SMALL.items() if k != "recipe"}
    run = package.train(data, tmp_path / "run", config=str(file), quiet=True, **options)
    recipe = run.config_table()["recipe"]
    assert recipe["flip"] == 0.0
    assert recipe["crop_scale"] == [0.5, 1.0]
    assert recipe["blur"] == 0.0  # the rest is the small recipe's


def test_choices_follow_the_images_and_the_machine(data, tmp_path):
    manifest = Manifest.scan(data)
    assert image_size_for(manifest) == 32
    config, lines = resolve(from_options({"data": str(data), "out": "x", "batch_size": 8}), manifest)
    assert config.model.model == "resnet18_small"
    assert config.recipe["blur"] == 0.0
    assert config.optim.lr == pytest.approx(0.075 * math.sqrt(8))
    assert config.run.device in ("cpu", "cuda", "mps")
    assert any("reader process" in line for line in lines)
    large, _ = resolve(from_options({"data": str(data), "out": "x", "batch_size": 8, "image_size": 224}), manifest)
    assert large.model.model == "resnet50"
    assert large.recipe["blur"] == 0.5


def test_two_cores_get_one_thread_and_one_reader(monkeypatch):
    """More threads than that and a busy neighbour stall each other."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert choose_threads(torch.device("cpu"), None) == (1, 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    threads, workers = choose_threads(torch.device("cpu"), None)
    assert threads + workers <= 16


def test_precision_is_not_emulated_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(BadInput, match="--device cuda:99 is not there"):
        choose_device("cuda:99")
    with pytest.raises(BadInput, match="--device gpu is no device"):
        choose_device("gpu")


def test_metrics_are_json_and_tensorboard_reads_the_events(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = package.train(data, tmp_path / "run", epochs=2, quiet=True, **(SMALL | {"log_every": 1}))
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    written = [(e.step, e.value) for e in events.Scalars("train/objective")]
    train = [row for row in rows if row["kind"] == "train"]
    assert [s for s, _ in written] == [row["step"] for row in train] == list(range(1, 11))
    assert [v for _, v in written] == pytest.approx([row["objective"] for row in train])


def test_several_processes_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="2 processes"):
        workflow.train(data, tmp_path / "run", quiet=True, **SMALL)
