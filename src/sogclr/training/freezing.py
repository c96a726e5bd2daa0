"""What of an encoder does not train: all of it, its first stages, or the statistics of its BatchNorm."""

from __future__ import annotations

from ..config.schema import BatchNorm, ModelConfig, TrainConfig
from ..errors import BadInput
from ..models.backbone import OWN


def check_freezing(config: TrainConfig, kind: str) -> None:
    """Check that what is frozen knows something, and is of a model for images alone.

    Raises:
        BadInput: it does not, or is not.
    """
    model = config.model
    given = {
        "--freeze": model.freeze,
        "--train-last": model.train_last is not None,
        "--batchnorm frozen": model.batchnorm == "frozen",
    }
    option = next((name for name, value in given.items() if value), None)
    if option is None:
        return
    if model.freeze and model.train_last is not None:
        raise BadInput("--freeze trains nothing of the encoder and --train-last a part of it; keep one of them")
    if kind == "pairs":
        raise BadInput(
            f"{option} is for images alone and {config.data.data} holds pairs; give --image-rate 0 to freeze"
        )
    if model.model is not None and model.model.startswith(OWN):
        raise BadInput(f"{option} is for timm's models; freeze parts of your own by requires_grad_(False)")
    if model.pretrained is None and model.init_from is None:
        raise BadInput(
            f"{option} freezes an encoder that knows nothing; give its weights with --pretrained or --init-from"
        )


def choose_batchnorm(config: TrainConfig, kind: str, patches: bool) -> BatchNorm:
    """Return whose statistics BatchNorm uses: augmented batches spoil those of good weights; vision transformers (`patches`) have none."""
    asked, tuned = config.model.batchnorm, config.model.pretrained is not None and kind == "images" and not patches
    return asked if asked != "auto" else "frozen" if tuned else "train"


def frozen_words(model: ModelConfig) -> str:
    """Return what the line on the encoder says of it."""
    if model.freeze:
        return ", frozen"
    part = f", its last {model.train_last} stages train" if model.train_last else ""
    return f"{part}, BatchNorm's statistics stay" if model.batchnorm == "frozen" else part
