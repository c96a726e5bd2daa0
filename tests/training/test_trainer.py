import copy
import dataclasses
import json
import math
import os
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from digits import SMALL, sogclr_here, words, write_digits

import sogclr as package
from sogclr.commands.report.run_summary import RunSummary
from sogclr.config.toml import from_options, to_table, to_toml
from sogclr.data.manifest import Manifest
from sogclr.errors import BadInput, Interrupted, RunFailed
from sogclr.hardware import choose_device, choose_precision, choose_threads
from sogclr.progress import Progress
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.build import build
from sogclr.training.divergence import SKIPS_IN_A_ROW
from sogclr.training.loggers import open_logger
from sogclr.training.momentum_encoder import MomentumEncoder
from sogclr.training.resolve import image_size_for, resolve
from sogclr.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def trainer_for(data, out, **options):
    """A trainer as `train` makes it, before its first step."""
    manifest = Manifest.scan(data)
    config, _ = resolve(
        from_options({"data": str(data), "out": str(out), **SMALL, "labels": "none", **options}), manifest
    )
    out.mkdir()
    trainer = Trainer(build(config, manifest, RunFolder(out), Progress(quiet=True)))
    trainer.again = lambda: Trainer(build(config, manifest, RunFolder(out), Progress(quiet=True)))
    return trainer


@pytest.mark.slow
def test_a_run_learns_and_leaves_everything_where_it_belongs(data, tmp_path):
    run = package.train(data, tmp_path / "run", epochs=15, optimizer="adamw", lr=3e-3, quiet=True, **SMALL)
    assert {p.name for p in run.path.iterdir()} == {
        "config.toml",
        "manifest.parquet",
        "metrics.jsonl",
        "checkpoints",
        "encoder.safetensors",
    }
    rows = run.metrics()
    train = [row for row in rows if row["kind"] == "train"]
    assert train[-1]["objective"] < train[0]["objective"] - 0.1
    assert {"normalizer_mean", "normalizer_std", "weight_max", "grad_norm", "lr", "gamma"} <= train[-1].keys()
    assert [row["kind"] for row in rows][-1] == "end"
    scores = [row["knn_top1"] for row in rows if row["kind"] == "eval"]
    assert scores[-1] > scores[0] + 0.15  # 40 images; it starts below 0.15, and 0.1 is chance
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
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
    assert run.log_u() is not None


METHOD_OPTIONS = [
    ({"method": "simclr"}, "SimCLR (NT-Xent)"),
    ({"method": "dcl"}, "DCL"),
    ({"method": "moco", "queue": 24}, "MoCo"),
    ({"method": "moco", "queue": 24, "symmetric": True, "key_schedule": "cosine"}, "MoCo"),
    ({"method": "isogclr"}, "iSogCLR, γ 0.9"),
    ({"method": "isogclr", "precision": "fp16"}, "iSogCLR, γ 0.9"),
    ({"method": "scent"}, "SCENT, γ adaptive (α -4.0)"),
    ({"method": "neuclip", "prototypes": 20, "accumulate": 2}, "NeuCLIP, neural normalizer"),
    (
        {"temperature_mode": "global", "gamma_schedule": "cosine-full"},
        "SogCLR, learned temperature, γ 1 → 0.9",
    ),
    ({"estimator": "mini-batch"}, "SogCLR, mini-batch normalizer"),
    ({"num_negatives": 15.0}, "SogCLR, γ 0.9, positive beside 15 negatives"),
    ({"method": "isogclr", "num_negatives": 4e3}, "iSogCLR, γ 0.9, positive beside 4,000 negatives"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "name"), METHOD_OPTIONS)
