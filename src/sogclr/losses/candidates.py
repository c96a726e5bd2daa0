"""Which candidates are negatives of which anchors, where more than shared ids decides, and the log-sums over them.

Batches of pairs whose data set has several positives of a thing (`KnownPairs`), whose two kinds are one, or that bring
hard negatives. Everything here holds all B x (B + K) similarities; the kernels, which do not, serve all other batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..kernels.choice import can_sync
from ..kernels.dense import same_ids
from . import functional as F


@dataclass(frozen=True)
class HardNegatives:
    """Candidates that are no anchors, of all ranks: H of each of B anchors of the first kind."""

    z: Tensor
    """(B, H, D) unit rows."""
    ids: Tensor
    """(B, H) ids of the second kind, -1 where there is none."""
    shared: bool
    """Whether each counts for all anchors, and not for its own alone."""


class KnownPairs(nn.Module):
    """All known pairs of a data set, to look up whether a thing of the second kind is a match of one of the first.

    They are data, not state: `state_dict()` has nothing of them.

    Args:
        first: (P,) ids of the first kind, 0 or more.
        second: (P,) ids of the second kind, 0 or more.
        same_kind: the ids are of one space, and a match of b is b's match too.

    Attributes:
        keys: (pairs,) int64 buffer, sorted: first id times `width` plus second id.
    """

    keys: Tensor

    def __init__(self, first: Tensor, second: Tensor, same_kind: bool = False) -> None:
        super().__init__()
        first, second = first.long(), second.long()
        if same_kind:
            first, second = torch.cat([first, second]), torch.cat([second, first])
        self.height, self.width = int(first.max()) + 1, int(second.max()) + 1
        if self.height * self.width > torch.iinfo(torch.int64).max:
            raise BadInput(
                f"positives hold ids up to {self.height - 1} and {self.width - 1}, whose pairs int64 cannot number; "
                "number the things from 0"
            )
        keys: Tensor = torch.unique(first * self.width + second)
        self.register_buffer("keys", keys, persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return whether each id of the first kind and that of the second, broadcast, are a known pair: bool."""
        in_range = (first >= 0) & (first < self.height) & (second >= 0) & (second < self.width)
        keys = torch.where(in_range, first * self.width + second, -1)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.keys[place] == keys

    def table(self, first: Tensor, width: int) -> Tensor:
        """Return which of the things 0 to width - 1 of the second kind match each of (R,) of the first: (R, width) bool."""
        start, stop = (torch.searchsorted(self.keys, ids * self.width) for ids in (first, first + 1))
        degree = stop - start
        row = torch.arange(len(first), device=first.device).repeat_interleave(degree)
        rank = torch.arange(len(row), device=first.device) - (degree.cumsum(0) - degree)[row]
        found = torch.zeros(len(first), max(width, self.width), dtype=torch.bool, device=first.device)
        found[row, self.keys[start[row] + rank] % self.width] = True
        return found[:, :width]

    def reversed(self) -> KnownPairs:
        """Return the same pairs, looked up from the second kind."""
        return KnownPairs(self.keys % self.width, self.keys // self.width)

    def one_each(self) -> bool:
        """Return whether no thing of either kind is in two pairs."""
        sides = torch.unique(self.keys // self.width), torch.unique(self.keys % self.width)
        return all(len(side) == len(self.keys) for side in sides)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"pairs={len(self.keys)}"


def negatives_of_pairs(
    x_ids: Tensor, y_ids: Tensor, hard: HardNegatives | None, known: KnownPairs | None, same_kind: bool
) -> Tensor | None:
    """Return which candidates are negatives of each anchor of the first kind, and by its columns of each of the second.

    No row of the batch that shares an id with the anchor's; no known match of it; with one space of ids, not the thing
    itself. A hard negative that is in the batch, as a candidate or as a match, adds nothing, and neither does the same
    one again.

    Args:
        x_ids: (B,) ids of the first kind.
        y_ids: (B,) ids of the second kind.
        hard: K columns more: B x H where they are shared, else H.
        known: pairs of the data set.
        same_kind: both kinds have one space of ids.

    Returns:
        (B, B + K) bool; or None where that is what shared ids say alone, as far as can be known without a wait.
    """
    if hard is None and known is None and not same_kind:
        return None
    ids = F.ids_of_pairs(x_ids, y_ids)
    different = ~same_ids(ids, ids)
    negative = different & ~matches(x_ids, y_ids[None, :], known, same_kind)
    if hard is None:
        return None if can_sync(ids) and torch.equal(negative, different) else negative
    theirs = hard.ids.reshape(1, -1) if hard.shared else hard.ids
    counts = (theirs >= 0) & first_of_each(theirs) & (F.count_same(theirs.flatten(), y_ids) == 0).view_as(theirs)
    return torch.cat([negative, counts & ~matches(x_ids, theirs, known, same_kind)], dim=1)


def matches(x_ids: Tensor, others: Tensor, known: KnownPairs | None, same_kind: bool) -> Tensor:
    """Return which of the candidates, (1, C) or (B, C) ids, the things x are, or are known to match: (B, C)."""
    x_ids = x_ids[:, None]
    matches = x_ids == others if same_kind else torch.zeros_like(x_ids == others)
    return matches if known is None else matches | known(x_ids, others)


def first_of_each(ids: Tensor) -> Tensor:
    """Return where an id stands for the first time in its row: (R, C) bool, of (R, C)."""
    ordered, order = ids.sort(dim=1, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(new).scatter(1, order, new)


def similarities(x: Tensor, y: Tensor, hard: HardNegatives | None) -> Tensor:
    """Return those of the (B, D) rows x with the rows y and then with what hard negatives may count for them: (B, B + K)."""
    if hard is None:
        return x @ y.T
    extra = x @ hard.z.flatten(0, 1).T if hard.shared else (x[:, None] * hard.z).sum(dim=2)
    return torch.cat([x @ y.T, extra], dim=1)


def log_sum_masked(sim: Tensor, negative: Tensor, temperature: float | Tensor) -> Tensor:
    """Return log of the sum over the negatives b of exp(s_ab / tau_a), from all similarities at once.

    Args:
        sim: (R, C) similarities of anchors with candidates.
        negative: (R, C) bool, which candidates count for which anchor.
        temperature: a float, () or, one for each anchor, (R,); differentiable.

    Returns:
        (R,), -inf with a gradient of 0 where there are none.
    """
    return (sim / F.expand_temperature(temperature, 1)).masked_fill(~negative, -math.inf).logsumexp(dim=1)


def log_mean_masked(sim: Tensor, negative: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return log ĝ_a of images and of texts, (2, B), and how many negatives each has, (2, B).

    Args:
        sim: (B, B + K) similarities of the images with the texts, then with hard negatives, which are no anchors.
        negative: (B, B + K) bool: which text is no match of which image, and then which hard negatives count for it.
        temperature: a float, () or, one for each anchor, (2, B); differentiable.
    """
    pair = F.by_tower(temperature)
    of_images, of_texts = pair if isinstance(pair, tuple) else (pair, pair)
    back, is_back = sim[:, : len(sim)].T, negative[:, : len(sim)].T
    log_sum = torch.stack([log_sum_masked(sim, negative, of_images), log_sum_masked(back, is_back, of_texts)])
    count = torch.stack([negative.sum(dim=1), is_back.sum(dim=1)])
    return F.log_mean_of_pairs(log_sum, count), count.to(sim.dtype)
