"""Kinds of DATA: what each word means, and that a new kind is a class and a row."""

import io
import zipfile
from pathlib import Path

import pytest
import torch
from digits import SMALL
from image_files import colours
from PIL import Image

import sogclr
from sogclr.data import source
from sogclr.data.labels import read_labels
from sogclr.data.listing import ListingBuilder
from sogclr.data.loader import evaluation_loader, training_loader
from sogclr.data.manifest import Manifest
from sogclr.data.pair_columns import ColumnNames
from sogclr.data.pairs import Pairs
from sogclr.data.recipe import RECIPES
from sogclr.data.source import OpenOptions, SourceKind, kind_of, load_source, open_source, scan_images
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder


class ZippedImages(Manifest):
    """The images in a zip file."""

    @classmethod
    def open(cls, data: Path, options: OpenOptions) -> "ZippedImages":
        listing = ListingBuilder()
        with zipfile.ZipFile(data) as file:
            for member in file.infolist():
                listing.add(member.filename, member.file_size, 0)
        return cls(data.absolute().parent, data, listing.sorted())

    def file(self, id: int) -> io.BytesIO:
        with zipfile.ZipFile(self.root / self.source.name) as file:
            return io.BytesIO(file.read(self.relative(id)))

    def rescan(self, columns) -> "ZippedImages":
        return self.open(self.root / self.source.name, OpenOptions())


def load_zip(run: RunFolder) -> ZippedImages | None:
    found = None if run.holds_pairs() else ZippedImages.load(run.manifest_file)
    return found if found is not None and found.source.suffix == ".zip" else None


ZIP = SourceKind("images", lambda data: data.suffix == ".zip", ZippedImages.open, load_zip)


@pytest.fixture
def folder(tmp_path):
    for k in range(8):
        (tmp_path / "images" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours() // 8 * (k + 1)).save(tmp_path / "images" / "ab"[k % 2] / f"{k}.png")
    return tmp_path / "images"


@pytest.fixture
def zipped(folder, monkeypatch):
    monkeypatch.setattr(source, "SOURCES", {"zip": ZIP, **source.SOURCES})
    with zipfile.ZipFile(folder.parent / "images.zip", "w") as file:
        for path in folder.glob("*/*.png"):
            file.write(path, path.relative_to(folder))
    return folder.parent / "images.zip"


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        ("pairs.csv", "pairs"),
        ("pairs.JSONL", "pairs"),
        ("shards/{000..009}.tar", "pairs"),
        ("shards/*.tar", "pairs"),
        ("one.tar", "pairs"),
        ("list.txt", "images"),
        ("nowhere", "images"),
    ],
)
def test_what_is_not_there_is_told_by_its_name(data, samples, tmp_path):
    assert kind_of(tmp_path / data).samples == samples
    with pytest.raises(BadInput, match=r"there (is|are) no"):
        open_source(tmp_path / data)


def test_images_have_no_columns(folder):
    with pytest.raises(BadInput, match=r"--caption-column is for pairs and .* holds images; leave it out"):
        open_source(folder, ColumnNames(caption="text"))


def test_a_training_part_is_that_of_a_folder(folder, tmp_path):
    assert open_source(folder).training_part() is None
    folder.rename(tmp_path / "train")
    part = open_source(tmp_path).training_part()
    assert (part.root, len(part)) == (tmp_path / "train", 8)
    (tmp_path / "list.txt").write_text("train/a/0.png\ntrain/b/1.png\n")
    assert open_source(tmp_path / "list.txt").training_part() is None  # which files is said already


@pytest.mark.parametrize("data", ["images", "list.txt", "pairs.csv"])
def test_a_run_has_the_source_it_was_started_on(data, folder, tmp_path):
    names = [f"images/{path.relative_to(folder)}" for path in sorted(folder.glob("*/*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(names))
    (tmp_path / "pairs.csv").write_text("file,text\n" + "".join(f"{name},one of {name[7]}\n" for name in names))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    columns = ColumnNames(caption="text" if data == "pairs.csv" else None)
    found = open_source(tmp_path / data, columns)
    found.save_to(run)
    again = load_source(run)
    assert type(again) is type(found) is (Pairs if columns.caption else Manifest)
    assert (again.fingerprint, again.describe()) == (found.fingerprint, found.describe())
    assert not again.difference(again.rescan(columns))
    (folder / "a/0.png").write_bytes(b"shorter")
    assert "changed in size (first: " in again.difference(again.rescan(columns)).describe()


# ------------------------------------------------------------------------------------------------------------ a new kind
def test_a_new_kind_is_opened_read_saved_and_loaded(zipped, folder, tmp_path):
    found, plain = open_source(zipped), open_source(folder)
    assert (found.kind, scan_images(zipped).relatives()) == ("images", plain.images.relatives())
    assert read_labels(found.images, "auto").classes == ["a", "b"]
    for loader, options in ((evaluation_loader, (16,)), (training_loader, (RECIPES["small"], 16, 4, 0))):
        for workers in (0, 1):
            batch = next(loader(found, found.usable, *options, workers=workers))
            expected = next(loader(plain, plain.usable, *options))
            assert torch.equal(batch.index, expected.index)
            assert torch.equal(batch.crops, expected.crops)

    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    found.save_to(run)
    again = load_source(run)
    assert (type(again), again.fingerprint) == (ZippedImages, found.fingerprint)
    assert again.file(3).read() == plain.images.path(3).read_bytes()
    assert not again.difference(again.rescan({}))
    with zipfile.ZipFile(zipped, "a") as file:
        file.write(folder / "a/0.png", "a/8.png")
    assert again.difference(again.rescan({})).added == ["a/8.png"]


def test_other_runs_are_none_of_a_new_kind(zipped, folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    open_source(folder).save_to(run)
    assert type(load_source(run)) is Manifest


@pytest.mark.slow
def test_a_run_on_a_new_kind_is_the_same_as_on_its_files(zipped, folder, tmp_path):
    options = {**SMALL, "batch_size": 4, "max_steps": 3}
    runs = [sogclr.train(data, tmp_path / data.name[-3:], quiet=True, **options) for data in (zipped, folder)]
    assert [row["loss"] for row in runs[0].metrics() if "loss" in row] == [
        row["loss"] for row in runs[1].metrics() if "loss" in row
    ]
    assert type(load_source(runs[0])) is ZippedImages
