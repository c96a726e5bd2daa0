"""The demo on texts as a user runs it, on a small part of WordNet."""

import csv
import json

import pytest
from digits import sogclr

from sogclr.commands.demo_texts import every_so_many
from sogclr.data.wordnet import find_wordnet
from sogclr.errors import BadInput

try:
    find_wordnet()
    INSTALLED = True
except BadInput:
    INSTALLED = False


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="WordNet is not installed")
def test_the_quick_demo_trains_three_times_and_finds_words(tmp_path):
    result = sogclr("demo", "--texts", "--quick", "--out", tmp_path / "runs", check=0)
    assert "CLIP, batch 1,024" in result.stdout
    assert "SogCLR, batch 32" in result.stdout
    for name in ("clip", "clip-large", "sogclr"):
        scores = json.loads((tmp_path / "runs" / name / "eval.json").read_text())
        assert 0 < scores["query_to_document_r10"] < 1
    assert (tmp_path / "runs" / "sogclr" / "words.parquet").is_file()
    assert (tmp_path / "runs" / "sogclr" / "report.html").is_file()


def test_a_part_of_a_table_is_written_as_csv(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "t.csv"
    rows = [[f'the "{k}", so to say', f"word {k}"] for k in range(10)]
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["definition", "word"], *rows])
    with open(every_so_many(table, 3), newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["definition", "word"], *rows[::3]]
    assert every_so_many(table, 1) == table


def test_two_demos_at_once_and_a_missing_wordnet_are_refused(tmp_path):
    assert "--pairs and --texts are two demos" in sogclr("demo", "--pairs", "--texts", check=2).stderr
