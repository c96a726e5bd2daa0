"""The exact normalizers of pairs: what the two-way losses estimate, over all pairs of a data set, in chunks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import BadInput
from ..kernels import at_least_float32, log_sum_between
from ..kernels.dense import same_ids
from ..losses.candidates import KnownPairs, first_of_each, log_sum_masked
from ..losses.functional import by_tower, count_different, log_mean_of_pairs, normalize
from ..progress import ProgressCallback

_ENTRIES = 1 << 22  # similarities at a time
_BLOCK = 1 << 28  # similarities between two reports, where none are kept


@torch.no_grad()
def pair_normalizers(
    x: Tensor,
    y: Tensor,
    first_ids: Tensor,
    second_ids: Tensor,
    temperature: float | Tensor,
    *,
    positives: tuple[Tensor, Tensor] | KnownPairs | None = None,
    same_kind: bool = False,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    dtype: torch.dtype | None = None,
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Return log g of both things of every pair, over the negatives that `TwoTowerGlobalContrastiveLoss` takes.

    Those of a thing are the other sides of all pairs that share neither thing with its own and are no known match of
    it; what stands in several pairs counts as often. In memory linear in the pairs.

    Args:
        x: (n, D) embeddings of the pairs' first things, of any norm.
        y: (n, D), of their second things.
        first_ids: (n,) int64, which first thing that is.
        second_ids: (n,) int64, which second thing.
        temperature: tau: a float, () or, one for each anchor, (2, n).
        positives: as of the loss: (P,) and (P,) ids of known pairs; or a loss's own `known`.
        same_kind: as of the loss: both kinds have one space of ids.
        negatives: (K, D) further second things, hard negatives that are shared.
        negative_ids: (K,) int64, which those are; what is in a pair, or came before, counts once.
        dtype: float64 for an exact check; otherwise float32 or what the embeddings have, if that is more.
        progress: called with (pairs done, pairs to do).

    Returns:
        (2, n), the first things against the second, then the second against the first; where there is no negative, the
        mean of the others.

    Raises:
        BadInput: shapes do not fit, or the temperature is not above 0.

    Example:
        >>> pair_normalizers(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3), temperature=0.5)
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """
    _check(x, y, first_ids, second_ids, temperature)
    x, y = (normalize(at_least_float32(z) if dtype is None else z.to(dtype)) for z in (x, y))
    pair = by_tower(temperature)
    tau = pair if isinstance(pair, tuple) else (pair, pair)
    known = KnownPairs(*positives, same_kind) if isinstance(positives, tuple) else positives
    known = None if known is None else known.to(x.device)
    ids = torch.stack([first_ids, second_ids], dim=1)
    log_sum, count = _log_sums(x, y, ids, tau, progress), count_different(ids).repeat(2, 1)
    # anchors with other matches than what shares an id
    back = None if known is None else known.reversed()
    for side, z, others, matches in ((0, x, y, known), (1, y, x, back)):
        own, theirs = ids[:, side], ids[:, 1 - side]
        for rows in _chunks(_has_more(own, theirs, matches, same_kind).nonzero().flatten(), len(x)):
            negative = ~same_ids(ids[rows], ids) & ~_matches(own[rows], theirs, matches, same_kind)
            log_sum[side, rows] = log_sum_masked(z[rows] @ others.T, negative, _at(tau[side], rows))
            count[side, rows] = negative.sum(dim=1)
    # hard negatives, which are no anchors
    if negatives is not None and negative_ids is not None:
        new = first_of_each(negative_ids[None])[0] & ~torch.isin(negative_ids, second_ids)
        hard, hard_ids = normalize(negatives[new].to(y)), negative_ids[new]
        for rows in _chunks(torch.arange(len(x), device=x.device), len(hard)):
            negative = ~_matches(first_ids[rows], hard_ids, known, same_kind)
            more = log_sum_masked(x[rows] @ hard.T, negative, _at(tau[0], rows))
            log_sum[0, rows] = torch.logaddexp(log_sum[0, rows], more)
            count[0, rows] += negative.sum(dim=1)
    return log_mean_of_pairs(log_sum, count)


