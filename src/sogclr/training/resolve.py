"""What a run uses where its configuration leaves the choice open, and the words that say so."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from math import inf
from typing import Any

import numpy as np

from ..config.methods import METHODS, estimator_of, options_of
from ..config.objective import LossConfig
from ..config.rows import Row
from ..config.schema import ModelConfig, PairsConfig, RunConfig, TrainConfig
from ..data.images import background_colour
from ..data.inputs import Inputs, inputs_from_table
from ..data.multi_crop import crop_groups, full_side, views_words
from ..data.pair_columns import Kind
from ..data.pairs import Pairs
from ..data.recipe import named_recipe, recipe_from_table
from ..data.source import Source
from ..errors import BadInput
from ..hardware import choose_device, choose_precision, choose_threads, cores
from ..models.backbone import is_vision_transformer, resolve_name
from ..models.clip import load_clip
from ..models.pretrained import describe_weights, license_of, resolve_pretrained, weights_file
from .clip_start import check_clip, clip_line, fill_in
from .cost import time_lines
from .freezing import check_freezing, choose_batchnorm, frozen_words
from .neighbours import check_neighbours, neighbour_lines
from .rates import begins_small, optimizer_words, resolve_optim
from .reading import check_views, choose_cache, view_groups
from .warm_start import resolve_warm_start, usual_warm_start

_SIZES = ((48, 32), (80, 64), (160, 96))  # (images smaller than this, get views of this size); larger ones get 224
_NAMES = {"images": "images alone", "pairs": "pairs"}  # kind of DATA -> its name in a sentence


def resolve(config: TrainConfig, source: Source) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with every open choice made, and lines that say what was chosen.

    Raises:
        BadInput: too few images, an unknown model, colour or device, or options for another kind of DATA.
    """
    background_colour(config.data.background)
    check_kind(config, source.kind)
    if isinstance(source, Pairs):
        check_kinds(config, source)
    check_clip(config, source)
    start = None if config.model.clip is None else load_clip(config.model.clip)
    config = config if start is None else fill_in(config, start)
    model, weights = resolve_pretrained(config.model.model, config.model.pretrained)
    of_weights, weights_size = describe_weights(model, weights)
    size = config.data.image_size or full_side(config.data.crops) or weights_size or image_size_for(source)
    model, why = resolve_name(model, size, choose_device(config.run.device).type == "cpu")
    inputs = inputs_from_table(Inputs(**of_weights), config.inputs)
    patches = is_vision_transformer(model)
    if weights is not None:
        weights_file(weights, download=True)
    named = "caption" if source.kind == "pairs" and config.data.recipe == "auto" else config.data.recipe
    check_freezing(config, source.kind)
    steps_per_epoch = count_steps_per_epoch(config, source)
    total = min(config.run.epochs * steps_per_epoch, config.run.max_steps or config.run.epochs * steps_per_epoch)
    check_neighbours(config, source, total)
    run, workers = _resolve_run(config, total, steps_per_epoch)
    recipe = recipe_from_table(named_recipe(named, size), config.augment)
    groups = crop_groups(config.data.crops, config.data.views, size, recipe)
    cache, cache_lines = choose_cache(config, source, groups)
    loss = resolve_loss(config.loss)
    resolved = replace(
        config,
        data=replace(config.data, image_size=size, workers=workers, cache=cache),
        model=replace(
            config.model, model=model, pretrained=weights, batchnorm=choose_batchnorm(config, source.kind, patches)
        ),
        loss=loss,
        optim=resolve_warm_start(
            resolve_optim(
                replace(config, loss=loss, model=replace(config.model, model=model)),
                total / steps_per_epoch,
                source.kind,
                patches,
                weights,
                size,
            ),
            usual_warm_start(config, source, run.device),
            total,
            steps_per_epoch,
        ),
        run=run,
        augment=asdict(recipe),
        inputs=asdict(inputs),
    )
    clip_lines = [] if start is None else [clip_line(resolved, start)]
    lines = [*cache_lines, *clip_lines, *_lines(resolved, why, source, steps_per_epoch)]
    return resolved, [*lines, *time_lines(resolved, groups, source)]


_CHOSEN = {"data": ("image_size",), "loss": ("temperature",), "optim": ("lr", "weight_decay"), "run": ("max_steps",)}


def check_resolved(config: TrainConfig) -> None:
    """Check that what `resolve` chooses is there, also where somebody took it out of a run's file.

    Raises:
        BadInput: it is not.
    """
    for section, names in _CHOSEN.items():
        for name in names:
            if getattr(getattr(config, section), name) is None:
                raise BadInput(
                    f"[{section}] {name} is left out of the configuration, and a run's own holds it; put it back into config.toml"
                )


