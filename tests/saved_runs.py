"""Runs that version 0.1.0 wrote, as test data: their options, how they are packed, and how they come to lie elsewhere.

`data/make_runs_0_1.py` makes them, `test_saved_runs.py` goes on with them. Only what is stable is used here: the public
API and the files' formats.
"""

from __future__ import annotations

import functools
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

import sogclr

_ = sogclr.load_encoder  # importing it makes timm importable beside a torch for the CPU
import timm  # noqa: E402

STORED = Path(__file__).parent / "fixtures" / "runs_0_1"
STEPS, CUT = (
    12,
    7,
)  # of each run, and where the interrupted ones stopped: within an epoch and between two lines of metrics
SIZE, WIDTH = 16, 16  # pixels a side, features


# ------------------------------------------------------------------------------------------------------------- the model
class CompatNet(nn.Module):
    """A timm model of 1.4 thousand weights: its runs are small enough to be kept. (N, 3, S, S) -> (N, 16)."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.stem(images)).mean(dim=(2, 3))


def compat_net(pretrained: bool = False, num_classes: int = 0, checkpoint_path: str = "", **kwargs: Any) -> nn.Module:
    """Build the model, as timm asks for it by name."""
    return CompatNet()


if not timm.is_model("compat_net"):
    timm.models.register_model(compat_net)


# -------------------------------------------------------------------------------------------------------------- the runs
COMMON = {
    "model": "compat_net",
    "image_size": SIZE,
    "head_dim": 16,
    "batch_size": 8,
    "epochs": 20,
    "max_steps": STEPS,
    "save_every": CUT,
    "log_every": 3,
    "eval_every": 1,
    "keep": 20,
    "precision": "fp32",
    "device": "cpu",
    "threads": 1,
    "workers": 0,
}
SGD = {"optimizer": "sgd", "lr": 0.02}
IMAGES: dict[str, dict[str, Any]] = {
    "sogclr": {},  # all that the paper says: LARS, a moving average
    "sgd": SGD | {"gamma_schedule": "cosine", "gamma": 0.2, "clip_grad": 1.0},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "convention": "per_sample", "head_layers": 3},
    "cosine-full": SGD | {"gamma_schedule": "cosine-full", "gamma": 0.3, "balanced": True},
    "list": SGD | {"accumulate": 2, "max_steps": STEPS},
    "micro-batch": SGD | {"micro_batch": 4, "recipe": "character"},
    "diagnosed": SGD | {"diagnose_every": 1},
    "mini-batch": SGD | {"estimator": "mini-batch"},
    "boosted": SGD | {"estimator": "boosted", "convention": "per_sample"},
    "dictionary": SGD | {"estimator": "dictionary", "queue": 48},
    "queue-average": SGD | {"estimator": "queue-average", "queue": 48, "gamma": 0.5},
    "memory": SGD | {"estimator": "memory", "queue": 48},
    "boosted-memory": SGD | {"estimator": "boosted-memory", "queue": 48},
    "neuclip": SGD | {"method": "neuclip", "prototypes": 32},
    "neural": SGD | {"estimator": "neural", "prototypes": 64, "prototype_lr": 1e-2},
    "isogclr": SGD | {"method": "isogclr", "rho": 0.2},
    "scent": SGD | {"method": "scent", "alpha": -3.0},
    "global": SGD | {"temperature_mode": "global", "temperature_lr": 1e-2},
    "simclr": SGD | {"method": "simclr"},
    "simclr-global": SGD | {"method": "simclr", "temperature_mode": "global", "temperature": 0.2},
    "dcl": SGD | {"method": "dcl"},
    "moco": SGD | {"method": "moco", "queue": 48, "key_momentum": 0.9},
    "moco-symmetric": SGD | {"method": "moco", "queue": 48, "symmetric": True, "key_schedule": "cosine"},
}
TEXT = {"text_width": 32, "text_layers": 1, "text_length": 8, "vocab_size": 300}
PLAIN = TEXT | {"optimizer": "sgd", "momentum": 0.0, "lr": 0.3}
SLOW = PLAIN | {"text_rate": 1e-9}  # most weights of the text tower stay as drawn, the same in all runs: small files
PAIRS: dict[str, dict[str, Any]] = {
    "pairs-sogclr": TEXT | {"lr": 5e-3},
    "pairs-siglip": PLAIN | {"method": "siglip"},
    "pairs-clip": SLOW | {"method": "clip", "temperature_mode": "global"},
    "pairs-isogclr": SLOW | {"method": "isogclr"},
    "pairs-scent": SLOW | {"method": "scent"},
    "pairs-neuclip": SLOW | {"method": "neuclip", "prototypes": 32},
    "pairs-dictionary": SLOW | {"estimator": "dictionary", "queue": 32},
    "pairs-memory": SLOW | {"estimator": "memory", "queue": 32},
    "pairs-boosted-memory": SLOW | {"estimator": "boosted-memory", "queue": 32},
    "pairs-frozen": SLOW | {"image_rate": 0.0, "pretrained": "backbone.safetensors", "gamma": 0.5},
}
RUNS = IMAGES | PAIRS
# with options that are gone since -> how the refusal names them
REMOVED = {
    name: " and ".join(
        word
        for word in (
            "--balanced" if options.get("balanced") else "",
            f"--estimator {options.get('estimator')}"
            if options.get("estimator") not in (None, "mini-batch", "neural")
            else "",
        )
        if word
    )
    for name, options in RUNS.items()
}
REMOVED = {name: words for name, words in REMOVED.items() if words}
KEPT = [name for name in RUNS if name not in REMOVED]
FINISHED = ("sogclr", "isogclr", "moco", "pairs-siglip", "pairs-frozen")


def source_of(name: str) -> str:
    """Return what a run was trained on, relative to the folder of all."""
    return "data/list.txt" if name == "list" else "data/captions.csv" if name in PAIRS else "data"


# ------------------------------------------------------------------------------------------------------ packing, unpacking
def pack(runs: Path) -> None:
    """Write all runs, `NAME-interrupted` and `NAME-finished`, as one archive: what they share is in it once."""
    with tarfile.open(STORED / "runs.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(p for p in runs.rglob("*") if p.is_file()):
            archive.add(path, path.relative_to(runs).as_posix())


def unpack(folder: Path) -> Path:
    """Write all stored runs into a folder."""
    with tarfile.open(STORED / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def lay_out(stored: Path, root: Path) -> Path:
    """Copy one of the unpacked runs and what it was trained on below `root`, as if it had been made there.

    Args:
        stored: the run among the unpacked ones.

    Returns:
        The run's folder.
    """
    if not (root / "data").exists():
        shutil.copytree(STORED / "data", root / "data")
        shutil.copy(STORED / "backbone.safetensors", root)
    run = root / "runs" / stored.name.rpartition("-")[0]
    shutil.copytree(stored, run)
    _move(run, expected()["root"], str(root))
    return run


def _move(run: Path, old: str, new: str) -> None:
    """Rewrite the absolute paths that a run's files hold."""
    config = run / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    for path in (run / "manifest.parquet", run / "pairs" / "images.arrow"):
        if not path.exists():
            continue
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            pq.write_table(_moved(table, old, new), path)
        else:
            with pa.OSFile(str(path)) as file:
                table = _moved(pa.ipc.open_file(file).read_all(), old, new)
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)


