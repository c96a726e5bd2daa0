"""What the project's own files say twice is the same: versions, bounds, and the configuration of tools that run elsewhere."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

import sogclr

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def hooks() -> dict[str, dict]:
    return {hook["id"]: hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}


def test_the_version_is_written_once():
    """Not compared with the installed metadata: an editable install keeps that of the day it was made."""
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    source = (ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.*)"$', source, flags=re.M) == [sogclr.__version__]
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert latest[1] == sogclr.__version__


def test_the_latest_changes_are_in_sections():
    latest = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    sections = re.findall(r"^### (.*)$", latest, flags=re.M)
    assert sections
    assert sections == [name for name in ("Added", "Changed", "Removed", "Fixed") if name in sections]


def test_the_oldest_constraints_are_the_lower_bounds():
    requirements = {*PROJECT["dependencies"]}.union(*PROJECT["optional-dependencies"].values())
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    assert {requirement.replace(">=", "==") for requirement in requirements} <= pinned


def test_each_package_is_pinned_in_one_place():
    names = []
    for file in ("constraints.txt", "constraints-integrations.txt", "constraints-tools.txt"):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        pins = [line.split("==") for line in lines if not line.startswith("#")]
        names += [re.sub(r"[-_.]+", "-", name).lower() for name, _ in pins]
    assert len(names) == len(set(names)) > 150
    assert not [name for name in names if name.startswith("nvidia")]  # a second torch would bring them


def test_the_workflow_tests_every_python_that_is_promised():
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    for job in ("newest", "build"):
        assert jobs[job]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert {"lint", "oldest"} <= set(jobs)


def test_a_tag_publishes_what_was_checked_without_a_token():
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert {"run": "make release-check"} in jobs["build"]["steps"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in jobs["build"]
    assert "secrets." not in text


def test_the_hooks_fetch_nothing():
    repos = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["language"] for hook in hooks().values()} == {"system"}
    assert set(hooks()) == {"ruff-check", "ruff-format", "mypy", "check-added-large-files"}


@pytest.mark.parametrize(("size", "code"), [(499, 0), (501, 1)])
def test_large_files_are_held_back(size, code, tmp_path):
    file = tmp_path / "a file.bin"
    file.write_bytes(bytes(size * 1024))
    command = [*shlex.split(hooks()["check-added-large-files"]["entry"]), str(file), str(ROOT / "LICENSE")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert ("a file.bin" in result.stdout) == bool(code)


def test_the_citation_names_the_paper():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= set(citation)  # what the format asks for
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    paper = citation["preferred-citation"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert len(paper["authors"]) == 7
