"""A warm start: exact normalizers, steps at rate 0, and normalizers that are set again, in real runs."""

import csv
import math
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, environment, words, write_digits
from reference import SlowPairs, unit
from text_pairs import TEXTS
from two_ranks import run as run_two_ranks

import sogclr as package
from sogclr.config.objective import OptimConfig
from sogclr.config.schema import DataConfig, ModelConfig, TrainConfig
from sogclr.data.loader import training_loader
from sogclr.data.manifest import Manifest
from sogclr.data.pair_columns import ColumnNames
from sogclr.data.pairs import Pairs
from sogclr.data.recipe import Recipe, recipe_from_table
from sogclr.data.source import load_source
from sogclr.errors import BadInput
from sogclr.evaluation.exact import eval_mode
from sogclr.progress import Progress
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.build import build
from sogclr.training.warm_start import resolve_warm_start, usual_warm_start

# what the first step finds stays as good as untouched: normalizers and weights
KEPT = {"gamma": 1e-9, "lr": 1e-12, "max_steps": 2, "still_steps": 1, "warm_start": "exact", "precision": "fp32"}
KEPT |= {"quiet": True, "temperature": 0.2}
NOUNS = ("apple", "river", "stone", "cloud")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """24 pairs of texts: words that several sentences share, texts that stand in both columns, some hard negatives."""
    path = tmp_path_factory.mktemp("texts") / "pairs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "wrong"])
        for i, noun in enumerate(NOUNS):
            for k in range(6):
                answer = f"{noun} {k // 2}" if k else f"a thing like {NOUNS[i - 1]}, kind 3"
                wrong = "nothing at all" if k == 1 else f"{NOUNS[i - 1]} {i}" if k == 2 else ""
                writer.writerow([f"a thing like {noun}, kind {k % 4}", answer, wrong])
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """41 digits, which no batch of 8 divides, one of them broken."""
    folder = write_digits(tmp_path_factory.mktemp("images") / "digits")
    (folder / "3" / "broken.png").write_bytes((folder / "3" / "0013.png").read_bytes()[:120])
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("captions") / "digits", per_digit=2)


def state(run):
    return load_checkpoint(run.latest_checkpoint())


def expected(u, count):
    """log u of a slow loss, -inf where it has seen nothing."""
    found = torch.full((count,), -math.inf)
    for i, value in u.items():
        found[i] = math.log(value)
    return found


