"""A test file's function `two_ranks` on two real processes that speak over gloo."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

from digits import environment


def run(file: str, folder: Path) -> None:
    """Call `two_ranks(folder)` of the file `file` in two processes that torchrun starts."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, file, str(folder)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    variables = environment() | {"PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    import torch.distributed as dist

    from sogclr.models.torchvision_cpu import import_timm

    import_timm()  # as tests/integration/conftest.py does
    runpy.run_path(sys.argv[1])["two_ranks"](Path(sys.argv[2]))
    dist.destroy_process_group()
