"""The model that views of an image train: a backbone with a projection head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .backbone import timm


class ProjectionHead(nn.Sequential):
    """MLP after the backbone: Linear-BN-ReLU (once or twice), Linear-BN without bias; the last BN has no affine part.

    (N, in_features) -> (N, out_features). Source: 2202.12387's code, as in SimCLR (2002.05709, appendix).

    Args:
        in_features: width of the backbone.
        hidden: width of the hidden layers.
        out_features: width of the embeddings.
        layers: linear layers, 2 or 3.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, layers: int = 2) -> None:
        widths = [in_features] + [hidden] * (layers - 1)
        parts: list[nn.Module] = []
        for a, b in pairwise(widths):
            parts += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        parts += [nn.Linear(widths[-1], out_features, bias=False), nn.BatchNorm1d(out_features, affine=False)]
        super().__init__(*parts)


class ContrastiveModel(nn.Module):
    """Backbone and projection head.

    Args:
        backbone: normalised images (N, 3, S, S) -> (N, F).
        head: (N, F) -> (N, head_dim).
        frozen: names of modules of the backbone that stay in evaluation mode.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self.frozen = tuple(frozen)
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor, *small: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return (N, head_dim) for images (N, 3, S, S), not normalised: the loss does that; a tuple of images of several sizes."""
        embeddings: Tensor = self.head(self.backbone(images))
        return (embeddings, *(self.head(self.backbone(x)) for x in small)) if small else embeddings

    def train(self, mode: bool = True) -> ContrastiveModel:
        """Set training mode, except for frozen modules."""
        super().train(mode)
        for name in self.frozen:
            self.backbone.get_submodule(name).eval()
        return self


def convert_sync_batchnorm(models: Sequence[nn.Module], device: torch.device) -> bool:
    """Make BatchNorm use the statistics of all ranks, in place; on CUDA only, torch has none for the CPU.

    Returns:
        Whether statistics are now those of all ranks, or there is no BatchNorm.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for model in models for part in model.modules()):
        return True
    for model in models:
        if device.type == "cuda":
            timm.layers.convert_sync_batchnorm(model)  # torch's own would lose the activations within timm's layers
    return device.type == "cuda"
