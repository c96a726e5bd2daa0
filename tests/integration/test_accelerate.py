"""Accelerate runs the page's code: `save_state` and `load_state` carry the loss, in one process and in two."""

import pytest
import torch
from pages import framework
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_ranks import run

import sogclr

accelerate = pytest.importorskip("accelerate")

pytestmark = [pytest.mark.integration, pytest.mark.slow]
N = 48


def train(folder, epochs, resume=None):
    """Run the page's loop in each of the epochs, from a checkpoint, and save one; return all state at the end."""
    torch.manual_seed(0)
    x = torch.rand(N, 16)
    dataset = TensorDataset(x, x.flip(1), torch.arange(N))
    encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    in_order = accelerate.DataLoaderConfiguration(use_seedable_sampler=True)
    names = {"sogclr": sogclr, "dataset": dataset}
    names["accelerator"] = accelerate.Accelerator(cpu=True, dataloader_config=in_order)
    names |= {"encoder": encoder, "optimizer": optimizer, "loader": DataLoader(dataset, 4, shuffle=True)}
    (text,) = framework("Accelerate")
    setup, loop = text.split("\n\n")
    exec(setup, names)
    accelerator = names["accelerator"]
    if resume:
        accelerator.load_state(resume)
    for epoch in epochs:
        names["loader"].set_epoch(epoch)
        exec(loop, names)
    accelerator.save_state(folder)
    return {**encoder.state_dict(), **names["loss_fn"].state_dict()}, accelerator


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def check(folder):
    whole, _ = train(folder / "whole", range(4))
    half, _ = train(folder / "half", range(2))
    rest, accelerator = train(folder / "rest", range(2, 4), resume=folder / "half")
    assert equal(rest, whole)
    assert not equal(half, whole)
    assert int(rest["estimator.step"]) == 4 * N // (4 * accelerator.num_processes)
    assert int(torch.isfinite(rest["estimator.log_u"]).sum()) == N
    return rest


def test_a_training_is_resumed_bit_for_bit(tmp_path):
    check(tmp_path)


def two_ranks(folder):
    both = [None, None]
    torch.distributed.all_gather_object(both, check(folder))
    assert equal(*both)


@pytest.mark.distributed
def test_two_processes_have_one_state_and_are_resumed_bit_for_bit(tmp_path):
    run(__file__, tmp_path)
