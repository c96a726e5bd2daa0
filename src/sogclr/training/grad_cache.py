"""Gradient cache: a large batch on a small device, embeddings first and without a graph, then the gradient in micro-batches.

The loss sees the embeddings of the whole batch once, so its gradient, its negatives and its state are the large batch's.
Memory for activations is that of a micro-batch; each is encoded twice. Source: GradCache, 2101.06983.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .skip import copy_where_
from .task import Encode

Rows = tuple[Tensor, ...]
Generators = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of a micro-batch between its two passes."""

    inputs: Rows
    generators: Generators
    """As they were before the first pass."""
    embeddings: Rows
    """Leaves, which get the loss's gradient."""


class GradCache:
    """Encode like the model, but without a graph; `backward` takes the embeddings' gradient on to the weights.

    BatchNorm computes its statistics of each micro-batch: only without it is the gradient that of the large batch. Its
    running statistics, and other buffers, are updated by the second pass alone.

    Args:
        model: rows of inputs -> rows of embeddings, or a tuple of them.
        forward: the same, as it is called for training.
        rows: M, the most samples of a micro-batch; one more where one would be left alone, of which BatchNorm has no statistics.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> encode = GradCache(model, model, rows=4)
        >>> encode(torch.ones(10, 3)).square().sum().backward()
        >>> model.weight.grad is None
        True
        >>> encode.backward()
        >>> model.weight.grad.shape
        torch.Size([2, 3])
    """

    def __init__(self, model: nn.Module, forward: Encode, rows: int) -> None:
        self.model, self.forward, self.rows = model, forward, rows
        self._parts: list[MicroBatch] = []
        self._precision: AbstractContextManager[None] | torch.autocast = nullcontext()

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the embeddings of all rows, cut off from the graph; a tuple where the model gives one.

        Inputs of unlike numbers of rows, views of several sizes, are encoded by themselves.
        """
        if len({len(x) for x in inputs}) > 1:
            return tuple(self(x) for x in inputs)
        kept = [b.clone() for b in self.model.buffers()]
        parts, several, kind = [], False, inputs[0].device.type
        self._precision = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        count = len(inputs[0])
        evenly = max(1, min(math.ceil(count / self.rows), count // 2))
        for part in zip(*(torch.tensor_split(x, evenly) for x in inputs), strict=True):
            before = _generators(part[0].device)
            with torch.no_grad():
                outputs = self.model(*part)
            several = isinstance(outputs, tuple)
            leaves = tuple(z.detach().requires_grad_() for z in (outputs if several else (outputs,)))
            parts.append(MicroBatch(part, before, leaves))
        copy_where_(kept, into=list(self.model.buffers()))
        self._parts += parts
        whole = tuple(torch.cat(of_all) for of_all in zip(*(part.embeddings for part in parts), strict=True))
        return whole if several else whole[0]

    def backward(self) -> None:
        """Encode once more, with a graph, and add to the weights' gradients. Ranks are summed over in the last pass."""
        parts, self._parts = self._parts, []
        with torch.random.fork_rng([d for d in {p.inputs[0].device for p in parts} if d.type == "cuda"]):
            for k, part in enumerate(parts):
                _restore_generators(part.inputs[0].device, part.generators)
                outputs = self._with_graph(part.inputs, last=k == len(parts) - 1)
                rows = outputs if isinstance(outputs, tuple) else (outputs,)
                torch.autograd.backward(rows, [z.grad for z in part.embeddings])

    def forget(self) -> None:
        """Drop the micro-batches of a forward pass whose loss failed."""
        self._parts = []

    def _with_graph(self, inputs: Rows, last: bool) -> Any:
        apart = isinstance(self.forward, DistributedDataParallel) and not last
        with self._precision, self.forward.no_sync() if apart else nullcontext():  # type: ignore[attr-defined]
            return self.forward(*inputs)


def _generators(device: torch.device) -> Generators:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_generators(device: torch.device, states: Generators) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)