def test_every_method_trains_resumes_bit_for_bit_and_says_what_it_is(options, name, data, tmp_path):
    """Stopped after 5 of 9 steps, in an epoch's middle, and resumed."""
    settings = SMALL | {"max_steps": 9, "log_every": 1, "labels": "none", "eval_every": 100} | options
    whole = package.train(data, tmp_path / "whole", quiet=True, **settings)
    trainer = trainer_for(data, tmp_path / "halves", **settings)
    with pytest.raises(Interrupted):
        trainer.fit(lambda: trainer.step >= 5)
    again = trainer.again()
    again.load_state_dict(load_checkpoint(trainer.run.latest_checkpoint()))
    again.fit(lambda: False)
    a, b = (load_checkpoint(run.latest_checkpoint()) for run in (whole, trainer.run))
    for part in ("model", "loss", "optimizer", "loss_optimizers", "keys"):
        assert str(a[part]) == str(b[part]), part
    for part in ("model", "loss"):
        assert all(torch.equal(v, b[part][k]) for k, v in a[part].items())
    rows = [row for row in whole.metrics() if row["kind"] == "train"]
    assert all(math.isfinite(row["objective"]) for row in rows if "objective" in row)
    assert ("temperature" in rows[-1]) == (a["loss"].keys() >= {"temperature.tau"})
    assert RunSummary.read(whole).method.replace("\xa0", " ") == name  # no line breaks within a rate


def test_schedules_end_with_the_run_whatever_is_accumulated(data, tmp_path):
    """An estimator is updated once a batch, not once a step: halfway through the run gamma is halfway too."""
    options = {"gamma_schedule": "cosine-full", "gamma": 0.1}
    trainer = trainer_for(data, tmp_path / "run", max_steps=4, accumulate=2, **options)
    with pytest.raises(Interrupted):
        trainer.fit(lambda: trainer.step >= 2)
    assert int(trainer.loss.estimator.step) == 4
    assert float(trainer.loss.estimator.current_gamma()) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("rival", "negatives"),
    [("dcl", math.inf), ("simclr", 14.0)],  # 2 B - 2 negatives stand beside the positive
)
def test_every_parameter_moves_as_with_the_rivals_loss_where_the_normalizer_is_the_batchs(
    data, tmp_path, rival, negatives
):
    """LARS adapts filters to any size of the gradient; biases and normalisation feel it."""
    options = {
        "optimizer": "lars",
        "lr": 0.5,
        "precision": "fp32",
        "warmup_epochs": 0.0,
        "max_steps": 3,
        "batch_size": 8,
    }
    ours = {"gamma": 1.0, "num_negatives": negatives}
    of_loss = {}
    for name, given in (("rival", {"method": rival}), ("ours", ours), ("unscaled", ours | {"gradient_scale": 1.0})):
        trainer = trainer_for(data, tmp_path / name, **options, **given)
        trainer.fit(lambda: False)
        of_loss[name] = {k: p.detach().clone() for k, p in trainer.model.named_parameters()}
    for name, expected in of_loss["rival"].items():
        torch.testing.assert_close(of_loss["ours"][name], expected, rtol=2e-3, atol=2e-4)
    biases = [k for k, p in of_loss["rival"].items() if p.ndim == 1]
    assert any((of_loss["unscaled"][k] - of_loss["rival"][k]).abs().max() > 1e-2 for k in biases)


def test_a_short_run_of_which_no_step_was_taken_fails(data, tmp_path):
    with pytest.raises(RunFailed, match="2 steps in a row had no finite gradient, the last at step 2"):
        package.train(data, tmp_path / "run", quiet=True, **SMALL, max_steps=2, gradient_scale=1e36, precision="fp32")
    assert not RunFolder(tmp_path / "run").encoder_file.exists()


def test_a_run_that_was_begun_without_a_scale_goes_on_without(data, tmp_path):
    manifest = Manifest.scan(data)
    options = {"data": str(data), "out": str(tmp_path), **SMALL, "method": "isogclr", "batch_size": 8}
    config, _ = resolve(from_options(options), manifest)
    former = dataclasses.replace(config, optim=dataclasses.replace(config.optim, gradient_scale=None))
    for number, (given, scale) in enumerate(((config, 10.0), (former, 1.0))):
        run = RunFolder(tmp_path / f"{number}")
        run.path.mkdir()
        parts = build(given, manifest, run, Progress(quiet=True))
        assert parts.gradient_scale == pytest.approx(scale)
        # what the loss learns itself moves as far whatever the model's gradient is multiplied by
        assert parts.loss_optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 8 / scale)


