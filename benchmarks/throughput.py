"""Images a second of the whole training step, beside the encoder alone and the peers: python -m benchmarks.throughput

A step is the trainer's own: reading, decoding, cropping, augmentation, encoder, loss with its state, backward, optimizer.
The ceiling is forward, backward and optimizer of the same model on a batch that is ready. The peers train the same model on
the same files with their own loss and the same recipe as torchvision's transforms, which is what both use. One
process, one thread and no readers beside it, so that nothing hides behind the encoder; CPU time; contestants take turns in
rounds, and ratios are taken within a round. With --profile, where the time of our step goes, by operator and by function,
in docs/results/step_profile.md instead. `make bench-peers` installs the peers. Writes docs/results/throughput.md.

With --device cuda a step is timed by the clock, after the device has come to rest; readers work beside it as in a training,
and precision is the trainer's choice. Without the peers, who would wait for their one process. Writes throughput_cuda.md.
"""

from __future__ import annotations

import copy
import cProfile
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sogclr.config.objective import OptimConfig
from sogclr.config.toml import from_options
from sogclr.data.inputs import IMAGENET_MEAN, IMAGENET_STD
from sogclr.data.manifest import Manifest
from sogclr.data.recipe import Recipe
from sogclr.models.torchvision_cpu import import_timm
from sogclr.progress import Progress
from sogclr.run_folder import RunFolder
from sogclr.training.build import build
from sogclr.training.optim import build_optimizer
from sogclr.training.rates import weight_decay
from sogclr.training.resolve import resolve
from sogclr.training.trainer import Trainer

from . import pages, peers
from .loader import write_tiles

import_timm()  # declares torchvision's operators where they are missing
from torchvision import transforms  # noqa: E402

Case = tuple[int, int, str, int]
"""Pixels of a tile, pixels of a view, model, batch."""
CASES = ((60, 32, "resnet18_small", 32), (128, 64, "resnet18_small", 16), (256, 224, "resnet18", 4))
CASES_CUDA = ((60, 32, "resnet18_small", 256), (160, 96, "resnet50", 256), (256, 224, "resnet50", 128))
OURS, CEILING = "ours, the whole step", "encoder alone, the ceiling"


def trainer_of(folder: Path, case: Case, device: str = "cpu", **more: Any) -> Trainer:
    """Return the trainer of `sogclr train` with its defaults, on the CPU in float32 and alone."""
    _, size, model, batch = case
    options = {"data": str(folder), "out": str(folder.parent / "run"), "device": device, "cache": "none"}
    options |= {"model": model, "image_size": size, "batch_size": batch}
    if device == "cpu":
        options |= {"precision": "fp32", "workers": 0, "threads": 1}
    manifest = Manifest.scan(folder, cache=False)
    config, _ = resolve(from_options(options | more), manifest)
    trainer = Trainer(build(config, manifest, RunFolder(options["out"]), Progress(quiet=True)))
    trainer.model.train()
    trainer.loss.train()
    return trainer


def ours(trainer: Trainer) -> Callable[[], None]:
    batches = trainer.task.batches(0, pin_memory=trainer.parts.device.type == "cuda")
    return lambda: trainer.train_step([next(batches)])


def ceiling(trainer: Trainer) -> Callable[[], None]:
    model, parts = copy.deepcopy(trainer.model), trainer.parts
    size = trainer.task.views.reading.image_size
    settings = OptimConfig(optimizer="lars", lr=parts.peak_learning_rate, weight_decay=weight_decay("lars"))
    optimizer = build_optimizer(model, settings)
    views = torch.randn(2 * parts.batch_size, 3, size, size, device=parts.device)
    views = views.to(memory_format=torch.channels_last)

    def turn() -> None:
        optimizer.zero_grad(set_to_none=True)
        with trainer.one_step.autocast():
            z = model(views)
        z.float().sum().backward()
        optimizer.step()

    return turn


def peer(trainer: Trainer, folder: Path, transform: Callable, loss: Callable) -> Callable[[], None]:
    """Return a peer's step as its users write it: PIL, one image at a time, a default collation, torch's SGD."""
    model, batch = copy.deepcopy(trainer.model), trainer.parts.batch_size
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    paths = sorted(folder.iterdir())

    def batches() -> Iterator[torch.Tensor]:
        while True:
            for start in range(0, len(paths) - batch + 1, batch):
                images = [Image.open(path).convert("RGB") for path in paths[start : start + batch]]
                pairs = [transform(image) for image in images]
                yield torch.stack([view[0] for view in pairs] + [view[1] for view in pairs])

    stream = batches()

    def turn() -> None:
        optimizer.zero_grad(set_to_none=True)
        z0, z1 = model(next(stream)).chunk(2)
        loss(z0, z1, torch.arange(batch)).backward()
        optimizer.step()

    return turn


def recipe_of_torchvision(recipe: Recipe, size: int) -> Callable:
    jitter = transforms.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    blur = transforms.GaussianBlur(max(3, int(0.1 * size) | 1), recipe.blur_sigma)
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=recipe.crop_scale, ratio=recipe.crop_ratio),
            transforms.RandomHorizontalFlip(recipe.flip),
            transforms.RandomApply([jitter], p=recipe.jitter),
            transforms.RandomGrayscale(p=recipe.gray),
            *([transforms.RandomApply([blur], p=recipe.blur)] if recipe.blur else []),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return lambda image: (view(image), view(image))


