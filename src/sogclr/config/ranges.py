"""What a field of the configuration may hold, said in its annotation: `Annotated[int, Range(1)]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from ..errors import BadInput
from .rows import Row

_TINIEST, _HUGEST = 1e-37, 1e37
"""Between these in size a number and its inverse are normal ones of float32, in which the device computes."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, with these two unless they are excluded; and a note for who gives another one."""

    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is excluded."""
    below: bool = False
    """Whether `high` itself is excluded."""
    note: str = ""
    infinite: bool = False
    """Whether infinity is in it."""

    def refusal(self, value: Any) -> str | None:
        """Return what is wrong with a value; None when it is in the range."""
        low_ok = value > self.low if self.above else value >= self.low
        if low_ok and (value < self.high if self.below else value <= self.high):
            return None
        return f"must be {self} and was {value}" + (f"; {self.note}" if self.note else "")

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"greater than {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.above:
            return f"in ({self.low:g}, {self.high:g}]"
        return f"from {self.low:g} {'up ' if self.below else ''}to {self.high:.10g}"


@dataclass(frozen=True, eq=False)  # hashed by identity: annotations are hashed, and a table is not
class NameIn:
    """Names of the rows of a table, which may have got more rows since it was imported."""

    table: Mapping[str, Row]

    def refusal(self, value: Any) -> str | None:
        """Return what is wrong with a value; None when it is a name of the table."""
        return None if value in self.table else f"must be one of {', '.join(self.table)} and was {value!r}"

    def help(self) -> str:
        """Return what the names mean; names that mean the same stand together."""
        names: dict[str, list[str]] = {}
        for name, row in self.table.items():
            names.setdefault(row.help, []).append(name)
        return "; ".join(f"{', '.join(same)}: {meaning}" for meaning, same in names.items())

    def literal(self) -> type:
        """Return a `Literal` of the names, for the parser of the command line."""
        return Literal[tuple(self.table)]  # type: ignore[return-value]  # made at run time, for tyro

    def literal_or_none(self) -> type:
        """Return a `Literal` of the names, or None."""
        return Literal[tuple(self.table)] | None  # type: ignore[return-value]  # as above


@dataclass(frozen=True)
class Check:
    """Values that a function accepts: it returns None, or the end of the sentence that refuses one."""

    refusal: Callable[[Any], str | None]


def limits_of(section: type) -> dict[str, list[Range | NameIn | Check]]:
    """Return the limits in the annotations of a dataclass, by the name of the field."""
    hints = get_type_hints(section, include_extras=True)
    found = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: [m for m in marks if isinstance(m, Range | NameIn | Check)] for name, marks in found.items()}


def check_fields(section: Any) -> None:
    """Check every field of a dataclass against its annotation.

    Raises:
        BadInput: a number is not finite, not one of float32, or out of its range, or a name is in no table.
    """
    limits = limits_of(type(section))
    for name, value in vars(section).items():
        option = f"--{name.replace('_', '-')}"
        endless = value == math.inf and any(getattr(limit, "infinite", False) for limit in limits[name])
        if isinstance(value, float) and not math.isfinite(value) and not endless:
            raise BadInput(f"{option} must be a finite number and was {value}")
        if isinstance(value, float) and math.isfinite(value) and value and not _TINIEST <= abs(value) <= _HUGEST:
            raise BadInput(
                f"{option} must be from {_TINIEST:g} to {_HUGEST:g} in size, for float32 to hold it, and was {value}"
            )
        for limit in limits[name] if value is not None else ():
            if refusal := limit.refusal(value):
                raise BadInput(f"{option} {refusal}")


def check_least(options: Mapping[str, tuple[float, float]]) -> None:
    """Check options of a command that have a least value.

    Args:
        options: option -> its value, and the least that it may be.

    Raises:
        BadInput: one is below.
    """
    for option, (value, least) in options.items():
        if refusal := Range(least).refusal(value):
            raise BadInput(f"{option} {refusal}")
