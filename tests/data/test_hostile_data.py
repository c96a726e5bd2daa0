"""Data that somebody made to hurt, or that a disk has damaged: one sentence or a bad file, never a traceback or a hang."""

import io
import os
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import png
from PIL import Image

from sogclr.config.toml import read_table
from sogclr.data.images import decode
from sogclr.data.manifest import Manifest
from sogclr.data.pairs import Pairs
from sogclr.errors import BadImage, BadInput


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------------------------------ tar
def picture(tmp_path) -> bytes:
    png(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def tar_with(path, members):
    """Write a tar of (header name as bytes, content)."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def header_size(raw: bytes, at: int, field: bytes) -> bytes:
    """Return a tar whose header at `at` says another size, under a checksum that fits."""
    block = bytearray(raw[at : at + 512])
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return raw[:at] + bytes(block) + raw[at + 512 :]


def test_a_name_that_is_no_utf_8_stops_nothing(tmp_path):
    content = picture(tmp_path)
    members = [(b"a.png", content), (b"a.txt", b"one"), (b"\xff\xfe.png", content), (b"\xff\xfe.txt", b"two")]
    tar_with(tmp_path / "a.tar", members)
    pairs = Pairs.scan(tmp_path / "a.tar")
    assert pairs.images.relatives() == ["a.tar/\\xff\\xfe.png", "a.tar/a.png"]
    assert sorted(pairs.texts.to_pylist()) == ["one", "two"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"caption": "half of a character \\ud800"}', '{"caption": 3}', "3"])
def test_any_json_beside_an_image(text, tmp_path):
    content = picture(tmp_path)
    members = [(b"a.png", content), (b"a.txt", b"one"), (b"b.png", content), (b"b.json", text.encode())]
    tar_with(tmp_path / "a.tar", members)
    assert len(Pairs.scan(tmp_path / "a.tar").images) == 2


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    "field",
    [
        b"\x80" + (2**80).to_bytes(11, "big"),  # base 256
        b"\xff" + (2**88 - 100).to_bytes(11, "big"),  # -100
        b"77777777777\0",
        b"not a size\0\0",
    ],
)
def test_sizes_that_cannot_be(field, at, tmp_path):
    content = picture(tmp_path)
    tar_with(tmp_path / "a.tar", [(b"a.png", content), (b"a.txt", b"one"), (b"b.png", content), (b"b.txt", b"two")])
    raw = (tmp_path / "a.tar").read_bytes()
    second = 512 + -(-len(content) // 512) * 512
    (tmp_path / "a.tar").write_bytes(header_size(raw, at * second, field))
    try:
        pairs = Pairs.scan(tmp_path / "a.tar")
    except BadInput:
        return
    assert len(pairs) <= 2


def test_any_flipped_bit_of_a_tar(tmp_path):
    content, rng = picture(tmp_path), np.random.default_rng(0)
    tar_with(tmp_path / "a.tar", [(b"a.png", content), (b"a.json", b'{"caption": "one"}'), (b"b.png", content)])
    raw, said = (tmp_path / "a.tar").read_bytes(), []
    for k in range(150):
        damaged = bytearray(raw)
        for at in rng.integers(0, 8 * 4096, 1 + k % 3).tolist():
            damaged[at // 8] ^= 1 << (at % 8)
        path = tmp_path / f"{k}.tar"
        path.write_bytes(damaged)
        try:
            Pairs.scan(path)
        except BadInput as error:
            said.append(str(error))
    assert all(sentence.isprintable() for sentence in said)


# --------------------------------------------------------------------------------------------------------------- tables
def test_utf_16_with_half_a_character(tmp_path):
    png(tmp_path / "a.png")
    (tmp_path / "t.csv").write_bytes("image,caption\na.png,one\n".encode("utf-16")[:-3])
    with pytest.raises(BadInput, match=r"t\.csv is no whole UTF-16 text; write it again"):
        Pairs.scan(tmp_path / "t.csv")


def test_any_damage_to_a_parquet_table(tmp_path):
    for k in range(4):
        png(tmp_path / f"{k}.png")
    table = pa.table({"image": [f"{k}.png" for k in range(4)], "caption": [f"number {k}" for k in range(4)]})
    pq.write_table(table, tmp_path / "t.parquet")
    raw, rng, said = (tmp_path / "t.parquet").read_bytes(), np.random.default_rng(0), []
    for k in range(200):
        damaged = bytearray(raw)
        for at in rng.integers(0, 8 * len(raw), 1 + k % 2).tolist():
            damaged[at // 8] ^= 1 << (at % 8)
        (tmp_path / "t.parquet").write_bytes(damaged if k % 5 else damaged[: len(raw) * k // 200])
        try:
            Pairs.scan(tmp_path / "t.parquet")
        except BadInput as error:
            said.append(str(error))
    assert len(said) > 50
    assert all(str(tmp_path) in sentence for sentence in said)


def test_what_lies_outside_of_a_tables_folder_is_said(tmp_path):
    (tmp_path / "in").mkdir()
    png(tmp_path / "in" / "a.png")
    png(tmp_path / "b.png")
    png(tmp_path / "c.png")
    (tmp_path / "in" / "list.txt").write_text(f"a.png\n../b.png\n{tmp_path / 'c.png'}\n")
    said = Manifest.scan(tmp_path / "in" / "list.txt").describe()
    assert said == f"3 in {tmp_path / 'in'}, 2 of them outside it, as the list or table says"
    assert "as the list" not in Manifest.scan(tmp_path / "in").describe()


# -------------------------------------------------------------------------------------------- what is no file, and large
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["data.txt", "data.tar", "data.csv", "data.jsonl", "data.parquet"])
@pytest.mark.parametrize("what", ["pipe", "zeros"])
def test_what_never_ends_is_not_begun(name, what, tmp_path):
    path = tmp_path / name
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BadInput):
        (Manifest if name.endswith("txt") else Pairs).scan(path)
    with pytest.raises(BadInput, match="is no file of TOML"):
        read_table(path)


@pytest.mark.parametrize("content", ["a = " + "[" * 100_000, "a" * 2_000_000, "run = 3\n", "\xff"])
def test_any_configuration(content, tmp_path):
    (tmp_path / "c.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=r"c\.toml"):
        read_table(tmp_path / "c.toml")


def test_deep_grey_takes_little_more_memory_than_its_pixels(tmp_path):
    side = 2000
    Image.fromarray(np.full((side, side), 40_000, np.uint16)).save(tmp_path / "deep.png")
    tracemalloc.start()
    image = decode(tmp_path / "deep.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image.getpixel((5, 5)) == (156, 156, 156)
    assert peak < 8 * side * side  # of numpy; it was 30


def test_a_jpeg_of_hundreds_of_scans_is_refused(tmp_path):
    """The last scan over and over: valid, small, and a minute of decoding where it is large."""
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.jpg", progressive=True)
    raw = (tmp_path / "a.jpg").read_bytes()
    last, end = raw.rindex(b"\xff\xda"), raw.rindex(b"\xff\xd9")
    decode(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(raw[:end] + raw[last:end] * 300 + raw[end:])
    with pytest.raises(BadImage, match="scans; the limit against images that take minutes to decode is 100"):
        decode(tmp_path / "b.jpg")
