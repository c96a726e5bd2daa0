"""The demo on texts: WordNet's definitions and words, a small batch beside the baseline at the same and at a large one.

It says how far they are apart only where that is more than the seeds are.
"""

from __future__ import annotations

import csv
import io
import shlex
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from ..data.wordnet import write_wordnet
from ..files import cache_folder, write_text
from ..progress import Progress, clock
from ..run_folder import RunFolder
from .demo_steps import CommandLine, DemoResult, announced, fresh_runs, read_scores

SMALL, LARGE = 32, 512  # batch sizes
# the best of 0.5, 1, 2 and 4 (2, 4 and 8) times 1e-3 for each method, on 4,000 other pairs
LR = {SMALL: 1e-3, LARGE: 4e-3}
SEEDS, CLEAR = 3, 3.0  # so many standard deviations of the seeds are a difference
OURS = f"SogCLR, batch {SMALL}"
ROWS = {
    f"CLIP, batch {SMALL}": ("clip", SMALL),
    f"CLIP, batch {LARGE}": ("clip", LARGE),
    OURS: ("sogclr", SMALL),
}
"""Row of the table -> method and batch size."""
JUDGED = "query_to_document_r1"
FULL = (4, 4)  # epochs; every so-many-th pair of WordNet's
QUICK = (1, 40)
RECIPE = shlex.split(
    "--columns definition,word --temperature 0.07 --text-layers 0 --text-width 128 --text-length 32 --eval-every 1000"
)
QUERIES = ("a person who writes books", "fear of closed spaces", "a large body of water", "to eat greedily")


def demo_texts(command: CommandLine, quick: bool, folder: Path | None, progress: Progress) -> DemoResult:
    """Write the pairs, train with several seeds, evaluate on held-out definitions, look words up by what they mean.

    The trainings are SogCLR and CLIP's loss at the small batch, and CLIP's loss at the large one, for as many epochs.

    Args:
        command: the `main` of the command line.
        quick: fewer pairs and epochs, and one seed, to see that everything works.
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
    seeds = range(1 if quick else SEEDS)
    names = {(row, seed): f"{ROWS[row][0]}-{ROWS[row][1]}-{seed}" for seed in seeds for row in ROWS}
    runs = fresh_runs(folder or Path("runs/demo-texts-quick" if quick else "runs/demo-texts"), tuple(names.values()))
    sogclr, ours = announced(command, progress), runs[names[OURS, 0]]
    for (row, seed), name in names.items():
        method, batch = ROWS[row]
        options = ("--batch-size", batch, "--lr", LR[batch], "--epochs", epochs, "--seed", seed, *RECIPE)
        sogclr("train", train, "--out", runs[name].path, "--method", method, *options)
        sogclr("eval", runs[name].path, test)
    words = ours.path / "words.parquet"
    sogclr("embed", ours.path, wordnet / "train.csv", "--column", "word", "--out", words)
    for query in QUERIES:
        sogclr("search", ours.path, query, "--in", words, "--top", 5)
    sogclr("report", ours.path)
    scores = {row: over_seeds([read_scores(runs[names[row, seed]]) for seed in seeds]) for row in ROWS}
    of_seeds = "" if quick else f", mean ± standard deviation of {SEEDS} seeds"
    return DemoResult(
        f"\nDefinitions that no training has seen, in % ({epochs} epochs of a part of WordNet{of_seeds})",
        {"chance": read_scores(ours, "chance")} | scores,
        "\n".join([*([] if quick else verdicts(scores)), "", _closing(ours, words, time.monotonic() - begun)]),
    )


def over_seeds(scores: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each score and, of several seeds, its standard deviation, as `_std`."""
    found = {name: statistics.mean(s[name] for s in scores) for name in scores[0]}
    if len(scores) > 1:
        found |= {f"{name}_std": statistics.stdev(s[name] for s in scores) for name in scores[0]}
    return found


def verdicts(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a sentence on each rival: by how much ours is ahead in recall at 1, if that is more than the seeds differ by."""
    lines = []
    for rival in (row for row in scores if row != OURS):
        ahead = 100 * (scores[OURS][JUDGED] - scores[rival][JUDGED])
        spread = 100 * max(scores[row][f"{JUDGED}_std"] for row in (OURS, rival))
        said = f"{abs(ahead):.1f} points of recall at 1 {'ahead of' if ahead > 0 else 'behind'} {rival}"
        if abs(ahead) > CLEAR * spread:
            lines.append(f"{OURS} is {said}, {abs(ahead) / max(spread, 1e-9):.0f} standard deviations of the seeds.")
        else:
            lines.append(
                f"{OURS} is {said}: less than {CLEAR:g} standard deviations of the seeds, so nothing is claimed."
            )
    return lines


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
