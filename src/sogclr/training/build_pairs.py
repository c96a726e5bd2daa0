"""From a configuration to the two towers of a run on pairs, with their first weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..config.schema import TrainConfig
from ..data.pair_columns import Kind
from ..data.pairs import Pairs
from ..errors import BadInput
from ..models.clip import ClipSetup, ClipStart, load_clip
from ..models.encoder import EncoderInfo
from ..models.text import TextSetup
from ..models.two_tower import TwoTowerModel, build_towers
from ..run_folder import RunFolder
from .resolve import tower_rates


def build_pair_model(
    config: TrainConfig, pairs: Pairs, run: RunFolder
) -> tuple[TwoTowerModel, TextSetup | None, ClipSetup | None]:
    """Return both towers, with weights drawn from the seed or given; the texts' tokenizer; and what a CLIP model's towers are.

    Args:
        config: resolved.
        pairs: what is trained on.
        run: where the run goes; one that has begun has its tokenizer, and its weights in a checkpoint.

    Raises:
        BadInput: frozen towers without weights, or weights that cannot be had.
    """
    begun, options = run.config_file.is_file(), config.model
    if not begun:
        _check_frozen(config, pairs.kinds)
    start = None if begun or options.clip is None else load_clip(options.clip)
    saved = ClipSetup.find(run.clip_folder) if begun else None
    clip = saved if start is None else start.setup
    text = _text_setup(config, pairs, run, start) if "texts" in pairs.kinds else None
    torch.manual_seed(config.run.seed)
    rates = tower_rates(config.pairs, pairs.kinds)
    model = build_towers(
        pairs.kinds,
        EncoderInfo.of_run(config),
        text,
        options.head_dim,
        shared=config.pairs.shared_tower,
        pretrained=options.pretrained,
        frozen=(rates[0] == 0, rates[1] == 0),
        clip=clip,
    )
    if start is not None:
        model.load_state_dict(start.weights)
    return model, text, clip


def _check_frozen(config: TrainConfig, kinds: tuple[Kind, Kind]) -> None:
    model, options = config.model, config.pairs
    if model.clip is not None:
        return
    if "images" in kinds and options.image_rate == 0 and model.pretrained is None and model.init_from is None:
        raise BadInput("--image-rate 0 freezes an encoder that knows nothing; give its weights with --pretrained FILE")
    if "texts" in kinds and options.text_rate == 0 and options.text_model is None and model.init_from is None:
        raise BadInput("--text-rate 0 freezes a text tower that knows nothing; give one with --text-model PATH")


def _text_setup(config: TrainConfig, pairs: Pairs, run: RunFolder, start: ClipStart | None) -> TextSetup:
    """Return the text towers' description and tokenizer: the run's own if it has begun, that of its start, or a new one."""
    options = config.pairs
    prompts = (options.query_prompt, options.document_prompt)
    if run.config_file.is_file():
        return TextSetup.load(run.text_folder)
    if start is not None:
        own = start.text.info
        prompts = prompts[0] or own.prompts[0], prompts[1] or own.prompts[1]
        return replace(start.text, info=replace(own, prompts=prompts))
    if config.model.init_from is not None:
        other = RunFolder.open(config.model.init_from)
        if not other.text_folder.is_dir():
            raise BadInput(f"{other.path} was trained on images alone; give its encoder with --pretrained instead")
        if other.clip_folder.is_dir():
            raise BadInput(f"{other.path} has the towers of a CLIP model; start from it with --clip {other.path}")
        return TextSetup.load(other.text_folder)
    if options.text_model is not None:
        return TextSetup.from_pretrained(options.text_model, options.text_length, options.pooling, prompts)
    columns = [pairs.ids(k)[pairs.usable] for k in (0, 1) if pairs.kinds[k] == "texts"]
    used = np.unique(np.concatenate([*columns, pairs.negatives[1]]))
    texts = (text for k in range(0, len(used), 4096) for text in pairs.texts_of(used[k : k + 4096]))
    return TextSetup.from_captions(
        texts, options.vocab_size, options.text_width, options.text_layers, options.text_length, prompts
    )