def test_temperatures_of_visited_images_move_and_prototypes_learn(data, tmp_path):
    run = package.train(data, tmp_path / "run", quiet=True, **(SMALL | {"method": "isogclr", "max_steps": 2}))
    tau = load_checkpoint(run.latest_checkpoint())["loss"]["temperature.tau"]
    assert int((tau != 0.1).sum()) == 16  # two steps of 8 images
    run = package.train(
        data, tmp_path / "neural", quiet=True, **(SMALL | {"method": "neuclip", "prototypes": 16, "max_steps": 4})
    )
    norms = load_checkpoint(run.latest_checkpoint())["loss"]["estimator.prototypes"].norm(dim=1)
    assert (norms - 1).abs().max() > 1e-4  # they start as unit rows


@pytest.mark.parametrize("method", ["isogclr", "moco"])
def test_a_run_that_starts_from_another_takes_what_fits(method, data, tmp_path):
    """Temperatures beside normalizers; keys that are those of the weights taken."""
    settings = SMALL | {"method": method, "max_steps": 3, "labels": "none"}
    first = package.train(data, tmp_path / "first", quiet=True, **settings)
    state = load_checkpoint(first.latest_checkpoint())
    trainer = trainer_for(data, tmp_path / "next", **settings)
    assert trainer.start_from(first, state) == (40 if method == "isogclr" else 0)
    if method == "isogclr":
        for key in ("temperature.tau", "estimator.log_u"):
            assert torch.equal(trainer.loss.state_dict()[key], state["loss"][key])
    else:
        keys = trainer.task.keys
        assert torch.equal(keys.average.module.head[0].weight, state["model"]["head.0.weight"])
        assert {b.data_ptr() for b in keys.buffers()} <= {b.data_ptr() for b in trainer.one_step.buffers}
    trainer.fit(lambda: False)


def test_the_momentum_encoder_follows_the_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    keys = MomentumEncoder(model, 0.9, rising=True, total=10)
    first = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    for step, momentum in ((0, 0.9), (5, 0.95), (10, 1.0)):
        before = keys.average.module[0].weight.clone()
        keys.update(model, step)
        assert keys.momentum == pytest.approx(momentum)
        torch.testing.assert_close(
            keys.average.module[0].weight, momentum * before + (1 - momentum) * model[0].weight.detach()
        )
    assert not torch.equal(keys.average.module[0].weight, first)
    x = torch.randn(6, 3)
    torch.manual_seed(1)
    out = keys(x)
    torch.manual_seed(1)
    order = torch.randperm(6)
    for half in order.tensor_split(2):  # each with the statistics of its own
        torch.testing.assert_close(out[half], keys.average(x[half]))
    assert not out.requires_grad


def test_a_diagnosis_is_written_and_changes_nothing(data, tmp_path):
    settings = SMALL | {"epochs": 2, "labels": "none", "eval_every": 100}
    plain = package.train(data, tmp_path / "plain", quiet=True, **settings)
    run = package.train(data, tmp_path / "run", quiet=True, diagnose_every=1, **settings)
    found = [row for row in run.metrics() if row["kind"] == "diagnosis"]
    assert [row["step"] for row in found] == [5, 10]
    assert found[0]["images"] == 40
    assert found[0]["views"] == 4
    assert {"F1", "F2", "bias", "bias_noise", "variance", "cosine", "normalizer_rmse"} <= found[0].keys()
    assert all(math.isfinite(v) for row in found for v in row.values() if isinstance(v, float))
    a, b = (load_checkpoint(r.latest_checkpoint()) for r in (plain, run))
    for part in ("model", "loss"):
        assert all(torch.equal(v, b[part][k]) for k, v in a[part].items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "mini-batch", "gamma": 0.5}, "--gamma 0.5 does not go with --estimator mini-batch"),
        ({"method": "scent", "estimator": "neural"}, "--estimator neural does not go with --method scent"),
        (
            {"method": "simclr", "num_negatives": 15},
            "--num-negatives 15.0 does not go with --method simclr, but with --method sogclr, isogclr, scent, neuclip",
        ),
        ({"num_negatives": 0}, "--num-negatives must be greater than 0 and was 0.0; 255 is a batch of 256"),
        ({"method": "simclr", "gamma": 0.9}, "--gamma 0.9 does not go with --method simclr"),
        (
            {"method": "neuclip", "convention": "per_sample"},
            "--convention per_sample does not go with --method neuclip",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, said):
    with pytest.raises(BadInput, match=said):
        from_options({"data": "x", "out": "y", **options})


