"""The mathematics of global contrastive losses: pure functions of tensors, everything in log space.

Symbols (Yuan et al., 2202.12387): B samples in the batch, two views each; s_ab cosine similarity; tau temperature;
log_g  log of the mean over an anchor's negatives of exp(s_ab / tau);  log_u  the running estimate of it, one a sample;
nu     the normalizer of the dual form  log g = min over nu of { g exp(-nu) + nu - 1 },  held constant in the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ..kernels import at_least_float32, log_sum_between, log_sum_negatives, ranks
from ..kernels.choice import can_sync
from ..kernels.dense import same_ids
from .validation import all_distinct


def normalize(z: Tensor) -> Tensor:
    """Return (..., D) embeddings scaled to norm one, in float32, or float64 for float64 input.

    A row of zeros stays one. Its gradient is 1e12 times that of a row of norm one, which float16 does not hold: there rows
    below its smallest normal number, 6e-5, count as zeros and get no gradient.
    """
    if z.dtype == torch.float16:
        length = torch.linalg.vector_norm(z.detach().float(), dim=-1, keepdim=True)
        z = torch.where(length < torch.finfo(torch.float16).tiny, 0.0, z.float())
    return torch.nn.functional.normalize(at_least_float32(z), dim=-1)


def count_same(ids: Tensor, others: Tensor) -> Tensor:
    """Return how many of `others`, (K,), are each of `ids`, (R,): (R,) int64, in memory linear in R + K.

    Of pairs' images and texts, (K, 2) and (R, 2): how many have the image or the text.
    """
    if ids.ndim == 1:
        ordered = others.sort().values
        return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
    (x_ids, y_ids), (x_others, y_others) = ids.T.contiguous(), others.T.contiguous()
    base = 2 * torch.maximum(y_ids.abs().max(), y_others.abs().max()) + 1  # x base + y is one number a pair
    both = count_same(x_ids * base + y_ids, x_others * base + y_others)
    return count_same(x_ids, x_others) + count_same(y_ids, y_others) - both


def count_different(ids: Tensor) -> Tensor:
    """Return how many rows share no id with each, (B,) int64, of ids (B,), or (B, 2), a pair's image and text."""
    return len(ids) - count_same(ids, ids)


def negatives_of(index: Tensor, views: int = 2) -> Tensor:
    """Return how many negatives an anchor of each sample has, (B,) int64: all views of every sample of another id."""
    return views * count_different(index)


def log_mean_negatives(z0: Tensor, z1: Tensor, index: Tensor, temperature: float | Tensor) -> Tensor:
    """Return  log ĝ_a = log of the mean over b in N(a) of exp(s_ab / tau_a),  over the negatives at hand.

    Args:
        z0: (B, D) unit rows of the first view.
        z1: (B, D) unit rows of the second.
        index: (B,) ids; rows of one id are never negatives of each other, and two ids at least are needed.
        temperature: a float, () or, one for each sample's anchors, (B,); differentiable.

    Returns:
        (2, B): the anchors of view 0, then those of view 1.
    """
    if isinstance(temperature, Tensor) and temperature.ndim == 1:
        temperature = temperature.repeat(2)
    log_sum = log_sum_negatives(torch.cat([z0, z1]), index.repeat(2), temperature).view(2, -1)
    return log_sum - negatives_of(index).to(log_sum.dtype).log()


def log_count(negatives: float | Tensor) -> float | Tensor:
    """Return the logarithm of a number or of a tensor."""
    return negatives.log() if isinstance(negatives, Tensor) else math.log(negatives)


