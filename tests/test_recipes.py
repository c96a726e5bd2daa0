"""Every recipe file is complete, says what its head says, and trains: wiring only, at a tiny size."""

import math
from pathlib import Path

import pytest
from digits import SMALL, write_digits

import sogclr as package
from sogclr.config.toml import from_options, read_table

FILES = sorted((Path(__file__).parent.parent / "examples" / "recipes").glob("*.toml"))
PAPER = {  # batch, epochs, temperature
    "imagenet-resnet50": (256, 800, 0.1),
    "imagenet-resnet50-100-epochs": (256, 100, 0.1),
    "imagenet-resnet50-b128": (128, 800, 0.1),
    "imagenet-resnet50-simclr": (256, 800, 0.1),
    "imagenet100-resnet50": (256, 400, 0.1),
    "cifar10-resnet50": (64, 400, 0.3),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits", per_digit=2)


JITTER = {"pytorch": (0.4, 0.4, 0.2, 0.1), "tensorflow": (0.8, 0.8, 0.8, 0.2)}
BLUR = {"pytorch": 1.0, "tensorflow": 0.5}
OF = {  # the authors' code, and its numbers: their table, and their figure of batch sizes
    "imagenet-resnet50": ("pytorch", {"69.0"}),
    "imagenet-resnet50-100-epochs": ("pytorch", set()),
    "imagenet-resnet50-b128": ("tensorflow", {"67.8"}),
    "imagenet-resnet50-simclr": ("tensorflow", {"66.5"}),
    "imagenet100-resnet50": ("pytorch", {"80.0"}),
}


@pytest.mark.parametrize("name", OF)
def test_a_number_and_the_augmentation_are_of_one_code(name):
    code, numbers = OF[name]
    file = next(file for file in FILES if file.stem == name)
    augment = read_table(file)["augment"]
    assert tuple(augment[k] for k in ("brightness", "contrast", "saturation", "hue")) == JITTER[code]
    assert augment["blur"] == BLUR[code]
    rows = [line.split() for line in file.read_text().splitlines() if "(no run yet)" in line]
    assert {row[-4] for row in rows} == numbers


def test_the_files_are_those_that_are_expected():
    assert {file.stem for file in FILES} == set(PAPER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_holds_the_papers_values_and_its_own_command(file):
    config = from_options({"data": "D", "out": "R"}, read_table(file))
    assert (config.run.batch_size, config.run.epochs, config.loss.temperature) == PAPER[file.stem]
    assert config.optim.optimizer == "lars"
    assert config.optim.gradient_scale == 2  # the authors' loss is the sum over the two views
    assert (config.model.head_layers, config.model.head_hidden, config.model.head_dim) == (2, 2048, 128)
    assert config.loss.method == ("simclr" if "simclr" in file.stem else "sogclr")
    assert config.loss.num_negatives == (None if "simclr" in file.stem else math.inf)
    text = file.read_text()
    assert f"--config examples/recipes/{file.name}" in text
    for line in text.splitlines():
        if "(no run yet)" in line:
            assert line.startswith("#   ")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_trains(file, data, tmp_path):
    options = {k: v for k, v in SMALL.items() if k != "recipe"}
    run = package.train(data, tmp_path / "run", config=str(file), quiet=True, max_steps=2, log_every=1, **options)
    assert run.encoder_file.exists()
    saved = run.config()
    assert saved.loss.temperature == PAPER[file.stem][2]
    assert saved.augment["gray"] == 0.2
