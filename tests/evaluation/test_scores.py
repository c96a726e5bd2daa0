"""The table of scores, and what follows from its rows."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from digits import SMALL, write_digits
from rich.console import Console

import sogclr as package
from sogclr.commands.report import report
from sogclr.evaluation import scores
from sogclr.evaluation.scores import SCORES, LabelledSplit, compute, select


def test_the_table_needs_no_torch():
    code = "import sys; import sogclr.evaluation.scores; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_score_that_selects_picks_the_best_checkpoint():
    assert select({"knn_top1": 0.5}) == 0.5
    assert select({"uniformity": -3.0, "alignment": 0.1, "rankme": 7.0}) == 7.0
    assert select({"text_to_image_r1": 0.9, "image_to_text_r1": 0.2}) == 0.2
    with pytest.raises(ValueError, match="none of the scores alignment"):
        select({"alignment": 0.1})


def test_a_score_that_is_to_fall_selects_by_its_negative(monkeypatch):
    row = scores.Score("spread", "spread", "features", "x:y", higher_is_better=False, selects=True)
    monkeypatch.setitem(SCORES, "spread", row)
    assert select({"spread": 2.0}) == -2.0


def test_every_row_names_a_function_and_gets_its_score():
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    y = np.arange(40) % 2
    unit = torch.nn.functional.normalize(torch.from_numpy(x), dim=1)
    rows = np.arange(40)
    found = compute(
        labels=LabelledSplit(
            x[:20], y[:20], x[20:], y[20:], 2, crops=(iter([(unit[:20], torch.from_numpy(y[:20]))]), 1)
        ),
        features=x,
        views=(torch.from_numpy(x), torch.from_numpy(x)),
        pairs=(unit, unit, rows, rows),
        documents=(unit, unit, rows, rows),
        judgements=(unit, rows, rows + 1.0, x[:, 0]),
        classes=(unit, unit[:2], y),
    )
    assert set(SCORES) <= set(found)
    assert [key for key in found if key in SCORES] == [*SCORES]  # in reading order
    for key, value in found.items():
        assert not (key in SCORES and SCORES[key].fraction) or 0 <= value <= 1, key


def test_what_is_taken_during_training():
    unit = torch.eye(4)
    rows = np.arange(4)
    found = compute(online=True, pairs=(unit, unit, rows, rows))
    assert [*found] == [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)]


def test_a_new_score_is_one_file_and_one_row(tmp_path, monkeypatch):
    """It is then in eval's JSON and table, in the metrics of a run, and in the report."""
    (tmp_path / "positive.py").write_text("def positive(features):\n    return float((features > 0).mean())\n")
    monkeypatch.syspath_prepend(tmp_path)
    row = scores.Score(
        "positive", "share above 0", "features", "positive:positive", online=True, curve="of all values of the features"
    )
    monkeypatch.setitem(SCORES, row.key, row)
    data = write_digits(tmp_path / "data", 4)
    run = package.train(data, tmp_path / "run", quiet=True, **(SMALL | {"labels": "none", "max_steps": 5})).path
    result = package.evaluate(run, data, labels="none", workers=0)
    assert 0 < result["positive"] < 1
    console = Console(width=120)
    with console.capture() as printed:
        console.print(result)
    assert f"{100 * result['positive']:.1f}" in printed.get()
    assert "share above 0" in printed.get()
    (run / "eval.json").write_text(json.dumps(result.to_json()))
    page = report(run).read_text()
    assert ">share above 0</th>" in page
    assert f">{100 * result['positive']:.1f}%</td>" in page
    assert "<h3>Share above 0<b>" in page  # its curve
    assert "of all values of the features; higher is better" in page
