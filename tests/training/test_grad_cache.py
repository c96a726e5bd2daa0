"""Micro-batches: weights get the gradient of the whole batch, and the loss's state moves once."""

import pytest
import torch
from digits import SMALL, write_digits
from torch import nn

import sogclr as package
from sogclr.losses import GlobalContrastiveLoss, TwoTowerGlobalContrastiveLoss
from sogclr.run_folder import load_checkpoint
from sogclr.training.grad_cache import GradCache

B = 12


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.y = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, x, y):
        return self.x(x), self.y(y)


def gradients(model, encode, inputs, loss, two):
    """Of two batches, one after the other: sums, as with --accumulate."""
    model.zero_grad()
    torch.manual_seed(1)  # what dropout draws
    for _ in range(2):
        z = encode(*inputs)
        loss(*(z if two else z.chunk(2)), torch.arange(B)).backward()
        if isinstance(encode, GradCache):
            encode.backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("rows", [1, 5, 8, 100])
@pytest.mark.parametrize("two", [False, True])
def test_the_gradient_and_the_state_are_the_whole_batchs(rows, two):
    torch.manual_seed(0)
    model = (Towers() if two else nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))).double()
    inputs = [torch.randn(B if two else 2 * B, width, dtype=torch.float64) for width in ((6, 5) if two else (6,))]
    build = TwoTowerGlobalContrastiveLoss if two else GlobalContrastiveLoss
    losses = [build(B, 0.2, 0.3) for _ in range(2)]
    expected = gradients(model, model, inputs, losses[0], two)
    got = gradients(model, GradCache(model, model, rows), inputs, losses[1], two)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
        assert b.abs().max() > 1e-4
    for key, value in losses[0].state_dict().items():
        torch.testing.assert_close(losses[1].state_dict()[key], value)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_hard_negatives_are_a_third_input_in_step_with_the_rows(rows):
    """(B, H, ...) of them, split with the batch; one that has no id gets no gradient."""
    torch.manual_seed(0)

    class WithNegatives(Towers):
        def forward(self, x, y, negatives):
            return *super().forward(x, y), self.y(negatives)

    model = WithNegatives().double()
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in ((B, 6), (B, 5), (B, 2, 5))]
    ids = torch.randint(-1, 40, (B, 2))
    losses = [TwoTowerGlobalContrastiveLoss(B, 0.2, 0.3, num_texts=40) for _ in range(2)]

    def with_ids(loss):
        return lambda x, y, hard, index: loss(x, y, index, None, hard, ids)

    expected = gradients(model, model, inputs, with_ids(losses[0]), True)
    got = gradients(model, GradCache(model, model, rows), inputs, with_ids(losses[1]), True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    for key, value in losses[0].state_dict().items():
        torch.testing.assert_close(losses[1].state_dict()[key], value)


def test_dropout_draws_the_same_twice():
    """The gradient is that of the very embeddings that the loss saw: for a linear map it says what was dropped."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1, bias=False))
    encode = GradCache(model, model, rows=3)
    inputs, direction = torch.ones(10, 6), torch.randn(10, 1, generator=torch.Generator().manual_seed(0))
    z = encode(inputs)
    state = torch.get_rng_state()
    (z * direction).sum().backward()
    encode.backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isclose((model[1].weight * model[1].weight.grad).sum(), (z * direction).sum().detach(), atol=1e-5)


def test_a_pass_without_graph_leaves_running_statistics_alone():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    encode = GradCache(model, model, rows=4)
    z = encode(torch.randn(8, 6))
    assert model[1].num_batches_tracked == 0
    z.sum().backward()
    encode.backward()
    assert model[1].num_batches_tracked == 2


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"method": "moco", "queue": 24, "symmetric": True}])
def test_a_run_with_micro_batches_trains_and_resumes(options, tmp_path):
    data = write_digits(tmp_path / "digits", per_digit=2)
    settings = SMALL | {"max_steps": 4, "log_every": 1, "labels": "none", "micro_batch": 6} | options
    run = package.train(data, tmp_path / "run", quiet=True, **settings)
    first, last = (load_checkpoint(p)["model"] for p in (run.checkpoint_files()[0], run.latest_checkpoint()))
    weights = [k for k in first if k.endswith("weight")]
    assert all(torch.isfinite(last[k]).all() for k in weights)
    assert sum(not torch.equal(first[k], last[k]) for k in weights) > len(weights) // 2


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 7, 100])
@pytest.mark.parametrize("count", [2, 3, 5, 8, 9, 15])
def test_micro_batches_are_of_one_size_and_never_of_one_row(rows, count):
    """Of which BatchNorm can compute nothing: a batch that lost a file would end the run."""
    sizes = []
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    encode = GradCache(model, model, rows)
    assert encode(torch.randn(count, 3)).square().sum().isfinite()
    assert sum(sizes) == count
    assert 2 <= min(sizes) <= max(sizes) <= max(rows, 3)
    assert max(sizes) - min(sizes) <= 1
