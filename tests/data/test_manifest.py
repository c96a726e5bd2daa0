import hashlib
import os
import pickle
import re
import stat
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from image_files import jpeg, large_jpeg, png, truncated
from PIL import Image

from sogclr import files
from sogclr.data import headers, manifest
from sogclr.data.bad_files import write_bad_files
from sogclr.data.manifest import Manifest
from sogclr.errors import BadInput


@pytest.fixture
def folder(tmp_path):
    """Nested folders, odd names, files that are no images, hidden ones, bad ones."""
    root = tmp_path / "photos"
    for name in ("b/10.png", "b/9.png", "a/deep/er/x.jpg", "a.png", "a b/ü 日本.jpg", "B/z.JPG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (png if name.endswith("png") else jpeg)(root / name)
    for name in (".hidden.png", ".thumbnails/a.png", "__MACOSX/b/._10.png", "b/__MACOSX/1.png", "notes.txt", "b/png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "b/empty.png").write_bytes(b"")
    (root / "b/page.png").write_text("<html>")
    return root


GOOD = ["B/z.JPG", "a b/ü 日本.jpg", "a.png", "a/deep/er/x.jpg", "b/10.png", "b/9.png"]


def test_ids_follow_the_sorted_relative_paths(folder):
    found = Manifest.scan(folder)
    assert found.relatives() == sorted([*GOOD, "b/empty.png", "b/page.png"])
    assert len(found) == 8
    assert [found.relative(k) for k in found.usable] == GOOD
    assert found.path(0) == folder / "B/z.JPG"
    assert all(found.path(k).is_file() for k in range(8))
    assert found.bad == [(6, "is empty (0 bytes)"), (7, found.bad[1][1])]
    assert "is no JPEG" in found.bad[1][1]
    assert found.widths.tolist() == [24] * 6 + [0, 0]
    assert found.heights.tolist() == [16] * 6 + [0, 0]
    assert found.widths.dtype == np.int32
    assert found.usable.dtype == np.int64


def test_a_second_scan_in_another_order_of_creation_is_the_same(folder, tmp_path):
    first = Manifest.scan(folder)
    other = tmp_path / "copied"
    for name in reversed(first.relatives()):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((folder / name).read_bytes())
    second = Manifest.scan(other)
    assert second.relatives() == first.relatives()
    assert second.fingerprint == first.fingerprint
    assert not first.difference(second)
    assert second.bad == first.bad


def test_the_fingerprint_is_what_its_docstring_says(folder):
    found = Manifest.scan(folder, check=False)
    names = [name.encode() for name in found.relatives()]
    text = len(names).to_bytes(8, "little") + b"".join(len(n).to_bytes(8, "little") for n in names) + b"".join(names)
    text += b"".join((folder / n.decode()).stat().st_size.to_bytes(8, "little") for n in names)
    assert found.fingerprint == hashlib.sha256(text).hexdigest()


def test_difference_names_what_was_added_removed_and_changed(folder):
    before = Manifest.scan(folder)
    (folder / "b/9.png").unlink()
    png(folder / "b/11.png")
    png(folder / "b/12.png")
    large_jpeg(folder / "a/deep/er/x.jpg")
    after = Manifest.scan(folder)
    difference = before.difference(after)
    assert difference.added == ["b/11.png", "b/12.png"]
    assert difference.removed == ["b/9.png"]
    assert difference.changed == ["a/deep/er/x.jpg"]
    assert bool(difference)
    assert difference.describe() == (
        "2 added (first: b/11.png, b/12.png), 1 removed (first: b/9.png), 1 changed in size (first: a/deep/er/x.jpg)"
    )
    assert after.difference(before).removed == difference.added
    assert before.difference(before).describe() == "no difference"
    assert before.fingerprint != after.fingerprint


def test_a_long_difference_shows_the_first_few(tmp_path):
    png(tmp_path / "0.png")
    before = Manifest.scan(tmp_path)
    for k in range(1, 9):
        png(tmp_path / f"{k}.png")
    assert before.difference(Manifest.scan(tmp_path)).describe() == "8 added (first: 1.png, 2.png, 3.png, ...)"


def test_save_and_load_give_the_same_manifest(folder, tmp_path):
    before = Manifest.scan(folder)
    os.rename(folder / "b/10.png", folder / "b/10.jpg")
    before = Manifest.scan(folder)
    before.save(tmp_path / "manifest.parquet")
    after = Manifest.load(tmp_path / "manifest.parquet")
    for one in (after, pickle.loads(pickle.dumps(before))):
        assert one.relatives() == before.relatives()
        assert (one.root, one.source, one.fingerprint) == (before.root, before.source, before.fingerprint)
        assert (one.bad, one.notes) == (before.bad, before.notes)
        assert one.notes == [(4, "holds PNG data under the name .jpg; it is used")]
        for name in ("sizes", "mtimes", "widths", "heights", "usable"):
            np.testing.assert_array_equal(getattr(one, name), getattr(before, name))
    assert Manifest.load(tmp_path / "manifest.parquet", root="/elsewhere").path(0) == Path("/elsewhere/B/z.JPG")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("manifest")] == ["manifest.parquet"]


def test_a_manifest_that_cannot_be_trusted_is_bad_input(folder, tmp_path):
    with pytest.raises(BadInput, match="there is no manifest"):
        Manifest.load(tmp_path / "none.parquet")
    path = tmp_path / "manifest.parquet"
    Manifest.scan(folder).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="or it is damaged"):
        Manifest.load(path)
    import pyarrow.parquet as pq

    path.write_bytes(whole)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(BadInput, match="its own fingerprint"):
        Manifest.load(path)