def test_momentum_is_refused_of_the_optimizer_that_has_none(tmp_path):
    manifest = Manifest.scan(write_digits(tmp_path / "digits", 4))
    options = {"data": "x", "out": "y", **SMALL, "momentum": 0.8}
    with pytest.raises(BadInput, match=r"--momentum 0.8 is of lars and sgd, and the optimizer is adamw; leave it out"):
        resolve(from_options(options | {"optimizer": "adamw"}), manifest)
    config, _ = resolve(from_options(options | {"optimizer": "sgd"}), manifest)
    assert config.optim.momentum == 0.8


@pytest.mark.parametrize(
    "options", [{"method": "simclr"}, {"method": "neuclip"}, {"estimator": "mini-batch"}, {}], ids=str
)
def test_a_run_that_was_saved_with_options_of_no_use_is_read(options, tmp_path):
    """Before they were refused each run's configuration held them; there they did nothing."""
    run, manifest = RunFolder(tmp_path), Manifest.scan(write_digits(tmp_path / "digits", 4))
    config, _ = resolve(from_options({"data": "x", "out": "y", **SMALL, **options}), manifest)
    table = to_table(config)
    table["loss"] |= {"gamma": 0.9, "gamma_schedule": "constant", "convention": "per_view"}
    run.config_file.write_text(to_toml({**table, "versions": {"sogclr": "0.1.0"}}))
    assert run.config().loss == config.loss


def test_an_estimator_for_a_method_that_has_none_is_refused():
    with pytest.raises(BadInput, match=r"--estimator neural does not go with --method moco.*--method sogclr"):
        from_options({"data": "x", "out": "y", "method": "moco", "estimator": "neural"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "fp16"},
        {"method": "moco", "queue": 40, "symmetric": True},
        {"method": "neuclip", "prototypes": 40},
        {"method": "isogclr", "num_negatives": 14.0, "accumulate": 2},
    ],
)
def test_a_step_without_finite_gradient_changes_nothing(options, data, tmp_path):
    """Weights, statistics of BatchNorm, momentum, u, queue and keys are those from before; the next step is taken."""
    trainer = trainer_for(data, tmp_path / "run", epochs=6 if "accumulate" in options else 4, **options)
    poisoned, augment = 3, trainer.task.views.augment

    class Poison:
        recipe, image_size, seed = augment.recipe, augment.image_size, augment.seed

        def __call__(self, crops, index, epoch, view):
            images = augment(crops, index, epoch, view)
            if trainer.step == poisoned:
                images = images.clone()
                images[1, 0, 0, 0] = float("nan")
            return images

    trainer.task.views.augment = Poison()
    states = []
    step = trainer.train_step
    trainer.train_step = lambda batches: (states.append(copy_of(trainer)), step(batches))[1]
    trainer.fit(lambda: False)
    before, after = states[poisoned], states[poisoned + 1]
    assert_same(before, after)
    assert not torch.equal(after["model"]["head.0.weight"], states[poisoned + 2]["model"]["head.0.weight"])
    skipped = [row for row in trainer.run.metrics() if row["kind"] == "skipped"]
    assert len(skipped) == 1
    assert skipped[0]["step"] == poisoned + 1
    assert len(skipped[0]["ids"]) == 8 * options.get("accumulate", 1)
    assert "not finite" in skipped[0]["reason"]
    assert trainer.counts["skipped"] == 1


