"""Lightning: what a submodule's state dict does not do by itself, as a callback."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from ..losses.contrastive import ContrastiveLoss


class ContrastiveCallback(Callback):
    """Log the statistics of a module's losses, and leave out the steps whose gradient is not finite.

    Of such a step neither the weights, nor the optimizer's state, nor the normalizers of its samples change; it counts
    in `skipped_steps`. Losses are all `sogclr` losses among the module's submodules. For Lightning's automatic
    optimization, with accumulated batches too.

    Args:
        prefix: of the names in the log.
    """

    def __init__(self, prefix: str = "contrastive/") -> None:
        self.prefix, self.skipped_steps = prefix, 0
        self._begun = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep what is needed to take the step back, from its first batch on."""
        if not self._begun:
            for loss in _losses(pl_module):
                loss.begin_step()
        self._begun = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the step back where its gradient, the same on all ranks, is not finite. Waits for the device."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = nn.utils.get_total_norm(gradients).isfinite()
        for loss in _losses(pl_module):
            loss.rollback(unless=finite)
        self._begun = False
        if not finite:
            optimizer.zero_grad(set_to_none=True)
            self.skipped_steps += 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log, as often as the trainer does."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            for loss in _losses(pl_module):
                self.log_dict({self.prefix + name: value for name, value in loss.statistics.items()})


def _losses(module: nn.Module) -> list[ContrastiveLoss]:
    return [part for part in module.modules() if isinstance(part, ContrastiveLoss)]
