"""Every public loss still computes what version 0.1.0 computed: values, statistics, gradients and state, step by step."""

import json

import golden_losses as golden
import pytest

RELATIVE = 2e-5  # float32, summed in another order
OF_HALF = 1e-2  # gradients that come back in bfloat16
STORED = json.loads(golden.STORED.read_text(encoding="utf-8"))


def differences(found, wanted, tolerance, where=""):
    """The leaves that differ, with both values. A digest's sum is compared on the scale of its norm."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        return [d for k in wanted for d in differences(found[k], wanted[k], tolerance, f"{where} {k}")]
    assert len(found) == len(wanted), where
    floor = 0.25 if len(wanted) == 1 else 0.05  # numbers are sums of terms of size one, which may cancel
    scale = tolerance * max(abs(wanted[0]), floor)
    same = abs(found[0] - wanted[0]) <= scale and (
        len(wanted) == 1 or (abs(found[1] - wanted[1]) <= 2 * scale and found[2] == wanted[2])
    )
    return [] if same else [(where, found, wanted)]


def test_all_cases_are_stored():
    assert STORED["losses"].keys() == golden.CASES.keys()


@pytest.mark.parametrize("name", golden.CASES)
def test_a_loss_is_as_it_was(name):
    steps, wanted = golden.record(golden.CASES[name]), STORED["losses"][name]
    assert len(steps) == len(wanted)
    for number, (found, stored) in enumerate(zip(steps, wanted, strict=True)):
        for part in stored:
            half = number == golden.HALF and part == "gradients"
            where = f"step {number} {part}"
            assert not differences(found[part], stored[part], OF_HALF if half else RELATIVE, where)


def test_the_exact_values_are_as_they_were():
    assert not differences(golden.record_exact(), STORED["exact"], RELATIVE)
