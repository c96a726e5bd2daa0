"""The order of an epoch whose batches hold groups of near samples: a random-projection tree over embeddings.

Each level of the tree halves all its nodes at their medians along one random direction: n log(n / LEAF) steps in all.
A leaf in a random order, cut into groups, gives the groups; all groups in a random order give the batches. Source of the
tree: Dasgupta and Freund, STOC 2008.
"""

from __future__ import annotations

import numpy as np

LEAF = 64  # samples of a leaf at least, and less than twice as many
GROUP = 16  # near samples in a batch together, unless half the batch is less
AT_ONCE = 1 << 20  # rows that are projected together

# the streams of random numbers of one seed and epoch, beside that of the random order, which is number 0
DIRECTIONS, LEAVES, GROUPS, COLUMNS = 1, 2, 3, 4


def group_size(batch_size: int) -> int:
    """Return how many near samples stand together: half a batch at most, so that a batch is never of one place alone."""
    return min(GROUP, batch_size // 2)


def random_bits(count: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Return raw random numbers, uint64 (count,), the same under every NumPy."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, epoch], dtype=np.uint64)
    bits: np.ndarray = np.random.Philox(key=key, counter=stream << 192).random_raw(count)
    return bits


def random_signs(rows: int, columns: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Return a random projection from `rows` to `columns` dimensions that keeps distances on average, float32 (rows, columns)."""
    bits = random_bits(rows * columns, seed, epoch, stream) >> np.uint64(63)
    signs: np.ndarray = (2 * bits.astype(np.float32) - 1).reshape(rows, columns) / np.float32(columns**0.5)
    return signs


def neighbour_order(permutation: np.ndarray, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the ids with near ones in groups, so that batches cut from the front hold whole groups if these divide them.

    What is left after the last whole batch is the same as in `permutation`. Samples without an embedding, and the few that
    fill no leaf or group, are in groups of a random kind.

    Args:
        permutation: int64 (n,), ids in a random order.
        rows: (N, d), an embedding of each id; NaN where there is none.
        batch_size: B.
        seed: any integer.
        epoch: whose order it is.

    Returns:
        int64 (n,), the same ids.
    """
    size, used = group_size(batch_size), len(permutation) // batch_size * batch_size
    kept = permutation[:used]
    known = np.isfinite(rows[kept, 0])
    leaves = _leaves(kept[known], rows, seed, epoch)
    keys = random_bits(len(rows), seed, epoch, LEAVES)
    leaves = np.take_along_axis(leaves, np.argsort(keys[leaves], axis=1, kind="stable"), axis=1)
    placed = leaves.ravel()[: leaves.size // size * size]  # a group at a border is of two leaves, mostly of one parent
    loose = np.concatenate([leaves.ravel()[len(placed) :], kept[known][leaves.size :], kept[~known]])
    ordered = np.concatenate([placed, loose])
    count = used // size
    mixed = np.argsort(random_bits(count, seed, epoch, GROUPS), kind="stable")
    groups = ordered[: count * size].reshape(count, size)[mixed]
    return np.concatenate([groups.ravel(), ordered[count * size :], permutation[used:]])


def _leaves(ids: np.ndarray, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the leaves of the tree over `rows[ids]`, int64 (leaves, samples of each): of the first ids, as many as fill them."""
    levels = max(0, (len(ids) // LEAF).bit_length() - 1)
    nodes = ids[: len(ids) >> levels << levels]
    directions = random_signs(levels, rows.shape[1], seed, epoch, DIRECTIONS)
    for level, direction in enumerate(directions):
        nodes = nodes.reshape(1 << level, -1)
        along = _project(rows, direction)[nodes]
        halved = np.argpartition(along, nodes.shape[1] // 2, axis=1)
        nodes = np.take_along_axis(nodes, halved, axis=1)
    return nodes.reshape(1 << levels, -1)


def _project(rows: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return `rows @ direction`, float32 (N,), in pieces: rows of half precision are never copied whole."""
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), AT_ONCE):
        out[start : start + AT_ONCE] = rows[start : start + AT_ONCE].astype(np.float32) @ direction
    return out
