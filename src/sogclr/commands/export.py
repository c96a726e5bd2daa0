"""`export`: the encoder for use elsewhere, each file checked against PyTorch before it gets its name."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput, RunFailed
from ..evaluation.label_free import refuse_non_finite
from ..files import atomic_write, check_output
from ..models.backbone import timm
from ..models.encoder import Encoder, load_encoder, save_encoder
from ..models.two_tower import load_two_tower
from ..run_folder import RunFolder

SUFFIXES = {"timm": ".safetensors", "safetensors": ".safetensors", "torchscript": ".pt", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of the largest feature: what other kernels may differ by
OPSET = 18


def export(
    run: str | os.PathLike[str],
    format: Literal["timm", "safetensors", "torchscript", "onnx"] = "timm",
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the encoder for use elsewhere, checked against PyTorch.

    `timm` and `safetensors` are one file: `timm.create_model(name, num_classes=0, checkpoint_path=file)` loads it
    strictly, and so does `load_encoder`. TorchScript and ONNX take normalised float32 images (N, 3, S, S), any N, and give
    features (N, D). Of a run on pairs these two are the whole image tower, with its projection: unit rows,
    to be multiplied with those of the texts; `timm` is its backbone alone, as timm knows no projections.

    Args:
        run: A run's folder, or an exported encoder. Of a run on pairs, the image tower.
        format: timm and safetensors: weights that timm.create_model(checkpoint_path=) loads.
        out: The file; encoder (or image_tower) with the suffix of its format, in the run's folder, when left out.

    Returns:
        The file.

    Raises:
        BadInput: no such encoder or format, its features are not finite, or a package that the format needs is missing.
        RunFailed: the file does not compute what PyTorch does; it is not kept.
    """
    if format not in SUFFIXES:
        raise BadInput(f"there is no format {format!r}; give one of {', '.join(SUFFIXES)}")
    encoder, source = _to_export(Path(run), format)
    path = source.with_suffix(SUFFIXES[format]) if out is None else Path(out)
    check_output(path, [SUFFIXES[format]])
    if path.resolve() == source.resolve():
        _check(path, encoder, _run_timm)
        return path
    with atomic_write(path) as temporary:
        if format == "torchscript":
            _write_torchscript(temporary, encoder)
            _check(temporary, encoder, _run_torchscript)
        elif format == "onnx":
            _write_onnx(temporary, encoder)
            _check(temporary, encoder, _run_onnx)
        else:
            _write_timm(temporary, encoder)
            _check(temporary, encoder, _run_timm)
    return path


def _to_export(place: Path, format: str) -> tuple[Encoder, Path]:
    """Return what is written, and the file whose name the new one takes, with another suffix."""
    if format in ("torchscript", "onnx") and place.is_dir() and RunFolder(place).holds_pairs():
        towers = load_two_tower(place)
        return towers.images, place / "image_tower.safetensors"
    return load_encoder(place), RunFolder(place).encoder_file if place.is_dir() else place


def _check(path: Path, encoder: Encoder, run: Callable[[Path, Encoder, Tensor], Tensor]) -> None:
    """Compare a file with PyTorch, on another number of images than it was traced with.

    Raises:
        RunFailed: they differ.
    """
    size = encoder.info.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = encoder(images), run(path, encoder, images)
    refuse_non_finite(expected.numpy())
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if found.shape != expected.shape or not error <= TOLERANCE * max(scale, 1e-6):
        raise RunFailed(
            f"the exported {encoder.info.name} differs from PyTorch by {error:.2g} where features go up to {scale:.2g}; "
            "nothing was written, try --format timm"
        )


# ----------------------------------------------------------------------------------------------------------------- timm
def _write_timm(path: Path, encoder: Encoder) -> None:
    save_encoder(path, encoder.backbone, encoder.info)


def _run_timm(path: Path, encoder: Encoder, images: Tensor) -> Tensor:
    """Compute features as a user of timm would, who never heard of us."""
    options = {"img_size": encoder.info.image_size} if hasattr(encoder.backbone, "patch_embed") else {}
    model = timm.create_model(encoder.info.name, num_classes=0, checkpoint_path=str(path), **options)
    features: Tensor = model.eval()(images)
    return features


# ---------------------------------------------------------------------------------------------------------- TorchScript
def _write_torchscript(path: Path, encoder: Encoder) -> None:
    size = encoder.info.image_size
    with warnings.catch_warnings():
        # Tracing is torch's supported way to a file that runs without Python; it warns of what newer ways there are.
        warnings.simplefilter("ignore")
        example = torch.zeros(2, 3, size, size)
        trace: Callable[..., torch.jit.ScriptModule] = torch.jit.trace
        traced = trace(encoder.backbone, example, check_trace=False)
        # Through memory: on a full disk torch's own writer aborts the process.
        file = io.BytesIO()
        torch.jit.save(traced, file)
    path.write_bytes(file.getbuffer())


def _run_torchscript(path: Path, encoder: Encoder, images: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load: Callable[[str], Callable[[Tensor], Tensor]] = torch.jit.load
        return load(str(path))(images)


# ----------------------------------------------------------------------------------------------------------------- ONNX
def _write_onnx(path: Path, encoder: Encoder) -> None:
    _onnx_packages()
    size = encoder.info.image_size
    logger = logging.getLogger("torch.onnx")
    before, logger.level = logger.level, logging.ERROR
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder.backbone,
                (torch.zeros(2, 3, size, size),),
                str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["features"],
                external_data=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    finally:
        logger.level = before


def _run_onnx(path: Path, encoder: Encoder, images: Tensor) -> Tensor:
    runtime = _onnx_packages()
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(np.asarray(features))


def _onnx_packages() -> ModuleType:
    """Return onnxruntime, where all packages that an export needs are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"ONNX export needs the package {error.name}; install it: pip install 'sogclr[onnx]'") from None
    runtime: ModuleType = onnxruntime
    return runtime
