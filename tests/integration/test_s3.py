"""Runs on s3:// DATA, from a real S3 server on loopback: the same, checkpoint for checkpoint, as on the same files here."""

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

pytestmark = [pytest.mark.integration, pytest.mark.slow]
BUCKET = "pictures"
OPTIONS = "--image-size 16 --batch-size 8 --model resnet10_mini --device cpu --epochs 2".split()


@pytest.fixture(scope="module")
def server():
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield f"http://127.0.0.1:{running.get_host_and_port()[1]}"
    running.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory, server):
    """Make images, a table and shards, here and on the server."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["image,caption"]
    for k in range(24):
        path = folder / "images" / "ab"[k % 2] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (20, 20, 3), np.uint8)).save(path)
        rows.append(f"{path.relative_to(folder)},number {k} of them")
    (folder / "pairs.csv").write_text("\n".join(rows))
    (folder / "shards").mkdir()
    for s in range(2):
        with tarfile.open(folder / "shards" / f"{s:02d}.tar", "w") as tar:
            for k in range(s, 24, 2):
                (folder / "text.txt").write_text(f"number {k} of them")
                tar.add(folder / "images" / "ab"[k % 2] / f"{k:02d}.png", f"{k:02d}.png")
                tar.add(folder / "text.txt", f"{k:02d}.txt")
    (folder / "text.txt").unlink()
    with client(server) as files:
        files.mkdir(BUCKET)
        for path in folder.rglob("*.*"):
            files.pipe_file(f"{BUCKET}/{path.relative_to(folder)}", path.read_bytes())
    return folder


class client:  # noqa: N801  (reads as a function)
    """An S3 file system of its own, with the environment of the server."""

    def __init__(self, server):
        self.server = server

    def __enter__(self):
        import s3fs

        return s3fs.S3FileSystem(key="k", secret="s", endpoint_url=self.server, skip_instance_cache=True)

    def __exit__(self, *error):
        pass


@pytest.fixture
def environment(tmp_path, server):
    """Return the environment of a user of the server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FSSPEC_"))}
    return kept | {
        "SOGCLR_CACHE": str(tmp_path / "cache"),
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "OMP_NUM_THREADS": "1",
    }


def sogclr(environment, *words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "sogclr", *map(str, words)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def contents(run: Path) -> dict[str, str]:
    """Return what the newest checkpoint holds, each tensor by its bytes."""
    newest = sorted((run / "checkpoints").glob("step*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    found = {"name": newest.name}

    def walk(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)
        elif isinstance(value, list | tuple):
            for key, inner in enumerate(value):
                walk(f"{name}/{key}", inner)
        elif isinstance(value, torch.Tensor):
            found[name] = hashlib.sha256(value.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        else:
            found[name] = repr(value)

    walk("", state)
    return found


@pytest.mark.parametrize("place", ["images", "pairs.csv", "shards"])
def test_a_run_from_s3_is_the_run_from_the_same_files_here(data, environment, tmp_path, place):
    options = OPTIONS if place == "images" else [*OPTIONS, "--method", "clip"]
    sogclr(environment, "train", data / place, "--out", tmp_path / "here", "--workers", 0, *OPTIONS)
    sogclr(environment, "train", f"s3://{BUCKET}/{place}", "--out", tmp_path / "there", "--workers", 2, *OPTIONS)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert options
