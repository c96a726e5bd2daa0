import numpy as np
import pytest
from image_files import png

from sogclr.data.labels import read_labels
from sogclr.data.manifest import Manifest
from sogclr.errors import BadInput


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        png(root / name)
    return Manifest.scan(root)


@pytest.mark.parametrize("how", ["auto", "folder"])
def test_classes_are_the_folders_below_the_root(how, tmp_path):
    manifest = make(tmp_path, "dog/1.png", "cat/1.png", "cat/old/2.png", "ant/1.png")
    labels = read_labels(manifest, how)
    assert labels is not None
    assert labels.classes == ["ant", "cat", "dog"]
    assert [labels.classes[v] for v in labels.values] == ["ant", "cat", "cat", "dog"]
    assert labels.values.dtype == np.int64
    assert labels.source == "folder"


def test_numbers_are_classes_in_their_order(tmp_path):
    labels = read_labels(make(tmp_path, "10/a.png", "9/a.png", "100/a.png"), "auto")
    assert labels is not None
    assert labels.classes == ["9", "10", "100"]
    assert labels.values.tolist() == [1, 2, 0]  # ids follow the sorted paths: 10, 100, 9


def test_none_and_folders_that_are_no_classes_give_no_labels(tmp_path):
    manifest = make(tmp_path, "a/1.png", "b/1.png")
    assert read_labels(manifest, "none") is None
    assert read_labels(make(tmp_path, "loose.png"), "auto") is None
    assert read_labels(make(tmp_path / "one", "a/1.png", "a/2.png"), "auto") is None


def test_a_bad_file_outside_the_folders_spoils_nothing(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "z.png").write_bytes(b"")
    labels = read_labels(Manifest.scan(tmp_path), "auto")
    assert labels is not None
    assert labels.values.tolist() == [0, 1, -1]


def test_a_folder_with_nothing_usable_is_no_class(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/1.png").write_bytes(b"")
    labels = read_labels(Manifest.scan(tmp_path), "folder")
    assert labels is not None
    assert labels.classes == ["a", "b"]
    assert labels.values.tolist() == [0, 1, -1]


def test_folder_labels_that_cannot_be_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"there is only 1 folder.*or leave --labels folder out"):
        read_labels(make(tmp_path, "a/1.png"), "folder")
    with pytest.raises(BadInput, match="2 images lie in no folder"):
        read_labels(make(tmp_path, "x.png", "y.png", "b/1.png"), "folder")


@pytest.mark.parametrize("head", ["", "path,label\n", "Filename, Class\n"])
def test_a_csv_gives_labels_with_and_without_a_header(head, tmp_path):
    manifest = make(tmp_path / "data", "1.png", "2.png", "sub/ü.png", "4.png")
    file = tmp_path / "labels.csv"
    file.write_text(f"{head}2.png,dog\n./1.png,cat\n\nsub/ü.png,dog\n", encoding="utf-8-sig")
    labels = read_labels(manifest, str(file))
    assert labels is not None
    assert labels.classes == ["cat", "dog"]
    assert labels.values.tolist() == [0, 1, -1, 1]
    assert labels.source == "labels.csv"
    assert labels.unknown_paths == 0


def test_columns_are_found_by_name(tmp_path):
    manifest = make(tmp_path / "data", "1.png", "2.png")
    (tmp_path / "l.csv").write_text('id,label,image\n7,"a, b",1.png\n8,c,2.png\n')
    labels = read_labels(manifest, str(tmp_path / "l.csv"))
    assert labels is not None
    assert labels.classes == ["a, b", "c"]


def test_a_column_may_say_which_images_belong_together(tmp_path):
    manifest = make(tmp_path / "data", "1.png", "2.png", "3.png", "4.png", "5.png")
    (tmp_path / "l.csv").write_text("path,group,label\n1.png,b,x\n2.png,,y\n4.png,a,x\ngone.png,c,x\n5.png,b,y\n")
    labels = read_labels(manifest, str(tmp_path / "l.csv"))
    assert labels is not None
    assert labels.groups is not None
    assert labels.groups.tolist() == [1, -1, -1, 0, 1]
    (tmp_path / "l.csv").write_text(
        "1.png,x,group\n2.png,y,b\n"
    )  # without a header nothing says what a third column is
    labels = read_labels(manifest, str(tmp_path / "l.csv"))
    assert labels is not None
    assert labels.groups is None


def test_one_csv_serves_a_folder_and_its_parts(tmp_path):
    """Paths may be relative to the manifest's root, to the csv's folder, or absolute; the others are counted."""
    make(tmp_path, "train/1.png", "test/2.png", "test/3.png")
    part = Manifest.scan(tmp_path).part(["test"])
    assert part is not None
    (tmp_path / "l.csv").write_text(f"train/1.png,a\ntest/2.png,b\n{tmp_path}/test/3.png,a\n")
    labels = read_labels(part, str(tmp_path / "l.csv"))
    assert labels is not None
    assert labels.values.tolist() == [1, 0]
    assert labels.unknown_paths == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "9.png,a\n8.png,b\n",
            "none of the 2 paths in .* is an image of .*first: 9.png, 8.png.*relative to that folder",
        ),
        ("1.png,a\n1.png,b\n2.png,a\n", "gives 1.png the labels 'a' and 'b'; keep one"),
        ("1.png,a\n2.png,a\n", "has 1 class for the images"),
        ("1.png,a\n2.png\n", "row 2 of .* has 1 column"),
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        (b"1.png,\xff\n", "is no UTF-8 csv"),
    ],
)
def test_a_csv_that_cannot_be_used_is_one_sentence(text, sentence, tmp_path):
    manifest = make(tmp_path / "data", "1.png", "2.png")
    (tmp_path / "l.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=sentence):
        read_labels(manifest, str(tmp_path / "l.csv"))


def test_an_unknown_way_is_bad_input(tmp_path):
    manifest = make(tmp_path, "1.png")
    with pytest.raises(BadInput, match="'folders' are neither auto, folder, none nor a csv"):
        read_labels(manifest, "folders")
    with pytest.raises(BadInput, match=r"there is no labels file gone\.csv"):
        read_labels(manifest, "gone.csv")
