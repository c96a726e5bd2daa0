"""The folder of a run: what lies where, and how to read it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.schema import TrainConfig
from .config.toml import from_options, read_table, without_unused
from .errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from .data.manifest import Manifest
    from .data.pairs import Pairs


class RunFolder:
    """Paths of a run's files, and readers for them. Torch is imported only to look into a checkpoint."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.manifest_file = self.path / "manifest.parquet"
        self.pairs_folder = self.path / "pairs"
        self.text_folder = self.path / "text"
        self.features_folder = self.path / "features"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best.pt"
        self.encoder_file = self.path / "encoder.safetensors"
        self.two_tower_file = self.path / "two_tower.safetensors"
        self.bad_file = self.path / "bad_files.txt"
        self.eval_file = self.path / "eval.json"
        self.report_file = self.path / "report.html"
        self.lock_file = self.path / ".lock"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The run at `path`.

        Raises:
            BadInput: there is no run.
        """
        run = cls(path)
        if not run.config_file.is_file():
            what = "there is no folder" if not run.path.exists() else "there is no run (no config.toml) in"
            raise BadInput(f"{what} {path}; give the folder that `sogclr train --out` wrote")
        return run

    def check_free(self) -> None:
        """A new run may be written here: the folder is absent, empty, or holds the remains of a start that failed.

        Raises:
            BadInput: it holds another run, or files that are not ours.
        """
        if self.config_file.exists():
            raise BadInput(
                f"{self.path} holds another run; continue it with `sogclr resume {self.path}`, or give another --out"
            )
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"--out {self.path} is a file; give a folder")
        ours = {
            "manifest.parquet",
            "checkpoints",
            "bad_files.txt",
            "metrics.jsonl",
            "tensorboard",
            "pairs",
            "text",
            ".lock",
        }
        others = (
            sorted(
                p.name
                for p in self.path.iterdir()
                if p.name not in ours and not (p.name[0] == "." and ".tmp" in p.name)
            )
            if self.path.exists()
            else []
        )
        if others:
            raise BadInput(
                f"--out {self.path} holds other files ({', '.join(others[:3])}); give a new or an empty folder"
            )

    def config_table(self) -> dict[str, Any]:
        """The tables of `config.toml`."""
        return read_table(self.config_file)

    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return from_options({}, without_unused(self.config_table()))

    def holds_pairs(self) -> bool:
        """Whether the run is on image-caption pairs."""
        return self.pairs_folder.is_dir()

    def manifest(self) -> Manifest:
        """The images of the run, with their ids."""
        from .data.manifest import Manifest

        if name := self.config_table().get("own", {}).get("dataset"):
            raise BadInput(
                f"{self.path} was trained on a data set of your own ({name}), whose images are in no file here"
            )
        return Manifest.load(self.manifest_file)

    def pairs(self) -> Pairs:
        """The image-caption pairs of the run, with their ids."""
        from .data.pairs import Pairs

        return Pairs.load(self.manifest_file, self.pairs_folder)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a last line that was cut off by a kill is left out."""
        rows = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines() if self.metrics_file.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def checkpoint_files(self) -> list[Path]:
        """Checkpoints, oldest first (without the best)."""
        return sorted(self.checkpoints.glob("step-*.pt"))

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint."""
        files = self.checkpoint_files()
        return files[-1] if files else None

    def log_u(self) -> np.ndarray | None:
        """float32 (n,): the images' running log-normalizers in the newest checkpoint, -inf where unseen; None if the method keeps none."""
        from .checkpoint import load_checkpoint

        newest = self.latest_checkpoint()
        if newest is None:
            return None
        loss = load_checkpoint(newest)["loss"]
        log_u = loss.get("estimator.log_u", loss.get("image_estimator.log_u"))
        return None if log_u is None else log_u.numpy()
