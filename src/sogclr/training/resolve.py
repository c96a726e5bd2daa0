"""What a run uses where its configuration leaves the choice open, and the words that say so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from ..config.methods import AVERAGES, METHODS
from ..config.schema import LossConfig, PairsConfig, TrainConfig
from ..data.decoded import find_decoded
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..data.recipe import named_recipe, recipe_from_table
from ..errors import BadInput
from ..hardware import choose_device, choose_precision, choose_threads, cores
from ..losses.memory import BATCHES, WITH_SCHEDULES
from ..models.backbone import resolve_name
from .optim import learning_rate, weight_decay

_SIZES = (
    (48, 32),
    (80, 64),
    (160, 96),
)  # (images smaller than this, get views of this size); larger ones get 224


def image_size_for(manifest: Manifest | Pairs) -> int:
    """32, 64, 96 or 224, from the median of the images' shorter sides."""
    sides = np.minimum(manifest.widths, manifest.heights)
    sides = sides[sides > 0]
    median = float(np.median(sides)) if len(sides) else 224.0
    return next((size for below, size in _SIZES if median < below), 224)


IMAGE_METHODS = ("sogclr", "isogclr", "scent", "neuclip", "simclr", "dcl", "moco")
PAIR_METHODS = ("sogclr", "isogclr", "scent", "neuclip", "clip", "siglip")


def _check_kind(config: TrainConfig, pairs: bool) -> None:
    """The options go with the kind of DATA.

    Raises:
        BadInput: they do not.
    """
    loss, methods = config.loss, PAIR_METHODS if pairs else IMAGE_METHODS
    what = "image-caption pairs" if pairs else "images alone"
    if loss.method not in methods:
        raise BadInput(f"--method {loss.method} does not work on {what}, which DATA holds; give {', '.join(methods)}")
    if pairs and config.run.diagnose_every:
        raise BadInput("--diagnose-every measures losses on two views of an image, and DATA holds pairs; leave it out")
    given = [f"--{f.name.replace('_', '-')}" for f in fields(PairsConfig) if getattr(config.pairs, f.name) != f.default]
    if not pairs:
        refuse_for_images(given, config.data.data)


def refuse_for_images(given: Sequence[str], data: str | os.PathLike[str]) -> None:
    """Raises BadInput where one of the options of pairs is `given`, and DATA holds images."""
    if given:
        raise BadInput(f"{given[0]} is for image-caption pairs and {data} holds images; leave it out")


