"""Makes `tests/data/runs_0_1`: the run folders of version 0.1.0 that `tests/test_saved_runs.py` goes on with.

They are to be made by that version, commit 68ae24f, and by no other:

    git worktree add /tmp/old 68ae24f
    PYTHONPATH=/tmp/old/src OMP_NUM_THREADS=1 python tests/data/make_runs_0_1.py

A run is trained to its end. The interrupted one is its folder as it was at an earlier checkpoint.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import saved_runs as saved
import torch
from digits import write_digits
from safetensors.torch import save_file

import sogclr

NAMES = ("zero", "one", "two", "three", "four")


def write_data(folder: Path) -> None:
    """Write 8 images of each of five digits, two captions for each, and a list of 35 images."""
    write_digits(folder, per_digit=8, digits=len(NAMES))
    images = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for image in images:  # a caption of many images, and one of its own
            digit = NAMES[int(image[0])]
            writer.writerows([[image, f"the digit {digit}"], [image, f"{digit} in picture {Path(image).stem}"]])
    (folder / "list.txt").write_text("\n".join(images[:35]) + "\n", encoding="utf-8")


def write_backbone(path: Path) -> None:
    """Write weights for the encoder that stays frozen."""
    torch.manual_seed(5)
    save_file(saved.CompatNet().state_dict(), path)


def interrupted(run: Path, target: Path) -> None:
    """Write a run's folder as a kill right after the checkpoint of step `CUT` would have left it."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("*.safetensors", "*.pt", ".lock", "tensorboard"))
    shutil.copy(run / "checkpoints" / f"step-{saved.CUT:08d}.pt", target / "checkpoints")
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in rows if json.loads(row)["step"] <= saved.CUT]
    (target / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")


def finished(run: Path, target: Path) -> None:
    """Write a run's folder at its end, with its last checkpoint only."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("best.pt", ".lock", "tensorboard"))
    for checkpoint in sorted((target / "checkpoints").iterdir())[:-1]:
        checkpoint.unlink()


def main() -> None:
    """Train all runs and pack them, with what is expected of them."""
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="sogclr-runs-"))
    os.environ["SOGCLR_CACHE"] = str(root / "cache")
    shutil.rmtree(saved.STORED, ignore_errors=True)
    saved.STORED.mkdir(parents=True)
    write_data(root / "data")
    write_backbone(root / "backbone.safetensors")
    shutil.copytree(root / "data", saved.STORED / "data")
    shutil.copyfile(root / "backbone.safetensors", saved.STORED / "backbone.safetensors")
    wanted, embeddings = {}, {}
    for name, options in saved.RUNS.items():
        options = saved.COMMON | options
        if "pretrained" in options:
            options["pretrained"] = str(root / options["pretrained"])
        run = sogclr.train(root / saved.source_of(name), root / "runs" / name, quiet=True, **options).path
        wanted[name] = saved.summary(run)
        interrupted(run, root / "packed" / f"{name}-interrupted")
        if name in saved.FINISHED:
            finished(run, root / "packed" / f"{name}-finished")
            sogclr.embed(run, root / "data", root / "embeddings.npz", workers=0, device="cpu")
            embeddings[name] = np.load(root / "embeddings.npz")["embedding"]
            (root / "embeddings.npz").unlink()
        print(name, wanted[name]["last"]["train"])
    saved.pack(root / "packed")
    processor = torch.backends.cpu.get_cpu_capability()
    found = {"version": sogclr.__version__, "processor": processor, "root": str(root), "runs": wanted}
    (saved.STORED / "expected.json").write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
    np.savez_compressed(saved.STORED / "embeddings.npz", **embeddings)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
