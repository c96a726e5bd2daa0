"""Features of towers that do not train: computed once, kept with the run as mapped files, looked up by id ever after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from ..data.crops import Batch
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..data.sampler import ResumableSampler
from ..files import atomic_write, read_sealed, seal
from ..models.backbone import feature_width
from ..models.encoder import Encoder
from ..models.features import compute_features
from ..models.two_tower import TEXTS_AT_ONCE, TextTower
from ..progress import ProgressCallback

AT_ONCE = 8192  # images or texts between two writes


def image_features(
    path: Path,
    encoder: Encoder,
    images: Manifest,
    *,
    workers: int,
    device: torch.device,
    progress: ProgressCallback | None = None,
) -> np.ndarray:
    """Return the backbone's features of the central crops, float32 (n, F), mapped from `path`; NaN where an image cannot be read.

    Args:
        path: the file, which is made first where there is none.
        encoder: on `device`, in evaluation mode.
        images: n of them.
        workers: reader processes.
        device: where features are computed.
        progress: called with (images done, images to do).
    """

    def fill(out: np.ndarray) -> None:
        out[:] = np.nan
        ids = images.usable
        for start in range(0, len(ids), AT_ONCE):
            part = ids[start : start + AT_ONCE]
            features, kept, _ = compute_features(encoder, images, part, workers=workers, device=device)
            out[kept] = features
            if progress is not None:
                progress(min(start + AT_ONCE, len(ids)), len(ids))

    return _once(path, (len(images), encoder.num_features), fill)


@torch.inference_mode()
def text_features(path: Path, tower: TextTower, pairs: Pairs, progress: ProgressCallback | None = None) -> np.ndarray:
    """Return the backbone's features of every text of a column, and of its hard negatives: float32 (m, T), mapped from `path`.

    Args:
        path: the file, which is made first where there is none.
        tower: of the column, in evaluation mode.
        pairs: with m different texts; NaN stands for those of the other column alone.
        progress: called with (texts done, texts to do).
    """

    def fill(out: np.ndarray) -> None:
        ids = np.unique(np.append(pairs.ids(tower.column), pairs.negatives[1] if tower.column else []).astype(np.int64))
        if len(ids) < len(out):
            out[:] = np.nan
        for start in range(0, len(ids), TEXTS_AT_ONCE):
            part = ids[start : start + TEXTS_AT_ONCE]
            out[part] = tower.features(pairs.texts_of(part)).float().cpu().numpy()
            if progress is not None:
                progress(start + len(part), len(ids))

    return _once(path, (len(pairs.texts), feature_width(tower.backbone)), fill)


def _once(path: Path, shape: tuple[int, int], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """Return the array of a file, which is made first where there is none of this shape, or a damaged one."""
    with contextlib.suppress(OSError, ValueError):
        read_sealed(path)
        found: np.ndarray = np.load(path, mmap_mode="r")
        if found.shape == shape:
            return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        fill(out)
        out.flush()
        seal(temporary)
    made: np.ndarray = np.load(path, mmap_mode="r")
    return made


def lookup_loader(sampler: ResumableSampler, pairs: Pairs, images: Mapping[int, np.ndarray]) -> Iterator[Batch]:
    """Yield batches of ids alone, as `training_loader` gives them with pixels: no image is opened.

    Args:
        sampler: of the pairs' ids.
        pairs: what they are of.
        images: column -> features of its images, (n, F); NaN where an image could not be read.
    """
    readable = {column: np.isfinite(features[:, 0]) for column, features in images.items()}
    for request in sampler:
        good = np.ones(len(request.ids), bool)
        for column, known in readable.items():
            good &= known[pairs.ids(column)[request.ids]]
        bad = [(int(i), "cannot be read") for i in request.ids[~good]]
        index = torch.from_numpy(request.ids[good])
        yield Batch(request.step, request.epoch, index, torch.empty(0, len(index), 0, 0, 3, dtype=torch.uint8), bad)
