"""DATA under a URL: on fsspec's file system in memory, which is read as any other, and never over a network."""

import io
import os

import fsspec
import numpy as np
import pytest
from PIL import Image

import sogclr
from sogclr.data import remote
from sogclr.data.manifest import Manifest
from sogclr.data.pair_columns import ColumnNames
from sogclr.data.pairs import Pairs
from sogclr.data.paths import as_path
from sogclr.data.remote import RemotePath
from sogclr.data.source import kind_of, open_source
from sogclr.errors import BadImage, BadInput, RunFailed


def picture(seed, size=(20, 16), format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Return a function that writes a file at memory://data/NAME and at tmp_path/data/NAME."""
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))
    files = fsspec.filesystem("memory")

    def write(name, content):
        content = content if isinstance(content, bytes) else content.encode()
        files.pipe_file(f"/data/{name}", content)
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)

    yield write
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def folder(memory, tmp_path):
    for k in range(12):
        memory(f"{'ab'[k % 2]}/{k:02d}.png", picture(k))
    memory("a/.hidden.png", b"x")
    memory("__MACOSX/a.png", b"x")
    memory("a/notes.md", b"x")
    return tmp_path / "data"


# -------------------------------------------------------------------------------------------------------------- folder
def test_a_folder_has_the_ids_sizes_and_fingerprint_that_it_has_on_the_disk(folder):
    here, there = Manifest.scan(folder), Manifest.scan("memory://data/")
    assert there.relatives() == here.relatives()
    assert there.fingerprint == here.fingerprint
    assert there.widths.tolist() == [20] * 12
    assert there.heights.tolist() == [16] * 12
    assert there.bad == []
    assert str(there.root) == "memory://data"
    assert there.file(3).read() == (folder / here.relative(3)).read_bytes()


def test_a_saved_manifest_finds_its_files_again(folder, tmp_path):
    manifest = Manifest.scan("memory://data")
    manifest.save(tmp_path / "m.parquet")
    again = Manifest.load(tmp_path / "m.parquet")
    assert (again.root, again.source) == (manifest.root, manifest.source)
    assert again.file(0).read() == manifest.file(0).read()
    assert not again.difference(again.rescan(ColumnNames()))


def test_a_file_url_is_the_disk(folder):
    assert as_path(f"file://{folder}") == folder
    assert Manifest.scan(f"file://{folder}").root == folder


def test_headers_are_read_by_ranges_and_remembered_by_version(memory, monkeypatch):
    memory("big.png", picture(0, (400, 400)) + bytes(1 << 20))
    read = []
    original = RemotePath.read
    monkeypatch.setattr(RemotePath, "read", lambda p, s=0, n=None: read.append(n) or original(p, s, n))
    assert Manifest.scan("memory://data").widths.tolist() == [400]
    assert sum(read) <= remote.HEAD_BYTES
    read.clear()
    Manifest.scan("memory://data")
    assert read == []
    memory("big.png", picture(1, (300, 400)) + bytes(1 << 20))
    assert Manifest.scan("memory://data").widths.tolist() == [300]


def test_a_damaged_image_and_one_that_vanished_have_their_reasons(folder, memory):
    memory("a/00.png", b"no image")
    manifest = Manifest.scan("memory://data")
    assert [manifest.relative(i) for i, _ in manifest.bad] == ["a/00.png"]
    fsspec.filesystem("memory").rm_file("/data/a/02.png")
    with pytest.raises(BadImage, match="no longer exists"):
        manifest.file(manifest.relatives().index("a/02.png"))


def test_a_train_part_and_a_list(memory):
    for k in range(4):
        memory(f"{'train' if k else 'test'}/{k}.png", picture(k))
    memory("list.txt", "train/1.png\n# no\ntrain/2.png\n")
    assert len(Manifest.scan("memory://data").training_part()) == 3
    assert Manifest.scan("memory://data/list.txt").relatives() == ["train/1.png", "train/2.png"]
    memory("gone.txt", "train/1.png\ntrain/9.png\n")
    with pytest.raises(BadInput, match=r"1 of the 2 files.*train/9\.png"):
        Manifest.scan("memory://data/gone.txt")


