"""Lightning's own `Trainer` runs the page's code: two processes, resumed bit for bit; a poisoned step changes nothing."""

import pytest
import torch
from pages import framework
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from two_ranks import run

import sogclr

lightning = pytest.importorskip("lightning")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning"),
]
N = 40


def parts(alone):
    """The names that the page's code uses; the order is a function of the epoch, as Lightning makes it for several ranks."""
    torch.manual_seed(0)
    x = torch.rand(N, 16)
    dataset = TensorDataset(x, x.flip(1), torch.arange(N))
    encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    loader = DataLoader(dataset, 4, sampler=DistributedSampler(dataset, 1, 0) if alone else None, shuffle=not alone)
    names = {"torch": torch, "sogclr": sogclr, "lightning": lightning}
    return names | {"encoder": encoder, "dataset": dataset, "loader": loader}


def fit(folder, ckpt_path=None, edit=lambda module: None, watch=None, **options):
    """Run the page's code; return its trainer."""
    (text,) = framework("Lightning")
    text = text.replace("trainer.fit(", "fit(trainer, ")

    def fit_it(trainer, module, loader):
        edit(module)
        trainer.callbacks += [watch] if watch else []
        trainer.fit(module, loader, ckpt_path=ckpt_path)

    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    names = parts(alone="strategy" not in options) | {
        "options": quiet | {"default_root_dir": folder, "logger": False, "enable_checkpointing": False} | options,
        "fit": fit_it,
    }
    exec(text, names)
    return names["trainer"]


def state(trainer):
    return {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_training_is_resumed_bit_for_bit(tmp_path):
    whole = fit(tmp_path / "whole", max_epochs=2)
    half = fit(tmp_path / "half", max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest = fit(tmp_path / "rest", tmp_path / "half.ckpt", max_epochs=2)
    assert int(state(rest)["loss_fn.estimator.step"]) == whole.global_step == 20
    assert equal(state(rest), state(whole))
    assert not equal(state(half), state(whole))


def two_ranks(folder):
    """What each of two processes does: train, resume, and compare with the other."""
    options = {"strategy": "ddp", "devices": 2}
    whole = fit(folder, max_epochs=4, **options)
    fit(folder, max_epochs=2, **options).save_checkpoint(folder / "half.ckpt")
    rest = fit(folder, folder / "half.ckpt", max_epochs=4, **options)
    assert rest.world_size == 2
    assert rest.global_step == 20
    assert equal(state(rest), state(whole))
    states = [None, None]
    torch.distributed.all_gather_object(states, state(rest))
    assert equal(*states)
    assert int(torch.isfinite(states[0]["loss_fn.estimator.log_u"]).sum()) == N


@pytest.mark.distributed
def test_two_processes_have_one_state_and_are_resumed_bit_for_bit(tmp_path):
    run(__file__, tmp_path)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_without_a_finite_gradient_is_left_out(accumulate, tmp_path):
    """The third step's: as if its batches had not been there. The log has the loss's statistics."""
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen.append(state(trainer) | {"objective": trainer.logged_metrics["contrastive/objective"]})

    def poison(module):
        parameter = module.encoder[0].weight
        parameter.register_hook(lambda g: g * (float("nan") if len(seen) // accumulate == 2 else 1.0))

    trainer = fit(tmp_path, edit=poison, max_epochs=1, accumulate_grad_batches=accumulate, watch=Watch())
    (callback,) = (c for c in trainer.callbacks if hasattr(c, "skipped_steps"))
    assert callback.skipped_steps == 1
    ends = seen[accumulate - 1 :: accumulate]
    step = "loss_fn.estimator.step"
    assert [int(end[step]) for end in ends[:4]] == [accumulate * n for n in (1, 2, 2, 3)]
    assert equal(*({k: v for k, v in end.items() if k != "objective"} for end in ends[1:3]))
    assert not equal(ends[2], ends[3])
    assert len({float(row["objective"]) for row in seen}) > 5
