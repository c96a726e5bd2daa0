from contextlib import contextmanager

import pytest
import torch

from sogclr.errors import BadInput
from sogclr.hardware import choose_precision, computing_on


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp16")])
def test_the_precision_is_what_the_chosen_gpu_multiplies(supported, expected, monkeypatch):
    entered = []

    @contextmanager
    def current(device):
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and bool(entered))
    assert choose_precision("auto", torch.device("cuda", 1)) == expected
    assert choose_precision("fp32", torch.device("cuda", 1)) == "fp32"
    assert entered == [torch.device("cuda", 1)]


def test_threads_are_limited_in_the_block_alone():
    before = torch.get_num_threads()
    with computing_on("cpu", 3) as (device, readers):
        assert (device, readers) == (torch.device("cpu"), 3)
        assert torch.get_num_threads() <= before
    assert torch.get_num_threads() == before
    with pytest.raises(BadInput, match="--workers must be 0 or more and was -1"), computing_on("cpu", -1):
        pass
