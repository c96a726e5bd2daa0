"""Text towers: a byte-level BPE tokenizer and a small transformer, or a Hugging Face encoder.

Its configuration and its tokenizer are saved with the run (`text/`), so that nothing else is needed to use it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from ..errors import BadInput
from ..files import make_folder, write_text
from .hugging_face import Pooling, find_encoder, import_transformers, pooling_of
from .open_clip_package import cleaning

# threads of the tokenizer and our reader processes would wait for each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PAD, START = "<pad>", "<start>"


class Tokenizer:
    """Texts -> int64 token ids (N, L), padded to the longest of the N texts.

    Args:
        inner: of the `tokenizers` package; its post-processor adds the special tokens that the model expects, and with
            `full` the side of its padding stays.
        length: L is at most this; longer texts are truncated.
        pad: id of the padding token.
        full: whether L is always `length`.
        clean: of `CLEANINGS`: how open_clip cleans texts first; nothing is done where it is empty.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, length: int, pad: int, *, full: bool = False, clean: str = ""
    ) -> None:
        self.inner, self.length, self.pad, self.full, self.clean = inner, length, pad, full, clean
        self._cleaned = cleaning(clean) if clean else None
        side = inner.padding["direction"] if full and inner.padding else "right"
        inner.enable_truncation(length)
        inner.enable_padding(direction=side, pad_id=pad, length=length if full else None)

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the token ids, int64 (N, L), of N texts."""
        if self._cleaned is not None:
            texts = [self._cleaned(text) for text in texts]
        return torch.tensor([e.ids for e in self.inner.encode_batch(texts)], dtype=torch.int64)


def train_tokenizer(captions: Iterable[str], vocab_size: int, length: int) -> Tokenizer:
    """Train a byte-level, case-insensitive BPE tokenizer; it encodes text of any script.

    Args:
        captions: the texts to train on, read once.
        vocab_size: most tokens of the vocabulary.
        length: most tokens of a text.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START],
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(captions, trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(f"{START} $A", special_tokens=[(START, 1)])
    return Tokenizer(inner, length, pad=0)


class TextTransformer(nn.Module):
    """A pre-norm transformer encoder. int64 tokens (N, L) -> (N, width): the mean over the tokens that are no padding.

    Args:
        vocab_size: number of token ids.
        width: of the embeddings and of the output.
        layers: number of transformer layers; 0 leaves the mean of the embeddings, a bag of tokens.
        heads: attention heads of a layer.
        length: L is at most this.
        pad: id of the padding token.
    """

    def __init__(self, vocab_size: int, width: int, layers: int, heads: int, length: int, pad: int = 0) -> None:
        super().__init__()
        self.num_features, self.pad = width, pad
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.blocks = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False) if layers else None
        for name, parameter in self.named_parameters():  # TransformerEncoder copies one layer: initialize each anew
            if parameter.ndim >= 2:
                deep = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if deep else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the features (N, width) of tokens (N, L)."""
        empty = tokens == self.pad
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        return mean_over_tokens(x if self.blocks is None else self.blocks(x, src_key_padding_mask=empty), ~empty)


class PretrainedText(nn.Module):
    """A Hugging Face text encoder. int64 tokens (N, L) -> (N, hidden_size), pooled over the tokens.

    Args:
        inner: the model; its output has `last_hidden_state`.
        pad: id of the padding token.
        pooling: the mean over the tokens but padding, or the first token (cls).
    """

    def __init__(self, inner: nn.Module, pad: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.inner, self.pad, self.pooling = inner, pad, pooling
        self.num_features = int(cast(Any, inner.config).hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the features (N, hidden_size) of tokens (N, L)."""
        there = tokens != self.pad
        hidden: Tensor = self.inner(input_ids=tokens, attention_mask=there.long()).last_hidden_state
        return hidden[:, 0] if self.pooling == "cls" else mean_over_tokens(hidden, there)


def mean_over_tokens(hidden: Tensor, there: Tensor) -> Tensor:
    """Average `hidden` (N, L, D) over L where `there`, bool (N, L), is true -> (N, D)."""
    weight = there.to(hidden.dtype)[:, :, None]
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class TextInfo:
    """The configuration of a text tower, from which it can be built again."""

    vocab_size: int
    """Number of token ids."""
    length: int
    """Most tokens of a text."""
    pad: int
    """Id of the padding token."""
    width: int = 0
    """Of the built-in transformer; 0 for a Hugging Face encoder, as the next two."""
    layers: int = 0
    heads: int = 0
    hugging_face: dict[str, Any] | None = None
    """The configuration of a Hugging Face encoder; None for the built-in one."""
    pooling: Pooling = "mean"
    """Over the tokens of a Hugging Face encoder."""
    prompts: tuple[str, str] = ("", "")
    """What is put before each text of the first column of pairs, and of the second."""
    full: bool = False
    """Whether every text is padded to `length`, as SigLIP's are."""
    clean: str = ""
    """How open_clip cleans texts before they are cut, one of its `CLEANINGS`; nothing is done where it is empty."""

    def to_table(self) -> dict[str, Any]:
        """Return all fields, without those that older runs do not know where they are the default."""
        return {k: v for k, v in asdict(self).items() if v or k not in ("full", "clean")}


