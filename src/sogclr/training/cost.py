"""How long a run takes on a CPU, and what is quicker: by a measured pass, and by the operations of the others."""

from __future__ import annotations

import math
import time

import torch

from .. import distributed
from ..config.schema import TrainConfig
from ..data.multi_crop import CropGroup
from ..data.source import Source
from ..models.backbone import CLIP, OWN, create_backbone, forward_operations, resolve_name

WORTH_SAYING = 2e13  # operations of a run, some minutes on a laptop
LONG = 20 * 60  # seconds, from which on something quicker is named
_SIZES = (224, 160, 96, 64, 32)  # views that are suggested
_BACKWARD = 2  # times the operations of the forward pass
_MEASURED = 2e10  # operations of the forward pass that is measured, but of 4 images at the least


def time_lines(config: TrainConfig, groups: list[CropGroup], source: Source) -> list[str]:
    """Return a line on how long a resolved run takes on a CPU, and what is quicker; nothing of a short one, or elsewhere.

    Args:
        config: resolved.
        groups: the views of each image.
        source: the samples.
    """
    model, run = str(config.model.model), config.run
    trained = config.pairs.image_rate > 0 and not config.model.freeze and len(source.images) > 0
    if run.device != "cpu" or not trained or model.startswith((OWN, CLIP)):
        return []
    samples = (run.max_steps or 0) * run.batch_size * config.optim.accumulate / distributed.world_size()
    of_pairs = source.kind == "pairs"
    views = [(1 if of_pairs else g.views, g.size) for g in groups]
    images = samples * (source.images_of(source.usable[:1]).shape[1] if of_pairs else 1)

    def operations(name: str, scale: float = 1.0) -> float:
        try:
            return images * sum(n * forward_operations(name, max(8, round(size * scale))) for n, size in views)
        except AssertionError:  # a vision transformer whose patches do not fit: said when it is built
            return math.inf

    own = operations(model)
    if own == math.inf or own * (1 + _BACKWARD) < WORTH_SAYING:
        return []
    seconds, count = seconds_per_operation(model, groups[0].size, run.threads or 1, run.precision == "bf16")
    line = f"time      about {in_words(own * seconds)} on this CPU (by a pass of {count} images), without reading them"
    if own * seconds < LONG:
        return [line]
    quicker: list[str] = []
    size = groups[0].size
    smaller = next((s for s in _SIZES if s < size), size)
    sized = [(model if config.begins_trained else resolve_name(None, s, on_cpu=True)[0], s) for s in (size, smaller)]
    for name, side in [*sized, *([] if config.begins_trained else [("resnet10_mini", size)])]:
        taken = operations(name, side / size)
        if taken <= 0.6 * own and len(quicker) < 2:
            words = [f"--model {name}"] * (name != model) + [f"--image-size {side}"] * (side != size)
            quicker.append(f"`{' '.join(words)}` (about {in_words(taken * seconds)})")
    return [f"{line}; quicker: {', or '.join([*quicker, 'fewer --epochs'])}"]


def seconds_per_operation(name: str, size: int, threads: int, bf16: bool) -> tuple[float, int]:
    """Measure a forward and a backward pass: seconds of both for each operation of the forward pass, and its images.

    Args:
        name: of timm's model; its weights are drawn, and no random state changes.
        size: of the images, pixels.
        threads: that compute.
        bf16: whether in bfloat16.
    """
    one = forward_operations(name, size)
    count = max(4, min(64, int(_MEASURED // one)))
    before, taken = torch.get_num_threads(), 0.0
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            backbone, images = create_backbone(name, size).train(), torch.randn(count, 3, size, size)
            for _ in range(2):  # the first pass allocates
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    backbone(images).sum().backward()
                taken = time.perf_counter() - start
    finally:
        torch.set_num_threads(before)
    return taken / (count * one), count


def in_words(seconds: float) -> str:
    """Return a rough time: minutes, or from an hour and a half on hours."""
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36000 else f"{seconds / 3600:.0f} h"
