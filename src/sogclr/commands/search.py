"""`sogclr search`: the images or texts nearest to a text or to an image, and a page to look at."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from .. import __version__
from ..data.boxes import central_crop
from ..data.images import decode
from ..data.listing import list_paths
from ..data.manifest import Manifest
from ..data.pair_columns import Kind
from ..errors import BadImage, BadInput
from ..files import check_output, write_text
from ..hardware import computing_on
from ..models.encoder import Encoder
from ..models.features import compute_features
from ..models.run_encoders import RunEncoders
from ..models.two_tower import TextTower
from ..progress import Progress, ProgressCallback, progress_bar
from ..run_folder import RunFolder
from .collection import Hit, Picture, open_collection
from .report.thumbnails import data_uri
from .templates import render

THUMBNAIL = 192  # pixels


@dataclass(frozen=True)
class SearchResult:
    """What was found, best first; as text, a line a hit."""

    hits: list[Hit]
    page: Path
    """The page that shows them."""

    def __str__(self) -> str:
        return "\n".join([*(f"{hit.score:.4f}  {hit.name}" for hit in self.hits), f"page    {self.page}"])


def search(
    run: str | os.PathLike[str],
    text: str | None = None,
    *,
    source: str | os.PathLike[str],
    image: str | os.PathLike[str] | None = None,
    column: str | None = None,
    as_column: str | None = None,
    top: int = 20,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Find images or texts by a text, or by an image; writes a page of what was found.

    A run on pairs finds the things of one column by those of the other; one on images finds images by their backbone
    features. Where both columns hold the query's kind, it is encoded as the column that has not embedded the collection,
    which is the first unless a file says otherwise.

    Args:
        run: The run's folder; to look for images like one, an exported encoder too.
        text: What to look for.
        source: A file of `sogclr embed` (fast), or DATA as `sogclr embed` takes it, which is embedded now.
        image: Look for things like this image, instead of a text.
        column: Column of a table, whose texts are embedded; of a run on texts the column of the run when left out.
        as_column: Column of the run's pairs that the query is encoded as.
        top: How many.
        out: The page; RUN/search.html when left out.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        quiet: Show no progress.
        progress: Called with (things done, things to do), in the place of a bar.

    Returns:
        The hits, best first, and the page.

    Raises:
        BadInput: neither or both queries, no such run or source, or embeddings of another model.
    """
    if (text is None) == (image is None):
        raise BadInput("give one query: a text, or an image with --image FILE")
    if top < 1:
        raise BadInput(f"--top was {top}; give 1 or more")
    kind: Kind = "images" if text is None else "texts"
    page = _page(run, out)
    with (
        progress_bar("embedding", quiet, progress) as show,
        computing_on(device, workers) as (chosen, readers),
        torch.inference_mode(),
    ):
        encoders = RunEncoders.load(run, chosen)
        if not encoders.columns(kind):
            remedy = "give an image with --image FILE" if kind == "texts" else "give a text"
            raise BadInput(f"{run} was trained on {encoders.trained_on} and knows no {kind}; {remedy}")
        asked = encoders.named(as_column, kind)
        found = open_collection(
            source, encoders, asked, column=column, workers=readers, progress=show, info=Progress(quiet).info
        )
        tower = encoders.towers[encoders.opposite(found.column, kind) if asked is None else asked]
        query = embed_query(tower, text if text is not None else str(image), chosen)
        hits = found.nearest(query, top)
    write_text(page, gallery(text if text is not None else f"like {image}", hits, page.parent, image))
    return SearchResult(hits, page)


def _page(run: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> Path:
    if out is None and not Path(run).is_dir():
        raise BadInput(f"{run} is no run's folder, which the page could be written to; give --out PAGE.html")
    page = RunFolder(run).search_file if out is None else Path(out)
    check_output(page, [".html"])
    return page


def embed_query(tower: Encoder | TextTower, query: str, device: torch.device) -> Tensor:
    """Return the unit row, (D,), of a text or of an image file, read as those of a collection are.

    Args:
        tower: on `device`, in evaluation mode.
        query: the text, or the path.
        device: where the tower is.

    Raises:
        BadInput: the image cannot be read.
    """
    if isinstance(tower, TextTower):
        return tower.encode([" ".join(query.split())])[0]
    place = Path(os.path.abspath(query))
    try:
        names = pa.array([place.name], pa.large_string())
    except UnicodeEncodeError:
        raise BadInput(f"--image {query} has a name that is not UTF-8; rename it") from None
    manifest = Manifest(place.parent, place, list_paths(names, place.parent))
    features, ids, bad = compute_features(tower, manifest, np.arange(1), device=device)
    if not len(ids):
        raise BadInput(f"--image {query} {bad[0][1]}; give another")
    return functional.normalize(torch.from_numpy(features[0]), dim=0)


# ----------------------------------------------------------------------------------------------------------------- page
def gallery(query: str, hits: list[Hit], folder: Path, image: Picture | None = None) -> str:
    """Return a page that holds everything it shows, with links to the files.

    Args:
        query: in words.
        hits: best first.
        folder: where the page will be.
        image: that was looked for, if it was one.
    """
    shown = [(hit, *_thumbnail(hit.picture), _link(hit.picture, folder)) for hit in hits]
    asked = (*_thumbnail(image), _link(image, folder))
    return render("search.html.j2", query=query, hits=shown, asked=asked, version=__version__)


def _link(picture: Picture | None, folder: Path) -> str:
    """Return the way from the page to a picture's own file; nothing where there is none."""
    if not isinstance(picture, str | os.PathLike) or not os.path.exists(picture):
        return ""
    try:
        return quote(os.path.relpath(picture, os.path.abspath(folder)).replace(os.sep, "/"))
    except ValueError:  # on another drive
        return Path(os.path.abspath(picture)).as_uri()


def _thumbnail(picture: Picture | None) -> tuple[str, str]:
    """Return the data URI of a small picture, or else the reason why there is none."""
    if picture is None:  # of a text
        return "", ""
    source = picture if isinstance(picture, str | os.PathLike) else io.BytesIO(picture.read())
    try:
        return data_uri(central_crop(decode(source, at_least=THUMBNAIL), THUMBNAIL)), ""
    except BadImage as error:
        return "", str(error)
