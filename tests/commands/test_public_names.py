"""The names of the package: each is there, is known to type checkers, and a command's function has the command's options."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from digits import environment

import sogclr
from sogclr.cli import COMMANDS
from sogclr.config.toml import SECTIONS, from_options
from sogclr.options import PYTHON_ONLY, read_args, read_sections, read_signature


def test_every_public_name_is_there():
    for name in sogclr.__all__:
        assert getattr(sogclr, name) is not None
    assert set(dir(sogclr)) == set(sogclr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        sogclr.tarin  # noqa: B018


def test_type_checkers_are_told_of_the_same_names():
    tree = ast.parse(Path(sogclr.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name for node in block.body for alias in node.names}
    assert told | {"__version__"} == set(sogclr.__all__) == {*sogclr._HOMES, "__version__"}


def test_importing_the_package_does_not_import_torch():
    code = "import sys, sogclr; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_is_the_function(name):
    """The options are the parameters, less those for Python alone; each has a text of its own."""
    command = COMMANDS[name]
    function = command.load()
    assert function is getattr(sogclr, {"eval": "evaluate"}.get(name, name))
    parameters = inspect.signature(function).parameters
    assert "quiet" in parameters or name == "export"  # which has nothing to show
    options = read_signature(function, command.positional)
    if name == "train":  # its other options are those of the configuration
        assert {"data", "out", "config"} <= {option.name for option in options}
        return
    assert [o.name for o in options] == [p for p in parameters if p not in PYTHON_ONLY]
    assert all(option.help.endswith(".") for option in options)
    assert {o.name for o in options if o.positional} == set(command.positional)
    texts = read_args(inspect.getdoc(function))
    assert set(texts) == set(parameters)


def test_every_option_of_a_training_has_a_section():
    config = from_options({"data": ".", "out": "."})
    options = read_sections(config)
    assert len({option.name for option in options}) == len(options) > 60
    assert [option.name for option in options if option.positional] == ["data"]
    assert {option.group for option in options} == {section.title for section in SECTIONS.values()}
    assert len(SECTIONS) == sum(not isinstance(value, dict) for value in vars(config).values())


def test_arguments_are_read_from_a_docstring():
    text = """Do it.

    Args:
        first: One line.
        second, third: Another,
            which goes on: here.

    Returns:
        fourth: Nothing.
    """
    assert read_args(inspect.cleandoc(text)) == {
        "first": "One line.",
        "second": "Another, which goes on: here.",
        "third": "Another, which goes on: here.",
    }