def contestants(trainer: Trainer, folder: Path, size: int) -> dict[str, Callable[[], None]]:
    turns = {CEILING: ceiling(trainer), OURS: ours(trainer)}
    if trainer.parts.device.type != "cpu":
        return turns
    same = recipe_of_torchvision(trainer.task.views.reading.recipe, size)
    for name, loss in peers.one_tower("cpu", len(trainer.source)).items():
        ntxent = "NTXent" in name
        call = (lambda a, b, i, loss=loss: loss(a, b)) if ntxent else loss
        turns["lightly" if ntxent else "LibAUC"] = peer(trainer, folder, same, call)
    return turns


def seconds(turn: Callable[[], None], device: str) -> float:
    """Return the CPU seconds of one step; of a GPU the seconds of a step, over ten."""
    if device == "cpu":
        begun = time.process_time()
        turn()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(10):
        turn()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / 10


def measure(case: Case, rounds: int, device: str) -> dict[str, list[float]]:
    """Return the images a second of each contestant, round by round."""
    tile, size, _, batch = case
    with tempfile.TemporaryDirectory(prefix="throughput-") as name:
        folder = Path(name) / "tiles"
        folder.mkdir()
        write_tiles(folder, tile, max(8 * batch, 64))
        turns = contestants(trainer_of(folder, case, device), folder, size)
        found: dict[str, list[float]] = {contestant: [] for contestant in turns}
        for number in range(rounds + 1):
            for contestant, turn in turns.items():
                took = seconds(turn, device)
                if number:  # the first round warms up
                    found[contestant].append(batch / took)
    return found


def table(case: Case, found: dict[str, list[float]], unit: str) -> str:
    tile, size, model, batch = case
    head = f"| {size} px, {model}, batch {batch}, JPEG tiles of {tile} px | {unit} | of the ceiling |"
    lines = [head, "|---|---:|---:|"]
    for name, rates in found.items():
        print(name, [round(r, 1) for r in rates], flush=True)
        ratio = statistics.median(a / b for a, b in zip(rates, found[CEILING], strict=True))
        lines.append(f"| {name} | {statistics.median(rates):,.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def profile(case: Case, steps: int = 5) -> str:
    """Return tables of where a step's time goes: operators by torch.profiler, functions by cProfile."""
    tile, size, model, batch = case
    with tempfile.TemporaryDirectory(prefix="throughput-") as name:
        folder = Path(name) / "tiles"
        folder.mkdir()
        write_tiles(folder, tile, max(8 * batch, 64))
        turn = ours(trainer_of(folder, case))
        turn()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            for _ in range(steps):
                turn()
        python = cProfile.Profile()
        python.runcall(lambda: [turn() for _ in range(steps)])
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    lines = [f"| {size} px, {model}, batch {batch}: operator, its own time | share | calls a step |", "|---|---:|---:|"]
    lines += [f"| `{e.key}` | {e.self_cpu_time_total / total:.1%} | {e.count / steps:.0f} |" for e in events[:15]]
    stats: dict[Any, Any] = pstats.Stats(python).stats  # type: ignore[attr-defined]
    whole = max(row[3] for row in stats.values())
    lines += ["", "| function, with what it calls | share | calls a step |", "|---|---:|---:|"]
    own = [
        (where, row) for where, row in stats.items() if f"{os.sep}sogclr{os.sep}" in where[0] and row[3] > 0.002 * whole
    ]
    for (file, _, function), row in sorted(own, key=lambda entry: -entry[1][3])[:25]:
        short = file.rsplit(f"{os.sep}sogclr{os.sep}", 1)[1]
        lines.append(f"| `{short}` {function} | {row[3] / whole:.1%} | {row[1] / steps:.0f} |")
    return "\n".join(lines)


def page(rounds: int) -> str:
    """Return the page of a CPU."""
    about = (
        f"`python -m benchmarks.throughput --rounds {rounds}`, {pages.one_thread()}, float32; {peers.versions()}. Whole "
        "steps: reading, decoding, two views of each image, encoder, loss, backward, optimizer, all in one process one after "
        "the other, so nothing hides behind the encoder; the ceiling is forward, backward and optimizer on a ready batch. The "
        "peers' rows have the same model and recipe, torchvision's transforms on PIL images, their own loss and torch's "
        "SGD. CPU time; medians over rounds in which the contestants take turns; ratios within a round."
    )
    tables = [table(case, measure(case, rounds, "cpu"), "images a CPU second") for case in CASES]
    return "\n\n".join(["# The whole training step", about, *tables])


def page_cuda(rounds: int) -> str:
    """Return the page of a GPU."""
    about = (
        f"`python -m benchmarks.throughput --device cuda --rounds {rounds}`, {torch.cuda.get_device_name()}, {pages.host('')}. "
        "Whole steps of `sogclr train` with its own choice of precision and readers, by the clock; the ceiling is forward, "
        "backward and optimizer on a batch that is there. Medians over rounds of ten steps; ratios within a round."
    )
    tables = [table(case, measure(case, rounds, "cuda"), "images a second") for case in CASES_CUDA]
    return "\n\n".join(["# The whole training step on a GPU", about, *tables])


def profile_page() -> str:
    """Return the page of where a step's time goes."""
    about = (
        f"`python -m benchmarks.throughput --profile`, {pages.one_thread()}, float32. The trainer's step with reading in the "
        "same process. Backward runs inside `run_backward`, so functions show forward, data and optimizer, and operators all."
    )
    return "\n\n".join(["# Where the time of a step goes", about, *(profile(case) for case in CASES[:2])])


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="write docs/results/step_profile.md instead")
    options = parser.parse_args()
    if options.device == "cuda":
        pages.write_page("throughput_cuda.md", page_cuda(options.rounds) + "\n")
        return
    torch.set_num_threads(1)
    if options.profile:
        pages.write_page("step_profile.md", profile_page() + "\n")
    else:
        pages.write_page("throughput.md", page(options.rounds) + "\n")


if __name__ == "__main__":
    main()
