"""Runs on s3:// DATA, from a real S3 server on loopback: the same, checkpoint for checkpoint, as on the same files here."""

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

pytestmark = [pytest.mark.integration, pytest.mark.slow]
BUCKET = "pictures"
OPTIONS = ["--image-size", "16", "--batch-size", "8", "--model", "resnet10_mini", "--device", "cpu", "--epochs", "2"]


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


@contextmanager
def client(server):
    """An S3 file system of its own, that is closed."""
    import fsspec.asyn
    import s3fs

    files = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=server, skip_instance_cache=True)
    try:
        yield files
    finally:
        files.close_session(fsspec.asyn.get_loop(), files.s3)


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


def contents(run: Path) -> dict[str, object]:
    """Return what the checkpoints hold but the seconds that it took, each tensor by its bytes."""
    states = {file.name: torch.load(file, weights_only=True) for file in (run / "checkpoints").glob("step*.pt")}
    return {name: digests({k: v for k, v in state.items() if k != "seconds"}) for name, state in states.items()}


def digests(value):
    if isinstance(value, dict):
        return {key: digests(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [digests(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()
    return value


@pytest.mark.parametrize("place", ["images", "pairs.csv", "shards"])
def test_a_run_from_s3_is_the_run_from_the_same_files_here(data, environment, tmp_path, place):
    sogclr(environment, "train", data / place, "--out", tmp_path / "here", "--workers", 0, *OPTIONS)
    sogclr(environment, "train", f"s3://{BUCKET}/{place}", "--out", tmp_path / "there", "--workers", 2, *OPTIONS)
    here = contents(tmp_path / "here")
    assert len(here) > 0
    assert contents(tmp_path / "there") == here


def test_a_killed_run_goes_on_bit_for_bit(data, environment, tmp_path):
    words = ["train", f"s3://{BUCKET}/images", "--workers", 1, *OPTIONS, "--save-every", 1]
    sogclr(environment, *words, "--out", tmp_path / "whole")
    killed = subprocess.Popen(
        [sys.executable, "-m", "sogclr", *map(str, words), "--out", str(tmp_path / "run")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not [*(tmp_path / "run" / "checkpoints").glob("step*2.pt")] and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    sogclr(environment, "resume", tmp_path / "run")
    last = sorted(contents(tmp_path / "whole"))[-1]
    assert contents(tmp_path / "run")[last] == contents(tmp_path / "whole")[last]
    fewer = data / "images" / "a" / "00.png"
    with client(environment["AWS_ENDPOINT_URL"]) as files:
        files.rm_file(f"{BUCKET}/images/a/00.png")
        try:
            (tmp_path / "run" / "encoder.safetensors").unlink()
            assert "1 removed (first: a/00.png)" in sogclr(environment, "resume", tmp_path / "run", code=2)
        finally:
            files.pipe_file(f"{BUCKET}/images/a/00.png", fewer.read_bytes())


def test_embed_eval_and_inspect(data, environment, tmp_path):
    place = f"s3://{BUCKET}/images"
    sogclr(environment, "train", place, "--out", tmp_path / "run", "--workers", 1, *OPTIONS)
    sogclr(environment, "embed", tmp_path / "run", place, "--out", tmp_path / "there.npz", "--device", "cpu")
    sogclr(environment, "embed", tmp_path / "run", data / "images", "--out", tmp_path / "here.npz", "--device", "cpu")
    with np.load(tmp_path / "there.npz") as there, np.load(tmp_path / "here.npz") as here:
        assert np.array_equal(there["embedding"], here["embedding"])
        assert there["path"].tolist() == here["path"].tolist()
    sogclr(environment, "eval", tmp_path / "run", place, "--device", "cpu")
    sogclr(environment, "inspect", place, "--decode")


def test_a_vanished_object_is_skipped_and_counted(data, environment, tmp_path):
    """It is there when the images are listed, and gone when they are read."""
    with client(environment["AWS_ENDPOINT_URL"]) as files:
        for k in range(12):
            files.pipe_file(f"{BUCKET}/gone/{k:02d}.png", (data / "images" / "ab"[k % 2] / f"{k:02d}.png").read_bytes())
        code = "import sys, s3fs; from sogclr.data.manifest import Manifest; from sogclr.cli import main; "
        code += "scan = Manifest.scan.__func__; files = s3fs.S3FileSystem(); "
        code += "Manifest.scan = classmethod(lambda c, *a, **k: (scan(c, *a, **k), files.rm_file('pictures/gone/03.png'))[0]); "
        code += "sys.exit(main())"
        words = ["train", f"s3://{BUCKET}/gone", "--out", tmp_path / "run", "--max-bad", 0.2, "--workers", 1, *OPTIONS]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "bad_files.txt").read_text() == "03.png\tno longer exists\n"


@pytest.mark.parametrize(
    ("place", "changes", "sentence"),
    [
        ("s3://nosuchbucket/images", {}, "there is no folder or list file s3://nosuchbucket/images"),
        ("s3://nosuchbucket/pairs.csv", {}, "there is no table s3://nosuchbucket/pairs.csv"),
        ("s3://pictures/images", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "NoCredentialsError"),
        (
            "s3://pictures/images",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "cannot be reached (EndpointConnectionError",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_nothing_is_written(environment, tmp_path, place, changes, sentence):
    environment = {k: v for k, v in (environment | changes).items() if v}
    said = sogclr(environment, "train", place, "--out", tmp_path / "run", *OPTIONS, code=2)
    assert sentence in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
