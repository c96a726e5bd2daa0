"""Options that sogclr 0.1 had and this version has not, as no table said when to switch them on (docs/results.md).

What they made is read, embedded, evaluated, exported and reported as ever: the encoder does not depend on them. It cannot be gone on with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadInput

_OPTIONS: dict[str, dict[str, Any]] = {"loss": {"balanced": False}, "optim": {"refresh_every": None}}
"""Section -> option -> its value where it did nothing."""
_ESTIMATORS = ("boosted", "memory", "boosted-memory", "dictionary", "queue-average")


def without_removed(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the tables of a configuration without options that are gone, and those of them that did something.

    Args:
        table: of this version or an older one.

    Returns:
        The tables, and options as they stand on a command line.
    """
    new, used = dict(table), []
    for section, options in _OPTIONS.items():
        values = new.get(section)
        if not isinstance(values, dict):
            continue
        new[section] = {k: v for k, v in values.items() if k not in options}
        for name in options.keys() & values.keys():
            if values[name] != options[name]:
                value = "" if values[name] is True else f" {values[name]}"
                used.append(f"--{name.replace('_', '-')}{value}")
        if section == "loss" and values.get("estimator") in _ESTIMATORS:
            used.append(f"--estimator {new[section].pop('estimator')}")
    return new, used


def check_none_removed(table: Mapping[str, Any], where: object) -> None:
    """Refuse to train with a configuration that has options which are gone.

    Args:
        table: the configuration's tables.
        where: the run or the file that they are of.

    Raises:
        BadInput: it has one.
    """
    _, used = without_removed(table)
    if used:
        raise BadInput(
            f"{where} was made with {' and '.join(used)}, which sogclr 0.2 no longer has; install sogclr 0.1 to go on with it"
        )
