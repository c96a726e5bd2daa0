"""The files that `export` writes: how each is written, and how it is run again to see that it computes the same."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BadInput, RunFailed
from ..evaluation.label_free import refuse_non_finite
from ..models.backbone import size_options, timm
from ..models.encoder import Encoder, EncoderInfo, save_encoder

SUFFIXES = {"timm": ".safetensors", "safetensors": ".safetensors", "torchscript": ".pt", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of the largest feature: what other kernels may differ by
OPSET = 18


def check_same(found: Tensor, expected: Tensor, name: str, remedy: str, tolerance: float = TOLERANCE) -> None:
    """Compare what a file computes with PyTorch.

    Args:
        found: (N, D), of the file.
        expected: (N, D).
        name: of the model, for the message.
        remedy: what to do otherwise.
        tolerance: of the largest feature.

    Raises:
        BadInput: the features are not finite.
        RunFailed: they differ.
    """
    refuse_non_finite(expected.numpy())
    scale = float(expected.abs().max())
    same_shape = found.shape == expected.shape
    error = float((found - expected).abs().max()) if same_shape else float("nan")
    if not error <= tolerance * max(scale, 1e-6):
        raise RunFailed(
            f"the exported {name} differs from PyTorch by {error:.2g} where features go up to {scale:.2g}; "
            f"nothing was written, {remedy}"
        )


# ----------------------------------------------------------------------------------------------------------------- timm
def write_timm(path: Path, encoder: Encoder) -> None:
    """Write the weights of the backbone."""
    save_encoder(path, encoder.backbone, encoder.info)


def run_timm(path: Path, encoder: Encoder, images: Tensor) -> Tensor:
    """Compute features as a user of timm would, who never heard of us."""
    options = size_options(encoder.info.name, encoder.info.image_size)
    model = timm.create_model(encoder.info.name, num_classes=0, checkpoint_path=str(path), **options)
    features: Tensor = model.eval()(images)
    return features


# ---------------------------------------------------------------------------------------------------------- TorchScript
def write_torchscript(path: Path, model: nn.Module, example: Tensor) -> None:
    """Trace the model on an example of its input."""
    with warnings.catch_warnings():
        # Tracing is torch's supported way to a file that runs without Python; it warns of what newer ways there are.
        warnings.simplefilter("ignore")
        trace: Callable[..., torch.jit.ScriptModule] = torch.jit.trace
        traced = trace(model, example, check_trace=False)
        # Through memory: on a full disk torch's own writer aborts the process.
        file = io.BytesIO()
        torch.jit.save(traced, file)
    path.write_bytes(file.getbuffer())


def run_torchscript(path: Path, inputs: Tensor) -> Tensor:
    """Compute the features of inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load: Callable[[str], Callable[[Tensor], Tensor]] = torch.jit.load
        return load(str(path))(inputs)


# ----------------------------------------------------------------------------------------------------------------- ONNX
def write_onnx(
    path: Path,
    model: nn.Module,
    example: Tensor,
    name: str,
    longest: int | None = None,
    metadata: dict[str, str] | None = None,
    output: str = "features",
) -> None:
    """Export the model for any number of inputs.

    Args:
        path: to write.
        model: inputs -> outputs.
        example: two inputs.
        name: of the inputs.
        longest: the second dimension of the inputs may be any, up to this; None: it is that of the example.
        metadata: written into the file.
        output: the name of the outputs.

    Raises:
        BadInput: a package is missing.
    """
    onnx_packages()
    dynamic = {0: torch.export.Dim("N")} | ({1: torch.export.Dim("L", max=longest)} if longest is not None else {})
    logger = logging.getLogger("torch.onnx")
    before, logger.level = logger.level, logging.ERROR
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=[name],
                output_names=[output],
                external_data=False,
                verbose=False,
                dynamic_shapes=(dynamic,),
            )
    finally:
        logger.level = before
    if metadata:
        import onnx

        written = onnx.load(str(path))
        onnx.helper.set_model_props(written, metadata)
        onnx.save(written, str(path))


def run_onnx(path: Path, inputs: Tensor) -> Tensor:
    """Compute the features of inputs."""
    runtime = onnx_packages()
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return torch.from_numpy(np.asarray(features))


def preprocessing(info: EncoderInfo) -> dict[str, str]:
    """Return how images become inputs, as a file's metadata: JSON by name."""
    return {key: json.dumps(value) for key, value in asdict(info).items() if key != "name"}


def onnx_packages() -> ModuleType:
    """Return onnxruntime, where all packages that an export needs are installed.

    Raises:
        BadInput: one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"ONNX export needs the package {error.name}; install it: pip install 'sogclr[onnx]'") from None
    runtime: ModuleType = onnxruntime
    return runtime
