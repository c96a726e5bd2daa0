"""What a row of the tables of methods says, and how what it names is built.

A row's builder, `module:name`, is called with those of these values that it has parameters for: every option of
`LossConfig` by its name (one that is open is left to the builder's own default), and in their place or beside them

    num_samples   images in the data set           temperature   a float, or modules where it is learned
    num_texts     texts, of pairs only             gamma         a float or the schedule; 1 where the estimator takes none
    dim           width of the embeddings          estimator     the built estimator; of pairs one for images, one for texts
    steps         updates of the whole run         positives   of pairs: the ids of all of them, (n,) and (n,)
    same_kind     of pairs: whether both columns hold things of one kind, with one set of ids

An estimator for pairs is built twice, with `num_samples` the images and then the texts.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TEMPERATURE_MODES = ("constant", "per-sample", "global")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What methods and estimators have in common."""

    name: str
    """Its value of `--method` or `--estimator`."""
    title: str
    """How reports call it."""
    help: str
    """What it is, in one line."""
    options: tuple[str, ...] = ()
    """Options of `LossConfig` that it takes beside `COMMON`; another one is refused."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What it means by options that were left out."""
    says: str = ""
    """What `train` says of it before the run: a format string of the options."""
    lr: float | str = 1e-3
    """Learning rate (Adam) of parameters of its own, if it has any: a number, or the option that holds it."""


@dataclass(frozen=True, kw_only=True)
class EstimatorRow(Row):
    """A source of the normalizers."""

    builder: str
    """`module:name` of the estimator."""


@dataclass(frozen=True, kw_only=True)
class Method(Row):
    """A loss."""

    losses: Mapping[str, str]
    """Kind of DATA -> `module:name` of the loss."""
    estimator: str | None = None
    """Where the normalizers come from when `--estimator` is left out; None: it has a way of its own, and no choice."""
    temperature_mode: str = "constant"
    """What the temperature does when `--temperature-mode` is left out."""
    temperature_modes: tuple[str, ...] = TEMPERATURE_MODES
    temperature_refusal: str = "--temperature-mode {mode} does not go with --method {row}; give {modes}"
    """Said of another mode of the temperature."""
    many_views: bool = True
    """Whether it can contrast more than two views of an image."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of DATA that it works on."""
        return tuple(self.losses)


def construct(builder: str, values: Mapping[str, object]) -> object:
    """Call a builder with those of the values that it has parameters for.

    Args:
        builder: `module:name` of a class or function.
        values: name -> value; None is left out.

    Raises:
        ValueError: a parameter without a default has no value.
    """
    module, _, name = builder.partition(":")
    call: Callable[..., object] = getattr(importlib.import_module(module), name)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = {k: p for k, p in inspect.signature(call).parameters.items() if p.kind not in variadic}
    given = {k: v for k, v in values.items() if k in parameters and v is not None}
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in given]
    if missing:
        raise ValueError(f"{builder} needs {', '.join(missing)}, which is open or is none of {', '.join(values)}")
    return call(**given)
