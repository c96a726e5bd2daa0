import csv
import os

import numpy as np
import pytest
from captioned import write_pairs

from sogclr.data.pair_overlap import count_shared
from sogclr.data.pairs import Pairs


@pytest.mark.parametrize("absolute", [False, True])
def test_images_are_the_same_at_the_same_place_whatever_the_table(absolute, tmp_path):
    """40 pairs of 20 images; 10 of them in a table that lies elsewhere, with one that is new."""
    table = write_pairs(tmp_path / "images", per_digit=2)
    with open(table, newline="") as file:
        rows = list(csv.reader(file))[1:]
    folder = tmp_path / "tables"
    folder.mkdir()
    with open(folder / "some.csv", "w", newline="") as file:
        places = [os.path.join(table.parent, row[0]) for row in rows[:10]]
        images = places if absolute else [os.path.relpath(place, folder) for place in places]
        captions = [row[1] for row in rows[:9]] + ["a new one"]
        csv.writer(file).writerows([("image", "caption"), *zip(images, captions, strict=True)])
    pairs, some = Pairs.scan(table, check=False), Pairs.scan(folder / "some.csv", check=False)
    assert count_shared(some, pairs, some.usable) == 9
    assert count_shared(pairs, some, pairs.usable) == 9
    assert count_shared(pairs, pairs, pairs.usable[:7]) == 7


def test_copies_elsewhere_are_other_images_and_texts_know_no_place(tmp_path):
    tables = [write_pairs(tmp_path / name, per_digit=1) for name in ("a", "b")]
    first, second = (Pairs.scan(table, check=False) for table in tables)
    assert count_shared(first, second, first.usable) == len(first)  # a copy of all of it
    more = tmp_path / "b" / "more.csv"
    more.write_text(tables[1].read_text() + next(line for line in tables[1].read_text().splitlines()[1:]) + " again\n")
    assert count_shared(Pairs.scan(more, check=False), first, np.arange(len(first))) == 0
    texts = []
    for name, rows in (("a", [("x", "y"), ("y", "x"), ("x", "z")]), ("b", [("x", "y"), ("z", "x"), ("q", "z")])):
        (tmp_path / name / "texts.csv").write_text("one,two\n" + "".join(f"{a},{b}\n" for a, b in rows))
        texts.append(Pairs.scan(tmp_path / name / "texts.csv"))
    assert count_shared(*texts, np.arange(3)) == 1
