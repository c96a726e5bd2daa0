"""The demo on texts as a user runs it, on a small part of WordNet."""

import csv
import json

import pytest
from digits import sogclr, sogclr_here

from sogclr.commands.demo import wordnet_is_missing
from sogclr.commands.demo_texts import JUDGED, OURS, every_so_many, over_seeds, verdicts
from sogclr.data.wordnet import find_wordnet
from sogclr.errors import BadInput
from sogclr.progress import Progress

try:
    find_wordnet()
    INSTALLED = True
except BadInput:
    INSTALLED = False


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="WordNet is not installed")
def test_the_quick_demo_trains_three_times_and_finds_words(tmp_path):
    result = sogclr("demo", "--quick", "--out", tmp_path / "runs", check=0)
    assert "CLIP, batch 512" in result.stdout
    assert "SogCLR, batch 32" in result.stdout
    for name in ("clip-32-0", "clip-512-0", "sogclr-32-0"):
        scores = json.loads((tmp_path / "runs" / name / "eval.json").read_text())
        assert 0 < scores["query_to_document_r10"] < 1
    assert (tmp_path / "runs" / "sogclr-32-0" / "words.parquet").is_file()
    assert (tmp_path / "runs" / "sogclr-32-0" / "report.html").is_file()


def test_a_part_of_a_table_is_written_as_csv(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "t.csv"
    rows = [[f'the "{k}", so to say', f"word {k}"] for k in range(10)]
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["definition", "word"], *rows])
    with open(every_so_many(table, 3), newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["definition", "word"], *rows[::3]]
    assert every_so_many(table, 1) == table


def test_a_difference_is_claimed_only_where_it_is_more_than_the_seeds():
    def rows(ours, at_the_same, at_a_large):
        names = (OURS, "CLIP, batch 32", "CLIP, batch 512")
        values = zip(names, (ours, at_the_same, at_a_large), strict=True)
        return {name: over_seeds([{JUDGED: v} for v in row]) for name, row in values}

    same, large = verdicts(rows([0.12, 0.121, 0.122], [0.08, 0.081, 0.082], [0.11, 0.125, 0.125]))
    assert (
        same
        == "SogCLR, batch 32 is 4.0 points of recall at 1 ahead of CLIP, batch 32, 40 standard deviations of the seeds."
    )
    assert "0.1 points of recall at 1 ahead of CLIP, batch 512: less than 3 standard deviations" in large
    behind, _ = verdicts(rows([0.1, 0.1, 0.1], [0.12, 0.121, 0.119], [0.1, 0.1, 0.1]))
    assert "2.0 points of recall at 1 behind CLIP, batch 32, 20 standard deviations" in behind


def test_without_wordnet_the_demo_says_so_and_takes_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    assert wordnet_is_missing(Progress())
    said = capsys.readouterr().err
    assert "has no file data.noun" in said
    assert "Until then: digits" in said


def test_two_demos_at_once_are_refused():
    assert "three demos; give one" in sogclr_here("demo", "--pairs", "--texts", check=2).stderr
