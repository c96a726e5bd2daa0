"""The examples as a user runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from digits import environment

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_the_loss_alone_in_a_loop_of_ones_own_learns():
    """200 of its 3,000 steps: with one label a class, more digits are recognised than before."""
    script = EXAMPLES / "loss_only.py"
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script), "200"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=True,
    )
    before, objective, after = (float(x) for x in re.findall(r"-?\d+\.\d+", result.stdout))
    assert "step 0: objective" in result.stdout
    assert -20 < objective < 20
    assert after > before + 3  # percent
    assert len([line for line in script.read_text().splitlines() if line.strip()]) <= 50
