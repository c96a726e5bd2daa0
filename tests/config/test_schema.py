"""The configuration: ranges and words on every field, old files, and the typed keyword arguments."""

import ast
import inspect
import subprocess
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest
from digits import environment

from sogclr.config import schema
from sogclr.config.objective import LossConfig
from sogclr.config.options import TrainOptions
from sogclr.config.ranges import Range
from sogclr.config.schema import BASIC_OPTIONS, DataConfig, TrainConfig
from sogclr.config.toml import SECTIONS, from_options, migrate, option_names, to_table
from sogclr.errors import BadInput

HERE = {"data": "x", "out": "y"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 7}, "--image-size must be 8 or more and was 7"),
        ({"max_bad": 1.0}, "--max-bad must be from 0 up to 1 and was 1.0; it is a share of the images"),
        ({"cache": "big"}, "--cache must be auto, none, full or the side of `sogclr cache --side`, and was big"),
        ({"head_layers": 4}, "--head-layers must be from 2 to 3 and was 4"),
        ({"temperature": 0}, "--temperature must be greater than 0 and was 0.0; 0.1 is the paper's"),
        ({"gamma": 1.5}, r"--gamma must be in (0, 1] and was 1.5; it is the weight of the new estimate"),
        ({"gamma": float("nan")}, "--gamma must be a finite number and was nan"),
        (
            {"temperature": 1e300},
            "--temperature must be from 1e-37 to 1e+37 in size, for float32 to hold it, and was 1e+300",
        ),
        ({"lr": 1e-300}, "--lr must be from 1e-37 to 1e+37 in size, for float32 to hold it, and was 1e-300"),
        ({"alpha": -1e38}, "--alpha must be from 1e-37 to 1e+37 in size, for float32 to hold it, and was -1e+38"),
        ({"out": ""}, "--out must be a folder and was empty"),
        ({"key_momentum": 1.0}, "--key-momentum must be from 0 up to 1 and was 1.0"),
        ({"queue": 0}, "--queue must be 1 or more and was 0"),
        ({"seed": 2**32}, "--seed must be from 0 to 4294967295 and was 4294967296"),
        (
            {"batch_size": 1},
            "--batch-size must be 2 or more and was 1; contrastive learning needs other images as negatives",
        ),
        ({"text_width": 200}, "--text-width must be a multiple of 64, or from 32 to 127, and was 200"),
        ({"image_rate": 101}, "--image-rate must be from 0 to 100 and was 101.0; it is a share of --lr"),
        ({"logger": "comet"}, "run.logger must be one of none, tensorboard, wandb, mlflow, trackio and was 'comet'"),
        (
            {"pretrained": "a", "init_from": "b"},
            "--pretrained and --init-from both give the first weights; keep one of them",
        ),
        ({"shard_state": True, "diagnose_every": 1}, "--diagnose-every needs all normalizers on the main process"),
    ],
)
def test_what_is_out_of_range_is_said_in_one_sentence(options, said):
    with pytest.raises(BadInput) as refused:
        from_options(HERE | options)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        (Range(1), (1, 10**9), (0, -1)),
        (Range(0, above=True), (1e-9, 5.0), (0.0,)),
        (Range(0, 1, above=True), (1e-9, 1.0), (0.0, 1.1)),
        (Range(0, 1, below=True), (0.0, 0.999), (1.0, -1e-9)),
    ],
)
def test_a_range_has_the_ends_that_it_says(limits, inside, outside):
    assert [limits.refusal(value) for value in inside] == [None] * len(inside)
    assert all(limits.refusal(value) for value in outside)


def test_every_field_says_what_it_is():
    for section in (*SECTIONS.values(), TrainConfig):
        (body,) = ast.parse(inspect.getsource(section)).body
        above = dict(zip(body.body[1:], body.body, strict=False))
        said = {
            above[node].target.id
            for node in body.body[1:]
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(above[node], ast.AnnAssign)
        }
        silent = {f.name for f in fields(section)} - said
        assert silent == ({*SECTIONS} if section is TrainConfig else set())


def test_the_keyword_arguments_of_train_are_the_fields():
    """All but DATA, `out` and `model`, with the same types."""
    wanted = {k: v for section in SECTIONS.values() for k, v in get_type_hints(section).items() if k != "title"}
    assert get_type_hints(TrainOptions) == {k: v for k, v in wanted.items() if k not in {*HERE, "model"}}
    assert TrainOptions.__required_keys__ == frozenset()


def test_basic_options_are_options():
    assert set(BASIC_OPTIONS) <= set(option_names())
    assert 12 <= len(BASIC_OPTIONS) <= 18


def test_the_old_name_of_a_table_is_read_and_the_new_one_written():
    old = from_options(HERE, {"recipe": {"flip": 0.0}})
    assert old == from_options(HERE, {"augment": {"flip": 0.0}})
    assert to_table(old)["augment"] == {"flip": 0.0}
    assert "recipe" not in to_table(old)
    assert to_table(old)["data"]["recipe"] == "auto"  # the option keeps its name


@pytest.mark.parametrize(
    ("saved", "kept"),
    [
        ({"estimator": "neural", "gamma": 0.9, "prototypes": 8}, {"estimator": "neural", "prototypes": 8}),
        ({"estimator": "moving-average", "gamma": 0.9}, {"estimator": "moving-average", "gamma": 0.9}),
        ({"method": "moco", "gamma": 0.9, "symmetric": True}, {"method": "moco", "symmetric": True}),
        ({"method": "simclr", "queue": 4096}, {"method": "simclr"}),
        ({"method": "byol", "gamma": 0.9}, {"method": "byol", "gamma": 0.9}),
    ],
)
def test_what_a_runs_own_file_holds_for_no_use_is_left_out(saved, kept):
    """Not in a file that a user wrote: there it is refused."""
    assert migrate({"loss": saved, "versions": {"sogclr": "0.1.0"}}) == {"loss": kept}
    assert migrate({"loss": saved}) == {"loss": saved}


def test_a_path_may_stand_for_text_and_a_whole_number_for_another(tmp_path):
    config = from_options({"data": tmp_path, "out": "y", "lr": 1, "method": "simclr"})
    assert config.data.data == str(tmp_path)
    assert isinstance(config.optim.lr, float)
    assert config.loss == LossConfig(method="simclr")
    assert isinstance(config.data, DataConfig)


def test_the_configuration_needs_no_torch():
    code = (
        "import sys, sogclr.config.toml, sogclr.config.options; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert said.stdout == "False False\n"
    assert schema.TrainConfig is TrainConfig