@dataclass(frozen=True)
class TextSetup:
    """A text tower's configuration and tokenizer."""

    info: TextInfo
    tokenizer: Tokenizer
    weights: Path | None = None
    """Folder of a Hugging Face encoder with pretrained weights; None starts from random ones."""

    @classmethod
    def from_captions(
        cls,
        captions: Iterable[str],
        vocab_size: int,
        width: int,
        layers: int,
        length: int,
        prompts: tuple[str, str] = ("", ""),
    ) -> TextSetup:
        """Set up a built-in transformer, with a tokenizer trained on the captions.

        Args:
            captions: the texts to train the tokenizer on, read once.
            vocab_size: most tokens of the vocabulary.
            width: of the transformer; it gets a head for each 64.
            layers: of the transformer.
            length: most tokens of a text.
            prompts: before each text of the first column, and of the second.
        """
        tokenizer = train_tokenizer(captions, vocab_size, length)
        heads = max(1, width // 64)
        vocabulary = tokenizer.inner.get_vocab_size()
        return cls(TextInfo(vocabulary, length, tokenizer.pad, width, layers, heads, prompts=prompts), tokenizer)

    @classmethod
    def from_pretrained(
        cls, name: str, length: int, pooling: Pooling | None = None, prompts: tuple[str, str] = ("", "")
    ) -> TextSetup:
        """Set up a pretrained Hugging Face encoder.

        Args:
            name: a local folder, an installed package that carries one, or a name on the Hugging Face hub.
            length: most tokens of a text; less where the encoder has fewer positions.
            pooling: of the tokens; what its folder says (1_Pooling), else mean, when left out.
            prompts: before each text of the first column, and of the second.

        Raises:
            BadInput: no such folder or package, no fast tokenizer in it, or `transformers` is not installed.
        """
        folder = find_encoder(name)
        config = import_transformers().AutoConfig.from_pretrained(str(folder), local_files_only=True)
        if not (folder / "tokenizer.json").is_file():
            raise BadInput(f"{folder} has no tokenizer.json; save it with transformers' fast tokenizer")
        inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        length = min(length, getattr(config, "max_position_embeddings", length))
        pad = config.pad_token_id if config.pad_token_id is not None else 0
        info = TextInfo(
            inner.get_vocab_size(),
            length,
            pad,
            hugging_face=config.to_dict(),
            pooling=pooling or pooling_of(folder),
            prompts=prompts,
        )
        return cls(info, Tokenizer(inner, length, pad), folder)

    def tokens(self, texts: list[str], column: int) -> Tensor:
        """Return the token ids, int64 (N, L), of N texts of a column (0 or 1), with its prompt before each."""
        prompt = self.info.prompts[column]
        return self.tokenizer([prompt + text for text in texts] if prompt else texts)

    def build(self) -> nn.Module:
        """Build the tower, with its first weights."""
        info = self.info
        if info.hugging_face is None:
            return TextTransformer(info.vocab_size, info.width, info.layers, info.heads, info.length, info.pad)
        transformers = import_transformers()
        usual = {"attn_implementation": None}  # where a configuration may name code on the hub
        if self.weights is not None:
            try:
                inner = transformers.AutoModel.from_pretrained(
                    str(self.weights), local_files_only=True, use_safetensors=True, **usual
                )
            except OSError:
                raise BadInput(f"{self.weights} has no model.safetensors; save the encoder in that format") from None
        else:
            config = transformers.AutoConfig.for_model(**info.hugging_face)
            inner = transformers.AutoModel.from_config(config, **usual)
        return PretrainedText(inner.float(), info.pad, info.pooling)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `tokenizer.json` to `folder`."""
        make_folder(folder)
        write_text(folder / "tokenizer.json", self.tokenizer.inner.to_str())
        write_text(folder / "config.json", json.dumps(self.info.to_table(), indent=2))

    @classmethod
    def load(cls, folder: Path) -> TextSetup:
        """Read what `save` wrote.

        Raises:
            BadInput: a file is missing or damaged.
        """
        try:
            table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            info = TextInfo(**{**table, "prompts": tuple(table.get("prompts", ("", "")))})
            inner = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        except Exception as error:  # the tokenizer raises bare exceptions
            raise BadInput(
                f"{folder} does not hold the text tower of a run ({error}); restore it from a copy"
            ) from None
        return cls(info, Tokenizer(inner, info.length, info.pad, full=info.full, clean=info.clean))
