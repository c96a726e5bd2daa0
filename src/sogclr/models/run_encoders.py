"""What a run embeds things with: a tower for each column of pairs, or the one encoder of images alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..data.pair_columns import Kind
from ..errors import BadInput
from ..run_folder import RunFolder
from .encoder import Encoder, load_encoder
from .two_tower import TextTower, load_two_tower


@dataclass(frozen=True)
class RunEncoders:
    """The encoders of a run, in evaluation mode: of pairs one for each column, 0 and 1, else one."""

    run: str
    """The run's folder or the encoder's file, as it was given."""
    towers: list[Encoder | TextTower]
    names: tuple[str, ...]
    """Of the columns of pairs; none of images alone."""
    device: torch.device

    @classmethod
    def load(cls, run: str | os.PathLike[str], device: str | torch.device) -> RunEncoders:
        """Load the encoders of a finished run, or the one of an exported file.

        Args:
            run: a run folder or a .safetensors file.
            device: where the encoders will be.

        Raises:
            BadInput: no such run or file, or the run is not finished.
        """
        columns = RunFolder(run).pair_columns()
        if columns is None:
            return cls(os.fspath(run), [load_encoder(run, device)], (), torch.device(device))
        return cls(os.fspath(run), load_two_tower(run, device).towers, columns[0], torch.device(device))

    def kind(self, column: int) -> Kind:
        """Return what a column holds."""
        return "texts" if isinstance(self.towers[column], TextTower) else "images"

    def columns(self, kind: Kind) -> list[int]:
        """Return the columns that hold things of a kind."""
        return [k for k in range(len(self.towers)) if self.kind(k) == kind]

    @property
    def trained_on(self) -> str:
        """Return what the run was trained on, for a sentence."""
        if not self.names:
            return "images alone"
        kinds = [self.kind(k) for k in (0, 1)]
        return f"pairs of {kinds[0]} ({self.names[0]}) and {kinds[1]} ({self.names[1]})"

    def named(self, name: str | None, kind: Kind) -> int | None:
        """Return the column that `--as` names, None where it was left out.

        Args:
            name: value of --as.
            kind: of the things that are to be encoded as that column's.

        Raises:
            BadInput: no such column, or it holds things of the other kind.
        """
        if name is None:
            return None
        if name not in self.names:
            there = f"its columns are {' and '.join(self.names)}" if self.names else "it has no columns; leave --as out"
            raise BadInput(f"--as {name}: {self.run} was trained on {self.trained_on}; {there}")
        column = self.names.index(name)
        if self.kind(column) != kind:
            raise BadInput(
                f"--as {name}: that column of {self.run} holds {self.kind(column)}, and {kind} are to be encoded; leave --as out"
            )
        return column

    def opposite(self, column: int, kind: Kind) -> int:
        """Return the column whose things of a kind are compared with those of `column`: the other one where both hold them."""
        found = self.columns(kind)
        return found[0] if len(found) == 1 else 1 - column
