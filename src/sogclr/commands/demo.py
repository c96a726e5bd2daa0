"""`sogclr demo`: the very commands that a user would type, on data that comes along."""

from __future__ import annotations

import os
from pathlib import Path

from ..data.wordnet import find_wordnet
from ..errors import BadInput
from ..progress import Progress
from .demo_digits import demo_digits
from .demo_pairs import demo_pairs
from .demo_steps import DemoResult
from .demo_texts import demo_texts


def demo(
    *,
    quick: bool = False,
    out: str | os.PathLike[str] | None = None,
    digits: bool = False,
    pairs: bool = False,
    texts: bool = False,
    language: str | None = None,
    quiet: bool = False,
) -> DemoResult:
    """See it work: trains on real data, compares, writes a report. Nothing is downloaded.

    Texts where WordNet is installed, which show what a small batch can do; else digits.

    Args:
        quick: A short run, only to see that everything works.
        out: Folder for the runs; runs/demo when left out. The data go to the cache folder.
        digits: Images: a thousand handwritten digits, a first look in two minutes.
        pairs: Images with captions: OpenMoji's emoji and their names, searched by words.
        texts: Texts with texts: WordNet's definitions and words, three seeds of a small batch beside a large one, and a reverse dictionary.
        language: With --pairs: captions in a second language too, such as de, fr, es, ja.
        quiet: Do not show the commands; what they print themselves is shown.

    Returns:
        The scores by method. Earlier runs of the demo in the folder are replaced.

    Raises:
        BadInput: the images or WordNet are not installed, or there is no such language.
        RunFailed: one of the commands failed.
    """
    from ..cli import main  # the demo types the commands that a user would

    folder = None if out is None else Path(out)
    if digits + pairs + texts > 1:
        raise BadInput("--digits, --pairs and --texts are three demos; give one of them")
    if pairs:
        return demo_pairs(main, quick, folder, language, Progress(quiet))
    if language is not None:
        raise BadInput(f"--language {language} is for captions; give --pairs too")
    if texts or not (digits or wordnet_is_missing(Progress(quiet))):
        return demo_texts(main, quick, folder, Progress(quiet))
    return demo_digits(main, quick, folder, Progress(quiet))


def wordnet_is_missing(progress: Progress) -> bool:
    """Return whether WordNet is not installed, and say then how to install it."""
    try:
        find_wordnet()
    except BadInput as error:
        progress.info(f"{error}\nUntil then: digits.")
        return True
    return False
