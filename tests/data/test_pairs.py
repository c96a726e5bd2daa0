"""Pairs from tables and tar shards as people have them, good and bad rows."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sogclr.data.loader import evaluation_loader, training_loader
from sogclr.data.manifest import Manifest
from sogclr.data.pair_columns import ColumnNames
from sogclr.data.pairs import Pairs
from sogclr.data.paths import file_at
from sogclr.data.recipe import RECIPES
from sogclr.data.shards import find_shards
from sogclr.data.source import kind_of
from sogclr.errors import BadInput

PAIRS = [("a.png", "a red square"), ("b.png", "green"), ("sub/c.png", "blue, or so")]
COLOURS = {"a.png": (255, 0, 0), "b.png": (0, 255, 0), "sub/c.png": (0, 0, 255)}


def picture(name):
    file = io.BytesIO()
    Image.new("RGB", (20, 12), COLOURS[name]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in COLOURS:
        place = tmp_path / "data" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(name))
    return tmp_path / "data"


def listed(pairs):
    """The usable pairs as (path, caption)."""
    return [(pairs.relative(i), pairs.name(1, pairs.second_ids[i])) for i in pairs.usable]


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# --------------------------------------------------------------------------------------------------------------- kinds
def csv_text(separator, head="image,caption"):
    rows = [f'{image}{separator}"{caption}"' for image, caption in PAIRS]
    return "\n".join([head.replace(",", separator), *rows]) + "\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", csv_text(",")),
        ("p.csv", csv_text(";")),
        ("p.csv", csv_text("|")),
        ("p.csv", csv_text("\t")),
        ("p.tsv", csv_text("\t")),
        ("p.csv", csv_text(",", "File_Name,TEXT")),
        ("p.csv", "\ufeff" + csv_text(",")),
        ("p.csv", csv_text(",").replace("\n", "\r\n")),
        ("p.csv", "".join(csv_text(",").splitlines(keepends=True)[1:])),  # no header
        ("p.jsonl", "".join(json.dumps({"n": 1, "image": i, "caption": c}) + "\n\n" for i, c in PAIRS)),
        ("p.ndjson", "".join(json.dumps({"filename": i, "captions": [c]}) + "\n" for i, c in PAIRS)),
    ],
)
def test_text_tables_by_the_usual_names_and_separators(name, text, folder):
    pairs = Pairs.scan(write(folder, name, text))
    assert listed(pairs) == PAIRS
    assert not pairs.rejected
    assert not pairs.bad
    assert kind_of(folder / name).samples == "pairs"
    assert kind_of(folder).samples == "images"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(kind, folder):
    table = pa.table({"text": [c for _, c in PAIRS], "file_path": pa.array([i for i, _ in PAIRS]).cast(kind)})
    pq.write_table(table, folder / "p.parquet")
    assert listed(Pairs.scan(folder / "p.parquet")) == PAIRS
    with pytest.raises(BadInput, match=r"has no column 'label'; its columns are text, file_path"):
        Pairs.scan(folder / "p.parquet", ColumnNames(caption="label"))
    write(folder, "broken.parquet", "PAR1 and no more")
    with pytest.raises(BadInput, match="cannot be read as Parquet"):
        Pairs.scan(folder / "broken.parquet")


def test_columns_can_be_named_and_paths_may_be_absolute(folder):
    path = write(folder, "p.csv", f"was,what,n\n{folder / 'a.png'},one,1\n./sub/../b.png,two,2\n")
    with pytest.raises(BadInput, match=r"no image column under a usual name .* its columns are was, what, n"):
        Pairs.scan(path)
    assert listed(Pairs.scan(path, ColumnNames("was", "what"))) == [("a.png", "one"), ("b.png", "two")]


def test_utf_16_is_read_too(folder):
    (folder / "p.csv").write_text("image,caption\na.png,größer\n", encoding="utf-16")
    assert listed(Pairs.scan(folder / "p.csv")) == [("a.png", "größer")]


# ------------------------------------------------------------------------------------------------------------- the ids
def test_captions_of_one_image_and_images_of_one_caption_have_ids_of_their_own(folder):
    text = "image,caption\nb.png,two\na.png,one\na.png,two\na.png,  one \nb.png,two\n"
    pairs = Pairs.scan(write(folder, "p.csv", text))
    assert listed(pairs) == [("a.png", "one"), ("a.png", "two"), ("b.png", "two")]
    assert pairs.first_ids.tolist() == [0, 0, 1]
    assert pairs.second_ids.tolist() == [0, 1, 1]
    assert pairs.duplicates == 2
    assert pairs.describe().endswith("2 repeated pairs (kept once)")


def test_the_order_of_the_rows_does_not_matter_and_the_content_does(folder):
    lines = [f"{i},{c}" for i, c in (("a.png", "one"), ("b.png", "two"), ("a.png", "two"))]
    first = Pairs.scan(write(folder, "p.csv", "\n".join(["image,caption", *lines])))
    other = Pairs.scan(write(folder, "q.csv", "\n".join(["image,caption", *reversed(lines)])))
    assert first.fingerprint == other.fingerprint
    assert not first.difference(other)
    changed = Pairs.scan(write(folder, "q.csv", "\n".join(["image,caption", *lines[1:], "b.png,three"])))
    assert first.difference(changed).describe() == "1 added (first: b.png: three), 1 removed (first: a.png: one)"


# ------------------------------------------------------------------------------------------------------------ bad rows
def test_what_cannot_be_used_is_counted_and_told_with_its_line(folder):
    rows = [
        b"image,caption",
        b"a.png,fine",
        b"a.png,",
        b",nothing",
        b"a.png",
        b"a.png,caf\xe9",
        b"gone.png,lost",
        b"b.png,ok",
    ]
    (folder / "p.csv").write_bytes(b"\n".join(rows))
    (folder / "b.png").write_bytes(b"no image")
    pairs = Pairs.scan(folder / "p.csv")
    assert listed(pairs) == [("a.png", "fine")]
    assert dict(pairs.rejected) == {
        "p.csv:3": "has an empty caption",
        "p.csv:4": "has an empty image",
        "p.csv:5": "has 1 of 2 columns",
        "p.csv:6": "has a caption that is not UTF-8",
    }
    assert {pairs.relative(i): reason.split(",")[0] for i, reason in pairs.bad} == {
        "b.png": "is no JPEG",
        "gone.png": "does not exist",
    }
    assert "2 with an unreadable image and 4 unusable rows" in pairs.describe()


def test_bad_json_lines_are_rejected_one_by_one(folder):
    lines = ['{"image": "a.png", "caption": "one"}', "{", "[1]", '{"image": "a.png"}', '{"image": 3, "caption": "x"}']
    pairs = Pairs.scan(write(folder, "p.jsonl", "\n".join(lines)))
    assert listed(pairs) == [("a.png", "one")]
    assert dict(pairs.rejected) == {
        "p.jsonl:2": "is no JSON",
        "p.jsonl:3": "is no JSON object",
        "p.jsonl:4": "has no caption",
        "p.jsonl:5": "has an image that is no text but int",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "", "is empty; its first line must name the columns"),
        ("p.csv", "image,caption\n", "holds no pair"),
        ("p.csv", "image,caption\na.png,\n", r"first: p.csv:2 has an empty caption"),
        ("p.jsonl", "\n", "holds no JSON object"),
    ],
)
def test_tables_without_a_pair_are_refused(name, text, message, folder):
    with pytest.raises(BadInput, match=message):
        Pairs.scan(write(folder, name, text))


def test_a_missing_table_is_named(folder):
    with pytest.raises(BadInput, match="there is no table"):
        Pairs.scan(folder / "nowhere.csv")


# ---------------------------------------------------------------------------------------------------------------- file
def test_saved_pairs_are_mapped_and_equal(folder, tmp_path):
    pairs = Pairs.scan(write(folder, "p.csv", csv_text(",") + "gone.png,lost\na.png,\n"))
    pairs.save(tmp_path / "manifest.parquet", tmp_path / "pairs")
    before = pa.total_allocated_bytes()
    loaded = Pairs.load(tmp_path / "manifest.parquet", tmp_path / "pairs")
    assert not loaded.first_ids.flags.owndata
    assert pa.total_allocated_bytes() - before < 100_000
    assert loaded.fingerprint == pairs.fingerprint
    assert listed(loaded) == listed(pairs)
    assert loaded.rejected == pairs.rejected
    assert loaded.bad == pairs.bad
    assert loaded.describe() == pairs.describe()
    assert not any(column.flags.owndata for column in (loaded.images.sizes, loaded.images.widths))
    assert loaded.images.names.equals(pairs.images.names)
    assert loaded.images.notes == pairs.images.notes
    (tmp_path / "pairs" / "captions.arrow").write_bytes(b"half")
    with pytest.raises(BadInput, match="or is damaged"):
        Pairs.load(tmp_path / "manifest.parquet", tmp_path / "pairs")


def test_the_mapped_images_are_a_copy_of_the_manifest(folder, tmp_path):
    """They may be missing, as in runs from before there were any, and follow the manifest where its folder has moved."""
    manifest, saved = tmp_path / "manifest.parquet", tmp_path / "pairs"
    pairs = Pairs.scan(write(folder, "p.csv", csv_text(",")))
    pairs.save(manifest, saved)
    Manifest.load(manifest, root=tmp_path / "elsewhere").save(manifest)
    assert Pairs.load(manifest, saved).root == tmp_path / "elsewhere"
    mapped = (saved / "images.arrow").read_bytes()
    (saved / "images.arrow").unlink()
    old = Pairs.load(manifest, saved)
    assert (old.fingerprint, listed(old)) == (pairs.fingerprint, listed(pairs))
    (saved / "images.arrow").write_bytes(mapped)
    (folder / "a.png").write_bytes(b"another size")
    Manifest.scan(folder).save(manifest)
    with pytest.raises(BadInput, match="is not the copy of"):
        Pairs.load(manifest, saved)
    (saved / "images.arrow").write_bytes(mapped[:100])
    with pytest.raises(BadInput, match="or it is damaged"):
        Pairs.load(manifest, saved)
    manifest.unlink()
    with pytest.raises(BadInput, match="there is no manifest"):
        Pairs.load(manifest, saved)


def test_a_million_pairs_take_no_python_objects(folder):
    """Built from columns directly: two int64 a pair beside the text itself."""
    n = 1_000_000
    images = Pairs.scan(write(folder, "p.csv", csv_text(","))).images
    captions = pa.array([f"caption {i:07d}" for i in range(n)], type=pa.large_string())
    pairs = Pairs(images, captions, (np.zeros(n, np.int64), np.arange(n)), [])
    assert pairs.name(1, int(pairs.second_ids[n - 1])) == "caption 0999999"
    assert pairs.texts_of(np.array([3, 5])) == ["caption 0000003", "caption 0000005"]
    assert len(pairs.usable) == n


# -------------------------------------------------------------------------------------------------------------- shards
def write_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    place = tmp_path / "shards"
    place.mkdir()
    first = [("000.png", picture("a.png")), ("000.txt", b"red\n"), ("001.txt", b"green"), ("001.png", picture("b.png"))]
    second = [
        ("x/000.json", json.dumps({"caption": ["blue", "azure"]}).encode()),
        ("x/000.png", picture("sub/c.png")),
        ("x/001.png", picture("a.png")),  # no caption
        ("x/002.png", picture("a.png")),
        ("x/002.txt", b"caf\xe9"),
        ("x/003.txt", b"no image"),
        ("x/.hidden", b""),
    ]
    write_shard(place / "s-00.tar", first)
    write_shard(place / "s-01.tar", second)
    return place


def test_tar_shards(shards):
    pairs = Pairs.scan(shards)
    assert listed(pairs) == [
        ("s-00.tar/000.png", "red"),
        ("s-00.tar/001.png", "green"),
        ("s-01.tar/x/000.png", "azure"),
        ("s-01.tar/x/000.png", "blue"),
    ]
    assert dict(pairs.rejected) == {
        "s-01.tar/x/001.png": "has no caption",
        "s-01.tar/x/002.png": "has a .txt that is not UTF-8",
        "s-01.tar/x/003": "has no image",
    }
    assert pairs.images.widths[pairs.first_ids].tolist() == [20] * 4
    assert kind_of(shards).samples == "pairs"
    assert kind_of(shards.rename(shards.with_name("{000..001}"))).samples == "pairs"


def test_shards_by_pattern_and_one_alone(shards):
    assert [p.name for p in find_shards(f"{shards}/s-{{00..07}}.tar")] == ["s-00.tar", "s-01.tar"]
    assert [p.name for p in find_shards(f"{shards}/*.tar")] == ["s-00.tar", "s-01.tar"]
    assert len(Pairs.scan(shards / "s-00.tar")) == 2
    with pytest.raises(BadInput, match="there are no tar shards"):
        Pairs.scan(shards / "nothing.tar")


def test_images_are_read_out_of_the_shards(shards, tmp_path):
    pairs = Pairs.scan(shards)
    pairs.save(tmp_path / "manifest.parquet", tmp_path / "pairs")
    pairs = Pairs.load(tmp_path / "manifest.parquet", tmp_path / "pairs")
    batch = next(iter(evaluation_loader(pairs, pairs.usable, 8, workers=1)))
    assert batch.crops[0, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 255]]
    assert not batch.bad
    for shard in shards.iterdir():
        shard.unlink()
    batch = next(iter(evaluation_loader(pairs, pairs.usable, 8)))
    assert [reason for _, reason in batch.bad] == ["its shard s-00.tar cannot be read"] * 2 + [
        "its shard s-01.tar cannot be read"
    ] * 2


def test_a_truncated_shard_gives_what_is_whole(shards):
    whole = (shards / "s-00.tar").read_bytes()
    offset = int(Pairs.scan(shards / "s-00.tar").images.offsets[1])
    (shards / "s-00.tar").write_bytes(whole[: offset + 30])  # in the middle of the second image
    pairs = Pairs.scan(shards / "s-00.tar")
    assert listed(pairs) == [("s-00.tar/000.png", "red")]
    assert any("truncated" in reason or "damaged" in reason for _, reason in pairs.rejected)


def test_the_index_of_a_shard_is_made_once(shards, monkeypatch):
    first = Pairs.scan(shards)
    monkeypatch.setattr(tarfile, "open", None)  # whoever reads a shard again fails
    assert Pairs.scan(shards).fingerprint == first.fingerprint


def test_members_of_a_shard_are_files_at_an_offset(shards):
    images = Pairs.scan(shards).images
    content = file_at(images.root, images.relative(0), images.offsets, images.sizes, images.mtimes, 0).read()
    assert content == picture("a.png")


# -------------------------------------------------------------------------------------------------------------- loader
def test_pairs_are_loaded_like_images_by_pair_id(folder):
    text = csv_text(",") + "a.png,second caption\n"
    pairs = Pairs.scan(write(folder, "p.csv", text))
    loader = training_loader(pairs, pairs.usable, RECIPES["simclr"], 16, 4, seed=0, views=1)
    batch = next(loader)
    assert batch.crops.shape == (1, 4, 16, 16, 3)
    for row, id in enumerate(batch.index.tolist()):
        assert batch.crops[0, row, 0, 0].tolist() == list(COLOURS[pairs.relative(id)])
    again = next(training_loader(pairs, pairs.usable, RECIPES["simclr"], 16, 4, seed=0, views=1, workers=2))
    assert batch.index.equal(again.index)
    assert batch.crops.equal(again.crops)
