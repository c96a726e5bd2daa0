from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sogclr.data.neighbour_order import GROUP, LEAF, group_size, neighbour_order, random_signs
from sogclr.data.sampler import ResumableSampler


def rows_of(count, seed=0, unknown=()):
    rows = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float16)
    rows[list(unknown)] = np.nan
    return rows


def clusters(count, clusters, spread=0.2):
    random = np.random.default_rng(0)
    centres = random.standard_normal((clusters, 8))
    return (centres[random.integers(clusters, size=count)] + spread * random.standard_normal((count, 8))).astype(
        np.float16
    )


def mean_distance(order, rows, size):
    groups = rows[order[: len(order) // size * size]].astype(np.float32).reshape(-1, size, rows.shape[1])
    return np.linalg.norm(groups[:, :, None] - groups[:, None], axis=-1).mean()


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 700), st.integers(4, 90), st.floats(0, 1), st.integers(0, 2**64), st.integers(1, 2**40))
def test_an_order_is_a_permutation_with_the_remainder_of_the_random_one(n, batch, unknown, seed, epoch):
    ids, batch = np.arange(n) * 2 + 1, min(n, batch)
    rows = rows_of(2 * n + 1, unknown=np.flatnonzero(np.random.default_rng(n).random(2 * n + 1) < unknown))
    random = np.random.default_rng(1).permutation(ids)
    order = neighbour_order(random, rows, batch, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), ids)
    used = n // batch * batch
    assert np.array_equal(order[used:], random[used:])


def test_the_order_is_fixed_by_rows_seed_and_epoch():
    rows, random = rows_of(500), np.arange(500)
    order = neighbour_order(random, rows, 32, 3, 1)
    assert np.array_equal(order, neighbour_order(random, rows, 32, 3, 1))
    for other in ((rows, 32, 3, 2), (rows, 32, 4, 1), (rows_of(500, seed=1), 32, 3, 1)):
        assert not np.array_equal(order, neighbour_order(random, *other))


def test_groups_are_nearer_than_chance_and_whole_in_a_batch():
    rows, random = clusters(6400, 100), np.random.default_rng(2).permutation(6400)
    order = neighbour_order(random, rows, 32, seed=0, epoch=1)
    assert group_size(32) == GROUP == 16
    by_chance = mean_distance(random, rows, GROUP)
    assert mean_distance(order, rows, GROUP) < 0.7 * by_chance
    # aligned with batches: what begins in the middle of a group holds two half groups
    assert mean_distance(order, rows, GROUP) < 0.9 * mean_distance(order[GROUP // 2 :], rows, GROUP)
    # batches are of two groups that are no nearer than chance
    first, second = rows[order].astype(np.float32).reshape(-1, 2, GROUP, 8).transpose(1, 0, 2, 3).mean(axis=2)
    between = np.linalg.norm(first - second, axis=-1).mean()
    assert between > 0.9 * np.linalg.norm(first - second[::-1], axis=-1).mean()


def test_near_samples_meet_others_in_the_next_epoch():
    rows, random = clusters(6400, 20), np.random.default_rng(2).permutation(6400)
    mates = []
    for epoch in (1, 2):
        groups = neighbour_order(random, rows, 32, 0, epoch).reshape(-1, GROUP)
        mates.append({(a, b) for group in groups.tolist() for a in group for b in group if a < b})
    assert len(mates[0] & mates[1]) < 0.3 * len(mates[0])


def test_samples_without_an_embedding_are_visited_in_random_places():
    """What an epoch drops is drawn from all samples, so that an unseen one does not stay unseen."""
    rows, places = rows_of(1000, unknown=range(10)), []
    sampler = ResumableSampler(
        np.arange(1000), 96, 0, order=lambda ids, epoch: neighbour_order(ids, rows, 96, 0, epoch)
    )
    for requests in islice(sampler.epochs(), 30):
        seen = np.concatenate([request.ids for request in requests])
        places += np.flatnonzero(seen < 10).tolist()
    assert len(places) > 0.9 * 10 * 30
    assert 380 < np.mean(places) < 580  # of 960, in 30 epochs together


def test_few_samples_are_in_one_leaf_and_so_in_a_random_order():
    rows = np.arange(2 * LEAF - 1, dtype=np.float16)[:, None].repeat(8, axis=1)
    order = neighbour_order(np.arange(2 * LEAF - 1), rows, 8, 0, 1)
    assert np.abs(np.diff(order[:120])).mean() > 30  # 42 by chance


def test_a_random_projection_keeps_distances():
    rows = np.random.default_rng(0).standard_normal((300, 128)).astype(np.float32)
    kept = np.linalg.norm(rows @ random_signs(128, 64, 7, 0, 4), axis=1) / np.linalg.norm(rows, axis=1)
    assert 0.95 < kept.mean() < 1.05
    assert kept.std() < 0.15
