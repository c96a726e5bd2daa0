"""A queue of the last K embeddings with their samples' ids, so that none is its own sample's negative."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadInput
from .rollback import StatefulModule


class EmbeddingQueue(StatefulModule):
    """The last K embeddings that were pushed. It is in `state_dict()`.

    Attributes:
        keys: (K, D) float32 buffer, unit rows.
        ids: (K,) int64 buffer, -1 where empty.
        pointer: () int64 buffer, the oldest place.
    """

    keys: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise BadInput(f"a queue needs a size and a width of 1 or more and got size {size}, width {dim}")
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def check_width(self, z: Tensor) -> None:
        """Refuse embeddings, (..., D), of another width than the queue's.

        Raises:
            BadInput: they are.
        """
        if z.shape[-1] != self.keys.shape[1]:
            raise BadInput(
                f"the embeddings are {z.shape[-1]} wide and the queue was built for {self.keys.shape[1]}; "
                f"build it with dim={z.shape[-1]}"
            )

    def push(self, z: Tensor, index: Tensor) -> None:
        """Put (R, D) unit rows and their ids, (R,), in the oldest places.

        A row that is not finite leaves its place empty.
        """
        z, index = z.detach()[-len(self.ids) :], index[-len(self.ids) :]
        slots = self._slots(len(z))
        finite = torch.isfinite(z).all(dim=1)
        self.assign(self.keys, torch.where(finite[:, None], z, 0.0).to(self.keys.dtype), slots)
        self.assign(self.ids, torch.where(finite, index, -1), slots)
        self.assign(self.pointer, (self.pointer + len(z)) % len(self.ids))

    def _slots(self, count: int) -> Tensor:
        """Return the places that the next `count` rows take: (count,) int64."""
        return (self.pointer + torch.arange(count, device=self.pointer.device)) % len(self.ids)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"size={self.keys.shape[0]}, dim={self.keys.shape[1]}"
