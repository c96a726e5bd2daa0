"""A run that is killed, refused by the system, or cut off from power at an event of the file system ends as if nothing had happened.

A few events here; each of them by `make torture`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from digits import environment

HERE = Path(__file__).parent


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks /proc for the name of an open file")
@pytest.mark.parametrize(
    "words",
    [
        ("fork_server.py", "--kind", "images", "--trials", "5"),
        ("fork_server.py", "--kind", "pairs", "--trials", "3", "--twice"),
        ("fork_server.py", "--what", "ENOSPC", "--trials", "4"),
        ("fork_server.py", "--what", "EIO", "--trials", "2"),
        ("fork_server.py", "--what", "EMFILE", "--trials", "2"),
        ("power_cut.py", "--trials", "6"),
    ],
    ids=" ".join,
)
def test_a_run_ends_as_if_nothing_had_happened(words):
    script, *options = words
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 wrong, 0 min to go" in done.stdout
