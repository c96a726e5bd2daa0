import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sogclr.errors import BadInput
from sogclr.evaluation import linear
from sogclr.evaluation.linear import few_label_protocol, few_label_top1, linear_top1, protocol, stratified


def separable(rows, classes=4, width=8, seed=0, offset=0.0):
    """Classes far apart along their own axes; features of very different size."""
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    x = generator.normal(size=(rows, width)) * 0.3 + 6 * np.eye(width)[y]
    return (x * 10.0 ** np.arange(-2, width - 2) + offset).astype(np.float32), y


def noise(rows, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, 8)).astype(np.float32), generator.integers(0, classes, rows)


@pytest.fixture(params=["lbfgs", "sgd"])
def solver(request, monkeypatch):
    """Both protocols, the one for large problems with fewer epochs."""
    if request.param == "sgd":
        monkeypatch.setattr(linear, "LARGEST_FOR_LBFGS", 0)
        monkeypatch.setattr(linear, "EPOCHS", 20)
        monkeypatch.setattr(linear, "BATCH_SIZE", 32)
        monkeypatch.setattr(linear, "LR", 0.1)
    return request.param


def test_separable_classes_are_separated(solver):
    assert ("SGD" if solver == "sgd" else "LBFGS") in protocol(200, 8, 4)
    (x, y), (test_x, test_y) = separable(200, offset=30.0), separable(100, seed=1, offset=30.0)
    assert linear_top1(x, y, test_x, test_y) == 1.0


def test_noise_is_chance(solver):
    (x, y), (test_x, test_y) = noise(400), noise(2000, seed=1)
    assert 0.15 < linear_top1(x, y, test_x, test_y) < 0.35


def test_the_result_depends_on_the_seed_alone(solver):
    (x, y), (test_x, test_y) = noise(100), noise(50, seed=1)
    first, again = (linear_top1(x, y, test_x, test_y, seed=3) for _ in range(2))
    assert first == again


def test_a_class_that_only_the_test_part_has_counts_as_missed(solver):
    x, y = separable(200)
    test_x, test_y = separable(100, seed=1)
    seen = y != 3
    assert linear_top1(x[seen], y[seen], test_x, test_y) == pytest.approx((test_y != 3).mean())


def test_class_numbers_may_have_gaps(solver):
    (x, y), (test_x, test_y) = separable(200), separable(100, seed=1)
    assert linear_top1(x, 7 * y, test_x, 7 * test_y) == 1.0


def test_one_image_a_class_leaves_nothing_to_choose_the_strength_on():
    x, y = separable(4)
    assert linear_top1(x, y, *separable(40, seed=1)) > 0.7


def test_constant_and_dead_features_do_no_harm():
    (x, y), (test_x, test_y) = separable(200), separable(100, seed=1)
    dead = [np.concatenate([a, np.zeros((len(a), 3)), np.full((len(a), 2), 1e6)], axis=1) for a in (x, test_x)]
    assert linear_top1(dead[0], y, dead[1], test_y) == 1.0
    assert linear_top1(np.zeros((8, 2)), np.arange(8) % 2, np.zeros((6, 2)), np.zeros(6, int)) in (0.0, 1.0)


def test_few_labels_are_drawn_from_each_class():
    (x, y), (test_x, test_y) = separable(200), separable(100, seed=1)
    one, spread = few_label_top1(x, y, test_x, test_y, 1)
    assert one > 0.9
    assert 0 <= spread < 0.1
    assert few_label_top1(x, y, test_x, test_y, 1) == (one, spread)
    assert few_label_top1(x, y, test_x, test_y, 10_000, draws=2) == (1.0, 0.0)  # more than there are
    (x, y), (test_x, test_y) = noise(400), noise(400, seed=1)
    assert few_label_top1(x, y, test_x, test_y, 1, seed=1) != few_label_top1(x, y, test_x, test_y, 1, seed=2)


