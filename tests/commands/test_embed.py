"""`embed`: three formats that agree, and an interruption at any moment that changes nothing."""

import json
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from digits import environment, write_digits
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import sogclr as package
from sogclr import cli
from sogclr.commands import embed as embed_module
from sogclr.commands.embed import SUFFIXES, embed
from sogclr.errors import BadInput
from sogclr.models.backbone import create_backbone
from sogclr.models.encoder import EncoderInfo, save_encoder
from sogclr.models.features import compute_features


def read(path):
    """(ids, paths, embeddings) of any of the formats."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        vectors = table["embedding"].combine_chunks()
        values = vectors.values.to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
        return table["id"].to_numpy(), table["path"].to_pylist(), values
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["id"], file["path"].tolist(), file["embedding"]
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        return tensors["id"], json.loads(file.metadata()["path"]), tensors["embedding"]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embed_module, "PART_ROWS", 16)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_format_holds_what_the_encoder_gives(suffix, dtype, digits_run, digits_data, tmp_path, small_parts):
    out = tmp_path / f"e{suffix}"
    seen = []
    result = embed(digits_run, digits_data / "test", out, dtype=dtype, workers=0, progress=lambda *x: seen.append(x))
    ids, paths, found = read(out)
    assert ids.tolist() == list(range(60))
    assert paths == sorted(
        p.relative_to(digits_data / "test").as_posix() for p in (digits_data / "test").rglob("*.png")
    )
    encoder = package.load_encoder(digits_run)
    pixels = np.stack([np.array(Image.open(digits_data / "test" / p).convert("RGB")) for p in paths])
    expected = encoder.encode(torch.from_numpy(pixels)).numpy()  # 16x16 files are the whole of a 16x16 crop
    assert found.dtype == dtype
    assert found.shape == (60, encoder.num_features)
    np.testing.assert_allclose(found, expected, rtol=1e-3 if dtype == "float16" else 1e-4, atol=2e-4)
    assert (result.images, result.width, result.bad) == (60, encoder.num_features, 0)
    assert str(result) == f"{out}: 60 embeddings of {encoder.num_features} numbers"
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (60, 60)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_the_formats_agree_bit_for_bit_for_any_number_of_workers(digits_run, digits_data, tmp_path):
    files = [tmp_path / f"e{suffix}" for suffix in SUFFIXES]
    for workers, path in enumerate(files):
        embed(digits_run, digits_data, path, workers=workers)
    first, *others = map(read, files)
    for one in others:
        assert np.array_equal(one[0], first[0])
        assert one[1] == first[1]
        assert one[2].tobytes() == first[2].tobytes()


def test_files_that_cannot_be_read_are_listed_and_have_no_row(digits_run, tmp_path, small_parts):
    data = write_digits(tmp_path / "data", 4)
    truncated, empty = data / "3" / "0000.png", data / "4" / "no.png"
    whole = sorted((data / "3").iterdir())[0].read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    empty.write_bytes(b"")
    out = tmp_path / "e.npz"
    result = embed(digits_run, data, out, workers=0)
    ids, paths, found = read(out)
    assert result.bad == 2
    assert "2 files could not be read, see" in str(result)
    lines = (tmp_path / "e.npz.bad_files.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["3/0000.png", "4/no.png"]
    assert all(line.split("\t")[1] for line in lines)
    listed = sorted(p.relative_to(data).as_posix() for p in data.rglob("*.png"))
    assert len(ids) == len(paths) == len(found) == 40
    assert [listed[i] for i in ids] == paths  # ids are places in the list of all files
    truncated.unlink()
    empty.unlink()
    embed(digits_run, data, out, workers=0)
    assert not (tmp_path / "e.npz.bad_files.txt").exists()  # the old list is not left beside the new file


class Stop(Exception):
    pass


def embed_until(rows, **job):
    """Embed, and be interrupted after so many rows."""

    def stop(done, total):
        if done >= rows:
            raise Stop

    with pytest.raises(Stop):
        embed(**job, workers=0, batch_size=8, progress=stop)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_going_on_after_an_interruption_gives_the_same_file(
    suffix, digits_run, digits_data, tmp_path, small_parts, monkeypatch
):
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    embed(digits_run, digits_data, whole, workers=0)

    embed_until(100, run=digits_run, data=digits_data, out=out)
    assert not out.exists()
    parts = tmp_path / f".{out.name}.parts"
    assert len(list(parts.glob("*.safetensors"))) == 6  # 96 of 180 images
    calls = []
    computed = compute_features
    monkeypatch.setattr(embed_module, "compute_features", lambda *a, **k: calls.append(len(a[2])) or computed(*a, **k))
    embed(digits_run, digits_data, out, workers=0)
    assert sum(calls) == 180 - 96
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_a_part_that_is_damaged_is_computed_again(digits_run, digits_data, tmp_path, small_parts):
    whole, out = tmp_path / "whole.npz", tmp_path / "cut.npz"
    embed(digits_run, digits_data / "test", whole, workers=0)

    embed_until(40, run=digits_run, data=digits_data / "test", out=out)
    first, second = sorted((tmp_path / ".cut.npz.parts").glob("*.safetensors"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1 << 6  # of a number
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-1])
    embed(digits_run, digits_data / "test", out, workers=0)
    assert out.read_bytes() == whole.read_bytes()


def test_parts_of_another_job_are_thrown_away(digits_run, digits_data, tmp_path, small_parts):
    whole, out = tmp_path / "whole.npz", tmp_path / "cut.npz"
    embed(digits_run, digits_data / "test", whole, workers=0)

    others = [{"dtype": "float16"}, {"data": digits_data / "train"}]
    info = EncoderInfo("resnet10_mini", 16)
    torch.manual_seed(5)
    save_encoder(tmp_path / "other.safetensors", create_backbone(info.name, 16), info)
    others.append({"run": tmp_path / "other.safetensors"})
    for other in others:
        job = {"run": digits_run, "data": digits_data / "test", **other}
        embed_until(40, **job, out=out)
        assert list((tmp_path / ".cut.npz.parts").glob("*.safetensors"))
        embed(digits_run, digits_data / "test", out, workers=0)
        assert read(out)[2].tobytes() == read(whole)[2].tobytes()


@pytest.mark.integration
@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(digits_run, digits_data, tmp_path, small_parts):
    """As real processes: SIGKILL while it works, then the same command again."""
    code = (
        "import sys, time\n"
        "from sogclr import cli\n"
        "from sogclr.commands import embed\n"
        "embed.PART_ROWS = 16\n"
        "write = embed._Parts.write\n"
        "embed._Parts.write = lambda *a: (write(*a), print('part', flush=True), time.sleep(float(sys.argv[1])))\n"
        "sys.exit(cli.main(sys.argv[2:]))\n"
    )

    def command(pause, out):
        words = ["embed", digits_run, digits_data, "--out", out, "--workers", "0"]
        return [sys.executable, "-c", code, str(pause), *map(str, words)]

    out, whole = tmp_path / "cut.parquet", tmp_path / "whole.parquet"
    process = subprocess.Popen(
        command(30, out), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(), text=True
    )
    assert process.stdout.readline() == "part\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    again = subprocess.run(command(0, out), capture_output=True, text=True, env=environment(), check=True)
    assert again.stdout.count("part\n") == 11  # of 12
    embed(digits_run, digits_data, whole, workers=0)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.parquet", "whole.parquet"]


def test_an_old_file_survives_until_the_new_one_is_whole(digits_run, digits_data, tmp_path, monkeypatch):
    out = tmp_path / "e.npz"
    out.write_bytes(b"old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        embed(digits_run, digits_data / "test", out, workers=0)
    assert out.read_bytes() == b"old"
    monkeypatch.undo()
    embed(digits_run, digits_data / "test", out, workers=0)
    assert len(read(out)[0]) == 60


def test_the_command_says_what_it_wrote_and_nothing_else(digits_run, digits_data, tmp_path, capsys):
    out = tmp_path / "e.safetensors"
    words = ["embed", digits_run, digits_data / "test", "--out", out, "--dtype", "float16", "--workers", "0"]
    assert cli.main([str(word) for word in words]) == 0
    assert capsys.readouterr().out == f"{out}: 60 embeddings of 128 numbers\n"
    assert read(out)[2].dtype == np.float16


def test_bad_input_is_one_sentence_and_nothing_is_written(digits_run, digits_data, tmp_path):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for k in range(3):
        (tmp_path / "broken" / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "no.safetensors").write_bytes(b"not tensors")
    run, data = digits_run, digits_data
    before = sorted(tmp_path.rglob("*"))
    for change, message in [
        ({"out": "e.csv"}, "ends in '.csv'; give a name in .parquet, .npz, .safetensors"),
        ({"out": "e"}, "ends in 'nothing'"),
        ({"out": "folder.npz"}, "folder.npz is a folder"),
        ({"out": "no/where/e.npz"}, "there is no folder"),
        ({"dtype": "int8"}, "--dtype must be float32 or float16 and was int8"),
        ({"batch_size": 0}, "--batch-size must be 1 or more and was 0"),
        ({"data": tmp_path / "nowhere"}, "there is no folder or list file"),
        ({"data": tmp_path / "empty"}, "empty"),
        ({"data": tmp_path / "broken"}, "none of the 3 images in"),
        ({"run": tmp_path / "nowhere"}, "there is no run or encoder file"),
        ({"run": tmp_path / "empty"}, "holds no finished encoder"),
        ({"run": tmp_path / "no.safetensors"}, "is no readable safetensors file"),
        ({"workers": -1}, "--workers must be 0 or more and was -1"),
        ({"device": "cuda:9"}, "--device cuda:9 is not there"),
        ({"device": "abacus"}, "--device abacus is no device"),
    ]:
        job = {"run": run, "data": data, "out": "e.npz", "workers": 0} | change
        with pytest.raises(BadInput) as error:
            embed(**(job | {"out": tmp_path / job["out"]}))
        assert message in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before, message


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "float32", "not finite; the encoder has diverged"),
        (1e7, "float16", "use --dtype float32"),
    ],
)
def test_embeddings_that_are_no_numbers_are_refused(value, dtype, message, digits_data, tmp_path):
    backbone = create_backbone("resnet10_mini", 16)
    last = [p for name, p in backbone.named_parameters() if name.endswith("bn2.bias")][-1]
    last.data.fill_(value)
    save_encoder(tmp_path / "bad.safetensors", backbone, EncoderInfo("resnet10_mini", 16))
    with pytest.raises(BadInput, match=message):
        embed(tmp_path / "bad.safetensors", digits_data / "test", tmp_path / "e.npz", dtype=dtype, workers=0)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["bad.safetensors"]
