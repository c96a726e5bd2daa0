"""Decoded images in one file: the same views, found by themselves, never of other files, whole or not at all."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, environment, sogclr_here, words, write_digits
from image_files import jpeg, large_jpeg, png, png_gray_16, truncated
from PIL import Image

import sogclr as package
from sogclr.commands.cache import cache
from sogclr.config.toml import from_options
from sogclr.data.decoded import DecodedImages, decoded_file, find_decoded, write_decoded
from sogclr.data.images import decode
from sogclr.data.loader import training_loader
from sogclr.data.manifest import Manifest
from sogclr.data.multi_crop import CropGroup, crop_groups, needed_side
from sogclr.data.pairs import Pairs
from sogclr.data.recipe import RECIPES
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.reading import choose_cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """18 images of many kinds and sizes; one that only decoding shows to be bad."""
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for k in range(14):
        pixels = rng.integers(0, 256, (20 + 5 * k, 90 - 4 * k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k:02d}.png")
    for name, write in (("a.png", png), ("b.png", png_gray_16), ("c.jpg", jpeg)):
        write(root / name)
    truncated(large_jpeg, 0.5)(root / "x.jpg")
    return root


VIEWS = [CropGroup(2, 16, RECIPES["small"])]  # crops of a fifth of an image: 36 pixels


def scan(folder):
    return Manifest.scan(folder, cache=False)


def take(manifest, decoded=None, **options):
    return list(
        islice(training_loader(manifest, manifest.usable, RECIPES["small"], 16, 6, 3, decoded=decoded, **options), 6)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_full_size_gives_the_very_views(folder, workers):
    manifest = scan(folder)
    decoded, bad = write_decoded(manifest, threads=2)
    assert [manifest.relative(id) for id, _ in bad] == ["x.jpg"]
    for a, b in zip(take(manifest, decoded, workers=workers), take(manifest), strict=True):
        assert a.bad == b.bad
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.crops, b.crops)


def test_views_where_sizes_were_unknown(folder):
    """Without headers read, crops follow the sizes that stand beside the pixels."""
    decoded, _ = write_decoded(scan(folder))
    unknown = Manifest.scan(folder, check=False)
    for a, b in zip(take(unknown, decoded), take(unknown), strict=True):
        assert torch.equal(a.crops, b.crops)


def test_a_side_makes_large_images_smaller_and_leaves_the_others(folder):
    manifest = scan(folder)
    decoded, _ = write_decoded(manifest, side=32)
    for id in manifest.usable:
        if manifest.relative(id) == "x.jpg":
            assert decoded.get(id) is None
            continue
        image, width, height = decoded.get(id)
        whole = decode(manifest.path(id))
        assert (width, height) == whole.size
        assert min(image.size) == min(32, *whole.size)
        assert image.width / image.height == pytest.approx(width / height, rel=0.05)
        if min(whole.size) <= 32:
            assert image.tobytes() == whole.tobytes()


def test_the_files_are_not_opened(folder):
    """Epochs read pixels alone: the images may be gone, but for the one that could not be decoded."""
    manifest = scan(folder)
    decoded, _ = write_decoded(manifest)
    shutil.rmtree(folder)
    reasons = {id: reason for batch in take(manifest, decoded) for id, reason in batch.bad}
    assert {manifest.relative(id): reason for id, reason in reasons.items()} == {"x.jpg": "no longer exists"}


def test_what_does_not_fit_is_not_used_and_says_so(folder):
    manifest = scan(folder)
    assert find_decoded(manifest, "white") == ([], None)
    write_decoded(manifest)
    assert len(find_decoded(manifest, "#ffffff")[0]) == 1
    assert "--background than black" in find_decoded(manifest, "black")[1]
    stamp = (folder / "a.png").stat().st_mtime_ns + 10**9
    os.utime(folder / "a.png", ns=(stamp, stamp))  # another picture of the same size in bytes
    images, reason = find_decoded(scan(folder), "white")
    assert images == []
    assert "are of other files than" in reason
    assert "`sogclr cache` makes them again" in reason
    write_decoded(scan(folder))
    assert len(find_decoded(scan(folder), "white")[0]) == 1
    path = decoded_file(manifest)
    for damaged in (b"", path.read_bytes()[:-9], b"x" * 100):
        path.write_bytes(damaged)
        assert "is damaged and is not used" in find_decoded(manifest, "white")[1]


def test_decoded_images_smaller_than_the_views_need_are_not_used(folder):
    """Nor do they take the place of larger ones: each side has a file of its own."""
    config = from_options({"data": str(folder), "out": "run"})
    manifest = scan(folder)
    assert needed_side(VIEWS) == 36
    assert needed_side(crop_groups("2x32,4x16", 2, 32, RECIPES["simclr"])) == 86  # 32 / sqrt(1.75 * 0.08)
    write_decoded(manifest, 35)
    kind, (line,) = choose_cache(config, manifest, VIEWS)
    assert kind == "none"
    assert re.search(
        r"-35.pixels is not used: .* at most 35 pixels.* need 36 .*`sogclr cache .*photos --side 36`", line
    )
    write_decoded(manifest, 36)
    assert choose_cache(config, manifest, VIEWS)[0] == "36"
    write_decoded(manifest)
    assert choose_cache(config, manifest, VIEWS)[0] == "full"
    write_decoded(manifest, 35)
    assert choose_cache(config, manifest, VIEWS)[0] == "full"
    assert [images.kind for images in find_decoded(manifest, "white")[0]] == ["full", "36", "35"]
    decoded_file(manifest).unlink()
    largest = int(np.minimum(manifest.widths, manifest.heights).max())  # more than any image has is enough
    write_decoded(manifest, largest)
    assert choose_cache(config, manifest, [CropGroup(2, 200, RECIPES["simclr"])])[0] == str(largest)
    with pytest.raises(BadInput, match=r"--cache 15 is smaller than the views .* need 36 .*--side 36"):
        choose_cache(from_options({"data": str(folder), "out": "run", "cache": "15"}), manifest, VIEWS)
    assert choose_cache(from_options({"data": str(folder), "out": "run", "cache": "16"}), manifest, VIEWS)[0] == "16"


def test_killed_midway(folder):
    """What was there stays as it was; the next command clears what the killed one left."""
    manifest = scan(folder)
    path = decoded_file(manifest)
    code = (
        "import os, signal, sys; from sogclr.data import decoded; from sogclr.data.manifest import Manifest\n"
        "decoded._AT_ONCE = 4\n"
        "kill = lambda done, all: done > 6 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "decoded.write_decoded(Manifest.scan(sys.argv[1], cache=False), progress=kill)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(path.parent.glob(".*.tmp.pixels"))) == 1
    write_decoded(manifest)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_room_is_said_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(BadInput, match=r"take .* GiB and .* has .* free; give a smaller --side"):
        write_decoded(scan(folder))
    assert list(decoded_file(scan(folder)).parent.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- of pairs
def write_table(folder, kind):
    """Two captions for each image of the folder, as a table or as a tar shard; what DATA is."""
    names = sorted(p.name for p in folder.iterdir())
    rows = [(name, f"{what} {name}") for what in ("first", "second") for name in names]
    path = folder / f"pairs.{kind}"
    if kind == "csv":
        path.write_text("".join(f"{image},{caption}\n" for image, caption in [("image", "caption"), *rows]))
    elif kind == "jsonl":
        path.write_text(
            "".join(json.dumps({"image": i, "caption": [f"first {i}", f"second {i}"]}) + "\n" for i in names)
        )
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [i for i, _ in rows], "caption": [c for _, c in rows]}), path)
    else:
        with tarfile.open(path, "w") as tar:
            for name in names:
                tar.add(folder / name, name)
                text = json.dumps({"captions": [f"first {name}", f"second {name}"]}).encode()
                member = tarfile.TarInfo(name.rpartition(".")[0] + ".json")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
                (folder / name).unlink()
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "tar"])
def test_pairs_give_the_very_views_from_one_copy_of_an_image(folder, kind):
    pairs = Pairs.scan(write_table(folder, kind))
    assert (len(pairs), len(pairs.images)) == (36, 18)
    decoded, bad = write_decoded(pairs.images, threads=2)
    assert [pairs.images.relative(id) for id, _ in bad] == [pairs.images.relative(17)]  # x.jpg, the last of them
    assert decoded.describe().startswith("17 decoded images")
    pixels = 3 * int((pairs.images.widths.astype(int) * pairs.images.heights)[:17].sum())
    assert 0 < decoded.path.stat().st_size - pixels < 4096  # the index and its head
    with_them = take(pairs, decoded, workers=2, views=1)
    for a, b in zip(with_them, take(pairs, views=1), strict=True):
        assert a.bad == b.bad
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.crops, b.crops)
    assert {pairs.first_ids[id] for batch in with_them for id, _ in batch.bad} == {17}
    shutil.rmtree(folder)
    for a, b in zip(with_them, take(pairs, decoded, views=1), strict=True):
        assert torch.equal(a.crops, b.crops)


def test_other_captions_leave_them_and_other_images_do_not(folder):
    table = write_table(folder, "csv")
    write_decoded(Pairs.scan(table).images)
    table.write_text(table.read_text().replace("first", "another"))
    assert len(find_decoded(Pairs.scan(table).images, "white")[0]) == 1
    stamp = (folder / "a.png").stat().st_mtime_ns + 10**9
    os.utime(folder / "a.png", ns=(stamp, stamp))
    assert "are of other files than" in find_decoded(Pairs.scan(table).images, "white")[1]
    write_decoded(Pairs.scan(table).images)
    table.write_text("\n".join(line for line in table.read_text().splitlines() if "b.png" not in line))
    assert "are of other files than" in find_decoded(Pairs.scan(table).images, "white")[1]


# ------------------------------------------------------------------------------------------------------------ the runs
RUN = SMALL | {"epochs": 4, "save_every": 4}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    return write_digits(tmp_path / "digits")


def weights(run):
    return load_checkpoint(run.latest_checkpoint())["model"]


def make(data, side=0, **options):
    return cache(data, side=side, quiet=True, **options)


@pytest.mark.slow
def test_a_run_finds_them_and_is_the_same_run(data, tmp_path, capsys):
    plain = package.train(data, tmp_path / "plain", quiet=True, **RUN)
    assert plain.config().data.cache == "none"
    shown = sogclr_here("cache", data, check=0)
    assert "40 decoded images, at full size, from" in shown.stdout
    cached = package.train(data, tmp_path / "cached", **RUN)
    assert "cache     40 decoded images" in "".join(capsys.readouterr())
    assert cached.config().data.cache == "full"
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(cached)[key])


@pytest.mark.slow
def test_resumed_bit_for_bit_with_them_and_not_without(data, tmp_path):
    make(data, 20)
    whole = package.train(data, tmp_path / "whole", quiet=True, **RUN)
    assert whole.config().data.cache == "20"
    part = package.train(data, tmp_path / "part", quiet=True, **(RUN | {"workers": 2}))
    part.encoder_file.unlink()
    part.latest_checkpoint().unlink()
    assert part.latest_checkpoint() is not None
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(BadInput, match=r"no decoded images of .*run `sogclr cache .* --side 20`"):
        package.resume(part.path, quiet=True)
    make(data, 20)
    package.resume(part.path, quiet=True)
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(part)[key])


OF_PAIRS = PAIRS | {"epochs": 2, "batch_size": 16, "save_every": 4, "caption_column": "said"}


@pytest.mark.slow
def test_a_run_on_pairs_finds_them_and_is_the_same_run(tmp_path, monkeypatch):
    """With an image that cannot be read and a column that must be named."""
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    data = write_pairs(tmp_path / "digits")
    data.write_text(data.read_text().replace("image,caption", "image,said"))
    damaged = sorted(data.parent.rglob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-30])  # its header is whole
    options = OF_PAIRS | {"max_bad": 0.1}
    plain = package.train(data, tmp_path / "plain", quiet=True, **options)
    with pytest.raises(BadInput, match="name one with --caption-column"):
        make(data)
    shown = sogclr_here("cache", data, "--caption-column", "said", check=0).stdout
    assert "39 decoded images, at full size, from" in shown
    assert f"1 could not be decoded, first: {damaged.relative_to(data.parent)}" in shown
    shown = sogclr_here("train", data, "--out", tmp_path / "cached", *words(options), check=0).stderr
    assert "cache     39 decoded images, at full size, from" in shown
    cached = RunFolder(tmp_path / "cached")
    assert (plain.config().data.cache, cached.config().data.cache) == ("none", "full")
    assert plain.bad_file.read_text() == cached.bad_file.read_text() != ""
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(cached)[key])
    cached.two_tower_file.unlink()
    cached.latest_checkpoint().unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(BadInput, match="run `sogclr cache"):
        package.resume(cached.path, quiet=True)
    make(data, caption_column="said")
    package.resume(cached.path, quiet=True)
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(cached)[key])


def test_a_frozen_image_tower_reads_none(folder):
    """Its features are looked up."""
    table = write_table(folder, "csv")
    pairs = Pairs.scan(table)
    write_decoded(pairs.images)
    options = {"data": str(table), "out": "run"}
    assert choose_cache(from_options(options), pairs, VIEWS)[0] == "full"
    assert choose_cache(from_options(options | {"image_rate": 0.0}), pairs, VIEWS) == ("none", [])


def test_what_cannot_be(data, tmp_path):
    with pytest.raises(BadInput, match="--side must be 0"):
        make(data, -1)
    with pytest.raises(BadInput, match=r"there are no decoded images of .* --cache 64 is to be read"):
        package.train(data, tmp_path / "run", cache="64", quiet=True, **RUN)
    with pytest.raises(BadInput, match="--cache must be auto, none, full or the side"):
        package.train(data, tmp_path / "run", cache="yes", quiet=True, **RUN)
    assert not (tmp_path / "run").exists()


def test_another_process_opens_it_itself(folder):
    decoded, _ = write_decoded(scan(folder))
    decoded.get(0)
    again = pickle.loads(pickle.dumps(decoded))
    assert isinstance(again, DecodedImages)
    assert len(pickle.dumps(decoded)) < decoded.path.stat().st_size / 2
    assert again.get(0)[0].tobytes() == decoded.get(0)[0].tobytes()
