"""From flat options and TOML files to a `TrainConfig`, and back."""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomli_w

from ..data.recipe import Recipe, recipe_from_table
from ..errors import BadInput
from .methods import OF_AVERAGES
from .schema import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PairsConfig,
    RunConfig,
    TrainConfig,
    _require,
)

SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "model": ModelConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "run": RunConfig,
    "pairs": PairsConfig,
}


def option_names() -> dict[str, str]:
    """Option name -> section, for every option of `train` (names are unique over the sections)."""
    return {f.name: name for name, section in SECTIONS.items() for f in fields(section)}


def from_options(options: dict[str, Any], table: dict[str, Any] | None = None) -> TrainConfig:
    """A configuration from flat options (`batch_size=64`), laid over the tables of a configuration file.

    Raises:
        BadInput: an unknown name (the nearest is given), a value of the wrong type, or one out of range.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    recipe: dict[str, Any] = {}
    for section, entries in (table or {}).items():
        if section in ("versions", "own"):
            continue
        if section == "recipe":
            recipe_from_table(Recipe(), entries)
            recipe = entries
        elif section not in SECTIONS or not isinstance(entries, dict):
            raise BadInput(
                f"the configuration has no table [{section}]; its tables are [{'], ['.join([*SECTIONS, 'recipe'])}]"
            )
        else:
            for key, value in entries.items():
                _check_known(key, [f.name for f in fields(SECTIONS[section])], f"[{section}] of the configuration")
                values[section][key] = value
    names = option_names()
    for key, value in options.items():
        _check_known(key, list(names), "train")
        values[names[key]][key] = value
    for name in ("data", "out"):
        _require(
            name in values["data"],
            f"{name!r} is missing: say what to train on and where the run goes (data=, out=)",
        )
    return TrainConfig(**{name: _build(SECTIONS[name], entries) for name, entries in values.items()}, recipe=recipe)


def without_unused(saved: dict[str, Any]) -> dict[str, Any]:
    """The tables of a run's own configuration, without options of an average that its estimator has not.

    They were saved with every run before they were refused, and did nothing.
    """
    loss = saved.get("loss", {})
    estimator = loss.get("estimator")
    kept = {k: v for k, v in loss.items() if k not in OF_AVERAGES or estimator in OF_AVERAGES[k]}
    return {**saved, "loss": kept}


def _check_known(key: str, known: list[str], where: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=2)
        raise BadInput(
            f"{where} has no option {key!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known)}")
        )


def _build(section: Any, values: dict[str, Any]) -> Any:
    hints = get_type_hints(section)
    checked = {
        key: _checked(f"{section.__name__.removesuffix('Config').lower()}.{key}", value, hints[key])
        for key, value in values.items()
    }
    return section(**checked)


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` if it has the type of the annotation (an int may stand for a float, a Path for a str)."""
    choices: tuple[Any, ...] = getattr(hint, "__args__", ())
    if getattr(hint, "__origin__", None) is Literal:
        _require(value in choices, f"{name} must be one of {', '.join(map(str, choices))} and was {value!r}")
        return value
    if choices and type(None) in choices:
        if value is None:
            return None
        return _checked(name, value, next(c for c in choices if c is not type(None)))
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise BadInput(f"{name} must be {_KINDS.get(hint, hint)} and was {value!r}")
    return value


def read_table(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        BadInput: no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"there is no configuration file {path}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} cannot be read as TOML: {error}") from None


def to_table(config: TrainConfig) -> dict[str, Any]:
    """The configuration as TOML tables; what is `None` is left out."""
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
        for section, values in asdict(config).items()
    }


def to_toml(table: dict[str, Any]) -> str:
    """TOML text of the tables."""
    return tomli_w.dumps(table)
