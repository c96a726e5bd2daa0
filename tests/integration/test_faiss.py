"""Search in a large file of embeddings by faiss, against comparing all rows. See `make test-integrations`."""

import builtins

import numpy as np
import pytest
import torch
from digits import SMALL, write_digits

import sogclr as package
from sogclr.commands import search_index
from sogclr.commands.search import search
from sogclr.commands.search_index import ExactIndex, FaissIndex, open_index

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A cache of its own, and an index from a hundred rows on."""
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search_index, "EXACT_AT_MOST", 100)
    return tmp_path / "cache" / "search"


def clustered(count=6000, width=32):
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, width))
    return (centres[random.integers(60, size=count)] + 0.4 * random.normal(size=(count, width))).astype(np.float32)


def test_nearly_all_of_the_nearest_are_found(small, tmp_path):
    pytest.importorskip("faiss")
    rows, said = clustered(), []
    (tmp_path / "e.npz").write_bytes(b"x")
    index = open_index(tmp_path / "e.npz", len(rows), lambda: rows, said.append)
    assert isinstance(index, FaissIndex)
    assert index.width == 32
    assert index.inner.nlist > index.inner.nprobe  # it does not look at all
    exact, found, asked = ExactIndex(torch.from_numpy(rows)), 0, range(0, 6000, 60)
    for k in asked:
        query = exact.rows[k]
        scores, places = index.nearest(query, 10)
        expected = exact.nearest(query, 10)
        assert places[0] == k
        assert scores == pytest.approx((exact.rows[places] @ query).tolist(), abs=1e-5)
        assert scores == sorted(scores, reverse=True)
        found += len({*places} & {*expected[1]})
    assert found / (10 * len(asked)) >= 0.95
    assert len(said) == 1
    assert str(small) in said[0]


def test_the_index_is_kept_until_the_file_changes(small, tmp_path):
    pytest.importorskip("faiss")
    file, rows = tmp_path / "e.npz", clustered(500)
    file.write_bytes(b"x")
    query = ExactIndex(torch.from_numpy(rows)).rows[7]
    first = open_index(file, 500, lambda: rows).nearest(query, 5)

    def never():
        raise AssertionError("the rows are not read again")

    assert open_index(file, 500, never).nearest(query, 5) == first
    (kept,) = small.iterdir()
    flipped = bytearray(kept.read_bytes())
    flipped[len(flipped) // 2] ^= 1 << 6
    for damaged in (b"damaged", b"", flipped):
        kept.write_bytes(damaged)
        assert open_index(file, 500, lambda: rows).nearest(query, 5) == first
        assert kept.read_bytes() != damaged
    file.write_bytes(b"another")
    assert open_index(file, 500, lambda: rows[::-1].copy()).nearest(query, 1)[1] == [492]
    assert len(list(small.iterdir())) == 1  # the old one is gone


def test_without_faiss_all_rows_are_compared_and_a_line_says_so(small, tmp_path, monkeypatch):
    imported, said, rows = builtins.__import__, [], clustered(500)

    def without(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert isinstance(open_index(tmp_path / "e.npz", 500, lambda: rows, said.append), ExactIndex)
    assert said == ["index     all 500 rows are compared; `pip install 'sogclr[faiss]'` makes this faster"]
    assert not small.exists()


def test_a_search_by_faiss_finds_what_a_search_of_all_finds(small, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    data = write_digits(tmp_path / "digits", per_digit=15)
    run = package.train(data, tmp_path / "run", quiet=True, **(SMALL | {"max_steps": 20, "labels": "none"})).path
    package.embed(run, data, tmp_path / "e.parquet", device="cpu", workers=0)
    image = next((data / "3").iterdir())
    options = {"source": tmp_path / "e.parquet", "image": image, "top": 8, "device": "cpu", "workers": 0}
    by_index = search(run, **options).hits
    assert list(small.iterdir())
    monkeypatch.setattr(search_index, "EXACT_AT_MOST", 10**6)
    exact = search(run, **options).hits
    assert [hit.path for hit in by_index] == [hit.path for hit in exact]
    assert by_index[0].path == f"3/{image.name}"
    assert [hit.score for hit in by_index] == pytest.approx([hit.score for hit in exact], abs=1e-5)
