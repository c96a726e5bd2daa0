"""The model that two views of an image train: a backbone with a projection head."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from .backbone import (
    timm,
)


# ---------------------------------------------------------------------------------------------------- training model
class ProjectionHead(nn.Sequential):
    """MLP after the backbone: Linear-BN-ReLU (once or twice), Linear-BN without bias; the last BN has no affine part.

    (N, in_features) -> (N, out_features). Source: 2202.12387's code, as in SimCLR (2002.05709, appendix).
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, layers: int = 2) -> None:
        widths = [in_features] + [hidden] * (layers - 1)
        parts: list[nn.Module] = []
        for a, b in pairwise(widths):
            parts += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        parts += [nn.Linear(widths[-1], out_features, bias=False), nn.BatchNorm1d(out_features, affine=False)]
        super().__init__(*parts)


class ContrastiveModel(nn.Module):
    """Backbone and projection head. (N, 3, S, S) -> (N, head_dim), not normalised: the loss does that."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def synchronize_statistics(models: Iterable[nn.Module], device: torch.device) -> bool:
    """Let BatchNorm use the statistics of all ranks, in place; whether that is so now, or there is none.

    CUDA only: torch has no such BatchNorm on the CPU.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for model in models for part in model.modules()):
        return True
    for model in models:
        if device.type == "cuda":
            timm.layers.convert_sync_batchnorm(model)  # torch's own would lose the activations within timm's layers
    return device.type == "cuda"