def log_sum_keys(
    z: Tensor, index: Tensor, keys: Tensor, ids: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return log of the sum over the keys b of other samples of exp(s_ab / tau_a), and how many these are.

    In memory linear in anchors and keys. With several ranks all give the same, and each computes for its own anchors.

    Args:
        z: (V, B, D) unit rows, the anchors of V views.
        index: (B,) their ids.
        keys: (K, D) unit rows, without gradient.
        ids: (K,), negative where there is no key.
        temperature: a float, () or (B,).

    Returns:
        (V, B), -inf where there are none; and (B,), of the same dtype.
    """
    views, x = len(z), z.flatten(0, 1)
    there = ids >= 0
    count = (there.sum() - count_same(index, ids)).to(z.dtype)
    each = temperature.repeat(views) if isinstance(temperature, Tensor) and temperature.ndim == 1 else temperature
    if can_sync(z):
        keys, ids = keys[there], ids[there]
    else:  # one column more: (s_ab + tau_a w_b) / tau_a
        inverse = 1 / temperature
        largest = inverse.detach().amax() if isinstance(inverse, Tensor) else inverse
        # below the least that a key's term can be by so much that it is lost in rounding
        log_weight = torch.where(there, 0.0, -largest - 110.0)
        tau = each.detach() if isinstance(each, Tensor) else each
        x = torch.cat([x, torch.ones_like(x[:, :1]) * expand_temperature(tau, 1)], dim=1)
        keys = torch.cat([keys, log_weight[:, None].to(keys.dtype)], dim=1)
    log_sum = ranks.log_sum_keys(x, keys, torch.cat([index] * views), ids, each, views).view(views, -1)
    return torch.where(count > 0, log_sum, -math.inf), count


def expand_temperature(temperature: float | Tensor, views: int = 2) -> float | Tensor:
    """Return what divides the (views x B, candidates) similarities: (B,) -> (views x B, 1); a float and () stay."""
    if isinstance(temperature, Tensor) and temperature.ndim == 1:
        return temperature.repeat(views)[:, None]
    return temperature


def positive_similarity(z0: Tensor, z1: Tensor) -> Tensor:
    """Return s_{a,p(a)}, (..., B), of the (..., B, D) unit rows of two views."""
    return (z0 * z1).sum(dim=-1)


def dual_loss(s_pos: Tensor, log_g: Tensor, nu: Tensor, temperature: float | Tensor) -> Tensor:
    """Return the mean over the views a of  -s_{a,p(a)} + tau (exp(log ĝ_a - nu_a) + nu_a - 1).

    Its gradient (nu constant) is SogCLR's estimator; its value estimates the global objective, from above for a nu that is
    independent of the batch, and equals -s + tau log ĝ where nu = log ĝ. Its derivative by tau is  w + nu - 1 - w (sum of p s) / tau  with
    w = exp(log ĝ - nu), p the weights of the negatives: log ĝ - (sum of p s) / tau where nu = log ĝ.

    Args:
        s_pos: (B,) similarities of the positives, of more than two views their means.
        log_g: (V, B) log ĝ.
        nu: (V, B), constant; a learned nu is trained by this very value (`estimators.PrototypeNormalizer`).
        temperature: a float, (), (B,) or (V, B).

    Returns:
        (B,), one value a sample.
    """
    return -s_pos + (temperature * (torch.exp(log_g - nu) + nu - 1)).mean(dim=0)


def softmax_dual_loss(
    s_pos: Tensor, log_g: Tensor, nu: Tensor, temperature: float | Tensor, negatives: float
) -> Tensor:
    """Return  -s + tau log( exp(s / tau) / m + g )  of each anchor by its normalizer nu, the mean over the views: (B,).

    It is tau times the softmax loss of a batch with m negatives, less tau log m: the positive stands in the
    denominator, and an anchor that has won already counts less, by 1 - p with p = exp(s / tau) / (exp(s / tau) + m g).
    With nu = log ĝ it and its gradient are that softmax loss; as m grows it becomes `dual_loss`.

    Args as of `dual_loss`, with s_pos (V - 1, V, B) too, of more views: the mean is over each with each of the others. And

        negatives: m, greater than 0.
    """
    ahead = s_pos / temperature - nu - math.log(negatives)
    weight = torch.sigmoid(-ahead).detach()
    values = softplus(ahead, threshold=_LINEAR) + nu + weight * (torch.exp(log_g - nu) - 1)
    positives = s_pos.mean(dim=(0, 1)) if s_pos.ndim > log_g.ndim else s_pos
    return -positives + (temperature * values).mean(dim=_over_views(s_pos, log_g))


def ntxent_loss(s_pos: Tensor, log_g: Tensor, negatives: float | Tensor, temperature: float | Tensor) -> Tensor:
    """Return NT-Xent, the mean over the views a of  -s/tau + log( exp(s/tau) + sum over N(a) of exp(s_ab/tau) ).

    Args:
        s_pos: (B,) similarities of the positives; or (V - 1, V, B), of each of V views with each of the others.
        log_g: (V, B) log ĝ.
        negatives: a number, (B,) or (V, B): how many negatives each anchor has.
        temperature: a float, (), (B,) or (V, B).

    Returns:
        (B,), one value a sample.
    """
    excess = log_g - (s_pos / temperature - log_count(negatives))
    return softplus(excess, threshold=_LINEAR).mean(dim=_over_views(s_pos, log_g))


def _over_views(s_pos: Tensor, log_g: Tensor) -> tuple[int, ...]:
    """Return the dimensions of the views: one of two views' anchors, two where each stands with each of the others."""
    return (0, 1) if s_pos.ndim > log_g.ndim else (0,)


_LINEAR = 40.0  # from here on log(1 + exp(x)) is x in float64 too


def decoupled_loss(s_pos: Tensor, log_g: Tensor, negatives: float | Tensor, temperature: float | Tensor) -> Tensor:
    """Return DCL (2110.06848), the mean over the views a of  -s/tau + log( sum over N(a) of exp(s_ab/tau) ),  (B,).

    Args as of `ntxent_loss`.
    """
    return (log_g + log_count(negatives)).mean(dim=0) - s_pos / temperature


def moving_average(log_u: Tensor, log_g: Tensor, gamma: float | Tensor) -> Tensor:
    """Return log of  (1 - gamma) u + gamma ĝ;  where log_u is -inf (unseen) it is log ĝ.

    Args:
        log_u: (B,) running estimates.
        log_g: (B,) or (V, B) new values.
        gamma: a float, () or (B,) in (0, 1], the weight of the NEW value.

    Returns:
        The shape of `log_g`.
    """
    if isinstance(gamma, Tensor):
        return blend(log_u, log_g, torch.log1p(-gamma), gamma.log())
    return blend(log_u, log_g, math.log1p(-gamma) if gamma < 1 else -math.inf, math.log(gamma))


def blend(log_u: Tensor, log_g: Tensor, log_keep: float | Tensor, log_take: float | Tensor) -> Tensor:
    """Return what `moving_average` does, from log(1 - gamma) and log gamma, floats, () or (B,)."""
    blended = torch.logaddexp(log_u + log_keep, log_g + log_take)
    return torch.where(log_u == -math.inf, log_g, blended)


def log_mean(values: Tensor) -> Tensor:
    """Return log of the mean over the first dimension of exp(values): (V, ...) -> (...)."""
    if values.shape[0] == 1:
        return values[0]
    if values.shape[0] == 2:
        return torch.logaddexp(values[0], values[1]) - math.log(2)
    return values.logsumexp(dim=0) - math.log(values.shape[0])


def merge_duplicates(values: Tensor, index: Tensor) -> Tensor:
    """Return (B,) values where rows of one id have the log-mean of all its rows, bit for bit the same in each."""
    if all_distinct(index):
        return values
    ordered = index.sort().values
    group = torch.searchsorted(ordered, index)  # where a sample's run begins: one number a sample
    count = torch.searchsorted(ordered, index, right=True) - group
    top = torch.full_like(values, -math.inf).scatter_reduce(0, group, values, "amax")[group]
    top = torch.where(torch.isfinite(top), top, 0.0)
    total = torch.zeros_like(values).index_put((group,), torch.exp(values - top), accumulate=True)[group]
    return torch.where(count == 1, values, total.log() + top - count.to(values.dtype).log())


# --------------------------------------------------------------------------------------------------- images and texts
def ids_of_pairs(x_ids: Tensor, y_ids: Tensor) -> Tensor:
    """Return both kinds of ids side by side, (B, 2), as the kernels take them; (B,) where the two are one tensor."""
    return x_ids if y_ids is x_ids else torch.stack([x_ids, y_ids], dim=1)


def by_tower(temperature: float | Tensor) -> float | Tensor | tuple[Tensor, Tensor]:
    """Return the images' temperatures and the texts', (B,) each, of (2, B); what serves both ways as it is."""
    return (
        (temperature[0], temperature[1]) if isinstance(temperature, Tensor) and temperature.ndim == 2 else temperature
    )


def log_mean_negatives_two_towers(
    x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, temperature: float | Tensor
) -> Tensor:
    """Return log ĝ_a of images against the texts at hand, and of texts against the images.

    Row a of a batch is a pair (image, text). The negatives of its image are the texts of rows that share neither its
    image nor its text, and the negatives of its text are the images of these rows: two captions of one image are never
    negatives of each other's image, nor two images of one caption.

    Args:
        x: (B, D) unit rows, the images.
        y: (B, D) unit rows, the texts.
        x_ids: (B,) ids of the images, not all alike.
        y_ids: (B,) ids of the texts, not all alike.
        temperature: a float, () or, one for each anchor, (2, B); differentiable.

    Returns:
        (2, B): the images' anchors, then the texts'.
    """
    ids = ids_of_pairs(x_ids, y_ids)
    log_sum = torch.stack(log_sum_between(x, y, ids, ids, by_tower(temperature)))
    return log_mean_of_pairs(log_sum, count_different(ids))


def log_mean_of_pairs(log_sum: Tensor, count: Tensor) -> Tensor:
    """Return log of the mean over an anchor's negatives, (2, B), from log of their sum, (2, B), and their number.

    An anchor without any negative at hand takes the mean ĝ of the others, as a constant: it then only pulls at its
    positive, and everything stays finite. Where no anchor has any, log ĝ is 0.

    Args:
        log_sum: (2, B), -inf where there are none.
        count: (B,), or (2, B) where the images' anchors have other numbers of them than the texts'.
    """
    some = count > 0
    log_g = log_sum - count.clamp(min=1).to(log_sum.dtype).log()  # -inf where there are none
    others = log_g.detach().logsumexp(dim=1, keepdim=True) - some.sum(dim=-1, keepdim=True).to(log_sum.dtype).log()
    return torch.where(some, log_g, torch.where(some.any(dim=-1, keepdim=True), others, 0.0))


def sigmoid_loss(x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return SigLIP, minus the sum over texts of log sigmoid( ±(scale s_ab + bias) ), + for the image's own.

    Pairs of the same image or the same text, other than the row's own, are left out: they are neither.

    Args:
        x: (B, D) unit rows, the images.
        y: (B, D) unit rows, the texts.
        x_ids: (B,) ids of the images.
        y_ids: (B,) ids of the texts.
        scale: () 1 / tau.
        bias: () added to every logit.

    Returns:
        (B,), one value an image.
    """
    ids = ids_of_pairs(x_ids, y_ids)
    return sigmoid_loss_masked(x @ y.T, ~same_ids(ids, ids), scale, bias)


def sigmoid_loss_masked(sim: Tensor, negative: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return `sigmoid_loss` of similarities, (B, B + K), whose diagonal is the positives; what is no negative is left out.

    Args as of `log_mean_masked` and `sigmoid_loss`.
    """
    logits = scale * sim + bias
    own = torch.zeros_like(negative).fill_diagonal_(True)
    terms = -logsigmoid(torch.where(own, logits, -logits))
    return terms.masked_fill(~(negative | own), 0.0).sum(dim=1)