# -------------------------------------------------------------------------------------------------------- exact normalizers
@pytest.mark.parametrize(
    "options",
    [
        {"columns": "question,answer"},
        {"columns": "question,answer,wrong", "share_negatives": True, "shared_tower": True},
        {"columns": "question,answer,wrong", "known_pairs": False},
        {"columns": "question,answer", "method": "isogclr"},
    ],
    ids=str,
)
def test_the_normalizers_of_texts_are_exact(options, table, tmp_path):
    run = package.train(table, tmp_path / "run", **(TEXTS | KEPT | {"batch_size": 8} | options))
    pairs, towers = run.pairs(), package.load_two_tower(run)
    first, second = (torch.from_numpy(pairs.ids(k).copy()) for k in (0, 1))
    x, y = (towers.encode_texts(pairs.texts_of(pairs.ids(k)), k).double() for k in (0, 1))
    known = list(zip(first.tolist(), second.tolist(), strict=True)) if options.get("known_pairs", True) else ()
    slow, shared = SlowPairs("global", 0.2, 1.0, known, same_kind=bool(known), share=True), "share_negatives" in options
    hard, hard_ids = pairs.negatives[1], torch.full((len(pairs), len(pairs)), -1)
    hard_ids[0, : len(hard)] = torch.from_numpy(hard)
    z = torch.zeros(len(pairs), len(pairs), x.shape[1], dtype=torch.float64)
    z[0, : len(hard)] = towers.encode_texts(pairs.texts_of(hard), 1).double() if len(hard) else 0
    slow(x, y, first, second, *((z, hard_ids) if shared else ()))
    assert len(hard) == (0 if options["columns"] == "question,answer" else 8)
    for name, u in zip(("image", "text"), slow.u, strict=True):
        log_u = state(run)["loss"][f"{name}_estimator.log_u"]
        torch.testing.assert_close(log_u, expected(u, len(pairs.texts)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_normalizers_of_captioned_images_are_exact(frozen, captions, tmp_path):
    options = PAIRS | KEPT
    if frozen:
        start = package.train(captions, tmp_path / "start", **(options | {"warm_start": "none", "still_steps": 0}))
        options |= {"init_from": start.path, "image_rate": 0.0, "text_rate": 0.0}
    run = package.train(captions, tmp_path / "run", **options)
    pairs, towers = run.pairs(), package.load_two_tower(run)
    # as they were when the pass was made: BatchNorm's statistics move in still steps
    towers.model.load_state_dict(load_checkpoint(run.checkpoint_files()[0])["model"])
    files = [pairs.root / pairs.images.relative(i) for i in pairs.first_ids.tolist()]
    x, y = towers.images.encode_files(files), towers.encode_texts(pairs.texts_of(pairs.second_ids))
    ids = [torch.from_numpy(pairs.ids(k).copy()) for k in (0, 1)]
    slow = SlowPairs("global", 0.2, 1.0, zip(*(i.tolist() for i in ids), strict=True))
    slow(x.double(), y.double(), *ids)
    for name, u, n in zip(("image", "text"), slow.u, (len(pairs.images), len(pairs.texts)), strict=True):
        torch.testing.assert_close(state(run)["loss"][f"{name}_estimator.log_u"], expected(u, n), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("convention", ["per_view", "per_sample"])
def test_the_normalizers_of_images_are_exact_over_two_views(convention, images, tmp_path):
    options = SMALL | KEPT | {"max_bad": 0.1, "convention": convention, "max_steps": 1, "still_steps": 0}
    run = package.train(images, tmp_path / "run", **options)
    config, source = run.config(), load_source(run)
    parts = build(config, source, run, Progress(quiet=True))
    parts.model.load_state_dict(load_checkpoint(run.checkpoint_files()[0])["model"])
    recipe = recipe_from_table(Recipe(), config.augment)
    good = np.array([i for i in source.usable.tolist() if not source.relative(i).endswith("broken.png")])
    batch = next(training_loader(source, good, recipe, 16, len(good), config.run.seed))
    with eval_mode(parts.model), torch.no_grad():
        z = [unit(part) for part in parts.model(parts.task.inputs(batch)[0]).chunk(2)]
    log_u = torch.full((len(source),), -math.inf)
    for row, i in enumerate(batch.index.tolist()):
        others = torch.arange(len(good)) != row
        terms = [torch.exp(z[v][row] @ z[w][others].T / 0.2) for v in (0, 1) for w in (0, 1)]
        log_u[i] = torch.cat(terms).mean().log()
    torch.testing.assert_close(state(run)["loss"]["estimator.log_u"], log_u, rtol=1e-5, atol=1e-5)
    assert int(torch.isinf(log_u).sum()) == 1


# --------------------------------------------------------------------------------------------------------------- still steps
@pytest.mark.parametrize("optimizer", ["adamw", "lars", "sgd"])
@pytest.mark.parametrize("how", ["exact", "ema"])
def test_still_steps_move_no_weight_and_fill_the_optimizers_state(optimizer, how, images, tmp_path):
    options = {"warm_start": how, "still_steps": 3, "max_steps": 5, "save_every": 1, "keep": 9, "optimizer": optimizer}
    run = package.train(images, tmp_path / "run", quiet=True, max_bad=0.1, log_every=1, **(SMALL | options))
    states = {s["step"]: s for s in map(load_checkpoint, run.checkpoint_files())}
    weights = [
        key for key in states[0]["model"] if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert all(torch.equal(states[k]["model"][key], states[0]["model"][key]) for k in (1, 2, 3) for key in weights)
    assert any(not torch.equal(states[4]["model"][key], states[0]["model"][key]) for key in weights)
    moments = [value for row in states[3]["optimizer"]["state"].values() for value in row.values() if value.ndim]
    assert len(moments) >= len(weights)
    filled = [bool(value.any()) for value in moments]
    assert sum(filled) > len(filled) / 2  # a block that begins as the identity gives its filters no gradient
    assert [row["lr"] == 0 for row in run.metrics() if row["kind"] == "train"] == [True, True, False, False, True]


def test_what_is_left_open_follows_the_run():
    for usual, warm_start, total, expected in (
        ("none", None, 1000, ("none", 0)),
        ("exact", None, 5000, ("exact", 30)),
        ("exact", None, 1000, ("exact", 20)),
        ("none", "exact", 300, ("exact", 6)),
        ("exact", "ema", 300, ("ema", 50)),
        ("exact", "ema", 60, ("ema", 30)),
        ("exact", "none", 300, ("none", 0)),
    ):
        found = resolve_warm_start(OptimConfig(warm_start=warm_start), usual, total, steps_per_epoch=50)
        assert (found.warm_start, found.still_steps) == expected
    # momentum alone has nothing to wait for
    for optimizer in ("lars", "sgd"):
        found = resolve_warm_start(OptimConfig(optimizer=optimizer), "exact", 5000, steps_per_epoch=50)
        assert (found.warm_start, found.still_steps) == ("exact", 0)


def test_an_exact_pass_is_usual_on_pairs_alone_and_only_where_it_takes_minutes(captions, images, monkeypatch):
    pairs, photos = Pairs.scan(captions, ColumnNames()), Manifest.scan(images)
    config = TrainConfig(DataConfig("photos", "run"), ModelConfig(init_from="another"))
    new = TrainConfig(DataConfig("photos", "run"))
    for samples, device, expected in (
        (200_000, "cpu", "exact"),
        (200_001, "cpu", "none"),
        (5_000_000, "cuda", "exact"),
        (5_000_001, "cuda", "none"),
    ):
        monkeypatch.setattr(Pairs, "__len__", lambda self, samples=samples: samples)
        assert usual_warm_start(config, pairs, device) == expected
        assert usual_warm_start(new, pairs, device) == "none"
    assert usual_warm_start(config, photos, "cpu") == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"still_steps": 5}, "--still-steps 5 is a part of a warm start, and this run has none"),
        ({"warm_start": "ema", "still_steps": 0}, "--warm-start ema is still steps alone and --still-steps is 0"),
        ({"warm_start": "exact", "still_steps": 10}, "all 10 steps of the run would be --still-steps 10"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_written(options, message, images, tmp_path):
    with pytest.raises(BadInput, match=message):
        package.train(images, tmp_path / "run", quiet=True, max_bad=0.1, **(SMALL | {"epochs": 2} | options))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_from_weights_says_what_it_does(captions, tmp_path, capfd):
    options = {"epochs": 4, "log_every": 1, "still_steps": 2}
    start = package.train(captions, tmp_path / "start", **(PAIRS | options | {"still_steps": None}))
    assert "warm " not in capfd.readouterr().err
    package.train(captions, tmp_path / "next", init_from=start.path, **(PAIRS | options))
    said = capfd.readouterr().err
    assert "warm      exact normalizers, 2 steps at rate 0\n" in said
    assert said.count("exact normalizers of all pairs in 0:0") == 1  # at the start
    package.train(captions, tmp_path / "clip", init_from=start.path, method="clip", **(PAIRS | options))
    said = capfd.readouterr().err
    assert "warm      no exact normalizers, as the loss keeps none, 2 steps at rate 0" in said


# ------------------------------------------------------------------------------------------------------------------- resume
WARM = {"warm_start": "exact", "still_steps": 7, "epochs": 6, "log_every": 1}


def assert_equal_runs(run, other):
    a, b = state(run), state(other)
    assert a["step"] == b["step"]
    for part in ("model", "loss"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items()), part
    assert str(a["optimizer"]) == str(b["optimizer"])
    metrics = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (run, other)]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_resume_from_any_step_gives_the_same_run(kind, images, table, tmp_path):
    options = WARM | {"save_every": 1, "keep": 99, "quiet": True}
    options |= SMALL | {"max_bad": 0.1} if kind == "images" else TEXTS | {"batch_size": 8, "columns": "question,answer"}
    whole = package.train(images if kind == "images" else table, tmp_path / "whole", **(options | WARM))
    epoch = 5 if kind == "images" else 3
    # before and within the still steps, at their end and after them
    for step in (0, 4, 7, 4 * epoch + 1):
        run = RunFolder(shutil.copytree(whole.path, tmp_path / f"from-{step}"))
        for file in (*run.checkpoint_files()[step + 1 :], run.encoder_file, run.two_tower_file):
            file.unlink(missing_ok=True)
        assert state(run)["step"] == step
        package.resume(run.path, quiet=True)
        assert_equal_runs(run, whole)


@pytest.mark.slow
@pytest.mark.integration
def test_a_run_that_is_killed_resumes_bit_for_bit(images, tmp_path):
    options = SMALL | WARM | {"save_every": 4, "max_bad": 0.1}
    whole = package.train(images, tmp_path / "whole", quiet=True, **options)
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "sogclr", "train", images, "--out", run.path, *words(options)]
    resume = [sys.executable, "-m", "sogclr", "resume", run.path]
    for words_, until in ((command, 2), (resume, 12)):  # in the still steps; after them
        process = subprocess.Popen([str(w) for w in words_], env=environment(), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while max((row["step"] for row in run.metrics()), default=0) < until:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    package.resume(run.path, quiet=True)
    assert_equal_runs(run, whole)


# ------------------------------------------------------------------------------------------------------------------ two ranks
TWO = {"precision": "fp32", "batch_size": 8, "log_every": 1}


def two_ranks(folder):
    """What each of two processes does: runs whose normalizers keep what the pass found, whole or divided."""
    torch.distributed.init_process_group("gloo")
    for name, options in chosen().items():
        package.train(folder / "data" / options.pop("data"), folder / f"{name}-two", **options)


def chosen():
    """The runs: name -> options."""
    texts = TEXTS | KEPT | TWO | {"columns": "question,answer,wrong", "share_negatives": True, "data": "pairs.csv"}
    return {
        "texts": texts,
        "divided": texts | {"shard_state": True},
        "images": SMALL | KEPT | TWO | {"max_bad": 0.1, "data": "digits", "max_steps": 1, "still_steps": 0},
        "captions": PAIRS | KEPT | TWO | {"data": "captioned/captions.csv"},
    }


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_find_the_same_normalizers_as_one(table, images, captions, tmp_path):
    shutil.copytree(images, tmp_path / "data" / "digits")
    shutil.copytree(captions.parent, tmp_path / "data" / "captioned")
    shutil.copy(table, tmp_path / "data")
    run_two_ranks(__file__, tmp_path)
    for name, options in chosen().items():
        one = package.train(tmp_path / "data" / options.pop("data"), tmp_path / f"{name}-one", **options)
        a, b = (state(run)["loss"] for run in (one, RunFolder(tmp_path / f"{name}-two")))
        for key in (key for key in a if key.endswith("log_u")):
            assert torch.isfinite(a[key]).any()
            torch.testing.assert_close(b[key], a[key], rtol=1e-5, atol=1e-5)
