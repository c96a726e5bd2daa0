"""`make gpu`, as far as a machine without a GPU can show: the command works, and says so where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digits import environment

from benchmarks.gpu import main

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def gpu(*words):
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment())


def test_all_parts_run(monkeypatch, capsys):
    page = ROOT / "docs" / "results" / "gpu.md"
    before = page.read_bytes()
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--device", "cpu", "--quick"])
    code, shown = main(), capsys.readouterr().out
    assert code == 0, shown
    assert "bit for bit the same" in shown
    assert "| sogclr | 0.0 | 0.0 |" in shown
    assert page.read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so():
    done = gpu()
    assert done.returncode == 2
    assert "there is no CUDA device here" in done.stderr
