"""`sogclr search`: the images nearest to a text or to another image, and a page to look at."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..data.images import central_crop, decode
from ..errors import BadImage, BadInput
from ..files import write_text
from ..hardware import computing_on
from ..models.two_tower import TwoTower, load_two_tower
from ..progress import ProgressCallback, progress_bar
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
        return "\n".join([*(f"{hit.score:.4f}  {hit.path}" for hit in self.hits), f"page    {self.page}"])


def search(
    run: str | os.PathLike[str],
    text: str | None = None,
    *,
    source: str | os.PathLike[str],
    image: str | os.PathLike[str] | None = None,
    top: int = 20,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Find images by a text, or by an image, with a run on image-caption pairs; writes a page of what was found.

    Args:
        run: The run's folder.
        text: What to look for.
        source: A file of `sogclr embed` (fast), or images that are embedded now.
        image: Look for images like this one, instead of a text.
        top: How many.
        out: The page; RUN/search.html when left out.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        quiet: Show no progress.
        progress: Called with (images done, images to do), in the place of a bar.

    Returns:
        The hits, best first, and the page.

    Raises:
        BadInput: neither or both queries, no such run or source, or embeddings of another model.
    """
    if (text is None) == (image is None):
        raise BadInput("give one query: a text, or an image with --image FILE")
    if top < 1:
        raise BadInput(f"--top was {top}; give 1 or more")
    with (
        progress_bar("embedding", quiet, progress) as show,
        computing_on(device, workers) as (chosen, readers),
        torch.inference_mode(),
    ):
        towers = load_two_tower(run, chosen)
        query = towers.encode_texts([text])[0] if text is not None else embed_image(towers, str(image))
        hits = open_collection(source, towers, readers, show).nearest(query, top)
    page = RunFolder(run).search_file if out is None else Path(out)
    write_text(page, gallery(text if text is not None else f"images like {image}", hits))
    return SearchResult(hits, page)


def embed_image(towers: TwoTower, path: str) -> Tensor:
    """Return the embedding, (D,), of one image file.

    Raises:
        BadInput: it cannot be read.
    """
    info = towers.info
    try:
        pixels = central_crop(decode(path, background=info.background), info.image_size, info.crop_fraction)
    except BadImage as error:
        raise BadInput(f"--image {path} {error}; give another") from None
    return towers.encode(torch.from_numpy(pixels.copy())[None].to(towers.device))[0]


# ----------------------------------------------------------------------------------------------------------------- page
def gallery(query: str, hits: list[Hit]) -> str:
    """Return a page that holds everything it shows."""
    shown = [(hit, *_thumbnail(hit.picture)) for hit in hits]
    return render("search.html.j2", query=query, hits=shown, version=__version__)


def _thumbnail(picture: Picture) -> tuple[str, str]:
    """Return the data URI of a small picture, or else the reason why there is none."""
    source = picture if isinstance(picture, str | os.PathLike) else io.BytesIO(picture.read())
    try:
        return data_uri(central_crop(decode(source, at_least=THUMBNAIL), THUMBNAIL)), ""
    except BadImage as error:
        return "", str(error)