# ------------------------------------------------------------------------------------------------------- table, shards
@pytest.mark.parametrize("several", [False, True])  # folders with several are listed, others asked for one by one
def test_a_table_is_what_it_is_on_the_disk(memory, tmp_path, several):
    count = 6 if several else 2
    rows = ["image,caption"]
    for k in range(count):
        memory(f"images/{k}.png", picture(k))
        rows.append(f"images/{k}.png,number {k}")
    rows += ["images/nowhere.png,gone", f"memory://data/images/{0}.png,again"]
    memory("pairs.csv", "\n".join(rows))
    there = open_source("memory://data/pairs.csv")
    assert len(there) == count + 2
    assert [reason for _, reason in there.bad] == ["does not exist"]
    memory("local.csv", "\n".join(rows[:-1]))
    here, there = Pairs.scan(tmp_path / "data" / "local.csv"), Pairs.scan("memory://data/local.csv")
    assert here.fingerprint == there.fingerprint
    assert there.images.file(0).read() == (tmp_path / "data" / here.relative(0)).read_bytes()
    assert not there.difference(there.rescan(ColumnNames()))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "tsv"])
def test_every_kind_of_table(memory, tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    memory("0.png", picture(0))
    if suffix == "parquet":
        pq.write_table(pa.table({"image": ["0.png"], "caption": ["zero"]}), tmp_path / "t.parquet")
        memory("t.parquet", (tmp_path / "t.parquet").read_bytes())
    else:
        memory(
            f"t.{suffix}", {"jsonl": '{"image": "0.png", "text": "zero"}', "tsv": "image\ttext\n0.png\tzero"}[suffix]
        )
    assert Pairs.scan(f"memory://data/t.{suffix}").name(1, 0) == "zero"


@pytest.mark.parametrize("data", ["", "/s-{00..03}.tar", "/s-*.tar", "/s-00.tar"])
def test_shards(memory, tmp_path, data):
    import tarfile

    for s in range(2):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for k in range(3):
                for name, content in ((f"{s}{k}.png", picture(k + 3 * s)), (f"{s}{k}.txt", b"number %d" % k)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        memory(f"shards/s-{s:02d}.tar", file.getvalue())
    here, there = open_source(f"{tmp_path}/data/shards{data}"), open_source(f"memory://data/shards{data}")
    assert there.kind == "pairs"
    assert there.fingerprint == here.fingerprint
    assert [there.relative(i) for i in range(len(there))] == [here.relative(i) for i in range(len(here))]
    assert there.images.file(1).read() == here.images.file(1).read()
    assert there.images.widths.tolist() == here.images.widths.tolist()


# ------------------------------------------------------------------------------------------------------------ security
class Sentinel(fsspec.get_filesystem_class("memory")):
    """A protocol that says when it is used."""

    protocol = "sentinel"
    used = False

    def __init__(self, *args, **kwargs):
        Sentinel.used = True
        super().__init__(*args, **kwargs)


@pytest.fixture
def sentinel():
    fsspec.register_implementation("sentinel", Sentinel, clobber=True)
    Sentinel.used = False
    return Sentinel


def test_a_url_in_a_file_on_this_disk_is_not_followed(memory, tmp_path, sentinel):
    memory("0.png", picture(0))
    rows = "image,caption\n0.png,zero\nsentinel://host/1.png,one\nmemory://data/0.png,two\n"
    (tmp_path / "data" / "pairs.csv").write_text(rows)
    pairs = Pairs.scan(tmp_path / "data" / "pairs.csv")
    assert [reason for _, reason in pairs.bad] == ["is a URL in a file on this disk, which is not followed"] * 2
    with pytest.raises(OSError, match="No such file"):
        os.stat(pairs.images.file(int(pairs.first_ids[pairs.bad[0][0]])))
    (tmp_path / "data" / "list.txt").write_text("0.png\nsentinel://host/1.png\n")
    assert [r for _, r in Manifest.scan(tmp_path / "data" / "list.txt").bad] == [
        "is a URL in a file on this disk, which is not followed"
    ]
    assert not sentinel.used


def test_a_remote_table_may_name_its_own_bucket_alone(memory, sentinel):
    memory("t/0.png", picture(0))
    memory("1.png", picture(1))
    names = ["0.png", "memory://data/1.png", "../1.png", "../../other/2.png", "memory://other/2.png", "/etc/passwd"]
    names += ["sentinel://data/1.png", "memory://data/../other/2.png", "file:///etc/passwd"]
    fsspec.filesystem("memory").pipe_file("/other/2.png", picture(2))
    memory("t/pairs.csv", "image,caption\n" + "".join(f"{name},x{k}\n" for k, name in enumerate(names)))
    pairs = Pairs.scan("memory://data/t/pairs.csv")
    bad = {pairs.relative(i): reason for i, reason in pairs.bad}
    assert sorted(pairs.relative(i) for i in pairs.usable) == ["../1.png", "0.png", "memory://data/1.png"]
    assert len(bad) == 6
    assert bad["/etc/passwd"] == "is a path of this disk in a file of memory://data, which is not followed"
    assert all("not followed" in reason for reason in bad.values())
    assert not sentinel.used


def test_a_model_hubs_repositories_are_hosts_of_their_own():
    assert RemotePath("hf://datasets/a/b/data/x.csv").origin == "hf://datasets/a/b"
    assert RemotePath("S3://b/x").origin == "s3://b"


# --------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("memory://nowhere", "there is no folder or list file memory://nowhere"),
        ("memory://nowhere/pairs.csv", "there is no table memory://nowhere/pairs.csv"),
        ("memory://nowhere/a.tar", "there are no tar shards memory://nowhere/a.tar"),
        ("nosuch://bucket/x", "nosuch://bucket/x cannot be opened"),
        ("pipe:cat x.tar", "would run a program"),
        ("simplecache::s3://b/x", "is a chain of URLs"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_nothing_is_written(memory, tmp_path, data, sentence):
    with pytest.raises(BadInput, match=sentence):
        sogclr.train(data, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(BadInput, match=r"s3://bucket/images needs a package .* pip install s3fs$"):
        kind_of("s3://bucket/images")


def test_a_run_folder_is_local(folder, tmp_path):
    with pytest.raises(BadInput, match=r"--out must be a folder on this disk and was s3://bucket/run"):
        sogclr.train(folder, out="s3://bucket/run", quiet=True)
    assert not os.path.exists("s3:")


# --------------------------------------------------------------------------------------------------------- connections
def test_a_read_is_tried_again_and_then_is_one_sentence(folder, monkeypatch):
    manifest = Manifest.scan("memory://data")
    files, failures = type(fsspec.filesystem("memory")), []
    original = files.cat_file

    def cat_file(self, path, **span):
        failures.append(path)
        if len(failures) < limit:
            raise TimeoutError("lost")
        return original(self, path, **span)

    monkeypatch.setattr(files, "cat_file", cat_file)
    limit = 3
    assert manifest.file(0).read() == (folder / manifest.relative(0)).read_bytes()
    failures.clear()
    limit = 9
    with pytest.raises(RunFailed, match=r"memory://data/a/00.png cannot be read \(TimeoutError: lost\)"):
        manifest.file(0)
    assert len(failures) == 3


def test_an_image_is_not_bad_because_credentials_have_ended(folder, monkeypatch):
    def denied(self, path, **span):
        raise PermissionError("the token has expired")

    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "cat_file", denied)
        with pytest.raises(RunFailed, match=r"cannot be read \(PermissionError: the token has expired\)"):
            Manifest.scan("memory://data")
    assert Manifest.scan("memory://data").bad == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lost_connection_ends_the_run_with_one_sentence(folder, tmp_path, monkeypatch, workers):
    """The reader processes raise it, and the main process says it."""
    files = type(fsspec.filesystem("memory"))
    Manifest.scan("memory://data")  # the headers are known

    def lost(self, path, **span):
        raise TimeoutError("lost")

    monkeypatch.setattr(files, "cat_file", lost)
    with pytest.raises(RunFailed) as error:
        sogclr.train(
            "memory://data",
            out=tmp_path / "run",
            model="resnet10_mini",
            device="cpu",
            image_size=16,
            batch_size=4,
            workers=workers,
            quiet=True,
        )
    assert "\n" not in str(error.value)
    assert "cannot be read (TimeoutError: lost)" in str(error.value)
