"""Everything that is said of a classifier is measured on rows that had no part in it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sogclr.errors import BadInput
from sogclr.evaluation import cross_validation, linear
from sogclr.evaluation.cross_validation import deal, find_threshold, fit_classifier, fit_temperature, log_loss, softmax


def overlapping(rows, classes=4, width=8, seed=0):
    """Classes that overlap, whose best accuracy is about 85 %; features of very different size."""
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    x = generator.normal(size=(rows, width)) + 2.2 * np.eye(width)[y]
    return (x * 10.0 ** np.arange(-2, width - 2) + 7).astype(np.float32), y


# --------------------------------------------------------------------------------------------------------------- folds
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(2, 6), st.integers(0, 3))
def test_every_fold_leaves_some_rows_of_each_class(counts, folds, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    if max(counts) < 2:
        with pytest.raises(BadInput, match="has one image that can be read"):
            deal(y, folds, seed)
        return
    fold = deal(y, folds, seed)
    assert {*fold} - {-1} == set(range(fold.max() + 1))
    assert 2 <= fold.max() + 1 <= folds
    for c, count in enumerate(counts):
        assert (fold[y == c] == -1).all() if count == 1 else (fold[y == c] >= 0).all()
        for held in range(fold.max() + 1):
            assert ((y == c) & (fold != held)).any()
            # as many of each class in each fold, but for one
            assert abs(((y == c) & (fold == held)).sum() - count / min(folds, max(counts))) < 1 or count == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 5)), min_size=2, max_size=40), st.integers(2, 6))
def test_a_group_is_in_one_fold(rows, folds):
    y, groups = (np.array(column) for column in zip(*rows, strict=True))
    try:
        fold = deal(y, folds, 0, groups)
    except BadInput:  # each class in one fold
        return
    for group in {*groups} - {-1}:
        assert len({*fold[groups == group]} - {-1}) <= 1
    for c in {*y}:
        for held in range(fold.max() + 1):
            assert ((y == c) & (fold != held)).any()
    assert {*fold} - {-1} == set(range(fold.max() + 1))
    assert fold.max() >= 1


def test_no_class_in_two_groups_is_refused():
    with pytest.raises(BadInput, match="each of the 2 classes has one group of images"):
        deal(np.array([0, 0, 1, 1]), 5, 0, np.array([3, 3, 4, 4]))


# ------------------------------------------------------------------------------------------------------- probabilities
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_found(temperature):
    """Labels are drawn from softmax(z), and the logits are z times the temperature."""
    generator = np.random.default_rng(0)
    z = 2 * generator.normal(size=(20_000, 5))
    y = (softmax(z).cumsum(1) < generator.uniform(size=(len(z), 1))).sum(1)
    found = fit_temperature(z * temperature, y)
    assert found == pytest.approx(temperature, rel=0.05)
    for factor in (0.9, 1.1):
        assert log_loss(z * temperature, y, found) < log_loss(z * temperature, y, found * factor)


def test_the_temperature_of_predictions_that_are_all_right_is_not_zero():
    y = np.arange(60) % 3
    p = softmax(np.eye(3)[y] / fit_temperature(np.eye(3)[y], y))
    # one row more, whose class may be any of the three
    np.testing.assert_allclose(p.max(1), (60 + 1 / 3) / 61)


@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.6, 0.8, 0.9]), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.75, 0.9]),
)
def test_the_threshold_is_the_least_that_is_right_often_enough(rows, sure):
    p, right = np.array([p for p, _ in rows]), np.array([r for _, r in rows])
    fit = [t for t in np.unique(p) if ((~right[p >= t]).sum() + 1) <= (1 - sure) * ((p >= t).sum() + 1)]
    assert find_threshold(p, right, sure) == (min(fit) if fit else None)


def test_a_few_that_happen_to_be_right_are_not_sure():
    for count, expected in ((18, None), (19, 0.9)):
        assert find_threshold(np.full(count, 0.9), np.ones(count, bool), 0.95) == expected


# ------------------------------------------------------------------------------------------------------ the classifier
@pytest.fixture(params=["lbfgs", "sgd"])
def solver(request, monkeypatch):
    """Both ways of fitting, the one for large problems with fewer epochs."""
    if request.param == "sgd":
        monkeypatch.setattr(linear, "LARGEST_FOR_LBFGS", 0)
        monkeypatch.setattr(linear, "EPOCHS", 20)
        monkeypatch.setattr(linear, "BATCH_SIZE", 32)
        monkeypatch.setattr(linear, "LR", 0.1)
    return request.param


@pytest.mark.parametrize("classes", [2, 4])
def test_what_is_said_holds_on_new_rows(classes, solver):
    x, y = overlapping(800, classes)
    steps = []
    fitted = fit_classifier(x, y, sure=0.9, progress=lambda *step: steps.append(step))
    assert steps[-1] == ((21, 21) if solver == "lbfgs" else (6, 6))
    assert (fitted.strength is None) == (solver == "sgd")
    new_x, new_y = overlapping(20_000, classes, seed=1)
    z = new_x @ fitted.weight.T + fitted.bias
    p, right = softmax(z).max(1), z.argmax(1) == new_y
    said = fitted.scores
    assert right.mean() == pytest.approx(said.accuracy, abs=0.04)
    assert said.balanced_accuracy == pytest.approx(np.mean(said.recalls))
    assert p.mean() == pytest.approx(right.mean(), abs=0.02)
    assert log_loss(z, new_y) == pytest.approx(said.log_loss, abs=0.06)
    sure = p >= fitted.threshold
    assert sure.mean() == pytest.approx(said.sure, abs=0.12)
    assert right[sure].mean() == pytest.approx(said.sure_accuracy, abs=0.04)
    assert right[sure].mean() > 0.87


def test_noise_is_chance_and_never_sure():
    generator = np.random.default_rng(0)
    fitted = fit_classifier(generator.normal(size=(600, 300)).astype(np.float32), generator.integers(0, 3, 600))
    assert fitted.scores.accuracy == pytest.approx(1 / 3, abs=0.06)
    assert fitted.scores.log_loss == pytest.approx(np.log(3), abs=0.03)
    assert fitted.scores.log_loss_before > fitted.scores.log_loss
    assert (fitted.threshold, fitted.scores.sure, fitted.scores.sure_accuracy) == (None, 0, None)


def test_the_result_depends_on_the_seed_alone(solver):
    x, y = overlapping(200)
    first, again = (fit_classifier(x, y, seed=2) for _ in range(2))
    assert first.scores == again.scores
    assert np.array_equal(first.weight, again.weight)
    assert fit_classifier(x, y, seed=3).scores != first.scores


def test_labels_of_a_fold_have_no_part_in_what_is_said_of_it(monkeypatch):
    """Regularisation, temperature and threshold of a fold are chosen without its rows."""
    x, y = overlapping(200)
    chosen, choose = [], cross_validation._choose
    monkeypatch.setattr(
        cross_validation, "_choose", lambda z, y, rows, sure: chosen.append(rows) or choose(z, y, rows, sure)
    )
    fit_classifier(x, y)
    everything, *others = chosen
    assert everything.all()
    fold = deal(y, 5, 0)
    assert [rows.tolist() for rows in others] == [(fold != held).tolist() for held in range(5)]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "not finite"),
        (np.ones((4, 2)), [0, 0, 0, 0], "there is 1 class; a classifier needs two or more"),
        (np.ones((2, 2)), [0, 1], "each of the 2 classes has one image"),
    ],
)
def test_bad_input_is_refused(x, y, message):
    with pytest.raises(BadInput, match=message):
        fit_classifier(x.astype(np.float32), np.array(y))
