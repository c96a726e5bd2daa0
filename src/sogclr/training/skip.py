"""What happens only where `ok` is true, a () bool of which the device knows and for which nobody waits.

A step with a gradient that is not finite must change nothing. To ask whether it is would make the host wait for the
device in every step; so the device itself keeps what there was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_FUSED = ("cpu", "cuda")  # where torch's fused optimizers heed `found_inf`


def use_fused(parameters: Sequence[nn.Parameter]) -> bool | None:
    """Return what an optimizer of torch's is given as `fused`: True where its kernels can leave a step out by themselves."""
    return all(p.device.type in _FUSED for p in parameters) or None


@torch.no_grad()
def copy_where_(values: Sequence[Tensor], into: Sequence[Tensor], unless: Tensor | None = None) -> None:
    """Copy each of `values` into a tensor of its shape.

    Args:
        values: what is copied.
        into: what is written to.
        unless: () bool, where the tensors stay as they are; None copies always.
    """
    if unless is None:
        if into:
            torch._foreach_copy_(list(into), list(values))
        return
    for tensor, value in zip(into, values, strict=True):
        torch.where(unless.to(tensor.device), tensor, value, out=tensor)  # Adam, not fused, counts on the host


@torch.no_grad()
def step_where(ok: Tensor, optimizer: Optimizer) -> None:
    """Make `optimizer.step()` where `ok`; elsewhere parameters and state stay as they are, bit for bit.

    Fused optimizers of torch leave the step out themselves, as `GradScaler` has them do. Of others the parameters and
    the state are copied before and put back; state that the step makes becomes zero. Sparse gradients, of parameters
    without momentum and decay, become zero.

    Args:
        ok: () bool, on the parameters' device.
        optimizer: any of torch's or timm's.
    """
    _begin_momentum(optimizer)
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
        return
    dense = []
    for parameter in _with_gradient(optimizer):
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad._values().masked_fill_(~ok, 0.0)
        else:
            dense.append(parameter)
    before = [*dense, *_state(optimizer, dense)]
    kept = [torch.empty_like(value) for value in before]
    copy_where_(before, into=kept)
    optimizer.step()
    known = {id(value) for value in before}
    made = [value for value in _state(optimizer, dense) if id(value) not in known]
    copy_where_([*kept, *map(torch.zeros_like, made)], into=[*before, *made], unless=ok)


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, which stays fused or not as it is, whatever the one was that the state is of."""
    own = optimizer.param_groups[0]
    groups = [
        {key: own[key] if key == "fused" else value for key, value in group.items() if key != "fused" or key in own}
        for group in state["param_groups"]
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})


def grads_finite(norm: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return, as () bool, whether a gradient's () `norm` and the gradients of further `parameters`, dense or sparse, are finite."""
    gradients = [p.grad._values() if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.isfinite(norm)
    return torch.isfinite(norm) & torch.isfinite(nn.utils.get_total_norm(gradients))


def _with_gradient(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _state(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [v for p in parameters for v in optimizer.state[p].values() if isinstance(v, Tensor)]


def _begin_momentum(optimizer: Optimizer) -> None:
    """Make momentum buffers of zeros, from which the first step is what it would be without them.

    Made in a step that is left out they would be uninitialised.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if group.get("momentum") and p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
