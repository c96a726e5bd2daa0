"""The exact normalizers of pairs: what the two-way losses estimate, over all pairs of a data set, in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadInput
from ..kernels import at_least_float32, log_sum_between
from ..kernels.dense import same_ids
from ..losses.candidates import KnownPairs, first_of_each, log_sum_masked, matches
from ..losses.functional import count_different, log_mean_of_pairs, normalize

_ENTRIES = 1 << 22  # similarities at a time


@torch.no_grad()
def pair_normalizers(
    x: Tensor,
    y: Tensor,
    first_ids: Tensor,
    second_ids: Tensor,
    temperature: float,
    *,
    positives: tuple[Tensor, Tensor] | None = None,
    same_kind: bool = False,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return log g of both things of every pair, over the negatives that `TwoTowerGlobalContrastiveLoss` takes.

    Those of a thing are the other sides of all pairs that share neither thing with its own and are no known match of
    it; what stands in several pairs counts as often. In memory linear in the pairs.

    Args:
        x: (n, D) embeddings of the pairs' first things, of any norm.
        y: (n, D), of their second things.
        first_ids: (n,) int64, which first thing that is.
        second_ids: (n,) int64, which second thing.
        temperature: tau.
        positives: as of the loss: (P,) and (P,) ids of known pairs.
        same_kind: as of the loss: both kinds have one space of ids.
        negatives: (K, D) further second things, hard negatives that are shared.
        negative_ids: (K,) int64, which those are; what is in a pair, or came before, counts once.
        dtype: float64 for an exact check; otherwise float32 or what the embeddings have, if that is more.

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
    known = None if positives is None else KnownPairs(*positives, same_kind).to(x.device)
    ids = torch.stack([first_ids, second_ids], dim=1)
    in_both = same_kind and bool(torch.isin(first_ids, second_ids).any())
    if known is None and negatives is None and not in_both:  # what shares an id is all that there is to leave out
        log_sum = torch.stack(log_sum_between(x, y, ids, ids, temperature))
        return log_mean_of_pairs(log_sum, count_different(ids))
    candidates, theirs = y, second_ids
    if negatives is not None and negative_ids is not None:
        new = first_of_each(negative_ids[None])[0] & ~torch.isin(negative_ids, second_ids)
        candidates = torch.cat([y, normalize(negatives[new].to(y))])
        theirs = torch.cat([second_ids, negative_ids[new]])
    log_sums, counts = [], []
    for rows in torch.split(torch.arange(len(x), device=x.device), max(1, _ENTRIES // len(candidates))):
        different = ~same_ids(ids[rows], ids)
        forward = ~matches(first_ids[rows], theirs[None], known, same_kind)
        forward[:, : len(y)] &= different
        back = different & ~matches(first_ids, second_ids[None, rows], known, same_kind).T
        sides = ((x[rows] @ candidates.T, forward), (y[rows] @ x.T, back))
        log_sums.append(torch.stack([log_sum_masked(sim, negative, temperature) for sim, negative in sides]))
        counts.append(torch.stack([negative.sum(dim=1) for _, negative in sides]))
    return log_mean_of_pairs(torch.cat(log_sums, dim=1), torch.cat(counts, dim=1))


def _check(x: Tensor, y: Tensor, first_ids: Tensor, second_ids: Tensor, temperature: float) -> None:
    if x.ndim != 2 or x.shape != y.shape or not len(x) == len(first_ids) == len(second_ids):
        raise BadInput(
            f"pairs need embeddings (n, D) of both sides and n ids for each, and have {tuple(x.shape)}, "
            f"{tuple(y.shape)}, {tuple(first_ids.shape)} and {tuple(second_ids.shape)}"
        )
    if not temperature > 0:
        raise BadInput(f"temperature must be greater than 0 and was {temperature}")
