"""A run that is killed, or refused by the system, at an event of the file system ends as the run to which nothing has happened.

A few events here; each of them by `make torture`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from digits import environment

SERVER = Path(__file__).parent / "fork_server.py"


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize(
    "words",
    [
        ("--kind", "images", "--trials", "5"),
        ("--kind", "pairs", "--trials", "3", "--twice"),
        ("--what", "ENOSPC", "--trials", "4"),
        ("--what", "EIO", "--trials", "2"),
        ("--what", "EMFILE", "--trials", "2"),
    ],
    ids=" ".join,
)
def test_a_run_ends_as_if_nothing_had_happened(words):
    done = subprocess.run([sys.executable, str(SERVER), *words], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
