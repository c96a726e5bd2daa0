"""Real images for the tests: scikit-learn's 8x8 digits as PNG files, a folder a class."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

# what the smallest honest run looks like; as keyword arguments and as words of a command line
SMALL = {
    "model": "resnet10_mini",
    "image_size": 16,
    "batch_size": 8,
    "recipe": "character",
    "threads": 1,
    "workers": 0,
    "device": "cpu",
}


def words(options: dict[str, object]) -> list[str]:
    """`{"image_size": 16}` -> `["--image-size", "16"]`."""
    return [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def write_digits(folder: Path, per_digit: int = 4, digits: int = 10, start: int = 0) -> Path:
    """`per_digit` images of each of the first `digits` digits, as `folder/<digit>/<number>.png`, 16x16."""
    data = load_digits()
    for digit in range(digits):
        place = folder / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        for i in np.flatnonzero(data.target == digit)[start : start + per_digit]:
            pixels = (data.images[i] * 15).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
            Image.fromarray(pixels).save(place / f"{i:04d}.png")
    return folder


def sogclr(
    *args: object, cwd: Path | None = None, check: int | None = None, **options
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a real process; `check` is the exit code that is expected."""
    result = subprocess.run(
        [sys.executable, "-m", "sogclr", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(),
        **options,
    )
    if check is not None:
        assert result.returncode == check, (
            f"exit code {result.returncode}, not {check}:\n{result.stdout}\n{result.stderr}"
        )
    return result


def sogclr_here(*args: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """As `sogclr`, in this process: for tests that are of the command and not of its process, whose start takes seconds."""
    from sogclr.cli import main

    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setenv("COLUMNS", environment()["COLUMNS"])
        code = main([str(arg) for arg in args])
    assert code == check, f"exit code {code}, not {check}:\n{out.getvalue()}\n{error.getvalue()}"
    return subprocess.CompletedProcess(args, code, out.getvalue(), error.getvalue())


def environment() -> dict[str, str]:
    """As a user's, with one thread, warnings as errors, and a wide terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
