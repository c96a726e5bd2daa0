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
    ids = torch.stack([first_ids, second_ids], dim=1)
    in_both = same_kind and bool(torch.isin(first_ids, second_ids).any())
    if known is None and negatives is None and not in_both:  # what shares an id is all that there is to leave out
        return log_mean_of_pairs(_log_sums(x, y, ids, tau, progress), count_different(ids))
    candidates, theirs = y, second_ids
    if negatives is not None and negative_ids is not None:
        new = first_of_each(negative_ids[None])[0] & ~torch.isin(negative_ids, second_ids)
        candidates = torch.cat([y, normalize(negatives[new].to(y))])
        theirs = torch.cat([second_ids, negative_ids[new]])
    known = None if known is None else known.to(x.device)
    return log_mean_of_pairs(*_masked_log_sums(x, y, candidates, ids, theirs, tau, known, same_kind, progress))


def _masked_log_sums(
    x: Tensor,
    y: Tensor,
    candidates: Tensor,
    ids: Tensor,
    theirs: Tensor,
    tau: tuple[float | Tensor, float | Tensor],
    known: KnownPairs | None,
    same_kind: bool,
    progress: ProgressCallback | None,
) -> tuple[Tensor, Tensor]:
    """Return the log-sums of both sides, (2, n), and the numbers of negatives, (2, n), where more than ids decides.

    Args:
        x: (n, D) unit rows of the first things.
        y: (n, D), of the second.
        candidates: (n + K, D), y and what are no anchors.
        ids: (n, 2) of the pairs.
        theirs: (n + K,) of the candidates.
        tau: of the first things and of the second.
        known: all matches.
        same_kind: both kinds have one space of ids.
        progress: called with (pairs done, pairs to do).
    """
    first_ids, second_ids = ids.T
    back = None if known is None else known.reversed()
    log_sums, counts = [], []
    for rows in torch.split(torch.arange(len(x), device=x.device), max(1, _ENTRIES // len(candidates))):
        different = ~same_ids(ids[rows], ids)
        of_first = ~_matches(first_ids[rows], theirs, known, same_kind)
        of_first[:, : len(y)] &= different
        of_second = different & ~_matches(second_ids[rows], first_ids, back, same_kind)
        sides = ((x[rows] @ candidates.T, of_first, tau[0]), (y[rows] @ x.T, of_second, tau[1]))
        log_sums.append(torch.stack([log_sum_masked(sim, negative, _at(t, rows)) for sim, negative, t in sides]))
        counts.append(torch.stack([negative.sum(dim=1) for _, negative, _ in sides]))
        if progress is not None:
            progress(int(rows[-1]) + 1, len(x))
    return torch.cat(log_sums, dim=1), torch.cat(counts, dim=1)


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
