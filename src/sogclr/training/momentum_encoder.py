"""The momentum encoder: an exponential moving average of the model, which computes MoCo's keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .skip import copy_where_


class MomentumEncoder(nn.Module):
    """MoCo's key encoder: an exponential moving average of the model, whose momentum may rise along a half cosine to 1.

    Keys are computed in two halves of a random order, each with BatchNorm's statistics of its own: were they the batch's,
    as the queries' are, a positive could be told by its statistics (the paper shuffles between GPUs for that).

    Args:
        model: what is averaged.
        momentum: m of  key <- m key + (1 - m) model.
        rising: whether m goes to 1 at step `total` (MoCo v3); otherwise it is constant.
        total: steps of the run.

    Source: 1911.05722; the schedule is of 2104.02057.
    """

    def __init__(self, model: nn.Module, momentum: float, rising: bool, total: int) -> None:
        super().__init__()
        self.first, self.rising, self.total = momentum, rising, total
        self.momentum = momentum
        self.average = AveragedModel(model).requires_grad_(False)  # a copy

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the keys of images, (B, C, S, S) -> (B, head_dim), without gradient.

        The order is drawn from torch's generator of the CPU.
        """
        if len(images) < 4:  # two samples at least, for statistics
            keys: Tensor = self.average(images)
            return keys
        order = torch.randperm(len(images)).to(images.device, non_blocking=True)
        keys = torch.cat([self.average(images[half]) for half in order.tensor_split(2)])
        return keys[order.argsort()]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, ok: Tensor | None = None) -> None:
        """Move the average towards the model after an optimizer's step. Buffers are copied from the model.

        Not by `AveragedModel.update_parameters`, which asks its count of updates for a number and waits for the device.

        Args:
            model: of which this is the average.
            step: the optimizer's step, 0-based.
            ok: () bool: elsewhere nothing changes. None: it does.
        """
        if self.rising:
            self.momentum = 1 - (1 - self.first) * 0.5 * (1 + math.cos(math.pi * step / self.total))
        own: list[Tensor] = list(self.average.module.parameters())
        current: list[Tensor] = list(model.parameters())
        followed = torch._foreach_lerp(own, current, 1 - self.momentum)
        into = [*own, *self.average.module.buffers()]
        copy_where_([*followed, *model.buffers()], into=into, unless=None if ok is None else ~ok)
