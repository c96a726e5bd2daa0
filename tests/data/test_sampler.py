from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sogclr.data.sampler import ResumableSampler
from sogclr.errors import BadInput


def sizes(draw_max=60):
    return st.integers(2, draw_max).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n)))


@settings(max_examples=80, deadline=None)
@given(sizes(), st.integers(-(2**63), 2**64), st.integers(0, 5))
def test_an_epoch_visits_ids_once_and_drops_the_remainder(n_and_batch, seed, epoch):
    n, batch = n_and_batch
    ids = np.arange(n) * 3 + 1
    sampler = ResumableSampler(ids, batch, seed, start_step=epoch * (n // batch))
    requests = list(islice(sampler, sampler.steps_per_epoch))
    seen = np.concatenate([r.ids for r in requests])
    assert len(seen) == n // batch * batch
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(ids.tolist())
    assert {r.epoch for r in requests} == {epoch}
    assert [r.step for r in requests] == list(range(epoch * (n // batch), (epoch + 1) * (n // batch)))
    assert sorted(sampler.permutation(epoch).tolist()) == ids.tolist()


@settings(max_examples=60, deadline=None)
@given(sizes(30), st.integers(0, 2**32), st.integers(0, 40))
def test_starting_anywhere_gives_the_rest_of_the_same_sequence(n_and_batch, seed, start):
    n, batch = n_and_batch
    whole = list(islice(ResumableSampler(np.arange(n), batch, seed), start + 6))
    rest = list(islice(ResumableSampler(np.arange(n), batch, seed, start_step=start), 6))
    for a, b in zip(whole[start:], rest, strict=True):
        assert (a.step, a.epoch) == (b.step, b.epoch)
        np.testing.assert_array_equal(a.ids, b.ids)


def test_the_order_depends_on_seed_and_epoch_only():
    a, b = ResumableSampler(np.arange(1000), 10, 3), ResumableSampler(np.arange(1000), 64, 3, start_step=99)
    np.testing.assert_array_equal(a.permutation(7), b.permutation(7))
    assert not np.array_equal(a.permutation(7), a.permutation(8))
    assert not np.array_equal(a.permutation(7), ResumableSampler(np.arange(1000), 10, 4).permutation(7))


def test_the_order_is_fixed_for_ever():
    """A run must resume under another NumPy: these numbers may never change."""
    assert ResumableSampler(np.arange(10), 2, 5).permutation(3).tolist() == [5, 7, 9, 6, 1, 8, 4, 2, 0, 3]


def test_every_order_is_as_likely():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), ResumableSampler(np.arange(6), 2, seed).permutation(0)] += 1
    assert np.abs(counts / 3000 - 1 / 6).max() < 0.03  # four standard deviations


@pytest.mark.parametrize(
    ("ids", "batch", "start", "sentence"),
    [
        (
            np.arange(10),
            1,
            0,
            "a batch size of 1 leaves nothing.*needs other samples as negatives; give --batch-size 2",
        ),
        (np.arange(10), 0, 0, "a batch size of 0"),
        (np.arange(10), 11, 0, "there are 10 usable images, fewer than one batch of 11; give a smaller --batch-size"),
        (np.array([], dtype=np.int64), 4, 0, "there are 0 usable images"),
        (np.array([1, 2, 2, 3]), 2, 0, "1 repeat"),
        (np.arange(10), 2, -1, "the first step was -1"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(ids, batch, start, sentence):
    with pytest.raises(BadInput, match=sentence):
        ResumableSampler(ids, batch, 0, start)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_batch_in_their_order_are_the_batch(parts):
    whole = iter(ResumableSampler(np.arange(30), 8, seed=3, start_step=2))
    shares = [iter(ResumableSampler(np.arange(30), 8, seed=3, start_step=2, part=(k, parts))) for k in range(parts)]
    for _ in range(5):
        request, pieces = next(whole), [next(share) for share in shares]
        assert np.array_equal(np.concatenate([piece.ids for piece in pieces]), request.ids)
        assert {(piece.step, piece.epoch) for piece in pieces} == {(request.step, request.epoch)}
    with pytest.raises(BadInput, match="a batch of 8 cannot be split into 3 equal parts"):
        ResumableSampler(np.arange(30), 8, seed=3, part=(0, 3))


def test_an_order_is_asked_for_when_its_epoch_begins_and_not_before():
    asked = []

    def backwards(ids, epoch):
        asked.append(epoch)
        return np.sort(ids)[::-1]

    sampler = ResumableSampler(np.arange(10), 4, seed=0, start_step=3, order=backwards)
    passes = iter(sampler.passes())
    first = list(next(passes))
    assert asked == [1]
    assert [request.step for request in first] == [3]
    assert first[0].ids.tolist() == [5, 4, 3, 2]
    assert [request.step for request in next(passes)] == [4, 5]
    assert asked == [1, 2]
    assert [request.step for request in islice(sampler, 4)] == [3, 4, 5, 6]
