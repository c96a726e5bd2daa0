"""The different texts of a column against Python's own sets, over the borders of blocks."""

import numpy as np
import pyarrow as pa
import pytest

from sogclr.data import text_columns
from sogclr.data.text_columns import unique_texts


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
@pytest.mark.parametrize("different", [1, 40, 100_000])
def test_against_a_set(block, different, monkeypatch):
    monkeypatch.setattr(text_columns, "BLOCK", block)
    draw = np.random.default_rng(different).integers(different, size=500)
    texts = [("", "a", "ab", "ü", "\ufb01", "𝒳", "写真 ")[k % 7] + str(k // 7) * (k % 3) for k in draw.tolist()]
    blocks = [pa.array(texts[i:k], pa.large_string()) for i, k in ((0, 3), (3, 3), (3, 499), (499, 500))]
    found, places = unique_texts(blocks)
    assert blocks == []
    assert found.to_pylist() == sorted(set(texts))
    assert places.dtype == np.int64
    assert found.take(pa.array(places)).to_pylist() == texts