def test_few_labels_of_many_classes_are_fitted_as_all_labels_are(solver):
    """At 1,000 classes ten labels a class are more than LBFGS is given for all."""
    (x, y), (test_x, test_y) = separable(200), separable(100, seed=1)
    assert few_label_top1(x, y, test_x, test_y, 10)[0] == 1.0
    assert ("1 and 10 a class SGD" in few_label_protocol(8, 4)) == (solver == "sgd")


def test_1000_classes_are_too_many_for_lbfgs():
    assert few_label_protocol(512, 1000).endswith("features; with 10 a class SGD, as for all labels")
    assert few_label_protocol(2048, 1000).endswith("features; with 1 and 10 a class SGD, as for all labels")


@pytest.mark.parametrize("call", [linear_top1, lambda *a: few_label_top1(*a, 10)])
def test_features_are_copied_once_at_most(call, monkeypatch):
    """Standardised in float64 as a whole they took four times as much. NumPy tells tracemalloc what it allocates."""
    for name, value in {"LARGEST_FOR_LBFGS": 0, "EPOCHS": 1, "_ROWS": 256}.items():
        monkeypatch.setattr(linear, name, value)
    x, y = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32), np.arange(20_000) % 4
    test_x, test_y = x[:64].copy(), y[:64]
    call(x[:64], y[:64], test_x, test_y)  # what is imported at the first call
    tracemalloc.start()
    try:
        call(x, y, test_x, test_y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * x.nbytes


def test_standardised_features_have_mean_0_and_standard_deviation_1(monkeypatch):
    monkeypatch.setattr(linear, "_ROWS", 7)
    x = 30 + 2 * noise(100)[0]
    scaling = linear.Scaling.of(x)
    np.testing.assert_allclose(scaling.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(scaling.std, x.std(axis=0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(scaling(x), (x - scaling.mean) / scaling.std, rtol=1e-5, atol=1e-6)


@given(hnp.arrays(np.int64, st.integers(0, 80), elements=st.integers(-1, 5)), st.floats(0.05, 0.9), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_a_stratified_split_is_a_partition_with_fixed_shares(y, share, seed):
    first, second = stratified(y, share, seed)
    assert sorted([*first, *second]) == np.flatnonzero(y >= 0).tolist()
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()
    for c in np.unique(y[y >= 0]):
        size, taken = int((y == c).sum()), int((y[second] == c).sum())
        assert taken == 0 if size == 1 else 1 <= taken < size
        assert abs(taken - share * size) <= 1
    again = stratified(y, share, seed)
    assert np.array_equal(first, again[0])
    assert np.array_equal(second, again[1])


def test_another_seed_is_another_split():
    y = np.arange(200) % 4
    assert not np.array_equal(stratified(y, 0.2, 0)[1], stratified(y, 0.2, 1)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_x": np.full((8, 3), np.nan)}, "not finite; the encoder has diverged"),
        ({"test_x": np.full((8, 3), np.inf)}, "not finite; the encoder has diverged"),
        ({"train_y": np.zeros(8, int)}, "the training part has 1 class; a classifier needs two or more"),
        ({"train_y": np.zeros(7, int)}, "training features of shape (8, 3) and labels of shape (7,)"),
        ({"test_y": np.zeros(7, int)}, "test features of shape (8, 3) and labels of shape (7,)"),
        ({"test_x": np.zeros((8, 4))}, "3 columns and test features 4"),
        ({"test_x": np.zeros((0, 3)), "test_y": np.zeros(0, int)}, "test features of shape (0, 3)"),
    ],
)
@pytest.mark.parametrize("call", [linear_top1, lambda *a: few_label_top1(*a, 1)])
def test_bad_input_is_refused(call, change, message):
    inputs = {"train_x": np.ones((8, 3)), "train_y": np.arange(8) % 2, "test_x": np.ones((8, 3))}
    inputs = {**inputs, "test_y": np.arange(8) % 2} | change
    with pytest.raises(BadInput) as error:
        call(*inputs.values())
    assert message in str(error.value)
