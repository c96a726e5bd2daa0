"""The hinge of hinge.py: without it the closed form of the global loss, with it what is far below the positive has no gradient."""

import math

import torch
from torch.nn.functional import normalize

from research.hinge import TAU, WAYS, Tuning, hinged
from research.many_runs import Job
from research.text_pairs import WIDTH, text_problem
from sogclr.data.wordnet import Synset
from sogclr.evaluation.exact import pair_normalizers


def test_normalizers_begin_exact_and_far_negatives_have_no_gradient():
    problem = text_problem([Synset(f"number {k} of many", f"word{k}") for k in range(64)], [Synset("a test", "one")])
    first = torch.randn(2**17, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    runs = Tuning(problem, [Job(rule, 1e-3, 0) for rule in (WAYS["none"], WAYS["m = 0.3"])], first)
    z = normalize(problem.train.embed(first), dim=1)
    ids = torch.arange(64)
    exact = pair_normalizers(z[0::2], z[1::2], ids, ids, TAU)
    torch.testing.assert_close(runs.log_u[:, 0], exact - (z[0::2] * z[1::2]).sum(1) / TAU, atol=1e-4, rtol=1e-4)
    h = torch.tensor([-0.9, -0.4, 0.1], requires_grad=True)
    for rule, expected in (({}, [1.0, 1.0, 1.0]), ({"margin": 0.6, "power": 1}, [0.0, 1.0, 1.0])):
        assert torch.autograd.grad(hinged(h, rule).sum(), h)[0].tolist() == expected
    (squared,) = torch.autograd.grad(hinged(h, {"margin": 0.5, "power": 2}).sum(), h)
    torch.testing.assert_close(squared, torch.tensor([0.0, 0.2, 1.2]))
    runs.train_step()
    assert math.isfinite(float(runs.state.sum()))
