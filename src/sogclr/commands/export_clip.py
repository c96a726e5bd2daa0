"""Both towers of a run in the format of the library that they came from, which loads them without this package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

from ..errors import BadInput
from ..files import atomic_folder
from ..models.clip import LIBRARIES, check_same_rows, temperature_of
from ..models.clip_parts import ClipParts, ClipTower
from ..models.two_tower import load_two_tower
from ..progress import Progress
from ..run_folder import RunFolder
from .export_card import write_clip_card

_CALLS = {
    "hugging-face": "from transformers import AutoModel, AutoProcessor\n"
    "model = AutoModel.from_pretrained({0!r})\nprocessor = AutoProcessor.from_pretrained({0!r})",
    "open-clip": "import open_clip\nmodel, _, transform = open_clip.create_model_and_transforms({1!r})\n"
    "tokenizer = open_clip.get_tokenizer({2!r})",
}
"""Library -> the lines that load a folder; of open_clip its tokenizer is that of an architecture or of the folder."""


def export_clip(run: RunFolder, format: str, folder: Path, mix: float, progress: Progress) -> Path:
    """Write both towers, temperature, tokenizer and preprocessing, and a model card.

    Args:
        run: finished, and started from a model of that library.
        format: hugging-face or open-clip.
        folder: new or empty; made whole or not at all.
        mix: the share of what the run trained, in a mix with what it started from.
        progress: for the lines that load it.

    Raises:
        BadInput: the run's towers are of another kind, the folder holds files, or a package is missing.
        RunFailed: the folder does not compute what the run does; it is not kept.
    """
    towers, library = load_two_tower(run, mix=mix), LIBRARIES[format]
    setup, model = towers.clip, towers.model
    if setup is None or setup.library != format or towers.text is None:
        made = "of our own" if setup is None else f"those of a model of {setup.library}"
        fitting = "onnx" if setup is None else setup.library
        raise BadInput(f"--format {format} is not for {run.path}, whose towers are {made}; give --format {fitting}")
    info, (temperature, bias) = towers.info, temperature_of(run, setup, mix)
    weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    with atomic_folder(folder) as temporary:
        library.write_model(
            temporary, setup.config, setup.files, weights, info.inputs, (-math.log(temperature), bias or 0.0)
        )
        images, texts = (cast(ClipTower, model.parts(column)[0]) for column in (0, 1))
        parts, original = ClipParts(images, texts, model.head, model.text_head), library.load_original(str(temporary))
        check_same_rows(parts, towers.text, info.image_size, original, "the exported model")
        inside, here = (
            _CALLS[format].format(place, f"local-dir:{place}", setup.config.get("name") or f"local-dir:{place}")
            for place in (folder.name, str(folder))
        )
        write_clip_card(temporary / "README.md", setup, inside, towers.text.info.prompts[1], run, mix)
    progress.info(here)
    return folder
