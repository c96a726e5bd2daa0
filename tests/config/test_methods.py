"""The tables of methods: a new estimator or loss is a file and a row, and everything knows it."""

import json
import sys
from dataclasses import fields

import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, words, write_digits

from sogclr.cli import main
from sogclr.commands.report.run_summary import RunSummary
from sogclr.config.methods import ESTIMATORS, METHODS, estimators_for, options_of
from sogclr.config.objective import LossConfig
from sogclr.config.rows import EstimatorRow, Method, construct
from sogclr.config.toml import from_options
from sogclr.data.manifest import Manifest
from sogclr.data.pairs import Pairs
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.build_loss import build_loss
from sogclr.training.resolve import loss_words, resolve

RUN = SMALL | {"max_steps": 9, "log_every": 1, "labels": "none", "eval_every": 100, "precision": "fp32"}
NEW_FILE = '''
import os, signal
import torch
from sogclr.losses.estimators import MovingAverage
from sogclr.losses.two_view import TwoViewLoss

stop_at = None  # in how many calls a signal comes


def call():
    global stop_at
    if stop_at is not None:
        stop_at -= 1
        if stop_at == 0:
            stop_at = None
            os.kill(os.getpid(), signal.SIGTERM)


class Ceiling(MovingAverage):
    """nu is never below the batch's own."""

    def __init__(self, num_samples: int) -> None:
        super().__init__(num_samples, 0.5)

    def forward(self, log_g, index, update, *more):
        call()
        return torch.maximum(super().forward(log_g, index, update, *more), log_g)


class Hinge(TwoViewLoss):
    """Only negatives above a threshold, which is learned, push."""

    def __init__(self, temperature: float, dim: int) -> None:
        super().__init__(temperature, "mean", True)
        self.threshold = torch.nn.Parameter(torch.zeros(()))
        assert dim == 128

    def per_sample(self, anchors):
        call()
        self.record(anchors, anchors.log_g)
        push = torch.nn.functional.softplus(anchors.log_g - self.threshold).mean(dim=0)
        return push - anchors.s_pos + self.threshold**2
'''


@pytest.fixture
def new(tmp_path, monkeypatch):
    """A new estimator and a new loss: one file, one row each."""
    (tmp_path / "new_parts.py").write_text(NEW_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    ceiling = EstimatorRow(
        name="ceiling",
        title="average above the batch",
        help="a mean that is never below the batch's",
        says="normalizers from above",
        builder="new_parts:Ceiling",
    )
    hinge = Method(
        name="hinge",
        title="Hinge (ours)",
        help="negatives above a threshold",
        options=("alpha",),
        temperature_modes=("constant",),
        losses={"images": "new_parts:Hinge"},
        lr=0.01,
    )
    monkeypatch.setitem(ESTIMATORS, "ceiling", ceiling)
    monkeypatch.setitem(METHODS, "hinge", hinge)
    import new_parts

    yield new_parts
    del sys.modules["new_parts"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def command(*args):
    return main([str(a) for a in args])


@pytest.mark.parametrize(
    ("options", "title", "said"),
    [
        (
            {"estimator": "ceiling"},
            "SogCLR, average above the batch",
            "sogclr, temperature 0.1 (the paper's), normalizers from above",
        ),
        ({"method": "hinge"}, "Hinge (ours)", "hinge, temperature 0.1 (the paper's)\n"),
    ],
)
def test_a_file_and_a_row_are_all_that_a_new_one_needs(options, title, said, new, data, tmp_path, capsys):
    """It trains, is interrupted, is resumed bit for bit, and the report calls it by its title."""
    args = words(RUN | options)
    assert command("train", data, "--out", tmp_path / "whole", *args) == 0
    assert said in capsys.readouterr().err
    new.stop_at = 5
    assert command("train", data, "--out", tmp_path / "halves", *args) == 130
    assert command("resume", tmp_path / "halves") == 0
    whole, halves = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "halves")
    a, b = (load_checkpoint(run.latest_checkpoint()) for run in (whole, halves))
    assert a["step"] == b["step"] == 9
    for part in ("model", "loss"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())
    assert str(a["loss_optimizers"]) == str(b["loss_optimizers"])
    rows = [[{k: v for k, v in row.items() if k != "timing"} for row in run.metrics()] for run in (whole, halves)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])
    if "method" in options:
        assert abs(float(a["loss"]["threshold"])) > 1e-3  # it learns, at the row's rate
    else:
        assert torch.isfinite(a["loss"]["estimator.log_u"]).all()
    assert command("report", halves.path) == 0
    assert RunSummary.read(halves).method.replace("\xa0", " ").startswith(title)
    page = (halves.path / "report.html").read_text(encoding="utf-8")
    assert all(part in page for part in title.split(", "))  # the first is large there, the others below it


