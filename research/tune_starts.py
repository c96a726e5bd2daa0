"""What tune.py adapts: a small CLIP in Hugging Face's format and two towers of texts, trained by CLIP's loss at a large batch, and the pairs that each is tuned on."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

import sogclr
from sogclr.commands.export import export
from sogclr.models.hugging_face import import_transformers

from .tune_data import clothes, emoji, wordnet

SEED = 1000
SIDE, PATCH, WIDTH, TOKENS, VOCABULARY = 64, 16, 64, 16, 2000
TEXT_WIDTH = 128
ENDS = ("<|startoftext|>", "<|endoftext|>")
SAME: dict[str, Any] = {"workers": 0, "threads": 1, "device": "cpu", "precision": "fp32", "quiet": True}


def write_clip(folder: Path, captions: list[str]) -> Path:
    """Write a CLIP of 2 million weights as Hugging Face has it, with random weights and a tokenizer of the captions."""
    transformers = import_transformers()
    inner = tokenizers.Tokenizer(models.BPE(unk_token=ENDS[1], end_of_word_suffix="</w>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=list(ENDS), end_of_word_suffix="</w>", show_progress=False
        ),
    )
    start, end = (inner.token_to_id(token) for token in ENDS)
    inner.post_processor = processors.TemplateProcessing(
        f"{ENDS[0]} $A {ENDS[1]}", special_tokens=[(ENDS[0], start), (ENDS[1], end)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=ENDS[0], eos_token=ENDS[1], pad_token=ENDS[1], model_max_length=TOKENS
    )
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {
        "vocab_size": inner.get_vocab_size(),
        "max_position_embeddings": TOKENS,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    torch.manual_seed(SEED)
    config = transformers.CLIPConfig(
        text_config=tower | text,
        vision_config=tower | {"image_size": SIDE, "patch_size": PATCH},
        projection_dim=WIDTH,
    )
    transformers.CLIPModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(str(folder))
    return folder


def clip_start(folder: Path, tables: dict[str, Path], epochs: int) -> Path:
    """Return the folder of a CLIP trained from nothing at B = 128, in Hugging Face's format; made once."""
    place = folder / "start"
    if not place.is_dir():
        with tempfile.TemporaryDirectory() as name, open(tables["before"], newline="", encoding="utf-8") as file:
            captions = [caption for _, caption in list(csv.reader(file))[1:]]
            first, run = write_clip(Path(name) / "first", captions), Path(name) / "run"
            options = {"batch_size": 128, "epochs": epochs, "lr": 2e-3, "seed": SEED, "warm_start": "none"}
            sogclr.train(tables["before"], run, clip=str(first), method="clip", **options, **SAME)
            export(run, "hugging-face", place, quiet=True)
    return place


def text_start(folder: Path, tables: dict[str, Path], epochs: int) -> Path:
    """Return a run on texts, bags of tokens, trained by CLIP's loss at B = 512; made once."""
    place = folder / "start"
    if not place.is_dir():
        options = {"batch_size": 512, "epochs": epochs, "lr": 5e-3, "seed": SEED, "temperature": 0.07}
        shape = {"columns": "definition,words", "text_layers": 0, "text_width": TEXT_WIDTH, "text_length": 32}
        with tempfile.TemporaryDirectory(dir=folder) as name:
            run = sogclr.train(tables["before"], Path(name) / "run", method="clip", **shape, **options, **SAME)
            run.path.rename(place)
    return place


@dataclass(frozen=True)
class Adaptation:
    """Towers that know something, and pairs to tune them on."""

    title: str
    tables: Callable[..., dict[str, Path]]
    start: Callable[[Path, dict[str, Path], int], Path]
    begin_with: str
    """The option that names the start."""
    epochs_before: int
    epochs: int
    rates: dict[int, tuple[float, ...]]
    """Batch size -> four of them."""
    scores: tuple[str, ...]
    """Whose mean is shown."""
    options: dict[str, Any]
    begins_as: str | None = None
    """Another adaptation, whose start and tables it has."""


BOTH = ("image_to_text_r5", "text_to_image_r5")
ADAPTATIONS = {
    "emoji": Adaptation(
        "emoji in lines, tuned on emoji in colour (recall at 5, mean of both ways)",
        emoji,
        clip_start,
        "clip",
        150,
        6,
        {32: (1e-3, 2e-3, 4e-3, 8e-3), 256: (5e-4, 1e-3, 2e-3, 4e-3)},
        BOTH,
        {},
    ),
    "clothes": Adaptation(
        "photographs of clothes, tuned on others (zero-shot accuracy, 14 classes)",
        clothes,
        clip_start,
        "clip",
        150,
        6,
        {32: (3e-4, 1e-3, 2e-3, 4e-3), 256: (3e-4, 1e-3, 2e-3, 4e-3)},
        ("image_to_text_r1",),
        {},
    ),
    "wordnet": Adaptation(
        "definitions and words, tuned on the same (recall at 1, mean of both ways)",
        wordnet,
        text_start,
        "init_from",
        12,
        2,
        {32: (3e-5, 1e-4, 3e-4, 1e-3), 256: (1e-4, 3e-4, 1e-3, 3e-3)},
        ("query_to_document_r1", "document_to_query_r1"),
        {"columns": "definition,words", "temperature": 0.07, "text_layers": 0, "text_width": 128, "text_length": 32},
    ),
}
LOW_TAU = 0.02
ADAPTATIONS |= {
    f"{name}-{LOW_TAU}": replace(
        ADAPTATIONS[name],
        title=f"{ADAPTATIONS[name].title}, at tau {LOW_TAU}",
        options=ADAPTATIONS[name].options | {"temperature": LOW_TAU},
        begins_as=name,
    )
    for name in ("wordnet", "clothes")
}
