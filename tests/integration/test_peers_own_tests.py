"""lightly's own tests of NT-Xent and DCL, and open_clip's of SigLIP and retrieval, with ours in the place of what they test.

Neither's archive on PyPI has these tests (lightly 1.6.0 has none, open_clip 3.3.0 none of a loss), so they are run from
clones, where there are: `make test-integrations PEERS=FOLDER`, with lightly/ and open_clip/ in it. The losses of the installed
packages are what `test_peers_losses.py` holds ours against, always.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from digits import environment

pytestmark = [pytest.mark.integration, pytest.mark.slow]
PEERS = Path(os.environ.get("PEERS", "")).absolute()
TESTS = {
    "lightly": (["tests/loss/test_ntx_ent_loss.py", "tests/loss/test_dcl_loss.py"], 100),
    "open_clip": (["tests/test_siglip_chunked_loss.py", "tests/test_retrieval_metrics.py"], 12),
}


@pytest.mark.parametrize("name", TESTS)
def test_ours_pass_the_tests_of_the_peers(name):
    files, least = TESTS[name]
    if "PEERS" not in os.environ:
        pytest.skip("PEERS is not set to a folder with clones of lightly and open_clip")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-c", os.devnull, "-p", "peers_as_ours", *files]
    command += ["-p", "no:cacheprovider", "--rootdir", ".", "--import-mode", "importlib"]
    folders = [PEERS / "open_clip" / "src", PEERS / "lightly", Path(__file__).parent, os.environ.get("PYTHONPATH", "")]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(command, cwd=PEERS / name, env=environment() | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least, done.stdout
