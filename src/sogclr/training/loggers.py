"""TensorBoard and experiment trackers, W&B, MLflow and trackio: fed with the rows of `metrics.jsonl`, on a machine without network too.

A tracker's package is an extra, imported when it is asked for. A run that is resumed goes on with the tracker's run, whose
id lies in the run's folder. Where runs go is the tracker's own to be told: WANDB_MODE=offline, MLFLOW_TRACKING_URI, ...
"""

from __future__ import annotations

import importlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ..errors import BadInput, RunFailed
from ..files import write_text
from ..run_folder import RunFolder

PROJECT = "sogclr"


class Logger(Protocol):
    """Somewhere else that a run's metrics go."""

    def __call__(self, row: dict[str, Any]) -> None:
        """Send a row of `metrics.jsonl`."""
        ...

    def close(self) -> None:
        """End the tracker's run."""
        ...


def open_logger(name: str, run: RunFolder, config: dict[str, Any]) -> Logger:
    """Return the tracker of `--logger`, in which the run has its folder's name.

    Args:
        name: tensorboard, wandb, mlflow or trackio.
        run: the run's folder; the tracker's id of the run is kept there.
        config: the run's options, flat.

    Raises:
        BadInput: its package is not installed.
    """
    kinds: dict[str, Callable[[Any, RunFolder, dict[str, Any]], Logger]] = {
        "tensorboard": TensorboardLogger,
        "wandb": WandbLogger,
        "mlflow": MlflowLogger,
        "trackio": TrackioLogger,
    }
    return kinds[name](import_tracker(name), run, config)


def import_tracker(name: str) -> Any:
    """Return the tracker's module.

    Raises:
        BadInput: its package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadInput(f"--logger {name} needs a package that is not installed: pip install {name}") from None


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics as trackers name them: `train/objective`, `train/images_per_s`."""
    values = {**row, **row.get("timing", {})}
    return {
        f"{row['kind']}/{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and name != "step"
    }


def tracker_id(run: RunFolder, make: Callable[[], str]) -> str:
    """Return the tracker's id of a run: that in the run's folder, or a new one, which is written there."""
    path = run.path / "logger_id.txt"
    if not path.is_file():
        write_text(path, make())
    return path.read_text(encoding="utf-8")


class TensorboardLogger:
    """TensorBoard, in the run's folder; a run that goes on from step s first drops what was written after s.

    A thread of its own writes; what it cannot write is told by the next call, and ends the run.
    """

    def __init__(self, tensorboard: Any, run: RunFolder, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # which imports the package

        self.run, self._hook = run, threading.excepthook
        self._error: OSError | None = None
        threading.excepthook = self._hear
        with self._one_sentence():
            self.board = SummaryWriter(str(run.tensorboard), purge_step=run.step + 1 if run.step else None)

    def __call__(self, row: dict[str, Any]) -> None:
        """Send a row of metrics."""
        with self._one_sentence():
            for name, value in numbers(row).items():
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Close the file of events."""
        with self._one_sentence():
            try:
                self.board.close()
            finally:
                threading.excepthook = self._hook
            if self._error is not None:
                raise self._error

    def _hear(self, about: threading.ExceptHookArgs) -> None:
        if isinstance(about.exc_value, OSError) and type(about.thread).__module__.startswith("tensorboard"):
            self._error = about.exc_value
        else:
            self._hook(about)

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"the events for TensorBoard in {self.run.tensorboard} could not be written ({error.strerror}); "
                f"free some space, and `sogclr resume {self.run.path}` goes on (metrics.jsonl has the same numbers)"
            ) from None


class WandbLogger:
    """Weights & Biases."""

    def __init__(self, wandb: Any, run: RunFolder, config: dict[str, Any]) -> None:
        identity = tracker_id(run, lambda: secrets.token_hex(4))
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(
            project=project, name=run.path.name, id=identity, resume="allow", config=config, dir=str(run.path)
        )

    def __call__(self, row: dict[str, Any]) -> None:
        """Send a row of metrics."""
        if values := numbers(row):
            self.run.log(values, step=row["step"])

    def close(self) -> None:
        """End W&B's run."""
        self.run.finish()


class MlflowLogger:
    """MLflow, by its client, so that no run of the caller's is touched."""

    def __init__(self, mlflow: Any, run: RunFolder, config: dict[str, Any]) -> None:
        self.client = mlflow.MlflowClient()
        self.run_id = tracker_id(run, lambda: self._create(run, config))

    def _create(self, run: RunFolder, config: dict[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        run_id = str(self.client.create_run(experiment_id, run_name=run.path.name).info.run_id)
        for key, value in config.items():
            self.client.log_param(run_id, key, value)
        return run_id

    def __call__(self, row: dict[str, Any]) -> None:
        """Send a row of metrics."""
        for name, value in numbers(row).items():
            self.client.log_metric(self.run_id, name, value, step=row["step"])

    def close(self) -> None:
        """End MLflow's run."""
        self.client.set_terminated(self.run_id)


class TrackioLogger:
    """Trackio."""

    def __init__(self, trackio: Any, run: RunFolder, config: dict[str, Any]) -> None:
        name = tracker_id(run, lambda: run.path.name)
        self.run = trackio.init(project=PROJECT, name=name, resume="allow", config=config)

    def __call__(self, row: dict[str, Any]) -> None:
        """Send a row of metrics."""
        if values := numbers(row):
            self.run.log(values, step=row["step"])

    def close(self) -> None:
        """End trackio's run."""
        self.run.finish()
