"""`make gpu`, as far as a machine without a GPU can show: the command works, and says so where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digits import environment

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def gpu(*words):
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment())


def test_all_parts_run():
    page = ROOT / "docs" / "results" / "gpu.md"
    before = page.read_bytes()
    done = gpu("--device", "cpu", "--quick")
    assert done.returncode == 0, done.stdout
    assert "bit for bit the same" in done.stdout
    assert "| sogclr | 0.0 | 0.0 |" in done.stdout
    assert page.read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so():
    done = gpu()
    assert done.returncode == 2
    assert "there is no CUDA device here" in done.stderr
