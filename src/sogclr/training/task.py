"""What the trainer asks of a kind of DATA or a method: its batches, its forward pass, its scores, its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..data.crops import Batch
from ..progress import Progress
from ..run_folder import RunFolder
from .neighbours import Neighbours

Encode = Callable[..., Any]
"""The model as it is called in training: inputs -> embeddings, or a tuple of them."""


class Task(Protocol):
    """What is special about a kind of DATA or a method. It holds the model, the loss, and what makes batches.

    A task subclasses it. What follows the model, and its state, have bodies here for tasks where nothing does.
    """

    things: str
    """What its samples are, in the plural."""
    scored: str
    """What its online scores are of, in the plural."""
    neighbours: Neighbours | None = None
    """Makes the order of an epoch, from embeddings of training; None for a random order."""

    # ------------------------------------------------------------------------------------------------ batches
    def prepare(self, progress: Progress) -> None:
        """Compute what must be there before the first step."""
        ...

    def batches(self, start: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield this rank's part of batch `start` and of all that follow, without end."""
        ...

    def blank_batch(self) -> Batch:
        """Return a batch of two samples without content, of which only the shapes count."""
        ...

    def has_negatives(self, batch: Batch) -> bool:
        """Return whether a batch, perhaps without bad files, still holds negatives."""
        ...

    # ------------------------------------------------------------------------------------------------ one step
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the model takes, on the device."""
        ...

    def ids(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the ids that the loss takes, (B,) each, on the host."""
        ...

    def loss(self, encode: Encode, inputs: tuple[Tensor, ...], ids: tuple[Tensor, ...]) -> Tensor:
        """Return the () loss of a batch: the forward pass of the model, and of the loss."""
        ...

    def after_step(self, step: int, ok: Tensor) -> None:
        """Update what follows the model, after step number `step`, 0-based, where `ok`, () bool, is true."""
        return None

    def companions(self) -> Sequence[nn.Module]:
        """Return the modules beside the model whose buffers a forward pass changes."""
        return ()

    # ------------------------------------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return what the task adds to a checkpoint: `keys`, the state of an encoder of keys; `neighbours`, if they make the order."""
        keys: dict[str, Any] = {"keys": None}
        return keys if self.neighbours is None else keys | {"neighbours": self.neighbours.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, from a whole checkpoint."""
        if self.neighbours is not None:
            self.neighbours.load_state_dict(state["neighbours"])

    def transfer(self, source: RunFolder, loss_state: dict[str, Tensor]) -> int:
        """Copy what the loss of another run, whose weights the model has, kept for the samples that both runs have.

        Returns:
            How many samples these are; 0 if the losses keep nothing of a sample in common.
        """
        ...

    def set_exact_normalizers(self, progress: Progress) -> None:
        """Set the running normalizers of the loss, which keeps some, to their exact values; all ranks call together."""
        ...

    # ------------------------------------------------------------------------------------------------ scores and files
    def evaluate(self) -> dict[str, float]:
        """Return the online scores: all on the main rank, on which the others help."""
        ...

    def diagnose(self) -> dict[str, float]:
        """Return how far the loss's gradient is from the exact one."""
        ...

    def write_inputs(self, run: RunFolder) -> None:
        """Write what the run must keep of its data before it starts."""
        ...

    def save_weights(self, path: Path) -> None:
        """Write the encoder, or both towers, as they are now."""
        ...

    def finish(self, run: RunFolder) -> None:
        """Write the trained encoder."""
        ...
