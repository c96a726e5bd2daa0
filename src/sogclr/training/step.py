"""One optimizer step: forward, backward, clip, and take the step or leave it out.

Nothing here waits for the device. Whether a gradient is finite only the device knows; so the device itself leaves a step
out, with all state as before, and the host is told later, when it waits for the device anyway (`sync_outcomes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import distributed
from ..data.crops import Batch
from ..losses import NonFinite
from .grad_cache import GradCache
from .metrics import Meters
from .optim import LR_SCALE
from .parts import Parts
from .skip import copy_where_, grads_finite, step_where
from .task import Encode


@dataclass(frozen=True)
class StepOutcome:
    """What has become of one step."""

    step: int
    """Its number, 0-based."""
    ids: list[Tensor]
    """This rank's, on the host: (B,) of each of its batches."""
    reason: str
    """Why it was skipped, if it was."""
    taken: Tensor
    """() bool, on the device."""
    expected: Tensor
    """() bool: whether a gradient that overflows is no news, since float16's scale can still be lowered."""
    known: bool = False
    """Whether the host has seen that it was skipped."""


def sync_outcomes(outcomes: list[StepOutcome]) -> Iterator[tuple[StepOutcome, bool, bool]]:
    """Yield each with what it says of `taken` and of `expected`; this waits for the device, once for all of them."""
    if outcomes:
        answers = torch.stack([answer for o in outcomes for answer in (o.taken, o.expected)]).view(-1, 2).tolist()
        yield from ((o, taken, expected) for o, (taken, expected) in zip(outcomes, answers, strict=True))


class TrainStep:
    """Makes optimizer steps of a trainer's parts: `train_step(step, batches)`.

    Args:
        parts: what is trained, and how.
        meters: to which the statistics of every step that is taken are added.
    """

    def __init__(self, parts: Parts, meters: Meters) -> None:
        self.parts, self.meters = parts, meters
        self.encode: Encode = torch.compile(parts.model) if parts.compile else parts.model
        self.grad_cache = GradCache(parts.model, self.encode, parts.micro_batch) if parts.micro_batch else None
        self.scaler = torch.amp.GradScaler(
            parts.device.type, init_scale=2.0**14 / parts.gradient_scale, enabled=parts.precision == "fp16"
        )
        self.optimizers = [parts.optimizer, *parts.loss_optimizers]
        # BatchNorm's statistics, which a forward pass changes; and where they are kept for a step that is skipped
        self.buffers = [b for module in (parts.model, *parts.task.companions()) for b in module.buffers()]
        self.kept = [b.clone() for b in self.buffers]
        self._one = torch.ones((), device=parts.device)

    def __call__(self, step: int, batches: list[Batch]) -> StepOutcome:
        """Make step number `step` on the mean gradient of `batches`; skip it, with all state as before, if it is not finite.

        Args:
            step: 0-based.
            batches: this rank's parts of them; empty if there is nothing to contrast with.
        """
        parts, task, loss_fn = self.parts, self.parts.task, self.parts.loss
        encode = self.encode if self.grad_cache is None else self.grad_cache

        # what a backbone may draw: dropout, drop path; on each rank something else
        torch.manual_seed((parts.seed * 1_000_003 + step + (distributed.rank() << 53)) % 2**64)
        for group in parts.optimizer.param_groups:
            group["lr"] = parts.learning_rate(step) * group[LR_SCALE]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

        # keep what a skipped step must leave as it was
        copy_where_(self.buffers, into=self.kept)
        loss_fn.begin_step()

        statistics, ok = [], None
        outcome_ids = [b.index.clone() for b in batches]  # a reader's own would keep a file of shared memory open each
        try:
            if not batches:
                raise NonFinite("the batch holds nothing to contrast with", [])
            for batch in batches:
                # forward
                inputs = task.inputs(batch)
                watched = task.neighbours.watch(encode, batch.index) if task.neighbours else encode
                with self.autocast():
                    loss = task.loss(watched, inputs, task.ids(batch))
                statistics.append(loss_fn.statistics)
                # backward
                torch.autograd.backward(self.scaler.scale(loss * (parts.gradient_scale / len(batches))))
                if self.grad_cache is not None:
                    self.grad_cache.backward()
            # clip gradients
            norm = self._unscale_and_clip()
            ok = grads_finite(norm, list(loss_fn.parameters()))
        except NonFinite as error:  # on the CPU alone, where the host looks at the embeddings
            reason = str(error)

        # put back what the forward passes changed, except where ok
        copy_where_(self.kept, into=self.buffers, unless=ok)
        loss_fn.rollback(unless=ok)
        no = torch.zeros_like(self._one, dtype=torch.bool)
        if ok is None:
            if self.grad_cache is not None:
                self.grad_cache.forget()
            return StepOutcome(step, outcome_ids, reason, taken=no, expected=no, known=True)

        # optimizer; skip where not finite: no host sync here
        for optimizer in self.optimizers:
            step_where(ok, optimizer)
        # momentum encoder, of a task that has one
        task.after_step(step, ok)
        # metrics
        self.meters.add(statistics, norm, ok)
        # loss scale: an overflow is expected while it can be lowered
        expected = no
        if self.scaler.is_enabled():
            expected = self.scaler.scale(self._one) > 1
            self.scaler.update()
        return StepOutcome(step, outcome_ids, "the gradient is not finite", taken=ok, expected=expected)

    def _unscale_and_clip(self) -> Tensor:
        """Return the () norm of the model's gradient before it is clipped."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        parameters = [p for p in self.parts.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.parts.clip_grad:
            nn.utils.clip_grads_with_norm_(parameters, self.parts.clip_grad, norm)
        return norm

    def autocast(self) -> torch.autocast:
        """Return the context in which a forward pass has the run's precision."""
        dtype = torch.float16 if self.parts.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.parts.device.type, dtype=dtype, enabled=self.parts.precision != "fp32")

    def distribute(self, wrapped: DistributedDataParallel) -> None:
        """Encode by the model as DDP has `wrapped` it, from now on.

        DDP lays out what it sums after its first backward pass. A pass that counts for nothing comes first, so that
        from the first step on sums are made in one order, in a run that goes on as in one that never stopped.
        """
        self.encode = torch.compile(wrapped) if self.parts.compile else wrapped
        if self.grad_cache is not None:
            self.grad_cache.forward = self.encode
        copy_where_(self.buffers, into=self.kept)
        inputs = self.parts.task.inputs(self.parts.task.blank_batch())
        with self.autocast():
            outputs = self.encode(*inputs)
        rows = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(torch.stack([z.float().sum() for z in rows]).sum())
        self.parts.optimizer.zero_grad(set_to_none=True)
        copy_where_(self.kept, into=self.buffers)
