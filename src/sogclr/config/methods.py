"""The two tables of losses: a row a method, a row an estimator, each with all that is special about it. No torch in here.

To add one, write it in a file of its own and add its row here; nothing else names it. `rows` says what a row holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import BadInput
from .rows import EstimatorRow, Method, Row

COMMON = ("method", "temperature", "temperature_mode", "rho", "temperature_lr")
"""Options of `LossConfig` that go with every row."""

R = TypeVar("R", bound=Row)


def _table(*rows: R) -> dict[str, R]:
    return {row.name: row for row in rows}


# ---------------------------------------------------------------------------------------------------------- estimators
_GAMMA = ("gamma", "gamma_schedule", "alpha", "convention")
_AVERAGE = {"gamma": 0.9, "gamma_schedule": "constant", "convention": "per_view"}

ESTIMATORS = _table(
    EstimatorRow(
        name="moving-average",
        title="",  # goes by its gamma
        help="a running mean for each sample",
        options=_GAMMA,
        defaults=_AVERAGE,
        builder="sogclr.losses.estimators:MovingAverage",
    ),
    EstimatorRow(
        name="mini-batch",
        title="mini-batch normalizer",
        help="the batch alone",
        says="mini-batch normalizer",
        builder="sogclr.losses.estimators:MiniBatch",
    ),
    EstimatorRow(
        name="neural",
        title="neural normalizer",
        help="a few learned prototypes",
        options=("prototypes", "prototype_lr"),
        says="neural normalizer of {prototypes:,} prototypes",
        lr="prototype_lr",
        builder="sogclr.losses.estimators:Neural",
    ),
)

# ------------------------------------------------------------------------------------------------------------- methods
_POSITIVE = ("num_negatives",)
_GLOBAL = {"images": "sogclr.losses:GlobalContrastiveLoss", "pairs": "sogclr.losses:TwoTowerGlobalContrastiveLoss"}

METHODS = _table(
    Method(
        name="sogclr",
        title="SogCLR",
        help="the global contrastive loss",
        options=_POSITIVE,
        losses=_GLOBAL,
        estimator="moving-average",
    ),
    Method(
        name="isogclr",
        title="iSogCLR",
        help="SogCLR with a learned temperature for each sample",
        temperature_mode="per-sample",
        options=_POSITIVE,
        losses=_GLOBAL,
        estimator="moving-average",
    ),
    Method(
        name="scent",
        title="SCENT",
        help="SogCLR with an adaptive gamma",
        defaults={"gamma_schedule": "adaptive"},
        options=_POSITIVE,
        losses=_GLOBAL,
        estimator="moving-average",
    ),
    Method(
        name="neuclip",
        title="NeuCLIP",
        help="SogCLR with a neural normalizer",
        options=_POSITIVE,
        losses=_GLOBAL,
        estimator="neural",
    ),
    Method(
        name="simclr",
        title="SimCLR (NT-Xent)",
        help="baseline for images",
        says="mini-batch normalizer",
        losses={"images": "sogclr.losses:NTXentLoss"},
    ),
    Method(
        name="dcl",
        title="DCL",
        help="baseline for images",
        says="mini-batch normalizer",
        losses={"images": "sogclr.losses:DecoupledContrastiveLoss"},
    ),
    Method(
        name="moco",
        title="MoCo",
        help="baseline for images",
        options=("queue", "key_momentum", "key_schedule", "symmetric"),
        defaults={"queue": 4096},
        says="queue of {queue:,} keys",
        many_views=False,  # a query and a key
        losses={"images": "sogclr.losses:MoCoLoss"},
    ),
    Method(
        name="clip",
        title="CLIP's loss",
        help="baseline for pairs",
        says="mini-batch normalizer",
        temperature_modes=("constant", "global"),
        temperature_refusal="--temperature-mode {mode} does not go with --method {row}, which learns one at most; give global",
        losses={"pairs": "sogclr.losses:ClipLoss"},
    ),
    Method(
        name="siglip",
        title="SigLIP's loss",
        help="baseline for pairs",
        options=("bias",),
        defaults={"bias": -10.0},
        says="mini-batch normalizer",
        temperature_modes=("constant",),
        temperature_refusal="--temperature-mode {mode} does not go with --method {row}, which always learns its own scale; "
        "leave it out",
        losses={"pairs": "sogclr.losses:SigLipLoss"},
    ),
)


# --------------------------------------------------------------------------------------------------- reading the tables
def estimator_of(method: str, estimator: object = None) -> EstimatorRow | None:
    """Return the row of the estimator that was given or that the method means; None where it has none."""
    name = estimator or METHODS[method].estimator
    return ESTIMATORS[str(name)] if name else None


def options_of(method: str, estimator: object = None) -> set[str]:
    """Return the options of `LossConfig` that go with a method and its estimator."""
    row, chosen = METHODS[method], estimator_of(method, estimator)
    return {*COMMON, *row.options, *(chosen.options if chosen else ()), *(("estimator",) if row.estimator else ())}


def estimators_for(method: str) -> list[str]:
    """Return the names of the estimators that take all that the method sets: none, all, or some."""
    row = METHODS[method]
    needs = set(row.defaults) - {*COMMON, *row.options}
    return [name for name, e in ESTIMATORS.items() if needs <= set(e.options)] if row.estimator else []


def check_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options that would do nothing with the method and the estimator.

    Args:
        options: name -> value of all options of `LossConfig`, with names that the tables have.
        defaults: name -> value where nothing was given.

    Raises:
        BadInput: an option, the estimator or the temperature's mode does not go with them.
    """
    method, estimator = options["method"], options["estimator"]
    row, fitting = METHODS[method], estimators_for(method)
    if estimator and not fitting:
        raise BadInput(
            f"--estimator {estimator} does not go with --method {method}, which has a normalizer of its own; "
            "use --method sogclr"
        )
    if estimator and estimator not in fitting:
        raise BadInput(
            f"--estimator {estimator} does not go with --method {method} ({row.help}); "
            f"give one of {', '.join(fitting)}, or --method sogclr"
        )
    what, taken = f"estimator {estimator}" if estimator else f"method {method}", options_of(method, estimator)
    for name, value in options.items():
        if name not in taken and value != defaults[name]:
            shown = f"--{name.replace('_', '-')}" + ("" if isinstance(value, bool) else f" {value}")
            raise BadInput(f"{shown} does not go with --{what}, {_takers(name)}; leave it out")
    mode = options["temperature_mode"] or row.temperature_mode
    if mode not in row.temperature_modes:
        modes = " or ".join(row.temperature_modes)
        raise BadInput(row.temperature_refusal.format(mode=mode, row=method, modes=modes))


def _takers(option: str) -> str:
    """Return words that say what an option goes with."""
    of: dict[str, Mapping[str, Row]] = {"method": METHODS, "estimator": ESTIMATORS}
    found = {kind: [name for name, row in rows.items() if option in row.options] for kind, rows in of.items()}
    return "but with " + " and ".join(f"--{kind} {', '.join(names)}" for kind, names in found.items() if names)
