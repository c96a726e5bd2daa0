"""From flat options and TOML files to a `TrainConfig`, and back."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from ..data.inputs import Inputs, inputs_from_table
from ..data.recipe import Recipe, recipe_from_table
from ..errors import BadInput
from .methods import ESTIMATORS, METHODS, options_of
from .objective import LossConfig, OptimConfig
from .ranges import NameIn, limits_of
from .removed import without_removed
from .schema import DataConfig, ModelConfig, PairsConfig, RunConfig, TrainConfig

Section = DataConfig | ModelConfig | LossConfig | OptimConfig | RunConfig | PairsConfig
S = TypeVar("S", bound=Section)

_MOST_BYTES = 1 << 20  # of a configuration file
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".tar")  # suffixes of files of weights
SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "run": RunConfig,
    "pairs": PairsConfig,
}


def option_names() -> dict[str, str]:
    """Return option name -> section, for every option of `train` (names are unique over the sections)."""
    return {f.name: name for name, section in SECTIONS.items() for f in fields(section)}


# ------------------------------------------------------------------------------------------------------------- reading
def read_table(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        BadInput: no such file, or it is not TOML.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise BadInput(
                f"{path} is no file of TOML, or has more than {_MOST_BYTES:,} bytes; give a configuration file"
            )
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"there is no configuration file {path}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise BadInput(f"{path} cannot be read as TOML: {error}") from None
    for name, value in tables.items():
        if not isinstance(value, dict):
            known = name in (*SECTIONS, "augment", "inputs", "recipe", "own", "versions")
            what = f"[{name}] is a table of the configuration and was {value!r}; write its fields below [{name}]"
            raise BadInput(f"{path}: {what if known else no_table(name)}")
    return tables


def no_table(name: str) -> str:
    """Return the sentence on a table that there is not."""
    return f"the configuration has no table [{name}]; its tables are [{'], ['.join([*SECTIONS, 'augment', 'inputs'])}]"


def split_weights_names(table: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tables of a configuration file without names of weights, and those names by their option.

    What might be downloaded the user has to say, by an option: `check_weights_said`. What a run's own file (it has
    [versions]) says of the towers that `clip` brought is left out too: they say it again.
    """
    model = table.get("model")
    if not isinstance(model, dict):
        return table, {}
    if "versions" in table and "clip" in model:
        model = {k: v for k, v in model.items() if k not in ("model", "head_dim")}
    given = {key: model[key] for key in ("pretrained", "clip") if isinstance(model.get(key), str)}
    names = {  # a missing file of weights is said later; ARCHITECTURE:FILE may need a tokenizer of the hub too
        key: name
        for key, name in given.items()
        if not (Path(name).exists() or (key == "pretrained" and Path(name).suffix in WEIGHTS))
    }
    return {**table, "model": {k: v for k, v in model.items() if k not in names}}, names


def check_weights_said(names: Mapping[str, str], said: Mapping[str, Any]) -> None:
    """Check that weights which a configuration file names are given as an option too.

    Args:
        names: option -> name in the file.
        said: option -> its value.

    Raises:
        BadInput: they are not.
    """
    for option, name in names.items():
        if said.get(option) is None:
            raise BadInput(
                f"the configuration names the weights {name}, which might be downloaded; say so yourself: --{option} {name}"
            )


def migrate(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a configuration as this version would have written them.

    - [recipe] is [augment] now.
    - Options that are gone are left out; `removed` refuses to train with them.
    - [own] names parts that a run was given as objects of Python; they are no options.
    - A run's own file (it has [versions]) may hold options that its method and estimator do not take: they were written
      before they were refused, and did nothing. They are left out.

    Raises:
        BadInput: the old and the new name of a table are both there.
    """
    new, _ = without_removed(table)
    if "recipe" in new:
        if "augment" in new:
            raise BadInput("the configuration has [augment] and [recipe], which is its old name; keep [augment]")
        new["augment"] = new.pop("recipe")
    new.pop("own", None)
    loss = new.get("loss")
    if new.pop("versions", None) is not None and isinstance(loss, dict):
        method, estimator = loss.get("method", "sogclr"), loss.get("estimator")
        if method in METHODS and (estimator is None or estimator in ESTIMATORS):
            unused = {f.name for f in fields(LossConfig)} - options_of(method, estimator)
            new["loss"] = {k: v for k, v in loss.items() if k not in unused}
    return new


def from_options(options: Mapping[str, Any], table: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return a configuration from flat options (`batch_size=64`), laid over the tables of a configuration file.

    Args:
        options: name -> value.
        table: the file's tables, of this version or an older one.

    Raises:
        BadInput: an unknown name (the nearest is given), a value of the wrong type, or one out of range.
    """
    tables = migrate(table or {})
    augment, inputs = tables.pop("augment", {}), tables.pop("inputs", {})
    recipe_from_table(Recipe(), augment)
    inputs_from_table(Inputs(), inputs)
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for section, entries in tables.items():
        if section not in SECTIONS or not isinstance(entries, dict):
            raise BadInput(no_table(section))
        for key, value in entries.items():
            _check_known(key, [f.name for f in fields(SECTIONS[section])], f"[{section}] of the configuration")
            values[section][key] = value
    names = option_names()
    for key, value in options.items():
        _check_known(key, list(names), "train")
        values[names[key]][key] = value
    for name in ("data", "out"):
        if name not in values["data"]:
            raise BadInput(f"{name!r} is missing: say what to train on and where the run goes (data=, out=)")
    return TrainConfig(
        data=_build(DataConfig, values["data"]),
        model=_build(ModelConfig, values["model"]),
        loss=_build(LossConfig, values["loss"]),
        optim=_build(OptimConfig, values["optim"]),
        run=_build(RunConfig, values["run"]),
        pairs=_build(PairsConfig, values["pairs"]),
        augment=augment,
        inputs=inputs,
    )


def _check_known(key: str, known: Sequence[str], where: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=2)
        raise BadInput(
            f"{where} has no option {key!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known)}")
        )


def _build(section: type[S], values: dict[str, Any]) -> S:
    hints, limits = get_type_hints(section), limits_of(section)
    checked = {}
    for key, value in values.items():
        name = f"{section.__name__.removesuffix('Config').lower()}.{key}"
        checked[key] = _checked(name, value, hints[key])
        for limit in limits[key]:
            if isinstance(limit, NameIn) and value is not None and (refusal := limit.refusal(value)):
                raise BadInput(f"{name} {refusal}")
    return section(**checked)


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return `value` if it has the type of the annotation (an int may stand for a float, a Path for a str)."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in choices:
            raise BadInput(f"{name} must be one of {', '.join(map(str, choices))} and was {value!r}")
        return value
    if type(None) in choices:
        return None if value is None else _checked(name, value, next(c for c in choices if c is not type(None)))
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise BadInput(f"{name} must be {_KINDS.get(hint, hint)} and was {value!r}")
    return value


# ------------------------------------------------------------------------------------------------------------- writing
def to_table(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as TOML tables; what is `None` is left out."""
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
        for section, values in asdict(config).items()
    }


def to_toml(table: Mapping[str, Any]) -> str:
    """Return the TOML text of the tables."""
    return tomli_w.dumps(table)
