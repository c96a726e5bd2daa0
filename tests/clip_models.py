"""Small CLIP and SigLIP models with drawn weights, as their own libraries write them."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from captioned import NAMES
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [f"{what} {name}" for name in NAMES for what in ("the digit", "a handwritten", "a photo of")]
SMALL_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STARTED = {"epochs": 1, "batch_size": 32, "workers": 0, "device": "cpu", "precision": "fp32", "threads": 1}
"""Options of a short run that starts from one of them."""


def write_tokenizer(folder: Path, kind: str) -> int:
    """A real BPE tokenizer, trained on `SENTENCES`: CLIP's with an end token, SigLIP's with one that is padding too."""
    import transformers

    inner = tokenizers.Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    first, last = (inner.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    shape = "<|startoftext|> $A <|endoftext|>" if kind == "clip" else "$A <|endoftext|>"
    inner.post_processor = processors.TemplateProcessing(
        shape, special_tokens=[("<|startoftext|>", first), ("<|endoftext|>", last)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    ).save_pretrained(folder)
    return int(last)


def write_hugging_face(folder: Path, kind: str, *, old_end: bool = False) -> Path:
    """A model of `kind`, clip or siglip, for 32-pixel images, with its tokenizer and preprocessing.

    Args:
        folder: to write.
        kind: its `model_type`.
        old_end: whether its configuration has the wrong end token of old CLIPs, 2, which stands for the largest id.
    """
    import transformers

    folder.mkdir(parents=True)
    last = write_tokenizer(folder, kind)
    torch.manual_seed(0)
    text = SMALL_TOWER | {"vocab_size": 400, "max_position_embeddings": 12 if kind == "clip" else 10}
    vision = SMALL_TOWER | {"image_size": 32, "patch_size": 8}
    if kind == "clip":
        text |= {"eos_token_id": 2 if old_end else last, "bos_token_id": 0, "pad_token_id": last}
        vision["hidden_size"] = 48
        config = transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=24, initializer_factor=8.0
        )
        model = transformers.CLIPModel(config)
        about = {"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True, "resample": 3}
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
        with torch.no_grad():
            model.logit_scale.fill_(2.5)
            model.logit_bias.fill_(-4.0)
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(2)
        about = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder
