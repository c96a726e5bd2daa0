"""Whether training was worth it, in words: what is better, worse, and no difference at all."""

import pytest

from sogclr.evaluation.worth import worth_of_run, worth_of_scores


def rows(*scores, key="knn_top1"):
    return [{"kind": "eval", "step": 10 * k, "epoch": float(k), key: score} for k, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        ((0.712, 0.743, 0.74), "worth it  kNN 71.2 -> 74.0 (start -> end, on training images), best 74.3 at epoch 1"),
        ((0.712, 0.74), "worth it  kNN 71.2 -> 74.0 (start -> end, on training images)"),
        ((0.5, 0.5), "as before kNN 50.0 -> 50.0 (start -> end, on training images)"),
        (
            (0.201, 0.204, 0.196),
            "worse than its start: kNN 20.1 -> 19.6 (start -> end, on training images); best.pt (epoch 1) has 20.4; "
            "lower --lr, or score a mix with the start: sogclr eval 'runs/my birds' DATA --mix 0.5",
        ),
    ],
)
def test_the_line_at_the_end_of_training(scores, line):
    assert worth_of_run([{"kind": "train", "step": 3}, *rows(*scores)], "runs/my birds", "training images") == line


def test_the_start_may_be_the_best():
    assert "; best.pt is the start; " in worth_of_run(rows(0.5, 0.3, 0.4), "run", "validation images")


def test_without_labels_nothing_is_claimed():
    line = worth_of_run(rows(30.0, 20.0, key="rankme"), "run", "training images")
    assert line.startswith("start     RankMe 30 -> 20 (start -> end, of training images); only labels can tell")


def test_a_run_that_began_from_nothing_has_no_line():
    assert worth_of_run(rows(0.5, 0.6)[1:], "run", "training images") is None
    assert worth_of_run([], "run", "training images") is None
    assert worth_of_run(rows(None, 0.6), "run", "training images") is None  # features that were not finite
    assert worth_of_run(rows(0.5), "run", "training images") is None


@pytest.mark.parametrize(
    ("start", "end", "verdict"),
    [
        (0.50, 0.60, "Training was worth it: kNN 50.0 -> 60.0 (+10.0 points)."),
        (0.60, 0.50, "Worse than its start: kNN 60.0 -> 50.0 (-10.0 points)."),
        (
            0.50,
            0.52,  # sqrt(0.25 / 400) = 0.025
            "No better and no worse than its start: kNN 50.0 -> 52.0 (+2.0 points, within noise: the standard error on 400 is 2.5).",
        ),
    ],
)
def test_a_difference_within_the_standard_error_is_none(start, end, verdict):
    scores = ({"knn_top1": value, "rankme": 3.0} for value in (start, end))
    assert worth_of_scores(*scores, {"": 400}) == verdict


def test_each_group_has_its_own_count():
    """Ten points of 20 captions are noise, and of 2,000 images they are not."""
    start = {"image_to_text_r1": 0.4, "text_to_image_r1": 0.4, "image_to_text_r5": 0.1}
    end = {"image_to_text_r1": 0.3, "text_to_image_r1": 0.5, "image_to_text_r5": 0.9}
    said = worth_of_scores(start, end, {"": 2000, "text_to_image": 20})
    assert said.startswith("Worse than its start: image to text, R@1 40.0 -> 30.0 (-10.0 points); text to image, R@1")
    assert "the standard error on 20 is 11.2" in said
    assert "R@5" not in said
    both = worth_of_scores(start, end, {"": 2000})
    assert both.startswith("Better and worse than its start: ")


def test_scores_that_judge_nothing():
    assert worth_of_scores({"rankme": 3.0}, {"rankme": 4.0}, {"": 10}) is None


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        (
            (0.2, 0.25),
            "worth it  kNN 20.0 -> 25.0 (start -> epoch 1, the best on validation images, whose weights the run keeps)",
        ),
        (
            (0.2, 0.25, 0.18),
            "worth it  kNN 20.0 -> 25.0 (start -> epoch 1, the best on validation images, whose weights the run keeps; the last were 18.0)",
        ),
        (
            (0.2, 0.15, 0.18),
            "as before kNN 20.0 at the start, 18.0 at the end, on validation images; nothing was better than the start, whose "
            "weights the run keeps; lower --lr",
        ),
    ],
)
def test_a_run_that_keeps_its_best_weights_is_judged_by_these(scores, line):
    assert worth_of_run(rows(*scores), "run", "validation images", best_kept=True) == line