# ------------------------------------------------------------------------------------------------------------ odd folders
def test_linked_folders_are_followed_once_and_loops_end(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for name in ("z/1.png", "z/deep/2.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        png(root / name)
    outside.mkdir()
    png(outside / "3.png")
    (root / "a").symlink_to(root / "z")  # sorts before the folder it points to
    (root / "z/loop").symlink_to(root)
    (root / "z/self").symlink_to(root / "z/self")  # points to itself
    (root / "linked").symlink_to(outside)
    (outside / "back").symlink_to(root)
    png(root / "4.png")
    (root / "5.png").symlink_to(root / "4.png")
    (root / "6.png").symlink_to(root / "nowhere.png")
    found = Manifest.scan(root)
    assert found.relatives() == ["4.png", "5.png", "6.png", "linked/3.png", "z/1.png", "z/deep/2.png"]
    assert found.bad == [(2, "is a broken link")]


def test_a_name_that_is_not_utf8_is_bad_rather_than_a_crash(tmp_path):
    png(tmp_path / "good.png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "good.png").read_bytes())
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    png(folder / "x.png")
    found = Manifest.scan(tmp_path)
    assert found.relatives() == ["caf\\xe9.png", "d\\xff/x.png", "good.png"]
    assert [reason for _, reason in found.bad] == ["has a name that is not UTF-8; rename it"] * 2
    assert found.usable.tolist() == [2]
    found.save(tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet").bad == found.bad


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    png(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "folder.png").mkdir()
    png(tmp_path / "folder.png/b.png")
    found = Manifest.scan(tmp_path)
    assert found.relatives() == ["a.png", "folder.png/b.png", "pipe.png"]
    assert found.bad == [(2, "is no regular file")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    png(tmp_path / "a.png")
    (tmp_path / "secret").mkdir(mode=0)
    try:
        with pytest.raises(BadInput, match="secret may not be read"):
            Manifest.scan(tmp_path)
    finally:
        (tmp_path / "secret").chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, r"there is no folder or list file .*data; give the path of a folder of images"),
        (lambda p: p.mkdir(), r"data holds no images \(JPEG, PNG.*\.tiff.*\); give a folder"),
        (lambda p: (p.mkdir(), (p / "a.txt").write_text("")), r"; 1 other file was seen; give"),
        (
            lambda p: (p.mkdir(), [(p / f"{k}.csv").write_text("") for k in range(3)]),
            r"; 3 other files were seen; give",
        ),
        (lambda p: p.write_text("x"), r"data is a file and no \.txt list; give a folder of images"),
    ],
)
def test_data_that_cannot_be_used_is_one_sentence(make, sentence, tmp_path):
    make(tmp_path / "data")
    with pytest.raises(BadInput, match=sentence) as caught:
        Manifest.scan(tmp_path / "data")
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- list file
def test_a_list_file_takes_relative_and_absolute_paths(folder, tmp_path):
    png(tmp_path / "other.png")
    text = f"# my list\n\nb/9.png\r\n  ./b/10.png  \n{folder / 'a.png'}\n{tmp_path / 'other.png'}\na b/ü 日本.jpg\n"
    (folder / "list.txt").write_text(text, encoding="utf-8-sig")
    found = Manifest.scan(folder / "list.txt")
    assert found.relatives() == [str(tmp_path / "other.png"), "a b/ü 日本.jpg", "a.png", "b/10.png", "b/9.png"]
    assert [found.path(k).is_file() for k in range(5)] == [True] * 5
    assert (found.root, found.source) == (folder, folder / "list.txt")
    assert len(found.usable) == 5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "a.png\ngone.png\nb/lost.png\n",
            "2 of the 3 files named in .*list.txt do not exist .first: gone.png, b/lost.png.",
        ),
        ("a.png\n./a.png\nb/../a.png\nb/9.png\n", "names 1 files more than once .first: a.png.; name each once"),
        ("# nothing\n\n", "names no files; give one path a line"),
        (b"\xff\xfe\xfa", "is no UTF-8 text"),
    ],
)
def test_a_list_file_that_cannot_be_used_is_one_sentence(text, sentence, folder):
    (folder / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=sentence):
        Manifest.scan(folder / "list.txt")


