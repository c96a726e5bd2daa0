"""The demo on texts: WordNet's definitions and words, a small batch beside the baseline at the same and at a large one."""

from __future__ import annotations

import csv
import io
import shlex
import time
from pathlib import Path

from ..data.wordnet import write_wordnet
from ..files import cache_folder, write_text
from ..progress import Progress, clock
from ..run_folder import RunFolder
from .demo_steps import CommandLine, DemoResult, announced, fresh_runs, read_scores

SMALL, LARGE = 32, 1024  # batch sizes
LR = {SMALL: 1e-3, LARGE: 4e-3}  # the best of 0.5, 1, 2 and 4 times 1e-3 (4e-3) for each method, on 4,000 other pairs
FULL = (4, 4)  # epochs; every so-many-th pair of WordNet's
QUICK = (1, 40)
RECIPE = shlex.split(
    "--columns definition,word --temperature 0.07 --text-layers 0 --text-width 128 --text-length 32 --eval-every 1000"
)
QUERIES = ("a person who writes books", "fear of closed spaces", "a large body of water", "to eat greedily")


def demo_texts(command: CommandLine, quick: bool, folder: Path | None, progress: Progress) -> DemoResult:
    """Write the pairs, train three times, evaluate on held-out definitions, look words up by what they mean.

    The trainings are SogCLR and CLIP's loss at the small batch, and CLIP's loss at the large one, for as many epochs.

    Args:
        command: the `main` of the command line.
        quick: fewer pairs and epochs, to see that everything works.
        folder: where the runs go; `runs/demo-texts` when left out.
        progress: shows each command before it runs.

    Raises:
        BadInput: WordNet is not installed.
        RunFailed: one of the commands failed.
    """
    begun = time.monotonic()
    epochs, every = QUICK if quick else FULL
    wordnet = write_wordnet()
    train, test = (
        every_so_many(wordnet / "train.csv", every),
        every_so_many(wordnet / "test.csv", every if quick else 1),
    )
    runs = fresh_runs(
        folder or Path("runs/demo-texts-quick" if quick else "runs/demo-texts"), ("clip", "clip-large", "sogclr")
    )
    sogclr, ours = announced(command, progress), runs["sogclr"]
    for name, method, batch in (("sogclr", "sogclr", SMALL), ("clip", "clip", SMALL), ("clip-large", "clip", LARGE)):
        options = ("--batch-size", batch, "--lr", LR[batch], "--epochs", epochs, *RECIPE)
        sogclr("train", train, "--out", runs[name].path, "--method", method, *options)
        sogclr("eval", runs[name].path, test)
    words = ours.path / "words.parquet"
    sogclr("embed", ours.path, wordnet / "train.csv", "--column", "word", "--out", words)
    for query in QUERIES:
        sogclr("search", ours.path, query, "--in", words, "--top", 5)
    sogclr("report", ours.path)
    return DemoResult(
        f"\nDefinitions that no training has seen, in % ({epochs} epochs of a part of WordNet)",
        {
            "chance": read_scores(ours, "chance"),
            f"CLIP, batch {SMALL}": read_scores(runs["clip"]),
            f"CLIP, batch {LARGE:,}": read_scores(runs["clip-large"]),
            f"SogCLR, batch {SMALL}": read_scores(ours),
        },
        _closing(ours, words, time.monotonic() - begun),
    )


def _closing(run: RunFolder, words: Path, seconds: float) -> str:
    return "\n".join(
        [
            f"The whole demo took {clock(seconds)}. Look at {run.report_file}",
            "WordNet, Princeton University: https://wordnet.princeton.edu",
            "",
            "A reverse dictionary, to play with:",
            f'  sogclr search {run.path} "what you cannot name" --in {words}',
            "Your own pairs of texts, a CSV of query,document:",
            "  sogclr train PAIRS.csv --columns query,document --out runs/texts",
        ]
    )


def every_so_many(table: Path, every: int) -> Path:
    """Return a table with each so-many-th row of another, in the cache; the table itself for 1."""
    if every == 1:
        return table
    target = cache_folder() / f"{table.parent.name}-{table.stem}-{every}.csv"
    with open(table, newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    part = io.StringIO()
    csv.writer(part, lineterminator="\n").writerows([head, *rows[::every]])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, part.getvalue())
    return target
