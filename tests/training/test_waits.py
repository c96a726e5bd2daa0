"""A training step never makes the host wait for the device.

Without a GPU this is shown twice. On the device `meta`, whose tensors hold no numbers, whatever needs one fails: code that
is not the CPU's own runs there as on CUDA. And on the CPU the operations that hand a number to Python are counted, everywhere but in
the loss's forward pass: that looks on purpose, on the CPU alone, at ids and at whether log ĝ is finite.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, write_digits
from torch.utils._python_dispatch import TorchDispatchMode

import sogclr.training.step
from sogclr.config.toml import from_options
from sogclr.data.manifest import Manifest
from sogclr.data.pairs import Pairs
from sogclr.progress import Progress
from sogclr.run_folder import RunFolder
from sogclr.training.build import build
from sogclr.training.resolve import resolve
from sogclr.training.trainer import Trainer

aten = torch.ops.aten
READS = (  # a number for Python, or a shape that depends on values
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten._coalesce,
    aten.repeat_interleave,
    aten.bincount,
)
INDEXED = (aten.index, aten.index_put, aten.index_put_)  # by a mask they look for what is true

METHODS = {
    "sogclr": {},
    "isogclr": {"method": "isogclr", "accumulate": 2},
    "moco": {"method": "moco", "queue": 24, "symmetric": True, "key_schedule": "cosine"},
    "simclr": {"method": "simclr", "clip_grad": 1.0},
    "scent": {"method": "scent"},
    "neuclip": {"method": "neuclip", "prototypes": 20},
    "global": {"temperature_mode": "global", "num_negatives": 15.0},
    "micro": {"micro_batch": 4},
    "clip": {"method": "clip"},
    "pairs": {"method": "isogclr", "num_negatives": 15.0},
}
OF_PAIRS = ("clip", "pairs")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"images": write_digits(folder / "digits"), "pairs": write_pairs(folder / "pairs", per_digit=2)}


def trainer_for(name, data, out, device="cpu", **options):
    """A trainer before its first step, and its batches."""
    of_pairs = name in OF_PAIRS
    source = data["pairs" if of_pairs else "images"]
    manifest = Pairs.scan(source) if of_pairs else Manifest.scan(source)
    chosen = (PAIRS if of_pairs else SMALL) | METHODS[name] | {"max_steps": 9, "workers": 0} | options
    chosen |= {} if of_pairs else {"labels": "none"}
    config, _ = resolve(from_options({"data": str(source), "out": str(out), **chosen}), manifest)
    config = replace(config, run=replace(config.run, device=device))
    out.mkdir()
    trainer = Trainer(build(config, manifest, RunFolder(out), Progress(quiet=True)))
    trainer.model.train()
    trainer.loss.train()
    loader = trainer.task.batches(0, pin_memory=False)
    return trainer, lambda: [next(loader) for _ in range(config.optim.accumulate)]


class Waits(TorchDispatchMode):
    """What of a step hands a number to Python, or copies from one device to another and waits until that is done."""

    def __init__(self):
        super().__init__()
        self.found, self.looking = [], False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if not self.looking:
            what = function.overloadpacket
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if what in INDEXED else []
            if what in READS or masks:
                self.found.append(str(function))
            if what is aten._to_copy and out.device != args[0].device and not kwargs.get("non_blocking"):
                self.found.append(f"{function} from {args[0].device} to {out.device}")
            if what is aten.copy_ and args[0].device != args[1].device and True not in args[2:]:
                self.found.append(f"{function} from {args[1].device} to {args[0].device}")
        return out


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_step_runs_where_there_are_no_numbers_to_wait_for(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it does not know the device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    trainer, batches = trainer_for(name, data, tmp_path / "run", "meta", optimizer="lars", precision="fp32")
    step_where = sogclr.training.step.step_where
    # meta has neither fused nor sparse kernels: these steps are counted on the CPU, below
    monkeypatch.setattr(
        sogclr.training.step,
        "step_where",
        lambda ok, what: step_where(ok, what) if what is trainer.optimizer else None,
    )
    trainer.train_step(batches())
    taken = batches()
    with Waits() as seen:
        trainer.train_step(taken)
    assert seen.found == []
    assert trainer.step == 2
    with pytest.raises(RuntimeError, match="meta"):
        trainer.sync_outcomes()  # here the host does ask


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("lars", "fp32"), ("sgd", "fp32"), ("adamw", "fp32"), ("lars", "bf16"), ("sgd", "fp16")],
)
def test_a_step_reads_nothing_back(name, optimizer, precision, data, tmp_path, monkeypatch):
    trainer, batches = trainer_for(name, data, tmp_path / "run", optimizer=optimizer, precision=precision)
    trainer.train_step(batches())  # states are made in the first step
    taken, forward = batches(), trainer.loss.forward
    with Waits() as seen:

        def looking(*args):
            seen.looking = True
            loss = forward(*args)
            seen.looking = False
            return loss

        monkeypatch.setattr(trainer.loss, "forward", looking)
        trainer.train_step(taken)
        assert seen.found == []
        trainer.sync_outcomes()
    assert seen.found == []  # of all answers one list is made, which is no operation
    assert trainer.counts["steps"] == 2 or precision == "fp16"  # which may find that its first scale is too large


def test_what_waits_is_seen():
    """The two ways of looking do see what they are for."""
    x = torch.arange(4.0)
    with Waits() as seen:
        bool(x.sum() > 1)
        x[x > 1]
        x.to("meta")
        x.to("meta", non_blocking=True)
        torch.empty(4, device="meta").copy_(x)
    assert [word.split(".")[1].split(" ")[0] for word in seen.found] == [
        "_local_scalar_dense",
        "index",
        "_to_copy",
        "copy_",
    ]
    for ask in (bool, float, int, torch.Tensor.tolist, torch.Tensor.cpu):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            ask(torch.ones((), device="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("optimizer", "precision"), [("lars", "fp32"), ("sgd", "bf16"), ("adamw", "fp16"), ("adamw", "fp32")]
)
def test_a_step_on_cuda_never_waits(name, optimizer, precision, data, tmp_path, no_waits):
    trainer, batches = trainer_for(name, data, tmp_path / "run", "cuda", optimizer=optimizer, precision=precision)
    for _ in range(3):  # what is chosen and made once
        trainer.train_step(batches())
    taken = batches()
    with no_waits():
        trainer.train_step(taken)
    trainer.sync_outcomes()
    assert trainer.counts["steps"] + trainer.counts["skipped"] <= 4
