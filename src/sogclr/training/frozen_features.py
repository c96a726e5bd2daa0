"""Features of towers that do not train: computed once, kept with the run as mapped files, looked up by id ever after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ..data.crops import Batch
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..data.sampler import ResumableSampler
from ..files import atomic_write
from ..models.backbone import feature_width
from ..models.encoder import Encoder
from ..models.features import compute_features
from ..models.two_tower import TwoTower
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
def text_features(path: Path, towers: TwoTower, pairs: Pairs, progress: ProgressCallback | None = None) -> np.ndarray:
    """Return the text backbone's features of every caption, float32 (m, T), mapped from `path`.

    Args:
        path: the file, which is made first where there is none.
        towers: in evaluation mode.
        pairs: with m different captions.
        progress: called with (captions done, captions to do).
    """

    def fill(out: np.ndarray) -> None:
        count, step = len(pairs.captions), 256
        for start in range(0, count, step):
            stop = min(start + step, count)
            out[start:stop] = towers.text_features(pairs.captions_of(np.arange(start, stop))).float().cpu().numpy()
            if progress is not None:
                progress(stop, count)

    width = feature_width(towers.model.text_backbone)
    return _once(path, (len(pairs.captions), width), fill)


def _once(path: Path, shape: tuple[int, int], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """Return the array of a file, which is made first where there is none of this shape."""
    if path.is_file():
        found: np.ndarray = np.load(path, mmap_mode="r")
        if found.shape == shape:
            return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        fill(out)
        out.flush()
    made: np.ndarray = np.load(path, mmap_mode="r")
    return made


def lookup_loader(sampler: ResumableSampler, pairs: Pairs, features: np.ndarray) -> Iterator[Batch]:
    """Yield batches of ids alone, as `training_loader` gives them with pixels: no image is opened.

    Args:
        sampler: of the pairs' ids.
        pairs: images with captions.
        features: of the images, (n, F); NaN where an image could not be read.
    """
    readable = np.isfinite(features[:, 0])
    for request in sampler:
        good = readable[pairs.image_ids[request.ids]]
        bad = [(int(i), "cannot be read") for i in request.ids[~good]]
        index = torch.from_numpy(request.ids[good])
        yield Batch(request.step, request.epoch, index, torch.empty(1, len(index), 0, 0, 3, dtype=torch.uint8), bad)
