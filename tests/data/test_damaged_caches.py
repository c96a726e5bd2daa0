"""Flip bits anywhere in what the cache holds: it is made anew, and nobody gets another image, size or caption."""

import io
import tarfile

import numpy as np
import pytest
from image_files import jpeg, png

from sogclr.data.column_files import read_columns
from sogclr.data.decoded import write_decoded
from sogclr.data.manifest import Manifest
from sogclr.data.pairs import Pairs
from sogclr.errors import BadInput
from sogclr.files import cache_folder, read_sealed, seal


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))


def flips(path, count=60):
    """Yield after each of `count` different bits of a file was flipped; it is whole again afterwards."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in rng.choice(len(whole) * 8, count, replace=False):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        yield int(at)
    path.write_bytes(whole)


def test_headers(tmp_path):
    for k in range(5):
        (png if k % 2 else jpeg)(tmp_path / f"{k}.png")
    first = Manifest.scan(tmp_path)
    (file,) = (cache_folder() / "headers").iterdir()
    for _ in flips(file):
        again = Manifest.scan(tmp_path)
        assert (again.bad, again.notes) == (first.bad, first.notes)
        assert (again.widths.tolist(), again.heights.tolist()) == (first.widths.tolist(), first.heights.tolist())


def test_an_index_of_a_shard(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for k in range(4):
            png(tmp_path / "one.png")
            for name, content in (
                (f"{k}.png", (tmp_path / "one.png").read_bytes()),
                (f"{k}.txt", f"caption {k}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    first = Pairs.scan(tmp_path / "a.tar")
    (file,) = (cache_folder() / "shards").iterdir()
    for _ in flips(file):
        assert Pairs.scan(tmp_path / "a.tar").fingerprint == first.fingerprint


def test_decoded_images(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(3):
        png(tmp_path / "photos" / f"{k}.png")
    decoded, _ = write_decoded(Manifest.scan(tmp_path / "photos"))
    right = [np.asarray(decoded.get(k)[0]) for k in range(3)]
    pixels, caught = 3 * sum(p.size // 3 for p in right), 0
    for at in flips(decoded.path):
        if at // 8 < pixels:
            found = [type(decoded)(decoded.path).get(k) for k in range(3)]
            assert found.count(None) == 1  # which is then read from its file
            assert all(f is None or np.array_equal(f[0], p) for f, p in zip(found, right, strict=True))
            caught += 1
    assert caught > 10


def test_a_manifest(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(40):
        png(tmp_path / "photos" / f"{k}.png")
    first = Manifest.scan(tmp_path / "photos")
    path = tmp_path / "manifest.parquet"
    first.save(path)
    refused = 0
    for _ in flips(path):
        try:
            again = Manifest.load(path)
        except BadInput:
            refused += 1
        else:
            assert again.relatives() == first.relatives()
            assert again.widths.tolist() == first.widths.tolist()
            assert again.mtimes.tolist() == first.mtimes.tolist()
    assert refused > 10
    assert len(read_columns(path)["relative"]) == 40


def test_a_seal_covers_every_byte(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some bytes")
    with pytest.raises(ValueError, match="checksum"):
        read_sealed(path)
    seal(path)
    assert bytes(read_sealed(path)) == b"some bytes"
    for _ in flips(path, 8 * path.stat().st_size):
        with pytest.raises(ValueError, match="checksum"):
            read_sealed(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        read_sealed(path)
