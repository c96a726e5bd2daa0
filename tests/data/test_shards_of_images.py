"""Images inside tar shards, Parquet and Arrow files, without captions or with them, and the classes that these name."""

import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import sogclr
from sogclr.data import paths
from sogclr.data.labels import read_labels
from sogclr.data.manifest import Manifest
from sogclr.data.pair_columns import ColumnNames
from sogclr.data.pairs import Pairs
from sogclr.data.shards import find_shards
from sogclr.data.source import kind_of, open_source
from sogclr.errors import BadInput, RunFailed

NO_COLUMNS = ColumnNames()


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def table(ids, captions=None, names=("cat", "dog")):
    """Return a table as the `datasets` package writes it."""
    columns = {
        "image": pa.array(
            [{"bytes": picture(k), "path": f"{k}.png"} for k in ids],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([k % 2 for k in ids], pa.int64()),
    }
    if captions is not None:
        columns["text"] = pa.array(captions)
    head = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(head)})


def write_arrow(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        for batch in content.to_batches(max_chunksize=3):
            writer.write_batch(batch)


# ----------------------------------------------------------------------------------------------------------------- tar
@pytest.fixture
def tars(tmp_path):
    for s in range(2):
        files = {}
        for k in range(4):
            files |= {f"{s}{k}.png": picture(4 * s + k), f"{s}{k}.cls": b"%d\n" % (k % 2)}
        write_tar(tmp_path / "shards" / f"{s}.tar", files)
    return tmp_path / "shards"


def test_shards_without_captions_are_images_with_their_classes(tars):
    images = open_source(tars)
    assert (images.kind, len(images)) == ("images", 8)
    assert images.relatives()[:2] == ["0.tar/00.png", "0.tar/01.png"]
    assert [images.file(i).read() for i in range(8)] == [picture(k) for k in range(8)]
    assert images.widths.tolist() == [20] * 8
    labels = read_labels(images, "auto")
    assert (labels.classes, labels.values.tolist(), labels.source) == (["0", "1"], [0, 1] * 4, "shards")
    assert not images.difference(images.rescan(NO_COLUMNS))


def test_one_text_makes_them_pairs(tars):
    write_tar(tars / "0.tar", {"00.png": picture(0), "00.txt": b"a cat", "01.png": picture(1)})
    pairs = open_source(tars)
    assert (pairs.kind, len(pairs)) == ("pairs", 1)


def test_a_manifest_keeps_the_classes(tars, tmp_path):
    images = Manifest.scan(tars)
    images.save(tmp_path / "m.parquet")
    again = Manifest.load(tmp_path / "m.parquet")
    assert again.labels.equals(images.labels)
    assert again.file(5).read() == picture(5)


def test_a_cut_shard_loses_its_last_image_alone(tars):
    content = (tars / "1.tar").read_bytes()
    (tars / "1.tar").write_bytes(content[: content.index(picture(7)) + 20])
    images = open_source(tars)
    reasons = {images.relative(i): reason for i, reason in images.bad}
    assert reasons["1.tar/13.png"] == "is truncated with its shard"
    assert len(images.usable) == 7


# ----------------------------------------------------------------------------------------------------- Parquet and Arrow
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("several", [False, True])
def test_tables_of_images(tmp_path, kind, several):
    place = tmp_path / "data"
    place.mkdir()
    for part in range(2):
        content = table(range(5 * part, 5 * part + 5))
        if kind == "parquet":
            pq.write_table(content, place / f"train-{part:05d}-of-00002.parquet", row_group_size=2)
        else:
            write_arrow(place / f"data-{part:05d}-of-00002.arrow", content)
            (place / "state.json").write_text("{}")
    data = place if several else sorted(place.glob(f"*-00000*.{kind}"))[0]
    images = open_source(data)
    assert (images.kind, len(images)) == ("images", 10 if several else 5)
    assert [images.file(i).read() for i in range(len(images))] == [picture(k) for k in range(len(images))]
    assert images.relative(3).endswith(f"-00000-of-00002.{kind}/000000003")
    assert read_labels(images, "auto").classes == ["cat", "dog"]
    assert images.bad == []
    assert not images.difference(images.rescan(NO_COLUMNS))


def test_the_bytes_are_copied_once_and_again_where_the_cache_is_gone(tmp_path):
    pq.write_table(table(range(4)), tmp_path / "a.parquet")
    images = open_source(tmp_path / "a.parquet")
    (copy,) = (tmp_path / "cache" / "unpacked").glob("*.images")
    before = copy.stat().st_mtime_ns
    open_source(tmp_path / "a.parquet")
    assert copy.stat().st_mtime_ns == before
    copy.unlink()
    again = images.rescan(NO_COLUMNS)
    assert not images.difference(again)
    assert images.file(2).read() == picture(2)


def test_a_copy_that_is_damaged_is_noticed_and_made_anew(tmp_path):
    pq.write_table(table(range(4)), tmp_path / "a.parquet")
    images = open_source(tmp_path / "a.parquet")
    (copy,) = (tmp_path / "cache" / "unpacked").glob("*.images")
    whole = copy.read_bytes()
    for at in range(0, len(picture(1)), 7):
        damaged = bytearray(whole)
        damaged[len(picture(0)) + at] ^= 1 << at % 8
        copy.write_bytes(damaged)
        assert images.file(0).read() == picture(0)
        with pytest.raises(
            RunFailed, match=r"the copy of the images of \S+a\.parquet in the cache was damaged, and is removed"
        ):
            images.file(1)
        assert not copy.exists()
    assert images.rescan(NO_COLUMNS).file(1).read() == picture(1)
    assert copy.read_bytes() == whole

    (checksums,) = copy.parent.glob("*.checksums")
    damaged = bytearray(checksums.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    checksums.write_bytes(damaged)
    paths._read_checksums.cache_clear()
    assert images.file(1).read() == picture(1)  # nothing says that this is wrong
    assert images.rescan(NO_COLUMNS).file(1).read() == picture(1)
    assert checksums.read_bytes() != damaged


def test_a_table_of_images_with_captions_is_pairs(tmp_path):
    captions = [["a cat", "two"], ["a dog"], [], ["a cow"]]
    pq.write_table(table(range(4), captions), tmp_path / "pairs.parquet")
    pairs = open_source(tmp_path / "pairs.parquet")
    assert (pairs.kind, len(pairs), len(pairs.images)) == ("pairs", 4, 4)
    found = {
        (pairs.images.file(int(pairs.first_ids[i])).read(), pairs.name(1, int(pairs.second_ids[i]))) for i in range(4)
    }
    assert found == {(picture(k), text) for k, texts in enumerate(captions) for text in texts}
    assert [reason for _, reason in pairs.rejected] == ["has no caption"]
    assert not pairs.difference(pairs.rescan(NO_COLUMNS))


def test_a_row_without_bytes_is_a_bad_image(tmp_path):
    rows = pa.array(
        [{"bytes": picture(0), "path": "0"}, {"bytes": None, "path": "/etc/passwd"}, None],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    images = open_source(tmp_path / "a.parquet")
    assert [reason for _, reason in images.bad] == ["has no bytes of an image"] * 2
    assert images.usable.tolist() == [0]


def test_a_table_of_paths_is_read_as_before(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    pq.write_table(pa.table({"image": ["0.png"], "text": ["zero"]}), tmp_path / "a.parquet")
    assert find_shards(tmp_path / "a.parquet") == []
    assert isinstance(open_source(tmp_path / "a.parquet"), Pairs)
    assert isinstance(open_source(tmp_path), Manifest)


def test_a_folder_of_splits_is_refused_and_a_saved_dictionary_trains_on_its_part(tmp_path):
    for part in ("train", "test"):
        pq.write_table(table(range(3)), tmp_path / f"{part}-00000-of-00001.parquet")
        write_arrow(tmp_path / "saved" / part / "data-00000-of-00001.arrow", table(range(3)))
        (tmp_path / "saved" / part / "state.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        BadInput, match=r"holds the parts test, train of a data set; give the files of one: '.*/train-\*\.parquet'"
    ):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/train-*.parquet")) == 3
    part = open_source(tmp_path / "saved").training_part()
    assert (len(part), part.relative(0)) == (3, "data-00000-of-00001.arrow/000000000")
    assert part.file(1).read() == picture(1)
    assert not part.difference(part.rescan(NO_COLUMNS))


def test_a_damaged_table_is_one_sentence(tmp_path):
    pq.write_table(table(range(40)), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.parquet cannot be read"):
        open_source(tmp_path / "a.parquet")
    assert not [*(tmp_path / "cache").rglob("*.images")]


def test_a_disk_without_room_is_said_before_it_is_full(tmp_path, monkeypatch):
    """Also where the images are far larger than their compressed file."""
    rows = pa.array([{"bytes": bytes(1 << 20)}] * 8, pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 4 << 20))
    with pytest.raises(BadInput, match=r"take more than 0\.0 GiB, which is what the cache folder has free"):
        open_source(tmp_path / "a.parquet")
    assert not [*(tmp_path / "cache").rglob("*.images")]


@pytest.mark.slow
def test_a_run_on_a_parquet_file_is_the_run_on_the_same_images(tmp_path):
    """Views depend on ids alone, and the rows have the order of the files."""
    pq.write_table(table(range(12)), tmp_path / "a.parquet", row_group_size=5)
    (tmp_path / "files").mkdir()
    for k in range(12):
        (tmp_path / "files" / f"{k:02d}.png").write_bytes(picture(k))
    options = {"image_size": 16, "batch_size": 4, "epochs": 1, "model": "resnet10_mini", "device": "cpu", "quiet": True}
    weights = []
    for data in (tmp_path / "a.parquet", tmp_path / "files"):
        run = sogclr.train(data, out=tmp_path / f"run-{data.name}", labels="none", **options)
        weights.append(sogclr.load_encoder(run).state_dict())
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert kind_of(tmp_path / "a.parquet").samples == "images"
