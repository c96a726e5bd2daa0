"""`search`: the images nearest to a text or to another image, among embeddings on file or a folder; and a page to look at."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from .. import __version__
from ..data.images import central_crop, decode
from ..data.source import scan_images
from ..errors import BadImage, BadInput
from ..files import write_text
from ..hardware import computing_on
from ..models.features import compute_features
from ..models.two_tower import TwoTower, load_two_tower
from ..run_folder import RunFolder
from .embed import SUFFIXES
from .report.thumbnails import data_uri

THUMBNAIL = 192  # pixels
Opener = Callable[[int], Any]


@dataclass(frozen=True)
class Hit:
    """One image that was found."""

    path: str
    score: float
    """Cosine similarity with the query."""
    picture: Any
    """Where its bytes are: a path or an open file."""


class Collection:
    """Images with their unit rows, ready to be searched.

    Attributes:
        paths: relative to where the images are.
        rows: float32 (n, D), of unit length.
    """

    def __init__(self, paths: list[str], rows: Tensor, picture: Opener) -> None:
        self.paths, self.rows, self.picture = paths, functional.normalize(rows.float(), dim=1), picture

    def nearest(self, query: Tensor, top: int) -> list[Hit]:
        """The `top` most similar to (D,), best first."""
        score, where = (self.rows @ query.to(self.rows)).topk(min(top, len(self.paths)))
        return [Hit(self.paths[i], s, self.picture(i)) for s, i in zip(score.tolist(), where.tolist(), strict=True)]


def search(
    run: str | os.PathLike[str], text: str | None, source: str | os.PathLike[str], *, image: str | None = None,
    top: int = 20, out: str | os.PathLike[str] | None = None, workers: int | None = None, device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Hit], Path]:  # fmt: skip
    """Find images by a text or by an image, and write a page of them.

    Args:
        run: a finished run on pairs.
        source: a file that `sogclr embed` wrote with this run, or images (folder, list, table of pairs, shards), which
            are embedded now.
        image: the path of an image to search with, instead of a text.
        out: the page; RUN/search.html when left out.

    Returns:
        The hits, best first, and the page.

    Raises:
        BadInput: neither or both queries, no such run or source, or embeddings of another model.
    """
    if (text is None) == (image is None):
        raise BadInput("give one query: a text, or an image with --image FILE")
    if top < 1:
        raise BadInput(f"--top was {top}; give 1 or more")
    with computing_on(device, workers) as (chosen, readers), torch.inference_mode():
        towers = load_two_tower(run, chosen)
        query = towers.encode_texts([text])[0] if text is not None else embed_image(towers, str(image))
        collection = open_collection(source, towers, readers, progress)
        hits = collection.nearest(query, top)
    page = RunFolder(run).search_file if out is None else Path(out)
    write_text(page, gallery(text if text is not None else f"images like {image}", hits))
    return hits, page


def embed_image(towers: TwoTower, path: str) -> Tensor:
    """(D,) of one image file.

    Raises:
        BadInput: it cannot be read.
    """
    info = towers.info
    try:
        pixels = central_crop(decode(path, background=info.background), info.image_size, info.crop_fraction)
    except BadImage as error:
        raise BadInput(f"--image {path} {error}; give another") from None
    return towers.encode(torch.from_numpy(pixels.copy())[None].to(towers.device))[0]


# ---------------------------------------------------------------------------------------------------------- collections
def open_collection(
    source: str | os.PathLike[str], towers: TwoTower, workers: int = 0, progress: Any = None
) -> Collection:
    """Embeddings from a file, or of the images of a folder, list, table or shards."""
    place = Path(source)
    if place.suffix in SUFFIXES and place.is_file() and (found := _from_file(place, towers)) is not None:
        return found
    manifest = scan_images(source)
    features, ids, _ = compute_features(
        towers, manifest, manifest.usable, workers=workers, device=towers.device, progress=progress
    )
    if not len(ids):
        raise BadInput(f"no image of {source} can be read; give others")
    return Collection(manifest.relatives(ids), torch.from_numpy(features), lambda row: manifest.file(int(ids[row])))


def _from_file(path: Path, towers: TwoTower) -> Collection | None:
    """None where it is a Parquet table of something else."""
    about: dict[str, Any] = {}
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            if not {"path", "embedding"} <= set(table.column_names):
                return None
            about = json.loads((table.schema.metadata or {}).get(b"sogclr", b"{}"))
            column = table["embedding"].combine_chunks()
            rows = column.flatten().to_numpy().reshape(len(table), -1)
            paths = table["path"].to_pylist()
        elif path.suffix == ".npz":
            with np.load(path) as file:
                rows, paths = file["embedding"], file["path"].tolist()
                about = json.loads(file["about"].item()) if "about" in file else {}
        else:
            with safe_open(path, framework="numpy") as file:
                rows, meta = file.get_tensor("embedding"), file.metadata() or {}
                if "about" in file.keys():  # noqa: SIM118  (it is no mapping)
                    about = json.loads(file.get_tensor("about").tobytes())
            paths = json.loads(meta["path"])
    except Exception as error:
        raise BadInput(
            f"{path} is no readable file of embeddings ({type(error).__name__}); write it with `sogclr embed`"
        ) from None
    other = about.get("weights") not in (None, towers.fingerprint())
    if other or rows.shape[1] != towers.num_features:
        raise BadInput(
            f"{path} holds embeddings of {rows.shape[1]} numbers by {about.get('encoder', 'an unknown model')}, not by this "
            "run; write them with `sogclr embed RUN DATA --out FILE`"
        )
    root = _root(path, about.get("data", "."), paths)
    return Collection(paths, torch.from_numpy(np.array(rows)), lambda row: root / paths[row])


def _root(file: Path, data: str, paths: list[str]) -> Path:
    """Where the images of a file of embeddings are: by the name it has for them, from here or from its own folder; beside it."""
    places = [base / data for base in (Path(), file.parent)] + [file.parent]
    roots = [place if place.is_dir() else place.parent for place in places]
    return next((root for root in roots if any((root / p).is_file() for p in paths[:16])), roots[0])


# ----------------------------------------------------------------------------------------------------------------- page
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fafafa}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
figure{margin:0;background:#fff;border:1px solid #ddd;border-radius:8px;padding:8px;overflow-wrap:anywhere}
img{width:100%;aspect-ratio:1;object-fit:contain;border-radius:4px}
figcaption{font-size:12px;color:#555}b{color:#111}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}figure{background:#22252b;border-color:#383c44}figcaption{color:#aaa}b{color:#fff}}
"""


def gallery(query: str, hits: list[Hit]) -> str:
    """A page that holds everything it shows."""
    cells = "".join(
        f"<figure>{_picture(hit)}<figcaption><b>{hit.score:.3f}</b> {escape(hit.path)}</figcaption></figure>\n"
        for hit in hits
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(query)} · sogclr search</title><style>{_STYLE}</style></head>\n<body><h1>{escape(query)}</h1>\n"
        f"<p>The {len(hits)} nearest images, with their cosine similarity.</p>\n<main>\n{cells}</main>\n"
        f"<footer><p>Written by sogclr {escape(__version__)}.</p></footer></body></html>\n"
    )


def _picture(hit: Hit) -> str:
    source = io.BytesIO(hit.picture.read()) if hasattr(hit.picture, "read") else hit.picture
    try:
        pixels = central_crop(decode(source, at_least=THUMBNAIL), THUMBNAIL)
    except BadImage as error:
        return f"<p>{escape(str(error))}</p>"
    return f'<img src="{data_uri(pixels)}" alt="{escape(hit.path)}">'
