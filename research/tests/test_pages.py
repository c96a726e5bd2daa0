"""What the commands write: the quick runs nothing, the reports a page and, beside it, a CSV that says the same."""

import csv
import importlib
import re
import sys

import pytest
import torch

from benchmarks import pages
from research import adapt, measure, problems, tried, with_a_resnet
from research.points import COLUMNS, Point, write_points
from research.rules import build_rule


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Give pages and runs an empty folder each, and return where."""
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measure, "CACHE", tmp_path / "cache")
    return tmp_path


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_point_is_a_row(results):
    points = [
        Point("digits", "SogCLR", 16, 30, 8e-3, "F2", [-0.5, -0.4, -0.3], {"rule": "sogclr", "end": 0.9}),
        Point("digits", "SimCLR", 16, 30, None, "F2", [-0.25]),
    ]
    many, one = rows(write_points("page.csv", points))
    assert tuple(many) == COLUMNS
    assert (many["settings"], many["lr"], many["n"]) == ("rule=sogclr end=0.9", "0.008", "3")
    assert (float(many["mean"]), float(many["sd"])) == pytest.approx((-0.4, 0.1))
    assert (one["settings"], one["lr"], one["mean"], one["sd"], one["n"]) == ("", "", "-0.25", "", "1")


def test_all_that_was_tried_can_be_built():
    assert len({trial.what for trial in tried.trials()}) > 80
    for trial in tried.trials():
        build_rule(trial.rule, 1, 40, 8, 0.1)
    assert {runs["epochs"] for trial in tried.trials() for runs in trial.runs} == set(tried.LENGTHS)


@pytest.mark.parametrize("name", ["bias_floor", "strength", "tried"])
def test_a_quick_run_writes_nothing(name, results, monkeypatch, capsys):
    module = importlib.import_module(f"research.{name}")
    images = torch.rand(140, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    toy = problems.build("digits", images, torch.arange(140).remainder(3).numpy(), views=3, strength=1.0)
    monkeypatch.setattr(module, "digits", lambda **options: toy)
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    module.main()
    assert "F2" in capsys.readouterr().out
    assert list(results.iterdir()) == []


def test_a_report_is_page_figure_and_csv(results):
    name = "bias_floor"
    module, cache = importlib.import_module(f"research.{name}"), measure.Cache(name)
    scores = {"F1": -0.6, "F2": -0.5, "gradient_F1": 0.02, "gradient_F2": 0.03, "seconds": 1.0}
    places = [(method, b, e, 1.0) for method in module.methods(8) for b in module.LR for e in module.EPOCHS]
    places += [("SogCLR cosine, whole", 32, 30, strength) for strength in module.STRENGTHS]
    for place in places:
        for seed in (0, 1):
            shifted = {k: v * (1 + seed / 10) for k, v in scores.items()}
            cache.put(module.key(*place[:3], seed, place[3]), shifted)
    module.report(measure.Cache(name), (0, 1))
    assert {path.name for path in (results / "results").iterdir()} == {
        f"{name}{end}" for end in (".md", ".csv", ".png")
    }
    page = (results / "results" / "bias_floor.md").read_text(encoding="utf-8")
    assert re.search(r"^`python -m research.bias_floor`$", page, flags=re.M)
    found = [row for row in rows(results / "results" / "bias_floor.csv") if row["metric"] == "gradient_F1"]
    assert len(found) == len(places) - 1  # strength 1 is in both tables
    assert {row["mean"] for row in found} == {"0.021"}
    assert "| SimCLR | 8 | 0.0210 | 0.0210 | 0.0210 |" in page


def test_a_tuned_encoder_is_compared_with_its_start(results):
    """Seed by seed, from what there is: gain and change with intervals, and whether they are what was asked for."""
    cache, setting = measure.Cache("adapt"), adapt.SETTINGS[1]
    for seed in (0, 1):
        for method, gained, lost in (("start", 0, 0), ("SogCLR", 4 + seed, 0.2), ("SimCLR", 1 - seed, 3)):
            target = {"knn_top1": 30 + 2 * seed + gained, "linear_top1": 40.0}
            source = {"knn_top1": 80 - lost, "linear_top1": 82.0}
            cache.put(adapt.config_of(setting, method, seed), {"target": target, "source": source, "seconds": 60.0})
    adapt.report(measure.Cache("adapt"))
    assert {path.name for path in (results / "results").iterdir()} == {f"adapt{end}" for end in (".md", ".csv", ".png")}
    page = (results / "results" / "adapt.md").read_text(encoding="utf-8")
    assert "| start | 2 | 31.0 ± 1.4 | 40.0 ± 0.0 | 80.0 ± 0.0 | 82.0 ± 0.0 |  |  |  |  |" in page
    changed = "+4.5 (-1.9 to +10.9) | -0.2 (-0.2 to -0.2) | gain met, within the interval; loss met |"
    assert f"| SogCLR | 2 | 35.5 ± 2.1 | 40.0 ± 0.0 | 79.8 ± 0.0 | 82.0 ± 0.0 | 60 | {changed}" in page
    assert "| SimCLR | 1 |" in page
    assert "| +1.0 | -3.0 | gain missed, one run; loss missed, one run |" in page
    found = next(row for row in rows(results / "results" / "adapt.csv") if row["metric"] == "target knn_top1")
    assert (found["problem"], found["method"], found["mean"], found["n"]) == ("B", "start", "0.31", "2")


def test_a_row_of_the_resnet_says_optimizer_and_rate(results):
    cache = measure.Cache("with_a_resnet")
    scores = {"knn_top1": 0.75, "linear_top1": 0.8, "linear_top1_10_per_class": 0.7, "F2": -0.25, "seconds": 3600.0}
    for seed in (0, 1):
        config = with_a_resnet.config_of("SimCLR", "LARS, 0.9", seed, 6, with_a_resnet.TRAIN, with_a_resnet.TEST)
        cache.put(config, scores | {"F2": -0.25 - seed / 10})
    with_a_resnet.report(cache)
    page = (results / "results" / "with_a_resnet.md").read_text(encoding="utf-8")
    assert "| SimCLR | LARS, 0.9 | 75.00 ± 0.00 | 80.00 ± 0.00 | 70.00 ± 0.00 | -0.3000 ± 0.0707 | 2 |" in page
    row = next(row for row in rows(results / "results" / "with_a_resnet.csv") if row["metric"] == "F2")
    assert (row["settings"], row["lr"], row["mean"]) == ("method=simclr optimizer=lars", "0.9", "-0.3")
