from contextlib import contextmanager

import pytest
import torch

from sogclr import distributed
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


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE in the environment is a number where torchrun sets it, and was 'two'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set in the environment without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE in the environment is a number"),
    ],
)
def test_half_of_torchruns_environment_is_one_sentence(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=said), distributed.process_group():
        pass


def test_a_rank_without_a_world_is_the_only_one(monkeypatch):
    """As some schedulers leave it in the environment: such a run would write nothing."""
    monkeypatch.setenv("RANK", "3")
    assert distributed.is_rank0()