def poison_gradients(trainer, steps):
    """The gradient of one filter is NaN in these steps, and the loss is as ever: only the device sees it."""
    weight = next(p for p in trainer.model.parameters() if p.ndim == 4)
    weight.register_hook(lambda gradient: gradient * (float("nan") if trainer.step in steps else 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("poisoned", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "lars"},
        {"optimizer": "sgd"},
        {"optimizer": "adamw", "clip_grad": 1.0},
        {"optimizer": "adamw", "precision": "bf16", "micro_batch": 8},
        {"method": "moco", "queue": 40, "symmetric": True, "key_schedule": "cosine"},
        {"method": "neuclip", "prototypes": 40, "optimizer": "sgd"},
        {"method": "isogclr", "accumulate": 2},
        {"method": "isogclr", "precision": "fp16"},
        {"temperature_mode": "global", "num_negatives": 14.0},
    ],
    ids=str,
)
def test_what_only_the_device_sees_changes_nothing_either(options, poisoned, data, tmp_path):
    """And the host is told later, of the first step too."""
    settings = {"max_steps": 6, "log_every": 100, "labels": "none", "eval_every": 100} | options
    trainer = trainer_for(data, tmp_path / "run", **settings)
    poison_gradients(trainer, {poisoned})
    states, counts, step = [], [], trainer.train_step

    def recorded(batches):
        states.append(copy_of(trainer))
        counts.append(dict(trainer.counts))
        return step(batches)

    trainer.train_step = recorded
    trainer.fit(lambda: False)
    assert_same(states[poisoned], states[poisoned + 1])
    assert not torch.equal(states[poisoned]["model"]["head.0.weight"], states[-1]["model"]["head.0.weight"])
    assert all(count == {"steps": 0, "skipped": 0, "skipped_in_a_row": 0} for count in counts)
    rows = trainer.run.metrics()
    skipped = [row for row in rows if row["kind"] == "skipped"]
    if options.get("precision") == "fp16":  # its scale is lowered, which is no news
        assert not skipped
        assert float(trainer.scaler.get_scale()) < 2.0**14 / trainer.parts.gradient_scale
    else:
        assert [(row["step"], row["reason"]) for row in skipped] == [(poisoned + 1, "the gradient is not finite")]
        assert skipped[0]["epoch"] == poisoned / trainer.steps_per_epoch
        assert len(skipped[0]["ids"]) == 8 * options.get("accumulate", 1)
        assert rows.index(skipped[0]) < [row["kind"] for row in rows].index("train")
        assert trainer.counts == {"steps": 0, "skipped": 1, "skipped_in_a_row": 0}


@pytest.mark.slow
def test_a_run_is_the_same_however_late_it_is_told(data, tmp_path):
    """Skipped steps are no part of the means, and a checkpoint in between changes nothing."""
    runs = {}
    for name, options in {"each": {"log_every": 1}, "late": {"log_every": 9}, "saved": {"log_every": 9}}.items():
        trainer = trainer_for(data, tmp_path / name, max_steps=9, labels="none", eval_every=100, **options)
        poison_gradients(trainer, {2, 3, 7})
        if name == "saved":
            with pytest.raises(Interrupted):
                trainer.fit(lambda trainer=trainer: trainer.step >= 4)
            assert trainer.counts == {"steps": 2, "skipped": 2, "skipped_in_a_row": 2}
            again = trainer.again()
            again.load_state_dict(load_checkpoint(trainer.run.latest_checkpoint()))
            poison_gradients(again, {2, 3, 7})
            trainer = again
        trainer.fit(lambda: False)
        runs[name] = load_checkpoint(trainer.run.latest_checkpoint()), trainer.run.metrics()
    rows = {name: [row for row in found if row["kind"] == "train"] for name, (_, found) in runs.items()}
    means = [row["objective"] for row in rows["each"] if "objective" in row]
    assert len(means) == 6
    for name in ("late", "saved"):
        assert rows[name][-1]["objective"] == pytest.approx(np.mean(means), abs=1e-5)
        assert rows[name][-1]["skipped"] == rows["each"][-1]["skipped"] == 3
        assert rows[name][-1]["weight_max"] == max(row["weight_max"] for row in rows["each"])
        assert [row for row in runs[name][1] if row["kind"] == "skipped"] == [
            row for row in runs["each"][1] if row["kind"] == "skipped"
        ]
        for part in ("model", "loss", "optimizer"):
            assert str(runs[name][0][part]) == str(runs["each"][0][part])


