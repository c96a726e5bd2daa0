"""A text tower as one file for other runtimes, with its tokenizer beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from ..files import atomic_write, check_output, write_text
from ..models.two_tower import TextTower
from .export_formats import SUFFIXES, check_same, run_onnx, run_torchscript, write_onnx, write_torchscript

CHECKED = ["", "a", "several words, and a number: 1234", "so long that it does not fit " * 200]
"""Texts that an exported tower is checked on: of different lengths, so that there is padding."""


def export_text_tower(tower: TextTower, served: Mapping[str, TextTower], format: str, path: Path) -> Path:
    """Write a text tower as TorchScript or ONNX, `NAME.tokenizer.json`, and `NAME.json` with what a caller has to know.

    Args:
        tower: what is written.
        served: the columns that it encodes, each as its tower.
        format: torchscript or onnx.
        path: of the file NAME.pt or NAME.onnx.

    Raises:
        BadInput: a file cannot be written there, or a package is missing.
        RunFailed: the file does not compute what PyTorch does; it is not kept.
    """
    check_output(path, [SUFFIXES[format]])
    text, info = tower.text, tower.text.info
    example = torch.full((2, info.length if info.full else min(3, info.length)), int(info.pad == 0))  # no padding
    tokens = text.tokens(CHECKED, tower.column)
    with atomic_write(path) as temporary, torch.inference_mode():
        if format == "torchscript":
            write_torchscript(temporary, tower, example)
            found = run_torchscript(temporary, tokens)
        else:
            write_onnx(temporary, tower, example, "tokens", None if info.full else info.length)
            found = run_onnx(temporary, tokens)
        check_same(found, tower(tokens), "text tower", "try another --format")
    about = {
        "prompts": {name: info.prompts[one.column] for name, one in served.items()},
        "length": info.length,
        "pad": info.pad,
        "width": tower.num_features,
    } | {k: v for k, v in info.to_table().items() if k in ("full", "clean")}
    write_text(path.with_suffix(".tokenizer.json"), text.tokenizer.inner.to_str())
    write_text(path.with_suffix(".json"), json.dumps(about, indent=2))
    return path
