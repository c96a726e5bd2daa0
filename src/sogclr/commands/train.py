"""`train` and `resume`: from a folder of images to a finished run. The commands of the same names call these."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__, distributed
from ..config.schema import TrainConfig
from ..config.toml import from_options, read_table, to_table, to_toml
from ..data.bad_files import too_many_bad
from ..data.labels import read_labels
from ..data.manifest import Difference, Manifest
from ..data.pairs import Pairs, holds_pairs
from ..errors import BadInput
from ..files import file_lock, write_text
from ..hardware import choose_device
from ..models.backbone import timm
from ..progress import Progress
from ..run_folder import RunFolder, load_checkpoint
from ..training.resolve import refuse_for_images, resolve
from ..training.stopping import stop_on_signals
from ..training.trainer import Trainer

TRAIN_PARTS = ("train", "training")


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> RunFolder:
    """Train an encoder on a folder of images, without labels.

    Args:
        data: a folder (its `train/` part, if it has one), or a .txt list of files.
        out: the run's folder, new or empty.
        config: a TOML file with any of the options.
        quiet: show nothing.
        options: any option of `sogclr train`, by its name: `batch_size=64, epochs=50, model="resnet18"`.

    Returns:
        The run: `.encoder_file`, `.metrics()`, `.log_u()`.

    Raises:
        BadInput: something in the input cannot be used; nothing was written.
        RunFailed: the run could not go on.  Interrupted: a signal came, and the state is saved.
    """
    table = read_table(config) if config else None
    return start(from_options({"data": os.fspath(data), "out": os.fspath(out), **options}, table), Progress(quiet))


def start(config: TrainConfig, screen: Progress) -> RunFolder:
    """`train` with a configuration: check everything, write the run's folder, train.

    Under torchrun the main process does so, and the others then take the run up from its first checkpoint.
    """
    with distributed.process_group(), ExitStack() as held:
        screen = screen if distributed.is_rank0() else Progress(quiet=True)
        distributed.per_rank_batch_size(config.run.batch_size)
        out = RunFolder(config.data.out)
        return _fit(distributed.rank0_first(lambda: _begin(config, out, screen, held), lambda: _take_up(out, screen)))


def _begin(config: TrainConfig, run: RunFolder, screen: Progress, held: ExitStack) -> Trainer:
    """A run's folder with its first checkpoint; `held` keeps the claim on it."""
    run.check_free()
    manifest = scan(config.data.data, screen, config.pairs.image_column, config.pairs.caption_column)
    labels = read_labels(manifest, config.data.labels) if isinstance(manifest, Manifest) else None
    if sentence := too_many_bad(manifest, dict(manifest.bad), config.data.max_bad):
        raise BadInput(sentence)
    config, lines = resolve(config, manifest)
    trainer = Trainer(config, run, manifest, labels, screen)
    if config.model.init_from:
        lines.append(_start_from(trainer, config.model.init_from, manifest))
    for line in [f"{trainer.task.things:<9} {manifest.describe()}", *lines, f"run       {run.path}"]:
        screen.info(line)

    run.path.mkdir(parents=True, exist_ok=True)
    held.enter_context(file_lock(run.lock_file, f"trains in {run.path}"))
    run.check_free()  # again: another process may have been faster
    trainer.task.write_inputs()
    if trainer.bad or manifest.rejected:
        trainer.write_bad()
    trainer.save()
    write_text(run.config_file, to_toml({**to_table(config), "versions": versions()}))  # last: this makes it a run
    return trainer


def resume(
    run: str | os.PathLike[str], *, workers: int | None = None, device: str | None = None, quiet: bool = False
) -> RunFolder:
    """Continue a run from its last checkpoint, bit for bit as if it had never stopped.

    Args:
        run: The run's folder.
        workers: Another number of reader processes; the result does not depend on it. That of the run when left out.
        device: Another device; the result then agrees to rounding only. That of the run when left out.
        quiet: Show nothing.

    Returns:
        The run.

    Raises:
        BadInput: no run there, its images have changed, or its checkpoint cannot be read.
    """
    with distributed.process_group(), ExitStack() as held:
        folder, screen = RunFolder(run), Progress(quiet or not distributed.is_rank0())
        distributed.run_on_rank0(lambda: RunFolder.open(run).path)  # there is a run
        if folder.encoder_file.exists():
            screen.info(
                f"{folder.path} is finished; train again with a new --out, or start from it with --init-from {folder.path}"
            )
            return folder
        changed: dict[str, dict[str, Any]] = {"data": {}, "run": {}}
        if workers is not None:
            changed["data"]["workers"] = workers
        if device is not None:
            changed["run"]["device"] = str(choose_device(device))
        distributed.per_rank_batch_size(folder.config().run.batch_size)
        trainer = distributed.rank0_first(
            lambda: _take_up(folder, screen, changed, held), lambda: _take_up(folder, screen, changed)
        )
        screen.info(f"resuming {folder.path} at step {trainer.step:,} of {trainer.total:,}")
        return _fit(trainer)