def test_ten_steps_in_a_row_stop_the_run_when_it_is_told(data, tmp_path):
    """At the next line of metrics; nothing is lost, for those steps changed nothing."""
    trainer = trainer_for(data, tmp_path / "run", max_steps=40, log_every=15, save_every=100)
    poison_gradients(trainer, range(1, 100))
    after_one, step = [], trainer.train_step
    trainer.train_step = lambda batches: (step(batches), after_one.append(copy_of(trainer)))[0]
    with pytest.raises(RunFailed, match=r"10 steps in a row had no finite gradient, the last at step 11: the gradient"):
        trainer.fit(lambda: False)
    assert trainer.step == 15
    assert_same(after_one[0], copy_of(trainer))
    assert [row["step"] for row in trainer.run.metrics() if row["kind"] == "skipped"] == list(range(2, 12))


def copy_of(trainer):
    """What a step may change, without asking what steps did; the learning rate is a function of its number."""
    keys = trainer.task.state_dict()["keys"] or {}
    parts = {"model": trainer.model.state_dict(), "loss": trainer.loss.state_dict(), "keys": keys}
    parts["optimizer"] = {
        f"{number} {key} {name}": value
        for number, optimizer in enumerate([trainer.optimizer, *trainer.loss_optimizers])
        for key, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return copy.deepcopy(parts)


def assert_same(a, b):
    for part, values in a.items():
        made = b[part].keys() - values.keys()  # an optimizer's state, in the first step
        assert all(not b[part][key].any() for key in made)
        for key, value in values.items():
            same = torch.equal(value, b[part][key]) if isinstance(value, torch.Tensor) else value == b[part][key]
            assert same, (part, key)


@pytest.mark.integration
@pytest.mark.slow
def test_ten_skipped_steps_in_a_row_stop_the_run_with_advice(data, tmp_path):
    result = sogclr_here(
        "train",
        data,
        "--out",
        tmp_path / "run",
        *words(SMALL | {"lr": 1e37, "epochs": 5, "optimizer": "sgd", "eval_every": 100}),
        check=1,
    )
    assert f"{SKIPS_IN_A_ROW} steps in a row had no finite gradient" in result.stderr
    assert "lower --lr (now 1e+37)" in result.stderr
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


@pytest.mark.integration
@pytest.mark.slow
def test_configuration_file_and_options_agree(data, tmp_path):
    first = package.train(data, tmp_path / "first", max_steps=2, quiet=True, **(SMALL | {"seed": 5}))
    table = first.config_table()
    assert table["run"]["seed"] == 5
    assert table["versions"]["torch"] == torch.__version__
    sogclr_here("train", data, "--out", tmp_path / "second", "--config", first.config_file, check=0)
    second = RunFolder(tmp_path / "second")
    assert second.config_table() | {"data": None} == table | {"data": None}
    a, b = (load_checkpoint(run.latest_checkpoint())["model"] for run in (first, second))
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_custom_recipe_comes_from_the_configuration(data, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[data]\nrecipe = "small"\n[recipe]\nflip = 0.0\ncrop_scale = [0.5, 1.0]\n[run]\nmax_steps = 1\n')
    options = {k: v for k, v in SMALL.items() if k != "recipe"}
    run = package.train(data, tmp_path / "run", config=str(file), quiet=True, **options)
    recipe = run.config_table()["augment"]
    assert recipe["flip"] == 0.0
    assert recipe["crop_scale"] == [0.5, 1.0]
    assert recipe["blur"] == 0.0  # the rest is the small recipe's


def test_choices_follow_the_images_and_the_machine(data, tmp_path):
    manifest = Manifest.scan(data)
    assert image_size_for(manifest) == 32
    config, lines = resolve(from_options({"data": str(data), "out": "x", "batch_size": 8}), manifest)
    assert config.model.model == "resnet18_small"
    assert config.augment["blur"] == 0.0
    assert config.optim.lr == pytest.approx(3 * 0.075 * math.sqrt(8))
    assert any(
        "(3 x 0.075 sqrt(B): views of at most 96 pixels), the gradient times 10, weight decay 1e-06 (lars's), 10 warm-up"
        in x
        for x in lines
    )
    assert any("as wide as the encoder, then 128 (the paper's)" in x for x in lines)
    assert config.run.device in ("cpu", "cuda", "mps")
    assert any("reader process" in line for line in lines)
    large, _ = resolve(from_options({"data": str(data), "out": "x", "batch_size": 8, "image_size": 224}), manifest)
    assert large.model.model == ("resnet18" if large.run.device == "cpu" else "resnet50")
    assert large.augment["blur"] == 0.5
    assert large.optim.lr == pytest.approx(0.075 * math.sqrt(8))


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_vision_transformer_from_nothing_never_gets_lars(model, data):
    """It collapses under it; on small views too."""
    options = {"data": str(data), "out": "x", "batch_size": 8, "model": model}
    config, lines = resolve(from_options(options), Manifest.scan(data))
    assert (config.optim.optimizer, config.optim.weight_decay) == ("adamw", 0.05)
    assert config.optim.lr == pytest.approx(1e-3 * math.sqrt(8 / 256))
    assert any(
        "optimizer adamw, lr 0.0001768 (6.25e-05 sqrt(B)), weight decay 0.05 (adamw's)" in line for line in lines
    )


def test_what_is_by_no_rule_is_said_without_one(data):
    given = {"lr": 0.5, "weight_decay": 1e-5, "warmup_epochs": 3.0, "temperature": 0.2, "head_dim": 64}
    _, lines = resolve(from_options({"data": str(data), "out": "x", "batch_size": 8, **given}), Manifest.scan(data))
    assert "optimizer lars, lr 0.5, the gradient times 5, weight decay 1e-05, 3 warm-up epochs" in lines
    assert "head      2 layers, as wide as the encoder, then 64" in lines
    assert any("temperature 0.2, gamma" in line for line in lines)


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

    options = SMALL | {"log_every": 1, "save_every": 2, "logger": "tensorboard"}

    def stop(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.train(data, tmp_path / "run", epochs=2, quiet=True, on_metrics=stop, **options)
    run = package.resume(tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    written = [(e.step, e.value) for e in events.Scalars("train/objective")]
    train = [row for row in rows if row["kind"] == "train"]
    assert [s for s, _ in written] == [row["step"] for row in train] == list(range(1, 11))
    assert [v for _, v in written] == pytest.approx([row["objective"] for row in train])


@pytest.mark.parametrize("rows", [2000, 60])
def test_a_full_disk_is_one_sentence_although_tensorboard_writes_in_a_thread(rows, tmp_path, capfd):
    """The limit on a file's size stands for a full disk; of few rows the last call tells it."""
    import resource

    hook = threading.excepthook
    logger = open_logger("tensorboard", RunFolder(tmp_path), {})

    def write():
        with closing(logger):
            for step in range(rows):
                logger({"kind": "train", "step": step, "objective": 0.5})

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(RunFailed, match=r"TensorBoard in \S+ could not be written \(File too large\); free some"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err == ""
    assert threading.excepthook == hook