def resolve(config: TrainConfig, manifest: Manifest | Pairs) -> tuple[TrainConfig, list[str]]:
    """The configuration with every open choice made, and lines that say what was chosen.

    Raises:
        BadInput: too few images, an unknown model, or a device that is not there.
    """
    pairs = isinstance(manifest, Pairs)
    _check_kind(config, pairs)
    size = config.data.image_size or image_size_for(manifest)
    model, why = resolve_name(config.model.model, size)
    named = "caption" if pairs and config.data.recipe == "auto" else config.data.recipe
    recipe = recipe_from_table(named_recipe(named, size), config.recipe)
    device = choose_device(config.run.device)
    threads, workers = choose_threads(device, config.data.workers)
    run, optim, things = config.run, config.optim, "pairs" if pairs else "images"
    batch, optimizer = run.batch_size, optim.optimizer or ("adamw" if pairs else "lars")
    if len(manifest.usable) < batch:
        raise BadInput(
            f"{config.data.data} has {len(manifest.usable)} usable {things}, fewer than one batch of {batch}; "
            f"add {things} or give --batch-size {max(2, len(manifest.usable) // 2)}"
        )
    steps_per_epoch = max(1, len(manifest.usable) // (batch * optim.accumulate))
    total = min(run.epochs * steps_per_epoch, run.max_steps or run.epochs * steps_per_epoch)
    epochs = total / steps_per_epoch
    optim = replace(
        optim,
        optimizer=optimizer,
        lr=optim.lr or learning_rate(optimizer, optim.lr_rule, batch * optim.accumulate),
        weight_decay=weight_decay(optimizer) if optim.weight_decay is None else optim.weight_decay,
        warmup_epochs=min(10.0, epochs / 10) if optim.warmup_epochs is None else optim.warmup_epochs,
    )
    run = replace(
        run,
        max_steps=total,
        device=str(device),
        precision=choose_precision(run.precision, device),
        threads=run.threads or threads,
        log_every=run.log_every or max(1, min(100, steps_per_epoch // 10)),
        eval_every=run.eval_every or max(1, round(epochs / 10)),
        save_every=run.save_every or min(1000, max(200, steps_per_epoch)),
    )
    cache, said = choose_cache(config, manifest)
    resolved = replace(
        config,
        data=replace(config.data, image_size=size, workers=workers, cache=cache),
        model=replace(config.model, model=model),
        loss=resolve_loss(config.loss, batch, pairs),
        optim=optim,
        run=run,
        recipe=asdict(recipe),
    )
    return resolved, [*said, *_lines(resolved, why, len(manifest), things, steps_per_epoch)]


def resolve_loss(loss: LossConfig, batch: int, pairs: bool) -> LossConfig:
    """What the method, its estimator and the kind of DATA mean by the options that were left out."""
    meant: dict[str, Any] = dict(METHODS[loss.method])
    estimator = meant["estimator"] = loss.estimator or meant.get("estimator")
    if estimator in AVERAGES:
        meant = {"gamma": 0.9, "gamma_schedule": "constant", "convention": "per_view"} | meant
    elif estimator == "boosted":
        meant["convention"] = "per_view"
    late = {"memory": BATCHES * batch, "boosted-memory": WITH_SCHEDULES}.get(str(estimator), 4096)
    two = pairs and estimator in ("memory", "boosted-memory")  # as many steps: two views of an image are in one queue
    meant["queue"] = late // (2 if two else 1)
    return replace(loss, **{k: v for k, v in meant.items() if getattr(loss, k) is None})


def choose_cache(config: TrainConfig, manifest: Manifest | Pairs) -> tuple[str, list[str]]:
    """Whether decoded images are read: `none`, `full` or their side; and a line about it."""
    asked = config.data.cache
    if asked != "auto":
        return asked, []
    if config.pairs.image_rate == 0:
        return "none", []  # the features of a frozen image tower are looked up
    images, reason = find_decoded(manifest.images, config.data.background)
    if images is None:
        return "none", [f"cache     {reason}"] if reason else []
    return images.kind, [f"cache     {images.describe()}"]


def loss_words(loss: LossConfig) -> list[str]:
    """What is special about a resolved loss: temperature, normalizer, rate."""
    words = [f"temperature {loss.temperature}"]
    if loss.temperature_mode != "constant":
        words[0] += f" ({loss.temperature_mode}, learned, rho {loss.rho})"
    if loss.method == "moco":
        schedule = " to 1" if loss.key_schedule == "cosine" else ""
        words += [f"queue of {loss.queue:,} keys", f"key momentum {loss.key_momentum}{schedule}"]
        return [*words, "both views are queries"] if loss.symmetric else words
    balanced = ["balanced"] if loss.balanced else []
    if loss.estimator in (None, "mini-batch"):
        return [*words, "mini-batch normalizer", *balanced]
    if loss.estimator == "neural":
        return [*words, f"neural normalizer of {loss.prototypes:,} prototypes", *balanced]
    if loss.estimator == "boosted":
        return [*words, "gamma 1 to 0.1 and repulsion 1.6 to 1 over the run", str(loss.convention), *balanced]
    if loss.estimator == "memory":
        return [*words, f"negatives of the batch and a memory of {loss.queue:,}"]
    if loss.estimator == "boosted-memory":
        return [
            *words,
            f"gamma 1 to 0.1 and repulsion 1.6 to 1 over the run, a memory of {loss.queue:,} that counts more and more",
        ]
    if loss.estimator in ("dictionary", "queue-average"):
        words.append(f"normalizer over the batch and a queue of {loss.queue:,}")
    if loss.estimator == "dictionary":
        return [*words, *balanced]
    rate = f"gamma {loss.gamma} ({loss.gamma_schedule})"
    return [
        *words,
        f"gamma sigmoid({loss.alpha} + log u)" if loss.gamma_schedule == "adaptive" else rate,
        str(loss.convention),
        *balanced,
    ]


def _lines(config: TrainConfig, why: str, n: int, things: str, steps_per_epoch: int) -> list[str]:
    run, optim, loss = config.run, config.optim, config.loss
    texts = (
        config.pairs.text_model or f"a transformer of {config.pairs.text_layers} layers, {config.pairs.text_width} wide"
    )
    rates = {"encoder": config.pairs.image_rate, "texts": config.pairs.text_rate}
    said = {k: ", frozen" if r == 0 else f", at {r:g} times the rate" if r != 1 else "" for k, r in rates.items()}
    return [
        f"encoder   {config.model.model} ({why}){said['encoder']}",
        *([f"texts     {texts}{said['texts']}"] if things == "pairs" else []),
        f"views     {config.data.image_size} pixels",
        f"loss      {loss.method}, {', '.join(loss_words(loss))}",
        f"batches   {run.batch_size} of {n:,} {things}, {steps_per_epoch:,} steps an epoch, {run.max_steps:,} steps in all",
        f"optimizer {optim.optimizer}, lr {optim.lr:.4g}, weight decay {optim.weight_decay:g}, {optim.warmup_epochs:g} warm-up epochs",
        f"hardware  {run.device}, {run.precision}, torch threads: {run.threads}, reader processes: {config.data.workers}, cores: {cores()}",
    ]