def _take_up(
    run: RunFolder, screen: Progress, changed: dict[str, dict[str, Any]] | None = None, held: ExitStack | None = None
) -> Trainer:
    """The trainer of a run in the state of its newest checkpoint.

    Args:
        changed: section -> options that differ from the run's own.
        held: on the main process of a resume: keeps the claim on the run, whose images must be as they were.
    """
    config = run.config()
    for section, options in (changed or {}).items():
        config = replace(config, **{section: replace(getattr(config, section), **options)})
    manifest: Manifest | Pairs = run.pairs() if run.holds_pairs() else run.manifest()
    if held is not None and (difference := _difference(manifest, config)):
        raise BadInput(f"{difference.describe()}; restore them, or start a new run with --init-from {run.path}")
    labels = read_labels(manifest, config.data.labels) if isinstance(manifest, Manifest) else None
    trainer = Trainer(config, run, manifest, labels, screen)
    if held is not None:
        held.enter_context(file_lock(run.lock_file, f"trains in {run.path}"))
    newest = run.latest_checkpoint()
    if newest is not None:
        state = load_checkpoint(newest)
        try:
            trainer.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            first = " ".join(str(error).split())[:200]
            raise BadInput(
                f"{newest} does not fit {run.config_file} ({first}); restore the configuration of this run"
            ) from None
    return trainer


def scan(
    data: str | os.PathLike[str], screen: Progress, image_column: str | None = None, caption_column: str | None = None
) -> Manifest | Pairs:
    """What to train on: the pairs of DATA; or its images, or those of its `train/` part.

    Raises:
        BadInput: DATA cannot be read, or columns are given and it holds images.
    """
    progress = screen.callback("checking images")
    if holds_pairs(data):
        return Pairs.scan(data, image_column=image_column, caption_column=caption_column, progress=progress)
    columns = {"--image-column": image_column, "--caption-column": caption_column}
    refuse_for_images([name for name, column in columns.items() if column is not None], data)
    manifest = Manifest.scan(data, progress=progress)
    part = manifest.part(TRAIN_PARTS) if Path(data).is_dir() else None
    if part is not None:
        screen.info(f"training on {part.root} (the rest of {data} is left for evaluation)")
    return part or manifest


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {
        "sogclr": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "platform": sys.platform,
    }


def _difference(found: Manifest | Pairs, config: TrainConfig) -> Difference:
    """What has become of a run's images or pairs since."""
    if isinstance(found, Pairs):
        source = found.root / found.source.name if found.source.suffix else found.source
        source = source if source.exists() else found.source
        image, caption = config.pairs.image_column, config.pairs.caption_column
        return found.difference(Pairs.scan(source, image_column=image, caption_column=caption, check=False))
    source = found.root / found.source.name if found.source.suffix.lower() == ".txt" else found.root
    return found.difference(Manifest.scan(source, check=False))


def _start_from(trainer: Trainer, path: str, manifest: Manifest | Pairs) -> str:
    source = RunFolder.open(path)
    newest = source.latest_checkpoint()
    if newest is None:
        raise BadInput(f"{path} has no checkpoint to start from; give --init-from a run that has trained")
    carried = trainer.start_from(source, load_checkpoint(newest))
    difference = source.manifest().difference(manifest.images)
    return f"starts    from {newest} with {carried:,} normalizers; " + (
        difference.describe() if difference else "the same images"
    )


def _fit(trainer: Trainer) -> RunFolder:
    with stop_on_signals(trainer.screen.info, patient=distributed.world_size() > 1) as stop:
        trainer.fit(stop)
    return trainer.run
