"""The folder of a run: the names of its files, and readers for them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint_file import CHECKPOINT_FORMAT, DamagedCheckpoint
from .checkpoint_file import load_checkpoint as load_checkpoint
from .config.schema import TrainConfig
from .config.toml import from_options, read_table
from .errors import BadInput, RunFailed
from .files import atomic_write, check_folder, flush, make_folder

if TYPE_CHECKING:
    import numpy as np

    from .data.manifest import Manifest
    from .data.pair_columns import Kind
    from .data.pairs import Pairs


class RunFolder:
    """Paths of a run's files, and readers for them. Torch is imported only to read a checkpoint.

    It is an `os.PathLike`: whatever takes the path of a run takes the `RunFolder` too.

    Args:
        path: of the folder, which need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.manifest_file = self.path / "manifest.parquet"
        self.pairs_folder = self.path / "pairs"
        self.text_folder = self.path / "text"
        self.clip_folder = self.path / "clip"
        self.features_folder = self.path / "features"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best.pt"
        self.encoder_file = self.path / "encoder.safetensors"
        self.two_tower_file = self.path / "two_tower.safetensors"
        self.start_file = self.path / "start.safetensors"
        self.bad_file = self.path / "bad_files.txt"
        self.eval_file = self.path / "eval.json"
        self.report_file = self.path / "report.html"
        self.search_file = self.path / "search.html"
        self.lock_file = self.path / ".lock"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished" if self.config_file.is_file() else "no run yet"
        return f"RunFolder({str(self.path)!r}, {state}, step {self.step:,})"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Return the run at `path`.

        Raises:
            BadInput: there is no run at `path`.
        """
        run = cls(path)
        if not run.config_file.is_file():
            what = "there is no folder" if not run.path.exists() else "there is no run (no config.toml) in"
            raise BadInput(f"{what} {path}; give the folder that `sogclr train --out` wrote")
        return run

    def check_free(self) -> None:
        """Check that a new run may be written here: no folder, an empty one, or the remains of a start that failed.

        Raises:
            BadInput: the folder holds another run, or files that are not ours, or is none.
        """
        if self.config_file.exists():
            raise BadInput(
                f"{self.path} holds another run; continue it with `sogclr resume {self.path}`, or give another --out"
            )
        if file := next((p for p in (self.path, *self.path.parents) if p.exists() and not p.is_dir()), None):
            where = "is a file" if file == self.path else f"lies in {file}, which is a file"
            raise BadInput(f"--out {self.path} {where}; give a folder")
        before_config = {self.manifest_file, self.pairs_folder, self.text_folder, self.checkpoints, self.bad_file}
        before_config |= {self.metrics_file, self.tensorboard, self.lock_file, self.start_file, self.validation.path}
        before_config.add(self.clip_folder)
        present = sorted(self.path.iterdir()) if self.path.exists() else []
        others = [
            p.name for p in present if p not in before_config and not (p.name.startswith(".") and ".tmp" in p.name)
        ]
        if others:
            raise BadInput(
                f"--out {self.path} holds other files ({', '.join(others[:3])}); give a new or an empty folder"
            )
        check_folder(self.path)

    def clear_remains(self) -> None:
        """Remove what a start that failed has left and a run with other options would take for its own.

        Raises:
            BadInput: in a folder of ours lie files that are not ours.
        """
        self.start_file.unlink(missing_ok=True)
        if (self.clip_folder / "setup.json").is_file():  # nobody else's folder of that name
            shutil.rmtree(self.clip_folder)
        self.validation.manifest_file.unlink(missing_ok=True)
        for folder in (self.validation.pairs_folder, self.validation.path, self.pairs_folder):
            for name in ("captions", "rejected", "negatives", "pairs", "images"):
                (folder / f"{name}.arrow").unlink(missing_ok=True)
            if folder.is_dir():
                if others := sorted(p.name for p in folder.iterdir()):
                    raise BadInput(
                        f"{folder} holds other files ({', '.join(others[:3])}); give a new or an empty --out"
                    )
                folder.rmdir()

    @property
    def validation(self) -> RunFolder:
        """Return where the samples of `--validation` are listed, as the run's own are here."""
        return RunFolder(self.path / "validation")

    @property
    def finished(self) -> bool:
        """Return whether training has ended and the weights are written."""
        return (self.two_tower_file if self.holds_pairs() else self.encoder_file).is_file()

    @property
    def step(self) -> int:
        """Return the step of the newest checkpoint, 0 without one; its file name says it."""
        newest = self.latest_checkpoint()
        number = newest.stem.removeprefix("step-") if newest else ""
        return int(number) if number.isdecimal() else 0

    def config_table(self) -> dict[str, Any]:
        """Read `config.toml` as it is: a dict for each table."""
        return read_table(self.config_file)

    def config(self) -> TrainConfig:
        """Read the resolved configuration.

        Raises:
            BadInput: it is no configuration of this version.
        """
        table = self.config_table()
        if (
            self.holds_pairs()
        ):  # version 0.1 did not look for what matches by another pair: such a run goes on as it was
            table["pairs"] = {"known_pairs": False, **table.get("pairs", {})}
        try:
            return from_options({}, table)
        except BadInput as error:
            raise BadInput(f"{self.config_file} is changed, or of another version: {error}") from None

    def holds_pairs(self) -> bool:
        """Return whether the run is on pairs."""
        return self.pairs_folder.is_dir()

    def pair_columns(self) -> tuple[tuple[str, str], tuple[Kind, Kind]] | None:
        """Return the names of the two columns of a run on pairs, and what they hold; None of images alone."""
        from .data.pair_files import read_columns_held

        return read_columns_held(self.pairs_folder) if self.holds_pairs() else None

    def manifest(self) -> Manifest:
        """Read the images of the run, with their ids.

        Raises:
            BadInput: missing or damaged, or the run is on a data set of the user's own.
        """
        from .data.manifest import Manifest

        no_file = not self.manifest_file.is_file()
        if no_file and (name := self.config_table().get("own", {}).get("dataset")):
            raise BadInput(
                f"{self.path} was trained on a data set of your own ({name}), whose images are in no file here"
            )
        return Manifest.load(self.manifest_file)

    def pairs(self) -> Pairs:
        """Read the pairs of the run, with their ids."""
        from .data.pairs import Pairs

        return Pairs.load(self.manifest_file, self.pairs_folder)

    def metrics(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl`, a dict a line with `kind`, `step`, `epoch` and what was measured.

        A last line that a kill cut off is left out, and all that follows one that is damaged.
        """
        rows: list[dict[str, Any]] = []
        text = self.metrics_file.read_text(encoding="utf-8", errors="replace") if self.metrics_file.exists() else ""
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not (isinstance(row, dict) and {"kind", "step"} <= row.keys() and isinstance(row["step"], int)):
                break
            rows.append(row)
        return rows

    def checkpoint_file(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}.pt"

    def checkpoint_files(self) -> list[Path]:
        """List the checkpoints, oldest first, without `best.pt`."""
        return sorted(self.checkpoints.glob("step-*.pt"))

    def latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, None without one."""
        files = self.checkpoint_files()
        return files[-1] if files else None

    def keeps_best(self) -> bool:
        """Return whether the trained weights are those that scored best on held-out data (`--validation`), not the last ones."""
        return self.validation.path.is_dir() and self.best_checkpoint.is_file()

    def end_checkpoint(self) -> Path | None:
        """Return the checkpoint whose weights a finished run has, None without one."""
        return self.best_checkpoint if self.keeps_best() else self.latest_checkpoint()

    def log_u(self) -> np.ndarray | None:
        """Read the running log-normalizers from the newest checkpoint: of the images, or of the first column of pairs.

        Returns:
            float32 (n,) by id, -inf for what was not seen yet, and for what stands in the second column only; None without a checkpoint, or if the method keeps none.

        Raises:
            BadInput: the checkpoint cannot be read.
        """
        newest = self.latest_checkpoint()
        if newest is None:
            return None
        loss = load_checkpoint(newest)["loss"]
        log_u = loss.get("estimator.log_u", loss.get("image_estimator.log_u"))
        return None if log_u is None else log_u.numpy()


# ---------------------------------------------------------------------------------------------------------- checkpoints
def save_checkpoint(run: RunFolder, state: dict[str, Any], keep: int, best: bool = False) -> Path:
    """Write `step-XXXXXXXX.pt` atomically, then remove older checkpoints.

    Args:
        run: the folder to write in.
        state: what `load_checkpoint` gives back; tensors and plain Python types, with the int `step`.
        keep: number of newest checkpoints that stay.
        best: link this checkpoint as `best.pt`, which always stays.

    Returns:
        The path of the checkpoint.

    Raises:
        RunFailed: the disk is full; earlier checkpoints are untouched.
    """
    import torch

    make_folder(run.checkpoints)
    path = run.checkpoint_file(state["step"])
    try:
        # torch's own writer, which takes a file name, does not say that the disk is full
        if run.metrics_file.is_file():
            flush(run.metrics_file)  # before what goes on from them
        with atomic_write(path) as temporary:
            with open(temporary, "wb") as file:
                torch.save({"format": CHECKPOINT_FORMAT, **state}, file)
            if best:  # first: a kill between the two leaves a run that comes to this best again
                with atomic_write(run.best_checkpoint) as link:
                    _link(temporary, link)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        older = [p.name for p in run.checkpoint_files()]
        again = f"`sogclr resume {run.path}` goes on from {older[-1] if older else 'the start'}"
        again = again if run.config_file.is_file() else "start the run again"
        reason = (
            error.__context__ if isinstance(error.__context__, OSError) else error
        )  # torch's own words are of its archive
        raise RunFailed(
            f"the checkpoint {path} could not be written ({reason}); free some space, then {again}"
        ) from None
    remove_older(run, keep)
    return path


def remove_older(run: RunFolder, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and `best.pt`."""
    for old in run.checkpoint_files()[:-keep]:
        old.unlink()


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def load_newest(run: RunFolder, info: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Read the newest checkpoint that is whole, and its path; None without one. Damaged ones get another name.

    Args:
        run: its folder.
        info: called with a line about each that is damaged.

    Raises:
        BadInput: all of them are damaged, or one is of another version.
    """
    files = run.checkpoint_files()[::-1]
    for k, path in enumerate(files):
        try:
            state = load_checkpoint(path)
        except DamagedCheckpoint:
            if path == files[-1]:
                raise
            continue
        for damaged in files[:k]:  # not to be taken for newer than those that follow
            if damaged.exists():
                damaged.rename(damaged.with_name(f"damaged-{damaged.name}"))
                info(f"{damaged} is damaged, and is now damaged-{damaged.name}; going on from {path.name}")
        return path, state
    return None
