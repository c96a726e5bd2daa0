"""`embed`, `eval` and `search` of a run on pairs, as real commands."""

import json
import re
import time
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import sogclr_here
from PIL import Image
from torch.nn import functional

import sogclr as package
from sogclr.cli import main
from sogclr.commands import search_index
from sogclr.commands.collection import Collection, Hit, open_collection
from sogclr.commands.evaluate_pairs import evaluate_pairs
from sogclr.commands.report import report
from sogclr.commands.search import gallery, search
from sogclr.commands.search_index import ExactIndex
from sogclr.errors import BadInput
from sogclr.models.run_encoders import RunEncoders
from sogclr.models.two_tower import load_two_tower


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "digits", per_digit=20)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return package.train(data, out, quiet=True, **(PAIRS | {"epochs": 15, "batch_size": 32, "lr": 3e-3})).path


@pytest.fixture(scope="module", params=["parquet", "npz", "safetensors"])
def embeddings(request, run, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("embeddings") / f"e.{request.param}"
    package.embed(run, data, path, device="cpu", workers=0)
    return path


def test_texts_find_their_images_in_a_file_of_embeddings(run, embeddings):
    result = search(run, "the digit seven", source=embeddings, top=10, device="cpu", workers=0)
    hits, page = result.hits, result.page
    assert len(hits) == 10
    assert sum(hit.path.startswith("seven/") for hit in hits) >= 7
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert page == run / "search.html"
    html = page.read_text()
    assert "the digit seven" in html
    assert html.count("data:image/webp") == 10
    assert "://" not in html


def test_the_page_shows_the_query_and_links_to_the_files(run, data, embeddings, tmp_path):
    """With names whole, and as a URL wants them."""
    asked = sorted((data.parent / "two").iterdir())[0]
    found = search(run, image=asked, source=embeddings, top=4, device="cpu", workers=0, out=tmp_path / "s.html")
    html = found.page.read_text()
    assert html.count("data:image/webp") == 1 + 4
    links = re.findall(r'href="(.*?)"', html)
    assert len(links) == 1 + 2 * 4
    for link in links:
        assert (tmp_path / unquote(link)).is_file()
    for hit in found.hits:
        assert f">{hit.path}</a>" in html
    odd = tmp_path / "a b#1%.png"
    odd.write_bytes(asked.read_bytes())
    assert 'href="a%20b%231%25.png"' in gallery("q", [Hit("a b#1%.png", 0.5, odd)], tmp_path)


def test_pictures_are_found_beside_embeddings_of_another_program(run, embeddings, data, tmp_path):
    """Without a word on what they are of; and where there are none the page says so."""
    collection = open_collection(embeddings, RunEncoders.load(run, "cpu"))
    for folder, pictures in ((data.parent, 3), (tmp_path, 0)):
        np.savez(folder / "theirs.npz", path=np.array(collection.names), embedding=collection.index.rows.numpy())
        page = search(run, "the digit two", source=folder / "theirs.npz", top=3, device="cpu", workers=0).page
        assert page.read_text().count("data:image/webp") == pictures
    assert page.read_text().count("no longer exists") == 3


def test_embeddings_of_other_weights_are_refused(run, data, embeddings, tmp_path):
    other = package.train(data, tmp_path / "other", quiet=True, **(PAIRS | {"max_steps": 2, "seed": 3})).path
    with pytest.raises(BadInput, match="not by this run"):
        search(other, "the digit two", source=embeddings, device="cpu", workers=0)


@pytest.mark.integration
@pytest.mark.slow
def test_the_command_prints_paths_and_scores(run, data, tmp_path):
    said = sogclr_here(
        "search",
        run,
        "a handwritten zero",
        "--in",
        data.parent,
        "--top",
        5,
        "--out",
        tmp_path / "page.html",
        "--workers",
        0,
        "--device",
        "cpu",
        check=0,
    ).stdout.splitlines()
    assert len(said) == 6
    score, path = said[0].split()
    assert -1 <= float(score) <= 1
    assert path.startswith("zero/")
    assert (tmp_path / "page.html").is_file()


def test_an_image_finds_itself_and_its_like(run, data):
    image = next((data.parent / "four").iterdir())
    hits = search(run, source=data, image=image, top=5, device="cpu", workers=0).hits
    assert hits[0].path == f"four/{image.name}"
    assert hits[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["pairs", "images", "encoder file"])
def test_every_jpeg_of_a_folder_finds_itself(kind, run, digits_run, tmp_path):
    """JPEGs are decoded at a reduced size where the crop is much smaller, those of the collection and the query alike."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(12):  # rings, whose look depends on how they are reduced
        y, x = np.mgrid[: 67 + 2 * k, : 71 + 3 * k]
        square = (x - x.mean()) ** 2 + (y - y.mean()) ** 2
        Image.fromarray((127 + 127 * np.sin(square / (90 + 20 * k))).astype(np.uint8)).save(folder / f"{k}.jpg")
    model = {"pairs": run, "images": digits_run, "encoder file": digits_run / "encoder.safetensors"}[kind]
    package.embed(model, folder, tmp_path / "e.npz", device="cpu", workers=0)
    for source in (tmp_path / "e.npz", folder):
        for image in folder.iterdir():
            page = tmp_path / "page.html"
            hits = search(model, source=source, image=image, top=2, out=page, device="cpu", workers=0).hits
            assert hits[0].path == image.name
            assert hits[0].score >= 0.9999
            assert hits[1].score < hits[0].score
        if kind != "images":
            break  # once is enough


def test_a_query_image_that_cannot_be_read_is_refused(digits_run, digits_data, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    for name, message in [
        ("broken.jpg", "broken.jpg .*; give another"),
        ("gone.png", "gone.png no longer exists; give"),
    ]:
        with pytest.raises(BadInput, match=message):
            search(digits_run, source=digits_data, image=tmp_path / name, device="cpu", workers=0)
    with pytest.raises(
        BadInput, match=r"there is no folder .*gone for page.html; make it"
    ):  # before anything is embedded
        search(digits_run, source=tmp_path / "nothing", text="x", out=tmp_path / "gone" / "page.html")
    with pytest.raises(BadInput, match=r"is no run's folder, .*; give --out"):
        search(digits_run / "encoder.safetensors", source=digits_data, image=tmp_path / "gone.png")


def test_a_hundred_thousand_images_answer_in_under_a_second():
    rows = torch.randn(100_000, 128, generator=torch.Generator().manual_seed(0))
    collection = Collection([f"{i}.png" for i in range(100_000)], ExactIndex(rows), str)
    query, times = rows[77] / rows[77].norm(), []
    for _ in range(5):
        begun = time.perf_counter()
        hits = collection.nearest(query, 20)
        times.append(time.perf_counter() - begun)
    assert hits[0].path == "77.png"
    assert sorted(times)[2] < 1


def test_rows_are_compared_chunk_by_chunk(monkeypatch):
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    query = functional.normalize(rows[31] + rows[2], dim=0)
    whole = ExactIndex(rows).nearest(query, 60)
    monkeypatch.setattr(search_index, "CHUNK", 7)
    scores, places = ExactIndex(rows).nearest(query, 60)
    assert places == whole[1]
    assert sorted(places) == list(range(50))
    assert scores == pytest.approx(whole[0])
    assert scores == pytest.approx(sorted((functional.normalize(rows, dim=1) @ query).tolist(), reverse=True))


def test_evaluation_as_json_has_the_documented_keys(run, data, capsys):
    assert main(["eval", str(run), str(data), "--json", "--baselines", "--workers", "0", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    for way in ("image_to_text", "text_to_image"):
        assert 0 <= found[f"{way}_r1"] <= found[f"{way}_r5"] <= found[f"{way}_r10"] <= 1
        assert found[f"{way}_r1"] > found["baselines"]["chance"][f"{way}_r1"]
    assert found["zero_shot_top1"] > max(found["baselines"]["untrained"]["zero_shot_top1"], 0.3)
    assert json.loads((run / "eval.json").read_text()) == found
    assert main(["eval", str(run), str(data), "--workers", "0", "--device", "cpu", "--templates", "the digit {}"]) == 0
    assert "zero-shot" in capsys.readouterr().out


def test_retrieval_by_hand(run, data):
    """The command's R@1 from the embeddings of `embed` and of the texts, by slow comparison."""
    towers = load_two_tower(run)
    collection = open_collection(data, RunEncoders.load(run, "cpu"))
    captions = sorted(
        {f"the digit {p.split('/')[0]}" for p in collection.names}
        | {f"a handwritten {p.split('/')[0]}" for p in collection.names}
    )
    nearest = (collection.index.rows @ towers.encode_texts(captions).T).argmax(dim=1).tolist()
    right = [captions[k].split()[-1] == p.split("/")[0] for k, p in zip(nearest, collection.names, strict=True)]
    scores = package.evaluate(run, data, device="cpu", workers=0)
    assert scores["image_to_text_r1"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "data"), "give one query: a text, or an image with --image FILE"),
        (("x", "nowhere"), "nowhere"),
        (("x", "other"), "holds embeddings of 3 numbers"),
        (("x", "broken"), "is no readable file of embeddings"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments, message, run, data, tmp_path):
    np.savez(tmp_path / "other.npz", path=np.array(["a"]), embedding=np.ones((1, 3)))
    (tmp_path / "broken.npz").write_bytes(b"no")
    text, name = arguments
    source = {
        "data": data,
        "nowhere": tmp_path / "nowhere",
        "other": tmp_path / "other.npz",
        "broken": tmp_path / "broken.npz",
    }
    with pytest.raises(BadInput, match=message):
        search(run, text, source=source[name], device="cpu", workers=0)


def test_names_cannot_break_the_page(tmp_path):
    page = gallery("<script>alert(1)</script>", [Hit('"><script>.png', 0.5, tmp_path / "no.png")], tmp_path)
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 3  # the title, the heading, below the picture


def test_a_run_on_images_has_no_texts(data, tmp_path):
    out = tmp_path / "images"
    package.train(
        data.parent, out, quiet=True, model="resnet10_mini", image_size=16, batch_size=8, max_steps=1, workers=0
    )
    with pytest.raises(BadInput, match="was trained on images alone and knows no texts"):
        search(out, "x", source=data, device="cpu")
    with pytest.raises(BadInput, match="is no run on pairs"):
        package.evaluate(out, data, device="cpu", workers=0)
    assert callable(evaluate_pairs)


def test_the_report_shows_images_by_caption(run):
    html = report(run, images=60).read_text()
    assert 'id="texts"' in html
    assert "the digit" in html
    assert "Image to text, R@1" in html
    assert "No captions are shown" not in html
