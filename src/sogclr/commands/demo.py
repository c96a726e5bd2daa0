"""`sogclr demo`: the very commands that a user would type, on data that comes along."""

from __future__ import annotations

import os
from pathlib import Path

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
    pairs: bool = False,
    texts: bool = False,
    language: str | None = None,
    quiet: bool = False,
) -> DemoResult:
    """See it work: trains on real digits, compares, writes a report. Nothing is downloaded.

    Args:
        quick: A short run, only to see that everything works.
        out: Folder for the runs; runs/demo when left out. The images go to the cache folder.
        pairs: Images with captions instead: OpenMoji's emoji and their names, searched by words.
        texts: Texts with texts instead: WordNet's definitions and words, a small batch beside a large one, and a reverse dictionary.
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
    if pairs and texts:
        raise BadInput("--pairs and --texts are two demos; give one of them")
    if pairs:
        return demo_pairs(main, quick, folder, language, Progress(quiet))
    if language is not None:
        raise BadInput(f"--language {language} is for captions; give --pairs too")
    if texts:
        return demo_texts(main, quick, folder, Progress(quiet))
    return demo_digits(main, quick, folder, Progress(quiet))
