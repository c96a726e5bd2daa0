"""`sogclr train` and `sogclr resume`: from DATA to a finished run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Unpack

from torch import Tensor, nn

from .. import distributed
from ..config.options import TrainOptions
from ..config.removed import check_none_removed
from ..config.schema import TrainConfig
from ..config.toml import check_weights_said, from_options, read_table, split_weights_names, to_table
from ..data.bad_files import too_many_bad
from ..data.manifest import Manifest
from ..data.source import Source, load_source
from ..errors import BadInput
from ..files import clear_leftovers, file_lock, make_folder
from ..hardware import choose_device
from ..progress import Progress
from ..run_folder import RunFolder, load_checkpoint, load_newest, remove_older
from ..training.build import build
from ..training.compiling import compiler_errors
from ..training.loggers import import_tracker, open_logger
from ..training.own.config import adapt_config, adapt_options, listeners, path_of
from ..training.own.data import DatasetSource
from ..training.own.parts import MapDataset, OwnParts
from ..training.parts import OnMetrics
from ..training.resolve import resolve
from ..training.stopping import stop_on_signals
from ..training.trainer import Trainer
from ..training.warm_start import warm_start_lines
from .train_config import change_optim, write_config
from .train_data import check_unchanged, columns_of, scan, scan_validation, validation_columns


def train(
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    model: str | nn.Module | None = None,
    loss: nn.Module | None = None,
    dataset: MapDataset | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    head: bool = True,
    on_metrics: OnMetrics | None = None,
    config: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **options: Unpack[TrainOptions],
) -> RunFolder:
    """Train an encoder on a folder of images, without labels; or on pairs of any two columns; or on parts of your own.

    A model of your own maps images (N, C, H, W) to features (N, F), and gets our projection head. Its first weights are those
    it has. In a data set or a transform of your own, `random`, `numpy.random` and torch are seeded by (seed, epoch, index)
    before each sample is read. What is your own is not in the run's folder: give the same to `sogclr.resume`.

    Args:
        data: a folder (its `train/` part, if it has one), a .txt list, a table, or tar shards; or the URL of one; left out
            with `dataset`.
        out: the run's folder, new or empty.
        model: a timm name; or a module of your own.
        loss: instead of a method: a loss of ours, built with `num_samples` of the data; or any module called with
            (z0, z1, index), which returns one number and whose buffers are taken back where a step is skipped.
        dataset: a map-style data set of your own, whose `dataset[i]` is (image, i) or (views, i): a PIL image, which is
            augmented as files are; two views, a tensor (2, C, H, W) or a list; or, with `transform`, anything. Or a
            `datasets.Dataset` with one column of images.
        transform: an image, or whatever `dataset` gives -> one random view, a floating (C, H, W) tensor; called twice.
        head: whether `model` gets our projection head; False for a module that ends with its own.
        on_metrics: called with each row that is written to `metrics.jsonl`, a dict; on the main process.
        config: a TOML file with any of the options.
        quiet: show nothing.
        options: any option of `sogclr train`, by its name: `batch_size=64, epochs=50`.

    Returns:
        The run: `.encoder_file`, `.metrics()`, `.log_u()`.

    Raises:
        BadInput: something in the input cannot be used; nothing was written.
        RunFailed: the run could not go on.
        Interrupted: a signal came, and the state is saved.
    """
    table, named = split_weights_names(read_table(os.fspath(config)) if config is not None else {})
    check_none_removed(table, config)
    name, module = (model, None) if isinstance(model, str) else (None, model)
    own = OwnParts(module, loss, dataset, transform, head and table.get("own", {}).get("head", True))
    given, heard = {"data": data, "out": out, "model": name}, listeners(on_metrics)
    chosen = {**options, **{key: path_of(key, value) for key, value in given.items() if value is not None}}
    check_weights_said(named, chosen)
    full = from_options(adapt_options(chosen, table, own), table)
    return start(full, Progress(quiet), own, heard)


def resume(
    run: str | os.PathLike[str],
    *,
    workers: int | None = None,
    device: str | None = None,
    lr: float | None = None,
    clip_grad: float | None = None,
    model: nn.Module | None = None,
    loss: nn.Module | None = None,
    dataset: MapDataset | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    on_metrics: OnMetrics | None = None,
    quiet: bool = False,
) -> RunFolder:
    """Continue a run from its last checkpoint, bit for bit as if it had never stopped.

    Args:
        run: the run's folder.
        workers: another number of reader processes; the result does not depend on it.
        device: another device; the result then agrees only to rounding.
        lr: another learning rate from here on, for a run that has diverged; the run's `config.toml` is changed.
        clip_grad: another largest norm of the gradient from here on, in the same way.
        model: the same as for `train`, if the run was trained with one of your own.
        loss: the same as for `train`, if the run was trained with one of your own.
        dataset: the same as for `train`, if the run was trained with one of your own.
        transform: the same as for `train`, if the run was trained with one of your own.
        on_metrics: called with each row that is written to `metrics.jsonl` from now on.
        quiet: show nothing.

    Returns:
        The finished run.

    Raises:
        BadInput: no run there, its images have changed, its checkpoint cannot be read, or a part of your own is missing.
    """
    own, heard = OwnParts(model, loss, dataset, transform), listeners(on_metrics)
    with distributed.process_group(), ExitStack() as held:
        # is there something to resume?
        folder, progress = RunFolder(run), Progress(quiet or not distributed.is_rank0())
        distributed.run_on_rank0(lambda: RunFolder.open(run).path)
        if folder.finished:
            option = "--clip" if folder.clip_folder.is_dir() else "--init-from"
            progress.info(
                f"{folder.path} is finished; train again with a new --out, or start from it with {option} {folder.path}"
            )
            return folder
        # the run's own configuration
        check_none_removed(folder.config_table(), folder.path)
        config = folder.config()
        if workers is not None:
            config = replace(config, data=replace(config.data, workers=workers))
        found = str(choose_device(device or config.run.device))  # the run's own may be another machine's
        config = replace(config, run=replace(config.run, device=found))
        optim: dict[str, Any] = {
            name: value for name, value in (("lr", lr), ("clip_grad", clip_grad)) if value is not None
        }
        config = replace(config, optim=replace(config.optim, **optim))
        distributed.per_rank_batch_size(config.run.batch_size)
        # build, and load the state; the main process makes sure that nothing has changed and nobody else is at it
        trainer = distributed.rank0_first(
            lambda: _continue(config, folder, progress, own, heard, held),
            lambda: _continue(config, folder, progress, own),
        )
        if optim:
            distributed.run_on_rank0(lambda: change_optim(folder, optim))
        progress.info(f"resuming {folder.path} at step {trainer.step:,} of {trainer.total:,}")
        return _fit(trainer, config)


def start(
    config: TrainConfig, progress: Progress, own: OwnParts | None = None, on_metrics: Sequence[OnMetrics] = ()
) -> RunFolder:
    """Train with a configuration: check everything, write the run's folder, train.

    Under torchrun the main process does so, and the others then take the run up from its first checkpoint.

    Args:
        config: as it was given; open choices are made here.
        progress: for messages.
        own: parts of the user's own.
        on_metrics: called with each row of the metrics, on the main process.

    Returns:
        The finished run.
    """
    own = own or OwnParts()
    with distributed.process_group(), ExitStack() as held:
        progress = progress if distributed.is_rank0() else Progress(quiet=True)
        distributed.per_rank_batch_size(config.run.batch_size)
        run = RunFolder(config.data.out)
        if config.run.logger != "none":
            import_tracker(config.run.logger)  # whether it is there, before anything is written
        trainer = distributed.rank0_first(
            lambda: _begin(config, run, progress, own, on_metrics, held),
            lambda: _continue(run.config(), run, progress, own),
        )
        return _fit(trainer, run.config())


def _begin(
    config: TrainConfig,
    run: RunFolder,
    progress: Progress,
    own: OwnParts,
    on_metrics: Sequence[OnMetrics],
    held: ExitStack,
) -> Trainer:
    """Return the trainer of a new run, whose folder with the first checkpoint is written; `held` keeps the lock on it."""
    # what to train on, and every open choice
    run.check_free()
    given = own.dataset
    source: Source = scan(config.data.data, progress, columns_of(config)) if given is None else DatasetSource(given)
    if sentence := too_many_bad(source, dict(source.bad), config.data.max_bad):
        raise BadInput(sentence)
    config, lines = resolve(config, source)
    config, lines = adapt_config(config, lines, source, own)
    validation = scan_validation(config, source, progress)

    # build
    trainer = Trainer(build(config, source, run, progress, own, on_metrics, validation))
    if config.model.init_from:
        lines.append(_start_from(trainer, config, source))
    lines += warm_start_lines(config.optim, trainer.loss)
    for line in [f"{trainer.task.things:<9} {source.describe()}", *lines, f"run       {run.path}"]:
        progress.info(line)

    # write the run's folder
    make_folder(run.path)
    held.enter_context(file_lock(run.lock_file, f"trains in {run.path}"))
    run.check_free()  # again: another process may have been faster
    clear_leftovers(run.path)
    run.clear_remains()
    trainer.task.write_inputs(run)
    if validation is not None:
        make_folder(run.validation.path)
        validation.save_to(run.validation)
    if config.begins_trained:
        trainer.task.save_weights(run.start_file)
    if trainer.bad or source.rejected:
        trainer.write_bad()
    trainer.save()
    write_config(run, config, own)  # last: this makes it a run
    return trainer


def _continue(
    config: TrainConfig,
    run: RunFolder,
    progress: Progress,
    own: OwnParts,
    on_metrics: Sequence[OnMetrics] = (),
    held: ExitStack | None = None,
) -> Trainer:
    """Return the trainer of a run in the state of its newest checkpoint.

    Args:
        config: the run's own, perhaps with another device or other workers.
        run: its folder.
        progress: for messages.
        own: parts of the user's own, which must be the run's.
        on_metrics: called with each row of the metrics.
        held: on the main process of a resume: keeps the lock on the run, whose images must be as they were.
    """
    # the same samples as before
    own = own.fit_to(run)
    source: Source = load_source(run) if own.dataset is None else DatasetSource(own.dataset)
    if held is not None:
        check_unchanged(source, columns_of(config), f"restore them, or start a new run with --init-from {run.path}")
    validation = load_source(run.validation) if config.data.validation is not None else None
    if held is not None and validation is not None:
        check_unchanged(validation, validation_columns(config, source), "restore the data of --validation")
    # build, then load
    trainer = Trainer(build(config, source, run, progress, own, on_metrics, validation))
    if held is not None:
        held.enter_context(file_lock(run.lock_file, f"trains in {run.path}"))
        clear_leftovers(run.path)
    if (found := load_newest(run, progress.info)) is not None:
        newest, state = found
        try:
            trainer.load_state_dict(state)
        except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            first = " ".join(str(error).split())[:200]
            raise BadInput(
                f"{newest} does not fit {run.config_file} ({first}); restore the configuration of this run"
            ) from None
    if held is not None:
        remove_older(run, config.run.keep)
    return trainer


def _fit(trainer: Trainer, config: TrainConfig) -> RunFolder:
    """Train to the end, with the tracker of `--logger` on the main process."""
    with ExitStack() as opened:
        if config.run.logger != "none":
            import_tracker(config.run.logger)  # on all ranks: where it is missing all say so
            if distributed.is_rank0():
                options = {k: v for section in to_table(config).values() for k, v in section.items()}
                logger = open_logger(config.run.logger, trainer.run, options)
                opened.callback(logger.close)
                trainer.parts.on_metrics = [logger, *trainer.parts.on_metrics]
        patient = distributed.world_size() > 1
        opened.enter_context(compiler_errors())
        stop = opened.enter_context(stop_on_signals(trainer.progress.info, patient=patient))
        trainer.fit(stop)
    return trainer.run


def _start_from(trainer: Trainer, config: TrainConfig, source: Source) -> str:
    """Take weights and normalizers of the run of `--init-from`, and return a line about it."""
    other = RunFolder.open(str(config.model.init_from))
    newest = other.end_checkpoint() if other.finished else other.latest_checkpoint()
    if newest is None:
        raise BadInput(f"{other.path} has no checkpoint to start from; give --init-from a run that has trained")
    try:
        carried = trainer.start_from(other, load_checkpoint(newest))
    except RuntimeError:
        raise BadInput(
            f"{other.path} trained {other.config().model.model} and this run trains {config.model.model} "
            "(or the heads differ); --init-from needs the same --model and head"
        ) from None
    if not isinstance(source.images, Manifest) or not len(source.images):
        return f"starts    from {newest}" + (f" with {carried:,} normalizers" if carried else "")
    difference = other.manifest().difference(source.images)
    return f"starts    from {newest} with {carried:,} normalizers; " + (
        difference.describe() if difference else "the same images"
    )
