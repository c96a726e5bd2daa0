"""What a run that starts from a CLIP model (`--clip`) leaves to that model, and the words that say so."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

from ..config.objective import LossConfig
from ..config.schema import ModelConfig, PairsConfig, TrainConfig
from ..data.inputs import inputs_from_table
from ..data.pair_columns import IMAGE_TEXT
from ..data.pairs import Pairs
from ..data.source import Source
from ..errors import BadInput
from ..models.clip import ClipStart
from .rates import CLIP_SHARE, learning_rate

TEMPERATURES = (0.005, 1.0)  # a model's own is put between these
_ITS_OWN = (
    *("pretrained", "init_from", "freeze", "train_last", "head_layers", "head_hidden"),
    *("shared_tower", "text_model", "pooling", "text_width", "text_layers", "text_length", "vocab_size"),
)
"""Options that say what the model says; `--model` and `--head-dim` may say the same, as a run's own configuration does."""


def check_clip(config: TrainConfig, source: Source) -> None:
    """Check that DATA and the options go with `--clip`, if it was given.

    Raises:
        BadInput: they do not.
    """
    if config.model.clip is None:
        return
    if not isinstance(source, Pairs) or source.kinds != IMAGE_TEXT:
        held = " with ".join(source.kinds) if isinstance(source, Pairs) else "images alone"
        raise BadInput(f"--clip is for pairs of images and texts and {config.data.data} holds {held}; leave it out")
    for section in (ModelConfig, PairsConfig):
        values = config.model if section is ModelConfig else config.pairs
        for f in fields(section):
            if f.name in _ITS_OWN and getattr(values, f.name) != f.default:
                raise _answered(f.name)


def _answered(name: str) -> BadInput:
    """Return the refusal of an option that the model answers."""
    option = f"--{name.replace('_', '-')}"
    return BadInput(f"{option} does not go with --clip, whose model has its own towers; leave it out")


def fill_in(config: TrainConfig, start: ClipStart) -> TrainConfig:
    """Return the configuration with what the model says in the place of open choices.

    Args:
        config: as it was given.
        start: the model of `--clip`.

    Raises:
        BadInput: other towers or another size of the images were given, layers that are not known, or nothing trains.
    """
    optim = config.optim
    for name, answer in {"model": start.model, "head_dim": start.dim}.items():
        if getattr(config.model, name) not in (getattr(ModelConfig(), name), answer):
            raise _answered(name)
    projections = {key for key in start.weights if key.startswith(("head.", "text_head."))}
    if config.pairs.image_rate == config.pairs.text_rate == 0 and not projections:
        raise BadInput(
            f"--image-rate 0 and --text-rate 0 leave nothing of {config.model.clip} to train; raise one of them"
        )
    if start.setup is not None and optim.layer_decay not in (None, 1.0):
        raise BadInput(
            f"--layer-decay {optim.layer_decay:g} is for timm's encoders and {config.model.clip} has towers of "
            f"{start.setup.library}; leave it out, or slow a tower by --image-rate and --text-rate"
        )
    if config.data.image_size not in (None, start.image_size):
        raise BadInput(
            f"--image-size {config.data.image_size} was given and the model of --clip takes {start.image_size} pixels; leave it out"
        )
    optimizer = optim.optimizer or "adamw"
    rule = learning_rate(optimizer, optim.lr_rule, config.run.batch_size * optim.accumulate)
    return replace(
        config,
        data=replace(config.data, image_size=start.image_size),
        model=replace(config.model, model=start.model, head_dim=start.dim),
        loss=_loss(config.loss, start),
        optim=replace(optim, optimizer=optimizer, lr=optim.lr or rule * CLIP_SHARE),
        inputs=asdict(inputs_from_table(start.inputs, config.inputs)),
    )


def _loss(loss: LossConfig, start: ClipStart) -> LossConfig:
    """Return the section with the model's temperature, and of SigLIP's loss its bias."""
    low, high = TEMPERATURES
    own = min(max(start.temperature, low), high)
    bias = start.bias if loss.method == "siglip" and loss.bias is None else loss.bias
    return replace(loss, temperature=own if loss.temperature is None else loss.temperature, bias=bias)


def clip_line(config: TrainConfig, start: ClipStart) -> str:
    """Return the line on the model: which, where it is from, and its temperature."""
    library = "towers of our own" if start.setup is None else start.setup.library
    bias = "" if start.bias is None else f", bias {start.bias:.4g}"
    used = "" if config.loss.temperature == start.temperature else f" (used: {config.loss.temperature:.4g})"
    return (
        f"clip      {config.model.clip} ({library}), {start.dim} wide, {start.text.info.length} tokens, "
        f"temperature {start.temperature:.4g}{used}{bias}"
    )
