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

SCRIPT = """
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import assert_type

import sogclr

run = sogclr.train("photos", "runs/a", batch_size=64)
assert_type(run, sogclr.RunFolder)
assert_type(sogclr.resume("runs/a"), sogclr.RunFolder)
assert_type(sogclr.embed(run.path, "photos", "e.parquet").images, int)
scores = sogclr.evaluate("runs/a", Path("photos"), quiet=True)
assert_type(scores, sogclr.EvalResult)
assert_type(scores["knn_top1"], float)
assert_type(scores.split, str | None)
found = sogclr.search("runs/a", "a red apple", source="e.parquet")
assert_type(found, sogclr.SearchResult)
assert_type([(hit.path, hit.score) for hit in found.hits], list[tuple[str, float]])
assert_type(sogclr.export("runs/a", "onnx"), Path)
assert_type(sogclr.report("runs/a"), Path)
assert_type(sogclr.inspect("photos"), sogclr.Inspection)
assert_type(sogclr.inspect("photos").to_json(), dict[str, object])
assert_type(sogclr.cache("photos"), sogclr.CacheResult)
assert_type(sogclr.demo(quick=True).scores, dict[str, dict[str, float]])
assert_type(sogclr.GlobalContrastiveLoss(num_samples=10), sogclr.GlobalContrastiveLoss)
encoder = sogclr.load_encoder("runs/a")
assert_type(encoder.encode(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)), Tensor)
sogclr.estimators.MovingAverage, sogclr.temperatures.PerSample, sogclr.exact.objective, sogclr.diagnose, sogclr.BadInput
sogclr.sharded.whole_state
"""


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


@pytest.mark.slow
def test_a_users_script_has_types(tmp_path):
    """In strict mode, each public function; `Any` is not equal to what `assert_type` names."""
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(SCRIPT)
    source = Path(sogclr.__file__).parent.parent
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--cache-dir",
            tmp_path / "cache",
            "script.py",
        ],
        env={**environment(), "MYPYPATH": str(source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


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
    config = from_options({"data": "", "out": ""})
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
