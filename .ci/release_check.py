"""Build the source archive and the wheel, look through both, and use the wheel where there is no clone: `make release-check`.

Into an environment that is made for it go the wheel, with the pinned versions of what it depends on, and no extra. There images
are trained on, embedded, scored and exported by the command line, and the loss is called from Python. Its Python and the versions may be
named: `make release-check PYTHON=python3.12 CONSTRAINTS=constraints-oldest.txt`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
LARGEST = 1_000_000  # bytes of an archive
NEEDED = ("py.typed", "search.html.j2", "report/page.html.j2", "report/page.css", "report/page.js")
IN_SOURCE = {"src", "docs", "examples", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md"}
IN_SOURCE |= {"constraints.txt", "pyproject.toml", ".gitignore"}
IMAGES = """
import numpy as np
from PIL import Image
from pathlib import Path
draw = np.random.default_rng(0)
for k in range(32):
    folder = Path("photos", "dark" if k % 2 else "light")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((draw.random((16, 16, 3)) * 127 + 128 * (k % 2 == 0)).astype(np.uint8)).save(folder / f"{k}.png")
"""
PYTHON = """
import sogclr, torch
from importlib.metadata import version
assert sogclr.__version__ == version("sogclr")
assert "site-packages" in sogclr.__file__, sogclr.__file__
z0, z1 = torch.randn(2, 8, 4, requires_grad=True)
sogclr.GlobalContrastiveLoss(num_samples=8)(z0, z1, index=torch.arange(8)).backward()
print("embedded by the loaded encoder:", tuple(sogclr.load_encoder("run").encode_files(["photos/dark/1.png"]).shape))
"""


def run(*command: object, cwd: Path, code: int = 0) -> str:
    """Return what a command says, both streams together.

    Args:
        command: its words.
        cwd: where it runs.
        code: the exit code that is expected.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != code:
        sys.exit(f"{' '.join(words)}\n{done.stdout}\nended with {done.returncode}, and {code} was expected")
    return done.stdout


def check_contents(wheel: Path, source: Path) -> None:
    """Check that both hold what they should and nothing else."""
    inside = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(source) as archive:
        packed = [name.partition("/")[2] for name in archive.getnames()]
    strange = [name for name in inside if not name.startswith(("sogclr/", "sogclr-"))]
    strange += [name for name in packed if name.split("/")[0] not in IN_SOURCE]
    strange += [name for name in inside + packed if "__pycache__" in name or name.endswith((".png", ".csv", ".pt"))]
    missing = [name for name in NEEDED if not any(found.endswith(name) for found in inside)]
    large = [file.name for file in (wheel, source) if file.stat().st_size > LARGEST]
    if strange or missing or large:
        sys.exit(f"in the archives and not expected: {strange}; missing: {missing}; above {LARGEST:,} bytes: {large}")
    for file, names in ((wheel, inside), (source, packed)):
        print(f"{file.name}: {len(names)} files, {file.stat().st_size / 1000:.0f} kB")


def use(wheel: Path, folder: Path, interpreter: str, constraints: Path) -> None:
    """Install the wheel in a folder far from the clone, and use it there.

    Args:
        wheel: what is installed.
        folder: an empty one.
        interpreter: the Python of the environment.
        constraints: the file of versions that pip is held to.
    """
    run(interpreter, "-m", "venv", folder / "venv", cwd=folder)
    python, sogclr = folder / "venv/bin/python", folder / "venv/bin/sogclr"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--constraint", constraints, wheel, cwd=folder)
    run(python, "-c", IMAGES, cwd=folder)
    print(
        f"{run(python, '--version', cwd=folder).strip()}, {constraints.name}, {run(sogclr, '--version', cwd=folder).strip()}"
    )
    run(sogclr, "--help", cwd=folder)
    small = ("--epochs", 1, "--batch-size", 8, "--model", "resnet10_mini", "--device", "cpu", "--workers", 0)
    said = run(sogclr, "train", "photos", "--out", "board", "--logger", "tensorboard", cwd=folder, code=2)
    assert "--logger tensorboard needs a package that is not installed" in said, said
    run(sogclr, "train", "photos", "--out", "run", *small, cwd=folder)
    for command in (
        "embed run photos --out e.parquet",
        "eval run photos",
        "report run",
        "export run --format torchscript",
    ):
        said = run(sogclr, *command.split(), cwd=folder)
        print(f"sogclr {command}\n  {said.strip().splitlines()[-1]}")
    print(run(python, "-c", PYTHON, cwd=folder).strip())
    for file in ("e.parquet", "run/encoder.safetensors", "run/eval.json", "run/report.html"):
        assert (folder / file).stat().st_size > 0, file


def main() -> None:
    """Build, look through, use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="what the wheel is used with")
    parser.add_argument("--constraints", default="constraints.txt", help="the versions of what it depends on")
    arguments = parser.parse_args()
    for old in DIST.glob("sogclr-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", DIST, cwd=ROOT)  # the wheel from the source archive
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    print(run(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=ROOT).strip())
    check_contents(wheel, source)
    with tempfile.TemporaryDirectory() as folder:
        use(wheel, Path(folder), arguments.python, ROOT / arguments.constraints)


if __name__ == "__main__":
    main()
