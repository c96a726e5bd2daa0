"""A text tower as the folder that Sentence Transformers loads, without this package."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import tokenizers
import torch

from ..errors import BadInput
from ..files import atomic_folder, check_new_folder
from ..models.hugging_face import import_transformers
from ..models.text import PretrainedText, TextTransformer
from ..models.text_as_esm import as_esm
from ..models.two_tower import TextTower
from .export_formats import check_same
from .export_texts import CHECKED

TOLERANCE = 1e-5


def export_sentence_transformer(tower: TextTower, served: Sequence[TextTower], folder: Path) -> Path:
    """Write encoder, tokenizer, pooling, projection and normalisation as Sentence Transformers' modules, with the prompts.

    Args:
        tower: what is written.
        served: the columns that it encodes, each as its tower: its prompt is the default where there is one alone.
        folder: new or empty; made whole or not at all.

    Raises:
        BadInput: the folder holds files, or a package is missing.
        RunFailed: the folder does not compute what PyTorch does; it is not kept.
    """
    check_new_folder(folder)
    package = _import_package()
    with atomic_folder(folder) as temporary, _quiet(), torch.inference_mode():
        _write(package, tower, len(served) == 1, temporary)
        model = package.SentenceTransformer(str(temporary), device="cpu", local_files_only=True)
        for one in served:
            prompt = tower.text.info.prompts[one.column]
            rows = model.encode(CHECKED, prompt=prompt, convert_to_tensor=True, show_progress_bar=False)
            check_same(rows, one.encode(CHECKED), "text tower", "try --format onnx", TOLERANCE)
    return folder


def _write(package: ModuleType, tower: TextTower, alone: bool, folder: Path) -> None:
    """Write the modules, the first of which Sentence Transformers takes from a folder."""
    modules, info, backbone = package.sentence_transformer.modules, tower.text.info, tower.backbone
    inner_tokenizer = tokenizers.Tokenizer.from_str(tower.text.tokenizer.inner.to_str())  # a copy: its owner changes it
    encoder, pooling = folder / "encoder", "mean"
    if isinstance(backbone, PretrainedText):
        inner, pooling = backbone.inner, backbone.pooling
    else:
        assert isinstance(backbone, TextTransformer), "a text tower is built in or from Hugging Face"
        inner = as_esm(backbone)
    head = cast(torch.nn.Linear, tower.head)
    cast(Any, inner).save_pretrained(encoder)
    tokenizer = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=inner_tokenizer,
        pad_token=inner_tokenizer.id_to_token(info.pad),
        model_max_length=info.length,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(encoder)
    model = package.SentenceTransformer(
        modules=[
            modules.Transformer(str(encoder), max_seq_length=info.length),
            modules.Pooling(tower.backbone.num_features, pooling),
            modules.Dense(
                tower.backbone.num_features,
                tower.num_features,
                bias=False,
                activation_function=torch.nn.Identity(),
                init_weight=head.weight.detach().clone(),
            ),
            modules.Normalize(),
        ],
        device="cpu",
        prompts=dict(zip(("query", "document"), info.prompts, strict=True)),
        default_prompt_name=("query", "document")[tower.column] if alone else None,
    )
    model.save(str(folder), create_model_card=False, safe_serialization=True)
    shutil.rmtree(encoder)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("sentence_transformers")
    before, logger.level = logger.level, logging.ERROR
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.level = before


def _import_package() -> ModuleType:
    import_transformers()
    try:
        import sentence_transformers
        import sentence_transformers.sentence_transformer.modules
    except ImportError:
        raise BadInput(
            "--format sentence-transformers needs the package of that name; install it: "
            "pip install 'sogclr[sentence-transformers]'"
        ) from None
    package: ModuleType = sentence_transformers
    return package
