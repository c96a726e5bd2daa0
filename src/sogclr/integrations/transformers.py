"""transformers' `Trainer`, and trainers that are built on it: the loss's state in their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import BadInput
from ..files import atomic_write
from ..losses.estimators.sharded import whole_state

STATE_FILE = "loss_state.safetensors"


class LossStateCallback(TrainerCallback):
    """Write the loss's state into each checkpoint of a `Trainer`, and load it where the training is resumed.

    For a loss that is no part of the model: what the model holds is in its checkpoints already. The loss is moved to
    the trainer's device when the training begins.

    Args:
        loss_fn: any module with state.
        resume_from: folder of the checkpoint that is resumed, where it lies elsewhere than in `args.output_dir`.
    """

    def __init__(self, loss_fn: nn.Module, resume_from: str | Path | None = None) -> None:
        self.loss_fn, self.resume_from = loss_fn, resume_from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load the state of the checkpoint that the trainer has resumed from, if it has.

        Raises:
            BadInput: the checkpoint has no state of the loss, or that of another step.
        """
        self.loss_fn.to(args.device)
        if not state.global_step:
            return
        path = Path(self.resume_from or _folder(args, state)) / STATE_FILE
        if not path.is_file():
            raise BadInput(
                f"the training resumes at step {state.global_step} and there is no {path}; resume from a checkpoint that "
                "has one, or say where it lies with LossStateCallback(loss_fn, resume_from=FOLDER)"
            )
        with safe_open(path, framework="pt") as file:
            saved = int(file.metadata()["step"])
        if saved != state.global_step:
            raise BadInput(
                f"{path} was saved at step {saved} and the training resumes at step {state.global_step}; say where the "
                "checkpoint lies with LossStateCallback(loss_fn, resume_from=FOLDER)"
            )
        self.loss_fn.load_state_dict(load_file(path))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state into the checkpoint that the trainer has just written."""
        values = whole_state(self.loss_fn)  # on all ranks: each may keep a part
        if args.should_save:
            with atomic_write(_folder(args, state) / STATE_FILE) as temporary:
                values = {name: value.detach().to("cpu", copy=True) for name, value in values.items()}
                save_file(values, temporary, {"step": str(state.global_step)})


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
