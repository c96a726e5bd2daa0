"""How long a run will take on a CPU is said before it begins, with what is quicker; of short ones nothing."""

import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from sogclr.config.toml import from_options
from sogclr.data.manifest import Manifest
from sogclr.models.backbone import create_backbone, forward_operations
from sogclr.training.cost import in_words, seconds_per_operation
from sogclr.training.resolve import resolve


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 256, (100, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return Manifest.scan(folder)


def lines(images, **options):
    config = from_options({"data": "x", "out": "run", "batch_size": 8, "device": "cpu", "precision": "fp32"} | options)
    return [line for line in resolve(config, images)[1] if line.startswith("time")]


def test_a_long_run_says_how_long_and_what_is_quicker(images):
    (line,) = lines(images, model="resnet50", epochs=100_000)
    found = re.search(
        r"about (\S+) h on this CPU \(by a pass of (\d+) images\).*; quicker: (.*), or fewer --epochs", line
    )
    assert float(found[1]) > 5
    assert int(found[2]) >= 4
    assert re.findall(r"`(.*?)`", found[3]) == ["--model resnet18", "--model resnet10_mini"]
    times = [float(n) for n in re.findall(r"\(about (\S+) h\)", found[3])]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(float(found[1]) * 0.333 / 0.751, rel=0.1)


def test_a_short_run_and_one_of_a_small_network_say_nothing(images):
    assert lines(images, model="resnet50", epochs=2) == []
    assert lines(images, model="resnet10_mini", image_size=16, epochs=1000) == []


def test_the_time_is_that_of_a_pass():
    """Measured by itself; on a busy machine the two may differ, but not many times."""
    seconds, count = seconds_per_operation("resnet18", 64, 1, bf16=False)
    backbone, some = create_backbone("resnet18", 64).train(), torch.randn(count, 3, 64, 64)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        backbone(some).sum().backward()
        taken.append(time.perf_counter() - start)
    assert 1 / 4 < seconds * count * forward_operations("resnet18", 64) / min(taken) < 4


def test_measuring_changes_no_random_number(images):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    seconds_per_operation("resnet10_mini", 32, 1, bf16=False)
    assert torch.equal(torch.rand(3), expected)


def test_times_are_rough():
    assert [in_words(s) for s in (3, 61, 5000, 5400, 35_000, 40_000)] == [
        "1 min",
        "1 min",
        "83 min",
        "1.5 h",
        "9.7 h",
        "11 h",
    ]
