"""What a user may write, for the type checker: `make lint` runs mypy on it in strict mode; nobody runs it.

`Any` is not equal to what `assert_type` names.
"""

from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor

import sogclr


def user() -> None:
    """Use every public function."""
    run = sogclr.train("photos", "runs/a", batch_size=64)
    assert_type(run, sogclr.RunFolder)
    assert_type(sogclr.resume("runs/a"), sogclr.RunFolder)
    assert_type(sogclr.embed(run.path, "photos", "e.parquet").images, int)
    scores = sogclr.evaluate("runs/a", Path("photos"), quiet=True)
    assert_type(scores, sogclr.EvalResult)
    assert_type(scores["knn_top1"], float)
    assert_type(scores.split, str | None)
    assert_type(sogclr.classify("runs/a", "labelled", "clf").scores.accuracy, float)
    assert_type(sogclr.predict("clf", "photos", "p.csv"), sogclr.PredictResult)
    assert_type([p.label for p in sogclr.load_classifier("clf").predict_files(["a.jpg"])], list[str])
    found = sogclr.search("runs/a", "a red apple", source="e.parquet")
    assert_type(found, sogclr.SearchResult)
    assert_type([(hit.path, hit.score) for hit in found.hits], list[tuple[str, float]])
    assert_type(sogclr.export("runs/a", "onnx"), Path)
    assert_type(sogclr.report("runs/a"), Path)
    assert_type(sogclr.inspect("photos"), sogclr.Inspection)
    assert_type(sogclr.inspect("photos").to_json(), dict[str, object])
    assert_type(sogclr.cache("photos"), sogclr.CacheResult)
    assert_type(sogclr.demo(quick=True).scores, dict[str, dict[str, float]])
    assert_type(sogclr.GlobalContrastiveLoss(num_samples=10), sogclr.GlobalContrastiveLoss)
    encoder = sogclr.load_encoder("runs/a")
    assert_type(encoder.encode(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)), Tensor)
    _names = (
        sogclr.estimators.MovingAverage,
        sogclr.temperatures.PerSample,
        sogclr.exact.objective,
        sogclr.diagnose,
        sogclr.BadInput,
    )
    _state = sogclr.sharded.whole_state
