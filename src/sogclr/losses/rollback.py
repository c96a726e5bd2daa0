"""State that a step of training changes, and that can be taken back where the step is left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def where_ok(ok: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """Return `new` where `ok`, () bool, is true, else `old`, without a wait for the device; `old` if `ok` is None."""
    return old if ok is None else torch.where(ok, new, old)


class StatefulModule(nn.Module):
    """A module that can take back what its forward passes wrote since `begin_step`.

    It writes its buffers by `assign` alone, which keeps the old values once a step has begun. Without `begin_step`
    nothing is kept, so a loop that never rolls back never calls it. The modules inside come along: call both on the
    outermost.

    Example:
        >>> import torch, sogclr
        >>> loss_fn = sogclr.GlobalContrastiveLoss(num_samples=100)
        >>> z = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss_fn.begin_step()
        >>> loss_fn(z[0], z[1], torch.arange(8)).backward()
        >>> loss_fn.rollback(unless=z.grad.norm() < 1e-9)  # too large: as if the batch had not been seen
        >>> int(torch.isfinite(loss_fn.estimator.log_u).sum())
        0
    """

    _changes: list[tuple[Tensor, Tensor | None, Tensor]] | None = None  # (buffer, rows or all of it, old values)

    def begin_step(self) -> None:
        """Forget what is kept, and keep from now on what `rollback` needs."""
        for part in self._stateful():
            part._changes = []

    @torch.no_grad()
    def rollback(self, unless: Tensor | None = None) -> None:
        """Take back every change of state since `begin_step`, and keep nothing more. Does not wait for the device.

        Args:
            unless: () bool; where it is true the state stays as it is. None: it never stays.
        """
        for part in self._stateful():
            for state, rows, old in reversed(part._changes or []):
                if rows is None:
                    state.copy_(where_ok(unless, state, old))
                else:
                    state[rows] = where_ok(unless, state[rows], old)
            part._changes = None

    @torch.no_grad()
    def assign(self, state: Tensor, new: Tensor, rows: Tensor | None = None) -> None:
        """Write a buffer in place.

        Args:
            state: (K, ...), of this module.
            new: (R, ...) of its dtype, or (K, ...) without `rows`.
            rows: (R,) int64; where a row stands twice both have the same new value. None: all of it.
        """
        if self._changes is not None:
            # of the rows a copy: a loop may write its next batch's ids into the same tensor
            self._changes.append((state, None, state.clone()) if rows is None else (state, rows.clone(), state[rows]))
        if rows is None:
            state.copy_(new)
        else:
            state[rows] = new

    def _stateful(self) -> list[StatefulModule]:
        return [part for part in self.modules() if isinstance(part, StatefulModule)]