# ------------------------------------------------------------------------------------------------------ the kind of DATA
def check_kind(config: TrainConfig, kind: str) -> None:
    """Check that the options go with the kind of DATA.

    Raises:
        BadInput: they do not.
    """
    loss = config.loss
    if kind not in METHODS[loss.method].kinds:
        fitting = [name for name, row in METHODS.items() if kind in row.kinds]
        raise BadInput(
            f"--method {loss.method} does not work on {_NAMES[kind]}, which DATA holds; give {', '.join(fitting)}"
        )
    if kind == "pairs" and config.run.diagnose_every:
        raise BadInput("--diagnose-every measures losses on two views of an image, and DATA holds pairs; leave it out")
    check_views(config, kind)
    if kind != "pairs":
        _refuse_options(config, [f.name for f in fields(PairsConfig)], "pairs", "images")


def check_kinds(config: TrainConfig, pairs: Pairs) -> None:
    """Check that the options go with what the columns of the pairs hold.

    Raises:
        BadInput: they do not.
    """
    kinds, (first, second) = pairs.kinds, pairs.names
    if kinds[0] != kinds[1] and config.pairs.shared_tower:
        raise BadInput(
            f"--shared-tower is for two columns of one kind, and {first} holds {kinds[0]} and {second} {kinds[1]}; leave it out"
        )
    if "images" not in kinds:
        _refuse_options(config, ["image_rate"], "images", "texts")
        if config.model.model or config.model.pretrained:
            raise BadInput(f"--model and --pretrained are for images and {pairs.source} holds texts; give --text-model")
    if "texts" not in kinds:
        names = ["text_rate", "text_model", "text_width", "text_layers", "text_length", "vocab_size", "pooling"]
        _refuse_options(config, [*names, "query_prompt", "document_prompt"], "texts", "images")
    if kinds[0] != "texts":
        _refuse_options(config, ["query_prompt"], "two columns of texts", f"{kinds[0]} in its first")
    if not pairs.negatives.size:
        _refuse_options(config, ["share_negatives"], "pairs with hard negatives", "none")
    if config.pairs.text_model is not None and config.model.init_from is not None:
        raise BadInput("--text-model and --init-from both give the texts' first weights; keep one of them")
    if config.pairs.pooling is not None and config.pairs.text_model is None:
        raise BadInput("--pooling is for a Hugging Face encoder; give one with --text-model, or leave it out")


def _refuse_options(config: TrainConfig, names: list[str], meant: str, held: str) -> None:
    """Refuse options of the section on pairs that are for another kind of DATA than is held."""
    for f in fields(PairsConfig):
        if f.name in names and getattr(config.pairs, f.name) != f.default:
            option = f"--{f.name.replace('_', '-')}"
            raise BadInput(f"{option} is for {meant} and {config.data.data} holds {held}; leave it out")


def tower_rates(options: PairsConfig, kinds: tuple[Kind, Kind]) -> tuple[float, float]:
    """Return the share of the learning rate that each column's tower gets."""
    of_kind = {"images": options.image_rate, "texts": options.text_rate}
    return of_kind[kinds[0]], of_kind[kinds[1]]


def image_size_for(source: Source) -> int:
    """Return 32, 64, 96 or 224, from the median of the images' shorter sides."""
    sides = np.minimum(source.images.widths, source.images.heights)
    sides = sides[sides > 0]
    median = float(np.median(sides)) if len(sides) else 224.0
    return next((size for below, size in _SIZES if median < below), 224)


# -------------------------------------------------------------------------------------------------------- the sections
def resolve_loss(loss: LossConfig) -> LossConfig:
    """Return the section with the defaults of its method and estimator in the place of open options."""
    method, estimator = METHODS[loss.method], estimator_of(loss.method, loss.estimator)
    meant: dict[str, Any] = {
        "estimator": estimator.name if estimator else None,
        "temperature": 0.1,
        "temperature_mode": method.temperature_mode,
        **(estimator.defaults if estimator else {}),
        **method.defaults,
    }
    return replace(loss, **{k: v for k, v in meant.items() if getattr(loss, k) is None})


def count_steps_per_epoch(config: TrainConfig, source: Source) -> int:
    """Return the optimizer steps of an epoch.

    Raises:
        BadInput: there are fewer samples than a batch.
    """
    batch, usable = config.run.batch_size, len(source.usable)
    if usable < batch:
        raise BadInput(
            f"{config.data.data} has {usable} usable {source.kind}, fewer than one batch of {batch}; "
            f"add {source.kind}" + (f" or give --batch-size {max(2, usable // 2)}" if usable > 1 else "")
        )
    if usable < (step := batch * config.optim.accumulate):
        raise BadInput(
            f"{config.data.data} has {usable} usable {source.kind}, fewer than the {step} of one step: "
            f"--batch-size {batch} times --accumulate {config.optim.accumulate}; give --accumulate {usable // batch} or less"
        )
    return usable // step