def test_a_folder_in_a_list_is_a_bad_entry(folder):
    (folder / "list.txt").write_text("a.png\nb\n")
    assert Manifest.scan(folder / "list.txt").bad == [(1, "is no regular file")]


# ------------------------------------------------------------------------------------------------------------------ parts
def test_part_is_the_manifest_of_that_folder(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "train2/3.png", "test/a/9.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        png(tmp_path / name)
    (tmp_path / "train/b/0.png").write_bytes(b"junk")
    os.rename(tmp_path / "test/a/9.png", tmp_path / "test/a/9.jpg")
    whole = Manifest.scan(tmp_path)
    train, alone = whole.part(["train"]), Manifest.scan(tmp_path / "train")
    assert train is not None
    assert train.relatives() == alone.relatives() == ["a/1.png", "b/0.png", "b/2.png"]
    assert (train.root, train.fingerprint, train.bad) == (alone.root, alone.fingerprint, alone.bad)
    assert train.usable.tolist() == [0, 2]
    assert train.widths.tolist() == [24, 0, 24]
    held_out = whole.part(["val", "test"])
    assert held_out is not None
    assert held_out.path(0) == tmp_path / "test/a/9.jpg"
    assert len(held_out.notes) == 1
    assert whole.part(["valid", "trai"]) is None


# ------------------------------------------------------------------------------------------------------------------ cache
@pytest.fixture
def reads(monkeypatch, tmp_path):
    """The paths whose headers are read from here on; the cache is empty at first."""
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    seen = []
    real = headers.read_header
    monkeypatch.setattr(headers, "read_header", lambda path: (seen.append(Path(path).name), real(path))[1])
    return seen


def test_headers_are_read_once_and_again_when_the_file_changes(folder, reads):
    first = Manifest.scan(folder)
    assert len(reads) == 7  # all but the empty one
    reads.clear()
    second = Manifest.scan(folder)
    assert reads == []
    assert (second.bad, second.notes) == (first.bad, first.notes)
    np.testing.assert_array_equal(second.widths, first.widths)
    status = (folder / "b/9.png").stat()
    os.utime(folder / "b/9.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    large_jpeg(folder / "b/new.jpg")
    third = Manifest.scan(folder)
    assert sorted(reads) == ["9.png", "new.jpg"]
    assert third.widths[third.relatives().index("b/new.jpg")] == 64


@pytest.mark.parametrize("damage", [b"", b"PAR1 not really", None])
def test_a_damaged_cache_is_ignored_and_written_anew(damage, folder, reads):
    first = Manifest.scan(folder)
    (file,) = (files.cache_folder() / "headers").iterdir()
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    reads.clear()
    assert Manifest.scan(folder).bad == first.bad
    assert len(reads) == 7
    reads.clear()
    Manifest.scan(folder)
    assert reads == []


@contextmanager
def no_more_files():
    """Return a context in which the system opens no further file: EMFILE."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_fault_of_the_machine_makes_no_file_bad_and_is_not_remembered(folder, reads, monkeypatch):
    real = headers.read_header

    def starved(path):
        with no_more_files():
            return real(path)

    monkeypatch.setattr(headers, "read_header", starved)
    first = Manifest.scan(folder)
    assert len(first.usable) == 7  # all but the empty one: nothing else is proven
    assert {note for _, note in first.notes} == {
        "cannot be read now (Too many open files) and is tried again when its turn comes"
    }
    monkeypatch.setattr(headers, "read_header", real)
    assert len(Manifest.scan(folder).usable) == 6
    assert len(reads) == 14


def test_only_what_the_bytes_prove_is_remembered(folder, reads, monkeypatch):
    real = headers.read_header
    monkeypatch.setattr(headers, "read_header", lambda path: real(f"{path}.gone"))
    assert {reason for _, reason in Manifest.scan(folder).bad} == {"is empty (0 bytes)", "no longer exists"}
    monkeypatch.setattr(headers, "read_header", real)
    assert len(Manifest.scan(folder).usable) == 6


def test_a_cache_folder_that_cannot_be_written_is_not_fatal(folder, reads, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "file" / "below"))
    assert len(Manifest.scan(folder).usable) == 6


def test_without_cache_nothing_is_kept(folder, reads, tmp_path):
    Manifest.scan(folder, cache=False)
    assert not (tmp_path / "cache").exists()


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SOGCLR_CACHE", "/own")
    assert files.cache_folder() == Path("/own")
    monkeypatch.delenv("SOGCLR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert files.cache_folder() == Path("/xdg/sogclr")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert files.cache_folder() == Path("/home/me/.cache/sogclr")


def test_too_many_unknown_files_are_not_checked_unless_asked(folder, reads, monkeypatch):
    monkeypatch.setattr(manifest, "CHECK_AT_MOST", 6)
    assert Manifest.scan(folder).widths.max() == 0
    assert Manifest.scan(folder).bad == [(6, "is empty (0 bytes)")]
    assert Manifest.scan(folder, check=False).widths.max() == 0
    assert reads == []
    assert Manifest.scan(folder, check=True).widths.max() == 24
    assert Manifest.scan(folder).widths.max() == 24  # all are known now


def test_progress_counts_to_the_end(folder, reads, monkeypatch):
    monkeypatch.setattr(headers, "_AT_A_TIME", 2)
    calls = []
    Manifest.scan(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_threads_read_the_same_as_one(folder, monkeypatch):
    """As on a slow disk, where the first block mostly waits."""
    for k in range(40):
        (png if k % 2 else truncated(jpeg, 0.02 * k))(folder / f"{k}.png")
    one = Manifest.scan(folder, cache=False)
    monkeypatch.setattr(headers, "_AT_A_TIME", 3)
    monkeypatch.setattr(headers.time, "thread_time", lambda: 0.0)
    many = Manifest.scan(folder, cache=False)
    assert (many.bad, many.notes) == (one.bad, one.notes)
    np.testing.assert_array_equal(many.widths, one.widths)


# -------------------------------------------------------------------------------------------------------------- bad files
def test_bad_files_are_listed_sorted_and_whole(tmp_path):
    path = tmp_path / "bad_files.txt"
    write_bad_files(
        path, [("b.png", "is empty (0 bytes)"), ("a\tb\n.png", "is truncated"), ("b.png", "is empty (0 bytes)")]
    )
    assert path.read_text() == "a\\x09b\\x0a.png\tis truncated\nb.png\tis empty (0 bytes)\n"
    write_bad_files(path, [])
    assert path.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["bad_files.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")

    def write_half():
        with files.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=re.escape("No space left")):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_images_of_odd_size_are_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    found = Manifest.scan(tmp_path)
    assert (found.widths[0], found.heights[0]) == (20, 30)
