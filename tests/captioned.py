"""Real images with captions for the tests: scikit-learn's digits, each with two sentences that say which digit it is."""

from __future__ import annotations

import csv
from pathlib import Path

from digits import SMALL, write_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAIRS = SMALL | {"text_width": 64, "text_layers": 1, "vocab_size": 300, "temperature": 0.1, "recipe": "auto"}


def write_pairs(folder: Path, name: str = "captions.csv", **digits: int) -> Path:
    """`folder/three/<number>.png` and a CSV of two captions an image; captions are shared by the images of a digit."""
    write_digits(folder, **digits)
    for place in list(folder.iterdir()):
        place.rename(folder / NAMES[int(place.name)])
    path = folder / name
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for image in sorted(folder.rglob("*.png")):
            digit = image.parent.name
            for caption in (f"the digit {digit}", f"a handwritten {digit}"):
                writer.writerow([image.relative_to(folder).as_posix(), caption])
    return path
