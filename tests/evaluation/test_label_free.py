import math

import numpy as np
import pytest
import torch

from sogclr.errors import BadInput
from sogclr.evaluation import label_free
from sogclr.evaluation.label_free import alignment, evenly_spaced, rankme, uniformity


def points(rows, width, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width))


def slow_uniformity(z, t=2.0):
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(len(z)) for j in range(i + 1, len(z))]
    return math.log(sum(math.exp(-t * float(((z[i] - z[j]) ** 2).sum())) for i, j in pairs) / len(pairs))


def slow_rankme(x):
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum()
    return math.exp(-sum(v * math.log(v) for v in p if v > 1e-12))


@pytest.mark.parametrize(("rows", "width"), [(50, 8), (8, 50), (20, 20), (1, 5)])
def test_rankme_equals_the_singular_values_entropy(rows, width):
    x = points(rows, width)
    assert rankme(x) == pytest.approx(slow_rankme(x), rel=1e-6)
    assert rankme(torch.from_numpy(x).float()) == pytest.approx(slow_rankme(x), rel=1e-4)


def test_rankme_of_known_shapes():
    assert rankme(np.eye(7)) == pytest.approx(7)
    assert rankme(np.ones((9, 5))) == pytest.approx(1)
    assert rankme(np.zeros((9, 5))) == 0.0
    assert rankme(np.diag([1.0, 1.0, 1e-12])) == pytest.approx(2, abs=1e-6)
    assert rankme(1e-30 * np.eye(4)) == pytest.approx(4)
    assert math.isnan(rankme(np.full((4, 3), np.nan)))
    assert math.isnan(rankme(np.array([[np.inf, 1.0], [0.0, 1.0]])))


def test_alignment_of_known_shapes():
    a, b = points(30, 6), points(30, 6, seed=1)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    expected = sum(float(((p - q) ** 2).sum()) for p, q in zip(*unit, strict=True)) / 30
    assert alignment(a, b) == pytest.approx(expected)
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-12)
    assert alignment(a, -a) == pytest.approx(4)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_uniformity_equals_the_slow_pairs(chunk, monkeypatch):
    monkeypatch.setattr(label_free, "_CHUNK", chunk)
    z = points(40, 5)
    assert uniformity(z) == pytest.approx(slow_uniformity(z), rel=1e-9)
    assert uniformity(z, t=0.5) == pytest.approx(slow_uniformity(z, 0.5), rel=1e-9)


def test_uniformity_of_known_shapes():
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    assert uniformity(np.eye(6)) == pytest.approx(-4)  # every pair at squared distance 2
    assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_large_inputs_are_thinned_evenly_and_always_alike(monkeypatch):
    monkeypatch.setattr(label_free, "UNIFORMITY_ROWS", 10)
    monkeypatch.setattr(label_free, "RANKME_ROWS", 10)
    z = points(95, 4)
    rows = evenly_spaced(torch.from_numpy(z), 10)
    assert len(rows) == 10
    assert torch.equal(rows[0], torch.from_numpy(z[0]))
    assert torch.equal(rows[-1], torch.from_numpy(z[-1]))
    assert uniformity(z) == pytest.approx(slow_uniformity(rows.numpy()))
    assert rankme(z) == pytest.approx(slow_rankme(rows.numpy()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment(np.ones((3, 2)), np.ones((2, 2))), r"got \(3, 2\) and \(2, 2\)"),
        (lambda: uniformity(np.ones((1, 2))), "2 or more images and got 1"),
        (lambda: uniformity(np.ones(4)), r"\(4,\) was given"),
        (lambda: rankme(np.ones((0, 4))), r"\(0, 4\) was given"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call()
