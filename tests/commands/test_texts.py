"""`embed`, `search` and `report` of a run on pairs of texts, and texts of a run on images with texts."""

import csv
import json
import shutil
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, sogclr, sogclr_here
from PIL import Image

import sogclr as package
from sogclr.commands import embed as embed_module
from sogclr.commands.embed import embed
from sogclr.commands.embedding_file import SUFFIXES, EmbeddingFile
from sogclr.commands.report import report
from sogclr.commands.search import search
from sogclr.data.texts import Texts, holds_lines_of_text
from sogclr.errors import BadInput
from sogclr.models.two_tower import load_two_tower
from sogclr.run_folder import RunFolder

WORDS = [f"{a}{b}" for a in ("amber", "birch", "cedar", "delta", "ember", "frost") for b in ("lake", "moon", "road")]
TEXTS = {"text_width": 64, "text_layers": 1, "vocab_size": 300, "temperature": 0.1, "batch_size": 9, "lr": 3e-3}
ON_CPU = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["definition", "word", "number"])
        writer.writerows([f"what they call {word} here", f"{word}, a place", k] for k, word in enumerate(WORDS))
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    options = TEXTS | {"columns": "definition,word", "epochs": 40, "seed": 1, "precision": "fp32", "threads": 1}
    return package.train(table, tmp_path_factory.mktemp("runs") / "run", quiet=True, device="cpu", **options).path


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A table of images with captions, and a run on it."""
    folder = tmp_path_factory.mktemp("captioned")
    data = write_pairs(folder / "digits", per_digit=10)
    options = PAIRS | {"epochs": 15, "batch_size": 32, "lr": 3e-3}
    return data, package.train(data, folder / "run", quiet=True, **options).path


def test_a_run_on_texts_has_no_encoder_of_images(run):
    with pytest.raises(BadInput, match=r"was trained on texts and knows no images; give a run on images"):
        package.load_encoder(run)


# --------------------------------------------------------------------------------------------------------------- embed
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("name", "column"), [("definition", 0), ("word", 1)])
def test_a_file_holds_the_texts_and_what_their_tower_gives(suffix, name, column, run, table, tmp_path):
    out = tmp_path / f"e{suffix}"
    seen = []
    result = embed(run, table, out, as_column=name, progress=lambda *x: seen.append(x), batch_size=5, **ON_CPU)
    file, expected = EmbeddingFile.open(out), Texts.read(table, name)
    assert str(result) == f"{out}: 18 embeddings of 128 numbers"
    assert (file.kind, file.names) == ("texts", expected.relatives(np.arange(18)))
    assert (file.about["kind"], file.about["column"], file.about["model"]) == ("texts", name, "texts")
    towers = load_two_tower(run)
    np.testing.assert_allclose(file.rows(), towers.encode_texts(file.names, column), atol=1e-5)
    assert np.abs(file.rows() - towers.encode_texts(file.names, 1 - column).numpy()).max() > 0.1
    assert seen[-1] == (18, 18)


def test_texts_stand_a_line_or_in_any_column(run, table, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("  a   road \n\n# the second\nnaïve café\na road\n", encoding="utf-8")
    embed(run, lines, tmp_path / "lines.npz", **ON_CPU)
    with np.load(tmp_path / "lines.npz") as file:
        assert file["text"].tolist() == ["a road", "# the second", "naïve café", "a road"]
        assert file["id"].tolist() == [0, 2, 3, 4]  # lines, from 0
        assert np.array_equal(file["embedding"][0], file["embedding"][3])
    assert (tmp_path / "lines.npz.bad_files.txt").read_text() == "lines.txt:2\thas an empty text\n"
    rows = {"about": ["one", None, "three"], "word": ["x", "y", "z"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"about": "one"}\nno\n{"about": "three"}\n')
    for place in ("t.parquet", "t.jsonl"):
        result = embed(run, tmp_path / place, tmp_path / "e.npz", column="about", **ON_CPU)
        assert "1 rows hold no text, see" in str(result)
        with np.load(tmp_path / "e.npz") as file:
            assert (file["text"].tolist(), file["id"].tolist()) == (["one", "three"], [0, 2])
    embed(run, tmp_path / "t.parquet", tmp_path / "own.npz", **ON_CPU)  # the run's second column
    assert EmbeddingFile.open(tmp_path / "own.npz").names == ["x", "y", "z"]


def test_a_txt_file_lists_images_or_holds_texts(tmp_path):
    place = tmp_path / "x.txt"
    (tmp_path / "odd.image").touch()
    for content, texts in [
        ("a.png\nb.JPG\nthe third\n", False),
        ("# images\nodd.image\n", False),
        ("a red fruit\nsee b.png\nc\n", True),
        ("x" * 5000 + "\n\0\n", True),
        ("", False),
    ]:
        place.write_text(content)
        assert holds_lines_of_text(place) is texts, content[:20]
    assert not holds_lines_of_text(tmp_path)


def test_texts_go_on_after_an_interruption(run, table, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "PART_ROWS", 4)
    whole, out = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    embed(run, table, whole, **ON_CPU)

    class Stop(Exception):
        pass

    def stop(done, total):
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        embed(run, table, out, progress=stop, **ON_CPU)
    seen = []
    embed(run, table, out, progress=lambda *x: seen.append(x), **ON_CPU)
    assert seen[0] == (12, 18)  # the third part
    assert out.read_bytes() == whole.read_bytes()


def test_captions_of_a_run_on_images_are_embedded_by_its_text_tower(captioned, tmp_path):
    data, run = captioned
    for k, options in enumerate(({"column": "caption"}, {"as_column": "caption"})):
        assert embed(run, data, tmp_path / f"{k}.npz", **options, **ON_CPU).kind == "texts"
    first, second = (EmbeddingFile.open(tmp_path / f"{k}.npz") for k in (0, 1))
    assert first.names == second.names
    assert np.array_equal(first.rows(), second.rows())
    np.testing.assert_allclose(first.rows(), load_two_tower(run).encode_texts(first.names), atol=1e-5)
    assert embed(run, data, tmp_path / "images.npz", **ON_CPU).kind == "images"  # as ever


# -------------------------------------------------------------------------------------------------------------- search
def test_texts_find_their_texts_and_the_other_way_round(run, table, tmp_path):
    definitions, words = (Texts.read(table, name).relatives(np.arange(18)) for name in ("definition", "word"))
    embed(run, table, tmp_path / "words.parquet", **ON_CPU)
    embed(run, table, tmp_path / "definitions.npz", as_column="definition", **ON_CPU)
    for source, options, queries, answers in [
        (tmp_path / "words.parquet", {}, definitions, words),
        (table, {}, definitions, words),
        (tmp_path / "definitions.npz", {}, words, definitions),
        (table, {"as_column": "word"}, words, definitions),
    ]:
        found = [search(run, query, source=source, top=2, **options, **ON_CPU).hits[0].text for query in queries[:9]]
        assert sum(a == b for a, b in zip(found, answers, strict=False)) >= 7, (source, options)


def test_the_score_is_the_cosine_of_the_two_towers(run, table):
    towers = load_two_tower(run)
    for column, name in enumerate(("definition", "word")):
        best = search(run, "the  ambermoon", source=table, as_column=name, top=1, **ON_CPU).hits[0]
        query, answer = towers.encode_texts(["the ambermoon"], column), towers.encode_texts([best.text], 1 - column)
        assert best.score == pytest.approx(float((query * answer).sum()), abs=1e-5)


def test_a_text_that_comes_again_is_found_once(run, tmp_path):
    (tmp_path / "t.txt").write_text("a road\na moon\na road\n")
    embed(run, tmp_path / "t.txt", tmp_path / "t.npz", **ON_CPU)
    for source in (tmp_path / "t.txt", tmp_path / "t.npz"):
        hits = search(run, "a road", source=source, **ON_CPU).hits
        assert sorted(hit.text for hit in hits) == ["a moon", "a road"]


def test_an_image_finds_its_captions(captioned, tmp_path):
    data, run = captioned
    image = next((data.parent / "seven").iterdir())
    hits = search(run, source=data, column="caption", image=image, top=2, **ON_CPU).hits
    assert sum(hit.text.endswith("seven") for hit in hits) >= 1
    assert all(hit.picture is None and hit.path == "" for hit in hits)
    near = search(run, "the digit four", source=data, column="caption", top=1, **ON_CPU).hits  # by the one text tower
    assert (near[0].text, near[0].score) == ("the digit four", pytest.approx(1, abs=1e-5))


def test_the_page_shows_texts_and_escapes_them(run, tmp_path):
    (tmp_path / "t.txt").write_text("a <b>road</b>\na moon\n")
    result = search(run, "<i>road", source=tmp_path / "t.txt", out=tmp_path / "page.html", **ON_CPU)
    html = result.page.read_text()
    assert "a &lt;b&gt;road&lt;/b&gt;" in html
    assert "a moon" in html
    assert "<i>" not in html
    assert "<img" not in html
    assert "a <b>road</b>" in str(result)


@pytest.mark.integration
@pytest.mark.slow
def test_the_commands_as_a_user_types_them(run, table, tmp_path):
    said = sogclr(
        "embed", run, table, "--as", "word", "--out", tmp_path / "w.parquet", "--device", "cpu", check=0
    ).stdout
    assert said == f"{tmp_path / 'w.parquet'}: 18 embeddings of 128 numbers\n"
    query = "what they call cedarmoon here"
    said = sogclr_here(
        "search", run, query, "--in", tmp_path / "w.parquet", "--top", 3, "--device", "cpu", check=0
    ).stdout
    lines = said.splitlines()
    assert len(lines) == 4
    score, text = lines[0].split("  ")
    assert -1 <= float(score) <= 1
    assert text.endswith(", a place")
    options = [word for key, value in TEXTS.items() for word in (f"--{key.replace('_', '-')}", value)]
    out = tmp_path / "run"
    done = sogclr_here(
        "train", table, "--columns", "definition,word", "--out", out, "--max-steps", 2, *options, check=0
    )
    assert done.stdout.splitlines()[0] == f"encoders  {out / 'two_tower.safetensors'}"
    assert "pairs/s" in done.stderr
    assert "images/s" not in done.stderr


def test_what_does_not_fit_is_one_sentence(run, captioned, table, digits_run, tmp_path):
    data, both = captioned
    (tmp_path / "t.txt").write_text("a road\n")
    (tmp_path / "empty.txt").write_text("\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    embed(run, table, tmp_path / "w.npz", **ON_CPU)
    out = tmp_path / "e.npz"
    for make, message in [
        (lambda: embed(run, data.parent, out), r"knows no images, and .* holds images; give texts: a \.txt file"),
        (lambda: embed(run, tmp_path / "nowhere", out), "knows no images, and there is no .*nowhere; give texts"),
        (
            lambda: embed(digits_run, tmp_path / "t.txt", out),
            "was trained on images alone and knows no texts, and .* holds texts; give images",
        ),
        (
            lambda: embed(run, table, out, column="nope"),
            "no column 'nope'; its columns are definition, word, number; name",
        ),
        (lambda: embed(run, tmp_path / "t.txt", out, column="word"), r"--column is for tables and .*t\.txt is none"),
        (lambda: embed(run, table, out, as_column="nope"), "--as nope: .*; its columns are definition and word"),
        (lambda: embed(digits_run, data.parent, out, as_column="x"), "--as x: .* it has no columns; leave --as out"),
        (
            lambda: embed(both, data.parent, out, as_column="caption"),
            "that column of .* holds texts, and images are to be",
        ),
        (lambda: embed(run, tmp_path / "missing.csv", out), r"there is no .*missing\.csv"),
        (lambda: search(run, source=table, image=tmp_path / "x.png"), "knows no images; give a text"),
        (lambda: search(digits_run, "x", source=table), "images alone and knows no texts; give an image with --image"),
        (lambda: search(both, "x", source=tmp_path / "w.npz"), "holds embeddings of texts by .*, not by this run"),
        (lambda: search(digits_run, source=tmp_path / "w.npz", image=tmp_path / "x.png"), "not by this run"),
    ]:
        with pytest.raises(BadInput, match=message):
            make()
    assert not out.exists()


# -------------------------------------------------------------------------------------------------------------- report
def test_the_report_shows_texts_with_their_nearest(run, tmp_path):
    html = report(run, out=tmp_path / "r.html", device="cpu").read_text()
    for words in (
        "From text to text",
        "what they call ambermoon here",
        "Largest log u",
        "log u of 18 texts",
        "Objective",
    ):
        assert words in html
    assert 'class="badge">finished' in html
    for words in ('id="embedding-map"', "<img", "have not been visited", "images/s", "No images are shown"):
        assert words not in html
    assert "there are no pictures and no map" in html
    assert html.count('<li class="same">') >= 9  # of twelve


def test_only_texts_of_the_first_column_count_for_log_u(run, tmp_path):
    log_u, pairs = RunFolder(run).log_u(), RunFolder(run).pairs()
    assert len(log_u) == 36
    assert np.flatnonzero(np.isfinite(log_u)).tolist() == np.unique(pairs.first_ids).tolist()
    html = report(run, out=tmp_path / "r.html", device="cpu").read_text()
    ends = html[html.index("Largest log u") :]
    largest = pairs.texts_of(np.array([int(np.nanargmax(np.where(np.isfinite(log_u), log_u, -1e9)))]))[0]
    assert ends.index(largest) < ends.index("Smallest log u")
    assert ", a place" not in ends[: ends.index("</section>")]


def test_an_unfinished_run_on_texts_has_a_page(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "two_tower.safetensors").unlink()
    html = report(copy, device="cpu").read_text()
    assert "No neighbours are shown: " in html
    assert "unfinished: step" in html
    assert "Largest log u" in html


def test_a_run_on_images_with_images_is_shown_and_searched(tmp_path):
    table = write_pairs(tmp_path / "digits", per_digit=3)
    images = sorted(p.relative_to(table.parent).as_posix() for p in table.parent.rglob("*.png"))
    both = tmp_path / "digits" / "both.csv"
    both.write_text("query,answer\n" + "\n".join(f"{a},{b}" for a, b in pairwise(images)))
    options = SMALL | {"columns": "query,answer", "max_steps": 4, "labels": "none"}
    run = package.train(both, tmp_path / "run", quiet=True, **options).path
    html = report(run, device="cpu", workers=0).read_text()
    assert "Nearest neighbours" in html
    assert 'id="map-data"' in html
    assert "From text to image" not in html
    assert "shown: " not in html  # no note that something is not
    embed(run, both, tmp_path / "answers.npz", **ON_CPU)
    assert json.loads(np.load(tmp_path / "answers.npz")["about"].item())["column"] == "answer"
    query, towers = table.parent / images[0], load_two_tower(run)
    pixels = torch.from_numpy(np.array(Image.open(query).convert("RGB")))[None]
    for name, k in (("query", 0), ("answer", 1)):
        best = search(run, image=query, source=both, as_column=name, top=1, **ON_CPU).hits[0]
        other = torch.from_numpy(np.array(Image.open(table.parent / best.path).convert("RGB")))[None]
        cosine = (towers.towers[k].encode(pixels) * towers.towers[1 - k].encode(other)).sum()
        assert best.score == pytest.approx(float(cosine), abs=1e-4)