def test_the_help_lists_new_rows(new, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert command("train", "--help") == 0
    shown = capsys.readouterr().out
    if "--help-all" in shown:
        assert command("train", "--help-all") == 0
        shown += capsys.readouterr().out
    for name in ("hinge", "ceiling", *METHODS, *ESTIMATORS):
        assert name in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"estimator": "ceiling", "gamma": 0.5},
            "--gamma 0.5 does not go with --estimator ceiling, but with --estimator moving-average; leave it out",
        ),
        ({"estimator": "ceiling", "prototypes": 9}, "--prototypes 9 does not go with --estimator ceiling"),
        (
            {"method": "hinge", "symmetric": True},
            "--symmetric does not go with --method hinge, but with --method moco; leave it out",
        ),
        ({"method": "hinge", "estimator": "ceiling"}, "--estimator ceiling does not go with --method hinge"),
        (
            {"method": "hinge", "temperature_mode": "global"},
            "--temperature-mode global does not go with --method hinge",
        ),
        (
            {"method": "scent", "estimator": "ceiling"},
            "(SogCLR with an adaptive gamma); give one of moving-average, or --method sogclr",
        ),
    ],
)
def test_options_that_a_row_does_not_take_are_refused(options, said, new, data, tmp_path, capsys):
    args = [word for word in words(RUN | options) if word != "True"]
    assert command("train", data, "--out", tmp_path / "run", *args) == 2
    refused = capsys.readouterr().err
    assert said in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_loss_for_images_is_refused_on_pairs(new, tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs", per_digit=2)
    assert command("train", pairs, "--out", tmp_path / "run", *words(PAIRS | {"method": "hinge"})) == 2
    assert "--method hinge does not work on pairs, which DATA holds; give sogclr," in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ the rows we have
def test_rows_name_options_that_exist():
    known = {f.name for f in fields(LossConfig)}
    for name, row in {**METHODS, **ESTIMATORS}.items():
        assert row.name == name
        assert row.help
        assert {*row.options, *row.defaults} <= known
    assert {f for method in METHODS for e in (None, *estimators_for(method)) for f in options_of(method, e)} == known


@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_every_method_builds_with_every_estimator(kind, data, tmp_path):
    source = Manifest.scan(data) if kind == "images" else Pairs.scan(write_pairs(tmp_path / "pairs", per_digit=2))
    for method, row in METHODS.items():
        if kind not in row.kinds:
            continue
        for estimator in (None, *estimators_for(method)):
            options = {"data": "x", "out": "y", "method": method, "estimator": estimator, "batch_size": 8}
            config, lines = resolve(from_options(options | {"workers": 0}), source)
            assert build_loss(config, source).state_dict() is not None
            assert ", ".join(loss_words(config.loss)) in "\n".join(lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"method": "moco", "queue": 64, "key_schedule": "cosine", "symmetric": True},
            "queue of 64 keys, key momentum 0.99 to 1, both views are queries",
        ),
        (
            {"gamma": 0.9, "gamma_schedule": "constant", "convention": "per_view"},
            "gamma 0.9 (constant), per_view",
        ),
        ({"method": "clip"}, "mini-batch normalizer"),
        (
            {"method": "neuclip", "num_negatives": 255.0},
            "neural normalizer of 1,024 prototypes, the positive beside 255 negatives",
        ),
    ],
)
def test_the_words_before_a_run(options, said):
    loss = LossConfig(temperature=0.1, temperature_mode="constant", **options)
    assert ", ".join(loss_words(loss)) == f"temperature 0.1 (the paper's), {said}"


def test_a_builder_that_asks_for_what_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"losses:MoCoLoss needs dim, which is open or is none of queue, temperature"):
        construct("sogclr.losses:MoCoLoss", {"queue": 8, "temperature": 0.1})


def test_a_name_that_is_in_no_table_is_refused():
    with pytest.raises(BadInput, match=r"--method must be one of sogclr, isogclr, .* and was 'byol'"):
        LossConfig(method="byol")
    with pytest.raises(BadInput, match=r"--estimator must be one of moving-average, .* and was 'momentum'"):
        LossConfig(estimator="momentum")
