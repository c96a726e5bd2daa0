import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sogclr.errors import BadInput
from sogclr.evaluation import knn
from sogclr.evaluation.knn import knn_leave_one_out, knn_predict, nearest


def slow_predict(train_x, train_y, test_x, k, temperature, classes, without=None):
    """One query and one class at a time, in float64; ties go to the lower row and the lower class."""
    train_x, test_x = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float64(train_x), np.float64(test_x)))
    found = []
    for t, query in enumerate(test_x):
        ranked = sorted((-float(query @ row), j) for j, row in enumerate(train_x) if without is None or j != without[t])
        votes = [0.0] * classes
        for negative, j in ranked[:k]:
            votes[train_y[j]] += np.exp((-negative - -ranked[0][0]) / temperature)
        found.append(votes.index(max(votes)))
    return np.array(found)


def cloud(rows, width=6, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, rows)
    return generator.normal(size=(rows, width)).astype(np.float32) + np.eye(width, dtype=np.float32)[y], y


@pytest.mark.parametrize("k", [1, 3, 20, 500])  # the last: more neighbours than there are rows
@pytest.mark.parametrize("temperature", [0.07, 0.001, 100.0])
def test_predictions_equal_the_slow_reference(k, temperature):
    x, y = cloud(90)
    test, _ = cloud(40, seed=1)
    expected = slow_predict(x, y, test, k, temperature, 4)
    found = knn_predict(x, y, test, k=k, temperature=temperature, num_classes=4)
    assert found.dtype == np.int64
    assert found.tolist() == expected.tolist()
    torch_found = knn_predict(torch.from_numpy(x).half().float(), y, torch.from_numpy(test), k=k, num_classes=4)
    assert torch_found.shape == (40,)


@pytest.mark.parametrize("tiles", [(1, 1), (7, 5), (16, 64), (1024, 16_384)])
@pytest.mark.parametrize("k", [1, 4, 60])
def test_any_tiling_gives_the_same_neighbours_with_many_ties(tiles, k, monkeypatch):
    """Corners of a square and of a cube, so that similarities are exact and equal ones abound."""
    monkeypatch.setattr(knn, "_ROWS", tiles[0])
    monkeypatch.setattr(knn, "_COLUMNS", tiles[1])
    generator = np.random.default_rng(2)
    corners = generator.choice([-0.5, 0.5], size=(60, 4)).astype(np.float32)
    queries = torch.from_numpy(corners[:23])
    similarity, rows = nearest(queries, torch.from_numpy(corners), k)
    exact = corners[:23] @ corners.T
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    assert rows.tolist() == expected.tolist()
    assert np.array_equal(similarity, np.take_along_axis(exact, expected, axis=1))


@pytest.mark.parametrize("tiles", [(1, 1), (7, 5), (1024, 16_384)])
def test_a_query_is_no_neighbour_of_itself_wherever_it_stands(tiles, monkeypatch):
    monkeypatch.setattr(knn, "_ROWS", tiles[0])
    monkeypatch.setattr(knn, "_COLUMNS", tiles[1])
    keys = torch.nn.functional.normalize(torch.from_numpy(cloud(30)[0]), dim=1)
    own = np.array([29, 0, 17, 5, 12, 11, 3, 3])
    similarity, rows = nearest(keys[own], keys, 29, own=own)
    for row, mine in zip(rows, own, strict=True):
        assert sorted(row.tolist()) == [i for i in range(30) if i != mine]
    assert np.isfinite(similarity).all()


@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("tiles", [(3, 4), (1024, 16_384)])
def test_leave_one_out_equals_the_slow_reference(k, tiles, monkeypatch):
    monkeypatch.setattr(knn, "_ROWS", tiles[0])
    monkeypatch.setattr(knn, "_COLUMNS", tiles[1])
    x, y = cloud(50)
    expected = slow_predict(x, y, x, min(k, 49), 0.07, 4, without=range(50))
    assert knn_leave_one_out(x, y, k=k, num_classes=4) == float((expected == y).mean())


def test_leave_one_out_does_not_look_at_the_row_itself():
    """Each row has one twin, of the other class: whoever counts the row itself gets everything right."""
    x = np.repeat(np.eye(8, dtype=np.float32), 2, axis=0)
    y = np.arange(16) % 2
    assert knn_leave_one_out(x, y, k=1, num_classes=2) == 0.0


@given(st.integers(1, 12), st.integers(2, 25), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_only_directions_matter(k, rows, seed):
    x, y = cloud(rows, seed=seed)
    test, _ = cloud(9, seed=seed + 1)
    scale = np.float32(2.0) ** np.random.default_rng(seed).integers(-6, 7, (rows, 1))  # exact in floating point
    assert np.array_equal(
        knn_predict(x * scale, y, test * np.float32(4), k=k, num_classes=4),
        knn_predict(x, y, test, k=k, num_classes=4),
    )


def test_many_classes_are_counted_in_pieces():
    x, y = cloud(200)
    y = y * 100_000
    found = knn_predict(x, y, x, k=1, num_classes=1_000_000)
    assert np.array_equal(found, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "asked for 0 neighbours"),
        ({"temperature": 0.0}, "temperature of kNN was 0.0"),
        ({"temperature": float("nan")}, "temperature of kNN was nan"),
        ({"train_y": np.zeros(3, int)}, "10 features and labels of shape (3,)"),
        ({"train_y": np.full(10, 4)}, "labels run from 4 to 4 and there are 4 classes"),
        ({"train_y": np.full(10, -1)}, "labels run from -1 to -1"),
        ({"train_x": np.zeros((0, 6))}, "got (0, 6)"),
        ({"test_x": np.zeros(6)}, "got (6,)"),
        ({"test_x": np.full((2, 6), np.nan)}, "not finite; the encoder has diverged"),
        ({"train_x": np.full((10, 6), np.nan)}, "not finite; the encoder has diverged"),
        ({"test_x": np.zeros((2, 5))}, "6 columns and test features 5"),
    ],
)
def test_bad_input_is_refused(change, message):
    x, y = cloud(10)
    inputs = {"train_x": x, "train_y": y, "test_x": x, "num_classes": 4} | change
    with pytest.raises(BadInput) as error:
        knn_predict(**inputs)
    assert message in str(error.value)


def test_leave_one_out_of_one_row_is_refused_and_of_no_numbers_is_no_number():
    with pytest.raises(BadInput, match="needs 2 or more labelled images and got 1"):
        knn_leave_one_out(np.ones((1, 3)), np.zeros(1, int), num_classes=2)
    assert np.isnan(knn_leave_one_out(np.full((4, 3), np.nan), np.zeros(4, int), num_classes=2))