def _resolve_run(config: TrainConfig, total: int, steps_per_epoch: int) -> tuple[RunConfig, int]:
    """Return the section, and the number of reader processes."""
    run, device = config.run, choose_device(config.run.device)
    threads, workers = choose_threads(device, config.data.workers)
    resolved = replace(
        run,
        max_steps=total,
        device=str(device),
        precision=choose_precision(run.precision, device),
        threads=run.threads or threads,
        log_every=run.log_every or max(1, min(100, steps_per_epoch // 10)),
        eval_every=run.eval_every or max(1, round(total / steps_per_epoch / 10)),
        save_every=run.save_every or min(1000, max(200, steps_per_epoch)),
    )
    return resolved, workers


# ----------------------------------------------------------------------------------------------------------- the lines
def loss_words(loss: LossConfig) -> list[str]:
    """Return the words of the line on a resolved loss: temperature, normalizer, gamma and what else it takes."""
    row: Row = estimator_of(loss.method, loss.estimator) or METHODS[loss.method]
    taken = options_of(loss.method, loss.estimator)
    learned = f" ({loss.temperature_mode}, learned, rho {loss.rho})" if loss.temperature_mode != "constant" else ""
    paper = " (the paper's)" if loss.temperature == 0.1 and not learned else ""
    words = [f"temperature {loss.temperature:.4g}{learned}{paper}", row.says.format_map(vars(loss))]
    if "gamma" in taken:
        adaptive = loss.gamma_schedule == "adaptive"
        words.append(
            f"gamma sigmoid({loss.alpha} + log u)" if adaptive else f"gamma {loss.gamma} ({loss.gamma_schedule})"
        )
    if "convention" in taken:
        words.append(str(loss.convention))
    if "key_momentum" in taken:
        words.append(f"key momentum {loss.key_momentum}" + (" to 1" if loss.key_schedule == "cosine" else ""))
    if loss.num_negatives == inf:
        words.append("the positive left out")
    elif loss.num_negatives:
        words.append(f"the positive beside {loss.num_negatives:,g} negatives")
    words += ["both views are queries"] if loss.symmetric else []
    return [word for word in words if word]


def _lines(config: TrainConfig, why: str, source: Source, steps_per_epoch: int) -> list[str]:
    run, optim, loss, pairs = config.run, config.optim, config.loss, config.pairs
    small = begins_small(config, str(optim.optimizer), source.kind, config.data.image_size or 0)
    total = run.max_steps or 0
    shape = f"a transformer of {pairs.text_layers} layers" if pairs.text_layers else "a bag of tokens"
    texts = config.model.clip or pairs.text_model or f"{shape}, {pairs.text_width} wide"
    kinds = source.kinds if isinstance(source, Pairs) else ("images", "images")
    towers = ", one tower for both columns" if pairs.shared_tower else ", a tower for each column"
    towers = towers if isinstance(source, Pairs) and kinds[0] == kinds[1] else ""
    lines = [
        f"encoder   {config.model.model} ({why}){towers}{frozen_words(config.model)}{_lr_scale_words(pairs.image_rate)}",
        f"weights   {_weights_words(config)}",
        f"texts     {texts}{towers}{_lr_scale_words(pairs.text_rate)}",
        f"views     {views_words(view_groups(config), run.batch_size)}",
        f"head      {_head_words(config.model)}",
        f"loss      {loss.method}, {', '.join(loss_words(loss))}",
        f"batches   {run.batch_size} of {len(source):,} {source.kind}, {steps_per_epoch:,} steps an epoch, {run.max_steps:,} steps in all",
        f"optimizer {optimizer_words(optim, run.batch_size * optim.accumulate, small, total / steps_per_epoch)}",
        *neighbour_lines(run, source.kind),
        f"hardware  {run.device}, {run.precision}, torch threads: {run.threads}, reader processes: {config.data.workers}, cores: {cores()}",
    ]
    unused = (
        *(() if "images" in kinds else ("encoder", "views")),
        "" if config.model.pretrained else "weights",
        "" if config.model.clip is None else "head",
        "" if "texts" in kinds else "texts",
    )
    return [line for line in lines if line.split()[0] not in unused]


def _head_words(model: ModelConfig) -> str:
    """Return the words on the projection head."""
    usual = ModelConfig()
    by_rule = all(getattr(model, n) == getattr(usual, n) for n in ("head_layers", "head_hidden", "head_dim"))
    hidden = "as wide as the encoder" if model.head_hidden is None else f"{model.head_hidden} wide"
    return f"{model.head_layers} layers, {hidden}, then {model.head_dim}" + (" (the paper's)" if by_rule else "")


def _weights_words(config: TrainConfig) -> str:
    """Return the words on the first weights: where they are from, and how they want their inputs."""
    name, inputs = str(config.model.pretrained), Inputs(**config.inputs)
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (inputs.mean, inputs.std))
    licence = f" (timm's, licence {license_of(name) or 'unknown'})" if name == config.model.model else ""
    return (
        f"{name}{licence}; mean {mean}, std {std}, evaluated with {inputs.interpolation}, crop {inputs.crop_fraction:g}"
    )


def _lr_scale_words(scale: float) -> str:
    """Return the words on a tower that does not train at the learning rate itself; none for one that does."""
    return ", frozen" if scale == 0 else f", at {scale:g} times the rate" if scale != 1 else ""
