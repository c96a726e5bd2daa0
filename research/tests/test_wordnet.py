"""The page on WordNet: which rate is chosen, what a difference and its intervals are, and what is written."""

import csv
import math
import sys

import pytest

from benchmarks import pages
from research import measure, paired, wordnet
from research.many_runs import Job
from sogclr.data.wordnet import find_wordnet
from sogclr.errors import BadInput


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Give pages and runs an empty folder each, and return where."""
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measure, "CACHE", tmp_path / "cache")
    return tmp_path


def result(recall, hits="0" * 10):
    """What a run leaves, with this recall both ways."""
    ways = ("definition_to_word", "word_to_definition")
    scores = {f"test_{way}_{metric}": recall for way in ways for metric in ("r1", "mrr")}
    return scores | {"train_r1": 0.5, "objective": -0.4, "test_hits": hits, "seconds": 1.0}


def fill(cache, name, batch, recall, seeds=(0, 1, 2), hits="0" * 10, best=2):
    """Put runs of all rates for the choice, and those that are shown at the best."""
    rates = wordnet.grid(batch)
    for k, lr in enumerate(rates):
        job = Job(wordnet.METHODS[name], lr, wordnet.RATE_SEED)
        cache.put(wordnet.config_of(job, batch, wordnet.RATE_EPOCHS), result(0.9 - abs(k - best) / 10))
    for seed in seeds:
        for epochs in wordnet.EPOCHS:
            job = Job(wordnet.METHODS[name], rates[best], seed)
            cache.put(wordnet.config_of(job, batch, epochs), result(recall + seed / 1000, hits))


def test_a_rate_is_chosen_when_all_four_are_there():
    cache = measure.Cache("wordnet", quick=True)
    cache.put(wordnet.config_of(Job({"rule": "clip"}, wordnet.grid(32)[0], wordnet.RATE_SEED), 32, 4), result(0.1))
    assert wordnet.rate_of(cache, "CLIP", 32) is None
    assert wordnet.found(cache, "CLIP", 32, 4) == {}
    fill(cache, wordnet.OURS, 32, 0.3, best=3)
    assert wordnet.rate_of(cache, "SogCLR, gamma 0.5", 32) == wordnet.grid(32)[3]


def test_a_difference_has_intervals_over_seeds_and_over_pairs():
    ours = {s: {"test_r1": r, "test_hits": "2211000000"} for s, r in ((0, 0.31), (1, 0.32), (2, 0.33))}
    theirs = {s: {"test_r1": 0.3, "test_hits": "2100000000"} for s in (0, 1, 5)}
    seeds, mean, of_seeds, of_pairs = paired.recall_difference(ours, theirs)
    assert (seeds, mean) == (2, pytest.approx(1.5))
    assert of_seeds == pytest.approx(12.706 * math.sqrt(0.5) / math.sqrt(2))
    # by pair 0, 50, 50, 50, 0 ... points: mean 15, sum of squares 7500 - 10 * 225
    assert of_pairs == pytest.approx(1.96 * math.sqrt((7500 - 2250) / 9) / math.sqrt(10))
    assert math.isnan(paired.recall_difference(ours, {2: theirs[5]})[2])


@pytest.mark.parametrize(
    ("mean", "half", "least", "said"),
    [
        (3.0, 0.9, 2.0, "yes"),
        (2.5, 0.9, 2.0, "as expected, within the interval"),
        (1.5, 0.9, 2.0, "less, within the interval"),
        (0.5, 0.9, 2.0, "no"),
        (9.0, math.nan, 2.0, "as expected, within the interval"),
    ],
)
def test_what_was_expected_is_judged_by_the_interval(mean, half, least, said):
    assert paired.verdict(mean, half, least) == said


def test_a_report_is_page_figure_and_csv(results):
    cache = measure.Cache("wordnet")
    fill(cache, wordnet.OURS, 32, 0.301)
    fill(cache, wordnet.OURS, 1024, 0.3)
    fill(cache, "CLIP", 32, 0.25)
    fill(cache, "CLIP", 1024, 0.3)
    fill(cache, "SogCLR, gamma 1", 32, 0.28, seeds=(0,))
    wordnet.report(measure.Cache("wordnet"))
    assert {path.name for path in (results / "results").iterdir()} == {
        f"wordnet{end}" for end in (".md", ".csv", ".png")
    }
    page = (results / "results" / "wordnet.md").read_text(encoding="utf-8")
    assert "| 12 | SogCLR, gamma 0.9, B 32 − CLIP, B 1024 | +0.10 | 0.00 | 0.00 | 3 | ≥ -0.3 | yes |" in page
    assert "| 12 | SogCLR, gamma 0.9, B 32 − CLIP, B 32 | +5.10 | 0.00 | 0.00 | 3 | ≥ 2 | yes |" in page
    assert "| 12 | SogCLR, gamma 0.9, B 32 − SogCLR, gamma 1, B 32 | +2.10 |  | 0.00 | 1 |  |  |" in page
    assert "| 0.9 | 30 | 30.2 ± 0.1 | +2.10 |  | 0.00 | 50.0 ± 0.0 | -0.4000 ± 0.0000 | 3 |" in page
    with (results / "results" / "wordnet.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "test_r1" and row["method"] == "CLIP"]
    assert [(row["batch"], row["epochs"], row["mean"]) for row in rows[:2]] == [
        ("32", "4", "0.251"),
        ("32", "12", "0.251"),
    ]


def _has_wordnet():
    try:
        return bool(find_wordnet())
    except BadInput:
        return False


@pytest.mark.skipif(not _has_wordnet(), reason="needs WordNet's database")
def test_a_quick_run_writes_nothing(results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wordnet", "--quick"])
    wordnet.main()
    assert capsys.readouterr().out.count("B 32, 1 epochs") == 2
    assert list(results.iterdir()) == []