def _moved(table: pa.Table, old: str, new: str) -> pa.Table:
    head = json.loads(table.schema.metadata[b"sogclr"])
    head = {key: value.replace(old, new) for key, value in head.items()}
    return table.replace_schema_metadata({"sogclr": json.dumps(head)})


# --------------------------------------------------------------------------------------------------------------- digests
@functools.cache
def expected() -> dict[str, Any]:
    """Return what version 0.1.0 made of all runs, to their ends."""
    return json.loads((STORED / "expected.json").read_text(encoding="utf-8"))


def summary(run: Path) -> dict[str, Any]:
    """Return what is compared of a run at its end: its last checkpoint's tensors, and its last lines of metrics."""
    newest = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    state = torch.load(newest, map_location="cpu", weights_only=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "step": state["step"],
        "state": {part: digest(state[part]) for part in ("model", "loss", "keys") if state[part] is not None},
        "rows": [[row["kind"], row["step"]] for row in rows],
        "last": {row["kind"]: {k: v for k, v in row.items() if k not in ("kind", "timing")} for row in rows},
    }


def digest(state: dict[str, Tensor]) -> dict[str, list[float]]:
    """Return of every tensor the norm, a sum with fixed weights that tells its entries apart, and how many are not finite."""
    found = {}
    for key, value in state.items():
        flat = value.detach().double().flatten().numpy()
        known = np.where(np.isfinite(flat), flat, 0.0)
        numbers = np.linalg.norm(known), known @ np.cos(np.arange(len(flat))), (~np.isfinite(flat)).sum()
        found[key] = [float(f"{x:.9g}") for x in numbers]
    return found


def close(found: list[float], wanted: list[float], tolerance: float) -> bool:
    """Whether two digests of a tensor agree, relative to its norm."""
    scale = tolerance * wanted[0] + tolerance / 1000
    return abs(found[0] - wanted[0]) <= scale and abs(found[1] - wanted[1]) <= 2 * scale and found[2] == wanted[2]