def _log_sums(
    x: Tensor, y: Tensor, ids: Tensor, tau: tuple[float | Tensor, float | Tensor], progress: ProgressCallback | None
) -> Tensor:
    """Return the log-sums of both sides over the pairs that share no id with their own, (2, n), in blocks of rows."""
    of_x, of_y = [], torch.full_like(x[:, 0], -math.inf)
    each = isinstance(tau[0], Tensor) and tau[0].ndim == 1
    for rows in torch.split(torch.arange(len(x), device=x.device), max(1, _BLOCK // len(x))):
        of_rows, of_all = log_sum_between(
            x[rows],
            y,
            ids[rows],
            ids,
            (_at(tau[0], rows), tau[1]) if each else tau[0],  # type: ignore[arg-type]
        )
        of_x.append(of_rows)
        of_y = torch.logaddexp(of_y, of_all)
        if progress is not None:
            progress(int(rows[-1]) + 1, len(x))
    return torch.stack([torch.cat(of_x), of_y])


def _has_more(own: Tensor, others: Tensor, known: KnownPairs | None, same_kind: bool) -> Tensor:
    """Return for which of the anchors, (n,), more rows have a match than share an id with the anchor's, (n,) bool; or others too.

    Args:
        own: (n,) ids of the anchors.
        others: (n,) ids of what they are paired with.
        known: all matches of the anchors.
        same_kind: both have one space of ids.
    """
    width = int(torch.stack([own.max(), others.max()]).max()) + 1
    of_own, of_others = (torch.bincount(ids, minlength=width) for ids in (own, others))
    more = of_others[own] if same_kind else torch.zeros_like(own)
    if known is None:
        return more > 0
    if not bool(known(own, others).all()):
        return torch.ones_like(own, dtype=torch.bool)
    first, second = known.keys // known.width, known.keys % known.width
    inside = (first < width) & (second < width)
    matched = torch.zeros_like(of_own).index_add_(0, first[inside], of_others[second[inside]])
    _, place, again = torch.unique(own * width + others, return_inverse=True, return_counts=True)
    found: Tensor = more + matched[own] > of_own[own] + of_others[others] - again[place]
    return found


def _chunks(rows: Tensor, candidates: int) -> tuple[Tensor, ...]:
    """Return rows in parts of `_ENTRIES` similarities with so many candidates; none of none."""
    return torch.split(rows, max(1, _ENTRIES // candidates)) if len(rows) and candidates else ()


def _matches(ids: Tensor, others: Tensor, known: KnownPairs | None, same_kind: bool) -> Tensor:
    """Return which of the others, (C,) ids, the things (R,) are, or are known to match: (R, C) bool."""
    width = int(others.max()) + 1
    found = ids.new_zeros(len(ids), width, dtype=torch.bool) if known is None else known.table(ids, width)
    if same_kind:
        found |= ids[:, None] == torch.arange(width, device=ids.device)
    return found[:, others]


def _at(tau: float | Tensor, rows: Tensor) -> float | Tensor:
    """Return the temperature of some rows."""
    return tau[rows] if isinstance(tau, Tensor) and tau.ndim == 1 else tau


def _check(x: Tensor, y: Tensor, first_ids: Tensor, second_ids: Tensor, temperature: float | Tensor) -> None:
    if x.ndim != 2 or x.shape != y.shape or not len(x) == len(first_ids) == len(second_ids):
        raise BadInput(
            f"pairs need embeddings (n, D) of both sides and n ids for each, and have {tuple(x.shape)}, "
            f"{tuple(y.shape)}, {tuple(first_ids.shape)} and {tuple(second_ids.shape)}"
        )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise BadInput(f"temperature must be greater than 0 and was {temperature}")
