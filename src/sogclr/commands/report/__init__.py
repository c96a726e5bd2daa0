"""`report.html`: one self-contained page about a run, with its curves, neighbours, map, normalizers and configuration."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import BadInput
from ...files import check_output, write_text
from ...hardware import computing_on
from ...progress import ProgressCallback, progress_bar
from ...run_folder import RunFolder
from .comparison import comparison
from .page import page
from .report_data import collect
from .run_summary import RunSummary

MOST_IMAGES = 20_000  # t-SNE of more takes the better part of an hour


def report(
    run: str | os.PathLike[str],
    beside: tuple[str, ...] = (),
    *,
    data: str | os.PathLike[str] | None = None,
    images: int = 3000,
    workers: int | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write RUN/report.html: curves, nearest neighbours, a map of the embeddings, the normalizers, the configuration.

    Near-duplicates and outliers are listed beside it, in report.images.csv.

    With other runs, RUN/comparison.html instead: their curves over each other, their scores, and the options in which they differ.

    Args:
        run: The run's folder, finished or not.
        beside: Other runs, to compare it with.
        data: Where the images are now, if they moved.
        images: The most images on the map, and for neighbours.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        out: The page; RUN/report.html (or comparison.html) when left out.
        quiet: Show no progress.
        progress: Called with (images done, images to do), in the place of a bar.

    Returns:
        The page.

    Raises:
        BadInput: no run there, `data` does not hold its images, or `images` or `out` cannot be used.
    """
    if not 2 <= images <= MOST_IMAGES:
        raise BadInput(f"--images must be from 2 to {MOST_IMAGES} and was {images}; 3000 makes a readable map")
    summary = RunSummary.read(RunFolder.open(run))
    usual = summary.run.path / "comparison.html" if beside else summary.run.report_file
    path = usual if out is None else Path(out)
    check_output(path, [".html"])
    if beside:
        text = comparison([summary, *(RunSummary.read(RunFolder.open(other)) for other in beside)])
        write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
        return path
    where = None if data is None else os.fspath(data)
    with progress_bar("reading images", quiet, progress) as show, computing_on(device, workers) as (chosen, readers):
        found = collect(summary, where, images, workers=readers, device=str(chosen), progress=show)
    listed = path.with_suffix(".images.csv")
    texts = {path: page(summary, found, listed.name)} | ({listed: found.extremes} if found.extremes else {})
    for file, text in texts.items():
        # File names may hold half a surrogate pair, which UTF-8 has no bytes for.
        write_text(file, text.encode("utf-8", "replace").decode("utf-8"))
    return path
