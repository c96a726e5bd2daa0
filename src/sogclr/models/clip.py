"""CLIP and SigLIP models to start from: of Hugging Face, of open_clip, or a run of ours; and what a run keeps of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..data.inputs import Inputs
from ..data.pair_columns import IMAGE_TEXT
from ..errors import BadInput, RunFailed
from ..files import atomic_write, make_folder, write_text
from ..run_folder import RunFolder, load_checkpoint
from . import clip_hugging_face, clip_open_clip
from .backbone import CLIP
from .clip_parts import ClipParts, Original
from .encoder import read_info_of
from .hugging_face import import_transformers
from .text import TextInfo, TextSetup
from .weight_files import read_weights_file, width_of

Library = Literal["hugging-face", "open-clip"]
LIBRARIES: dict[str, ModuleType] = {"hugging-face": clip_hugging_face, "open-clip": clip_open_clip}
"""Name, a format of `export` too -> its `load_original`, `check_config`, `build_parts` and `write_model`."""
TWO_TOWER_FORMAT = "sogclr-two-tower-1"
TOLERANCE = 1e-5  # of unit rows
CHECKED = ("a photo of a cat", "Two Dogs,  and\tthe number 1234!", "", "so long that it does not fit " * 60)
"""Texts that a model is checked on."""
_SETUP = "setup.json"


@dataclass(frozen=True)
class ClipSetup:
    """What a model of another library is, from which it is built again and written back."""

    library: Library
    name: str
    """As the user said it, without the place on this machine."""
    config: dict[str, Any]
    """The library's own, checked."""
    files: dict[str, bytes]
    """Of its tokenizer, by name."""
    bias: float | None = None
    """SigLIP's, which only its own loss trains on."""

    def build(self) -> ClipParts:
        """Build both towers, with random weights.

        Raises:
            BadInput: the library cannot build them, or is not installed.
        """
        try:
            parts: ClipParts = LIBRARIES[self.library].build_parts(self.config)
        except BadInput:
            raise
        except Exception as error:  # whatever a library says of a configuration that somebody has changed
            reason = " ".join(str(error).split())[:160]
            raise BadInput(f"{self.library} cannot build the model {self.name} ({reason}); restore its files") from None
        return parts.float()

    def save(self, folder: Path) -> None:
        """Write `setup.json` and the files of the tokenizer to `folder`."""
        make_folder(folder)
        for name, content in self.files.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(content)
        table = {"library": self.library, "name": self.name, "config": self.config, "files": sorted(self.files)}
        write_text(folder / _SETUP, json.dumps(table | {"bias": self.bias}, indent=2))

    @classmethod
    def find(cls, folder: Path) -> ClipSetup | None:
        """Read what `save` wrote, as `load`; None where there is no such folder."""
        return cls.load(folder) if folder.is_dir() else None

    @classmethod
    def load(cls, folder: Path) -> ClipSetup:
        """Read what `save` wrote.

        Raises:
            BadInput: a file is missing or damaged, or asks for what no model here has.
        """
        try:
            table = json.loads((folder / _SETUP).read_text(encoding="utf-8"))
            library, config = table["library"], LIBRARIES[table["library"]].check_config(table["config"], str(folder))
            files = {Path(name).name: (folder / Path(name).name).read_bytes() for name in table["files"]}
            bias = None if table.get("bias") is None else float(table["bias"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{folder} does not hold the model of a run ({error!r}); restore it from a copy") from None
        return cls(library, str(table["name"]), config, files, bias)


@dataclass(frozen=True)
class ClipStart:
    """A model to start from, with its weights."""

    setup: ClipSetup | None
    """None of towers of our own, which a run without a `clip/` has."""
    model: str
    """Name of the image encoder, as `EncoderInfo` has it."""
    dim: int
    """Width of the common space."""
    text: TextSetup
    inputs: Inputs
    image_size: int
    temperature: float
    bias: float | None
    """SigLIP's."""
    weights: dict[str, Tensor]
    """By their names in a `TwoTowerModel`."""


def load_clip(what: str) -> ClipStart:
    """Load a model to start from; a name may be downloaded.

    Args:
        what: a folder or hub name of Hugging Face, `ARCHITECTURE:WEIGHTS` of open_clip, or the folder of a run of ours.

    Raises:
        BadInput: there is none, it is of another kind, or a package is missing.
        RunFailed: it does not compute here what it computes in its own library.
    """
    place = Path(what)
    if RunFolder(place).config_file.is_file():
        return _of_run(RunFolder(place))
    if not place.exists() and ":" in what:
        architecture, _, weights = what.partition(":")
        name = architecture if Path(weights).is_file() else what
        return _of_original("open-clip", name, what, what)
    name, folder = what, place
    if place.is_dir():
        name = place.resolve().name
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", what):
        folder = _from_hub(what)
    if (folder / "config.json").is_file():
        return _of_original("hugging-face", name, what, str(folder))
    if (folder / clip_open_clip.CONFIG).is_file():
        return _of_original("open-clip", name, what, str(folder))
    raise BadInput(
        f"--clip {what} is no folder of a CLIP or SigLIP model (config.json, {clip_open_clip.CONFIG}) nor of a run; give one, "
        "a name on the Hugging Face hub, as organisation/name, or open_clip's ARCHITECTURE:WEIGHTS"
    )


def _of_original(library: Library, name: str, what: str, source: str) -> ClipStart:
    """Return a model of another library, after a check that what is built from it computes the same."""
    try:
        original: Original = LIBRARIES[library].load_original(source)
    except BadInput:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:  # sizes that are words, ...
        raise BadInput(
            f"a file of --clip {what} is not as {library} writes it ({error!r}); restore the model"
        ) from None
    tokenizer = original.tokenizer
    info = TextInfo(
        tokenizer.inner.get_vocab_size(), tokenizer.length, tokenizer.pad, full=tokenizer.full, clean=tokenizer.clean
    )
    config = LIBRARIES[library].check_config(original.config, what)
    setup = ClipSetup(library, name, config, original.files, original.logit_bias)
    start = ClipStart(
        setup=setup,
        model=f"{CLIP}{name}",
        dim=int(original.parts.head.out_features),
        text=TextSetup(info, tokenizer),
        inputs=original.inputs,
        image_size=original.image_size,
        temperature=math.exp(-original.logit_scale),
        bias=original.logit_bias,
        weights=original.parts.state_dict(),
    )
    parts = setup.build()
    parts.load_state_dict(start.weights)
    check_same_rows(parts, start.text, start.image_size, original, f"--clip {what}")
    return start


@torch.inference_mode()
def check_same_rows(parts: ClipParts, text: TextSetup, image_size: int, original: Original, what: str) -> None:
    """Compare what towers compute with what the library computes, on images of noise and `CHECKED`.

    Args:
        parts: of the model.
        text: its tokenizer.
        image_size: S, pixels.
        original: the same model in its library.
        what: the model is, for the message.

    Raises:
        RunFailed: the unit rows differ.
    """
    parts.eval()
    images, texts = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)), list(CHECKED)
    tokens = text.tokenizer(texts)
    found = parts.head(parts.backbone(images)), parts.text_head(parts.text_backbone(tokens))
    for kind, mine, theirs in zip(IMAGE_TEXT, found, original.encode(images, texts), strict=True):
        error = (
            float((functional.normalize(mine, dim=1) - theirs).abs().max()) if mine.shape == theirs.shape else math.nan
        )
        if not error <= TOLERANCE:
            raise RunFailed(
                f"the embeddings of {kind} by {what} differ by {error:.2g} from those of its own library, where {TOLERANCE:g} "
                "is rounding; report this model, and use another one"
            )


