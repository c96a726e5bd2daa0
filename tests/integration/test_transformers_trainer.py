"""transformers' own `Trainer` runs the page's code; a training that was cut off goes on bit for bit."""

import shutil

import pytest
import torch
from pages import framework
from safetensors.torch import load_file
from torch.utils.data import Dataset
from two_ranks import run

import sogclr
from sogclr.errors import BadInput

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STEPS = 12
LOG_U = {0: "loss_fn.estimator.log_u", 1: "estimator.log_u"}  # in the checkpoint's file, by the page's block
FILE = {0: "model.safetensors", 1: "loss_state.safetensors"}


class TwoViews(Dataset):
    def __init__(self, n=40):
        self.images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"x0": self.images[i], "x1": self.images[i].flip(-1), "index": i}


def convnext():
    """Not a ViT: of that transformers 5.23 writes names that its `Trainer` does not find when it resumes."""
    torch.manual_seed(0)
    return transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2))


def train(which, folder, stop=None, resume=False, edit=lambda text: text):
    """Run a block of the page, to the end of 12 steps or to a kill at `stop`."""

    class Kill(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == stop:
                raise KeyboardInterrupt

    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        save_steps=4,
        logging_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
    )
    text = edit(framework("transformers' Trainer")[which]).replace("trainer.train()", "")
    names = {"torch": torch, "sogclr": sogclr, "transformers": transformers}
    names |= {"encoder": convnext(), "args": args, "dataset": TwoViews()}
    exec(text, names)
    trainer = names["trainer"]
    trainer.add_callback(Kill())
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer, names.get("loss_fn") or trainer.model.loss_fn


@pytest.mark.parametrize("which", [0, 1], ids=["submodule", "callback"])
def test_a_training_that_was_killed_goes_on_bit_for_bit(which, tmp_path):
    whole, expected = train(which, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(which, tmp_path / "killed", stop=7)
    saved = load_file(tmp_path / "killed" / "checkpoint-4" / FILE[which])[LOG_U[which]]
    assert 0 < int(torch.isfinite(saved).sum()) < 40
    trainer, loss_fn = train(which, tmp_path / "killed", resume=True)
    assert int(loss_fn.estimator.step) == STEPS
    assert not torch.equal(loss_fn.estimator.log_u, saved)
    for ours, theirs in ((trainer.model, whole.model), (loss_fn, expected)):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def two_ranks(folder):
    _, expected = train(1, folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(1, folder / "killed", stop=7)
    trainer, loss_fn = train(1, folder / "killed", resume=True)
    assert trainer.args.world_size == 2
    both = [None, None]
    torch.distributed.all_gather_object(both, loss_fn.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(both[0][name], value)
        assert torch.equal(both[1][name], value)


@pytest.mark.distributed
def test_two_processes_have_one_state_and_are_resumed_bit_for_bit(tmp_path):
    run(__file__, tmp_path)


def test_a_checkpoint_without_the_loss_is_refused(tmp_path):
    train(1, tmp_path)
    file = tmp_path / "checkpoint-12" / FILE[1]
    file.rename(tmp_path / "kept")
    with pytest.raises(BadInput, match=r"resumes at step 12 and there is no .*loss_state.safetensors"):
        train(1, tmp_path, resume=True)


def test_a_checkpoint_that_lies_elsewhere(tmp_path):
    train(1, tmp_path / "run")
    moved = shutil.move(tmp_path / "run" / "checkpoint-8", tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="step 8 and there is no"):
        train(1, tmp_path / "run", resume=moved)

    def here(text):
        return text.replace("(loss_fn)]", f"(loss_fn, resume_from={str(moved)!r})]")

    with pytest.raises(BadInput, match="was saved at step 8 and the training resumes at step 12"):
        train(1, tmp_path / "run", resume=True, edit=here)
    _, loss_fn = train(1, tmp_path / "run", resume=moved, edit=here)
    assert int(loss_fn.estimator.step) == STEPS


def test_an_evaluation_leaves_the_state_alone(tmp_path):
    trainer, loss_fn = train(1, tmp_path)
    before = loss_fn.estimator.log_u.clone()
    assert "eval_loss" in trainer.evaluate(TwoViews(16))
    assert torch.equal(loss_fn.estimator.log_u, before)
