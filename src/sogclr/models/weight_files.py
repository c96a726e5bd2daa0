"""Files of weights, .safetensors: the same bytes for the same weights, under a checksum of every one of them.

The header of such a file is JSON: its metadata, and of each tensor dtype, shape and place. The SHA-256 of all that and of
the tensors' bytes stands in the metadata; a file without one, from before or of somebody else, is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import BadInput
from ..files import atomic_write

_CHECKSUM = "checksum"
_METADATA = "__metadata__"
_WIDEST = 1 << 16


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata, all or nothing.

    Args:
        path: of the file.
        weights: name -> tensor; those that share memory are written each.
        metadata: name -> text.
    """
    apart = {k: v.detach().cpu().clone().contiguous() for k, v in weights.items()}
    with atomic_write(path) as temporary:
        save_file(apart, temporary, metadata={**metadata, _CHECKSUM: "0" * 64})
        with open(temporary, "r+b") as file:
            header, length = _read_header(file)
            said = {**header[_METADATA], _CHECKSUM: _digest(header, file)}
            header[_METADATA] = dict(sorted(said.items()))  # which safetensors writes in any order
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            assert len(text) <= length, "the same header in another order is no longer"
            file.seek(8)
            file.write(text.ljust(length))


def read_weights_file(path: Path, remedy: str = "restore it from a copy") -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, every byte as it was written.

    Args:
        path: of the file.
        remedy: what to do otherwise, for the error message.

    Raises:
        BadInput: it cannot be read, or does not match its checksum.
    """
    try:
        with open(path, "rb") as file:
            header, _ = _read_header(file)
            said = header.get(_METADATA, {}).get(_CHECKSUM)
            if said is not None and said != _digest(header, file):
                raise BadInput(f"{path} does not match its own checksum; {remedy}")
        return load_file(path)
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise unreadable(path, remedy) from None


def read_metadata(path: Path, format: str, remedy: str) -> dict[str, str]:
    """Read the metadata that `write_weights` wrote, without the tensors.

    Args:
        path: a .safetensors file.
        format: the one expected.
        remedy: what to do otherwise, for the error message.

    Raises:
        BadInput: the file cannot be read, or is of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError):
        raise unreadable(path, remedy) from None
    if metadata.get("sogclr") != format:
        raise BadInput(f"{path} is marked {metadata.get('sogclr')!r}, this version reads {format!r}; {remedy}")
    return metadata


def width_of(path: Path, metadata: Mapping[str, str], remedy: str = "restore it from a copy") -> int:
    """Return the width of the space of two towers, as the metadata of their file say.

    Raises:
        BadInput: they do not, or no space is so wide.
    """
    width = metadata.get("dim", "")
    if not (width.isdecimal() and 1 <= int(width[:9]) <= _WIDEST):
        raise BadInput(f"{path} says that its embeddings are {width[:20]!r} wide; {remedy}")
    return int(width)


def count_numbers(path: Path) -> int:
    """Return how many numbers the tensors of a readable file have together."""
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def unreadable(path: Path, remedy: str) -> BadInput:
    """Return the error of a file that is no .safetensors file."""
    return BadInput(f"{path} is no readable safetensors file (truncated, or of another kind); {remedy}")


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header and its length in bytes; the file is then where the tensors' bytes begin."""
    length = int.from_bytes(file.read(8), "little")
    header: dict[str, Any] = json.loads(file.read(min(length, 1 << 27)))
    return header, length


def _digest(header: Mapping[str, Any], file: BinaryIO) -> str:
    """Return the SHA-256 of a header without its checksum, and of all that follows in the file."""
    said = {k: v for k, v in header[_METADATA].items() if k != _CHECKSUM}
    digest = hashlib.sha256(json.dumps({**header, _METADATA: said}, sort_keys=True).encode())
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