def _from_hub(name: str) -> Path:
    """Return the folder of a model in the hub's cache, to which it is downloaded first."""
    import_transformers()
    import huggingface_hub

    try:
        files = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except Exception as error:  # not there, no network, no permission: one sentence for all of them
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"--clip {name} is no folder here and could not be had from the Hugging Face hub ({reason}); "
            f"where there is a network run `hf download {name}`, bring the folder, and give its path"
        ) from None


# ---------------------------------------------------------------------------------------------------------- runs of ours
def _of_run(run: RunFolder) -> ClipStart:
    """Return the towers of a finished run on images and texts."""
    columns = run.pair_columns()
    if columns is None or columns[1] != IMAGE_TEXT:
        raise BadInput(f"--clip {run.path} was not trained on images with texts; give a run that was")
    if not run.finished:
        raise BadInput(f"--clip {run.path} is not finished; resume it first: sogclr resume {run.path}")
    info, metadata = read_info_of(run.two_tower_file, TWO_TOWER_FORMAT, "restore it from a copy")
    text = TextSetup.load(run.text_folder)
    setup = ClipSetup.find(run.clip_folder)
    temperature, bias = temperature_of(run, setup)
    return ClipStart(
        setup=setup,
        model=info.name,
        dim=width_of(run.two_tower_file, metadata),
        text=text,
        inputs=info.inputs,
        image_size=info.image_size,
        temperature=temperature,
        bias=bias,
        weights=read_weights_file(run.two_tower_file),
    )


def temperature_of(run: RunFolder, setup: ClipSetup | None, mix: float = 1.0) -> tuple[float, float | None]:
    """Return tau of a run, of temperatures for each sample their geometric mean; and SigLIP's bias, if any.

    Args:
        run: finished.
        setup: what its towers are, whose bias stays where none is trained.
        mix: the share of the end of the run in log tau and the bias, as in its weights; 0 is its start.
    """
    loss = run.config().loss
    checkpoint = run.end_checkpoint()
    state = {} if checkpoint is None else load_checkpoint(checkpoint)["loss"]
    start = end = math.log(loss.temperature or 0.1)
    bias = loss.bias if loss.bias is not None or setup is None else setup.bias
    if "log_scale" in state:  # SigLIP's loss learns both
        end = -float(state["log_scale"])
        bias = (1 - mix) * (loss.bias or 0.0) + mix * float(state["bias"])
    learned = [state[key].float().reshape(-1) for key in ("temperature.tau", "text_temperature.tau") if key in state]
    if learned:
        end = float(torch.cat(learned).log().mean())
    return math.exp((1 - mix) * start + mix * end), bias
