"""Random numbers that are a hash of what they are for: no generator, so nothing to save, seed or share."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: uint64 -> uint64, every bit depending on every bit (arithmetic modulo 2^64)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, epoch: int, ids: np.ndarray, view: int, count: int, first: int = 0) -> np.ndarray:
    """Slots first..first+count-1 of the numbers of each (seed, epoch, id, view): float64 (len(ids), count) in [0, 1)."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, view):
        key = _mix(key + _GOLDEN ^ np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    keys = _mix(key + _GOLDEN ^ np.asarray(ids).astype(np.uint64))
    slots = np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(keys[:, None] + slots) >> np.uint64(11)).astype(np.float64) * 2.0**-53
