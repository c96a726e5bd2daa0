"""The options of a command, read from its function's signature and docstring, or from the configuration's dataclasses."""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass, replace
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes, Positional, Suppress

from .config.schema import TrainConfig
from .config.toml import SECTIONS

REQUIRED = MISSING
"""The default of an option that has none."""
PYTHON_ONLY = frozenset({"quiet", "progress", "on_metrics", "model", "loss", "dataset", "transform"})
"""Parameters that are no options: a command shows its progress, and takes no objects of Python."""
METAVARS = {
    "out": "PATH",
    "config": "PATH",
    "pretrained": "PATH|NAME",
    "clip": "PATH|NAME",
    "init_from": "RUN",
    "validation": "DATA",
    "source": "EMBEDDINGS|DATA",
}
"""What stands for a value in the help, where its type does not say it."""
FLAGS = {"source": "in", "as_column": "as", "all_classes": "all"}
"""Parameters whose option has another name, which is a word of Python."""


@dataclass(frozen=True)
class Option:
    """One option or positional argument of a command."""

    name: str
    """As the function's parameter; `--with-hyphens` on the command line."""
    type: Any
    """The annotation; a path may be given as text."""
    help: str
    default: object = REQUIRED
    positional: bool = False
    group: str = ""
    """The title that it stands under in the help."""


# ------------------------------------------------------------------------------------------------------------- reading
def read_signature(function: Callable[..., object], positional: Collection[str] = ()) -> list[Option]:
    """Return the options of a function: its parameters, without those for Python only.

    Args:
        function: with annotations, and a docstring that explains each parameter under `Args:`.
        positional: parameters that are given without a name.
    """
    hints, texts = get_type_hints(function), read_args(inspect.getdoc(function) or "")
    return [
        Option(
            name=p.name,
            type=hints[p.name],
            help=texts.get(p.name, ""),
            default=REQUIRED if p.default is p.empty else p.default,
            positional=p.name in positional,
        )
        for p in inspect.signature(function).parameters.values()
        if p.name not in PYTHON_ONLY and p.kind is not p.VAR_KEYWORD
    ]


def read_args(docstring: str) -> dict[str, str]:
    """Return the text of each parameter under `Args:` of a docstring in the google convention."""
    section = re.search(r"^Args:\n((?: {4}.*\n?)+)", docstring, flags=re.M)
    found = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section[1] if section else "", flags=re.M)
    return {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}


def read_sections(config: TrainConfig) -> list[Option]:
    """Return the options of a configuration: the fields of its sections, with the text that stands below each.

    Args:
        config: its values are the defaults.
    """
    found = []
    for section in SECTIONS:
        values = getattr(config, section)
        hints, texts = get_type_hints(type(values), include_extras=True), read_attributes(type(values))
        for one in fields(values):
            hint, *marks = get_args(hints[one.name]) if get_origin(hints[one.name]) is Annotated else (hints[one.name],)
            option = Option(
                one.name, hint, texts.get(one.name, ""), getattr(values, one.name), Positional in marks, values.title
            )
            for mark in marks:  # choices that come from a table
                if choices := getattr(mark, "constructor_factory", None):
                    option = replace(option, type=choices(), help=getattr(mark, "help", None) or option.help)
            found.append(option)
    return found


def read_attributes(section: type) -> dict[str, str]:
    """Return the text below each field of a dataclass."""
    (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    body = getattr(parsed, "body", [])
    return {
        one.target.id: " ".join(str(below.value.value).split())
        for one, below in pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


# ------------------------------------------------------------------------------------------------------------- parsing
def parse_options(
    options: Sequence[Option],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    shown: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return the value of each option, from the words of a command line.

    Args:
        options: those of the command.
        args: the words after the command.
        prog: how the command is called.
        description: what it does.
        shown: names of the options that the help lists; None lists all.

    Raises:
        SystemExit: the help was shown (code 0), or the words do not fit; tyro says why on standard error.
    """
    groups: dict[str, list[tuple[str, Any, Any]]] = {"": []}
    for option in options:
        # positional arguments stand in a group of their own anyway, and first
        members = groups.setdefault("" if option.positional else option.group, [])
        members.append(_field(option, hidden=not (shown is None or option.positional or option.name in shown)))
    root = groups.pop("")
    for number, (title, members) in enumerate(groups.items()):
        kind = make_dataclass(f"Group{number}", members, kw_only=True, namespace={"__doc__": " "})
        root.append((f"group{number}", Annotated[kind, tyro.conf.arg(name=title)], field()))
    command = make_dataclass("Command", root, kw_only=True)
    return _flat(tyro.cli(command, args=list(args), prog=prog, description=description, config=(OmitArgPrefixes,)))


def flags(options: Sequence[Option]) -> list[str]:
    """Return the names of options as words of the command line; `--no-x` too of those that are yes or no."""
    found = []
    for option in options:
        name = FLAGS.get(option.name, option.name.replace("_", "-"))
        if not option.positional:
            found += [f"--{name}", *([f"--no-{name}"] if bool in _members(option.type) else [])]
    return found


def _flat(parsed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in vars(parsed).items():
        values |= _flat(value) if is_dataclass(value) else {name: value}
    return values


def _field(option: Option, hidden: bool) -> tuple[str, Any, Any]:
    """Return an option as `make_dataclass` takes it, with what tyro is to know."""
    settings = tyro.conf.arg(
        name=FLAGS.get(option.name),
        metavar=_metavar(option),
        help=option.help,
        help_behavior_hint=_hint(option),
    )
    marks = [mark for mark, given in ((Positional, option.positional), (Suppress, hidden)) if given]
    kind: Any = Union[tuple(k for k in _members(option.type) if get_origin(k) is not os.PathLike)]  # noqa: UP007
    return option.name, Annotated[(kind, settings, *marks)], field(default=option.default)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _metavar(option: Option) -> str | None:
    """Return what stands for the value; None leaves flags, choices and lists to tyro."""
    if option.positional:
        return option.name.upper()
    if option.name in METAVARS:
        return METAVARS[option.name]
    kinds = [kind for kind in _members(option.type) if kind is not NoneType]
    if any(get_origin(kind) is os.PathLike for kind in kinds):
        return "PATH"
    if len(kinds) == 1 and NoneType in _members(option.type) and get_args(kinds[0]):
        return "{" + ",".join(map(str, get_args(kinds[0]))) + "}"
    return {int: "INT", float: "FLOAT", str: "STR"}.get(kinds[0])


def _hint(option: Option) -> str | None:
    """Return the words on the default; nothing where the text says what happens when the option is left out."""
    default = option.default
    if default is REQUIRED:
        return None
    if default is None or default == ():
        return "" if option.positional or "left out" in option.help else "(default: none)"
    if isinstance(default, bool):
        return f"(default: {'yes' if default else 'no'})"
    return f"(default: {' '.join(map(repr, default)) if isinstance(default, tuple) else default})"
