"""What can be said of features without labels: how many directions they use, and how they spread on the sphere.

RankMe: arXiv 2210.02885. Alignment and uniformity: arXiv 2005.10242.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInput

RANKME_ROWS = 25_600  # the paper's sample; more rows hardly move the value
UNIFORMITY_ROWS = 4096
_CHUNK = 1024


def refuse_non_finite(*features: np.ndarray) -> None:
    """Refuse features that are infinite or no number: nothing can be said of such an encoder.

    Raises:
        BadInput: a value is not finite.
    """
    if not all(np.isfinite(part).all() for x in features for part in np.array_split(x, 1 + len(x) // _CHUNK)):
        raise BadInput(
            "the features hold values that are not finite; the encoder has diverged, train it again with a lower --lr"
        )


def rankme(features: np.ndarray | Tensor) -> float:
    """Return the effective rank: exp of the entropy of the singular values, sigma_k / sum(sigma). From 1 to min(n, D).

    Args:
        features: (n, D), any float; at most 25,600 evenly spaced rows are used. Not centred, as in the paper.

    Returns:
        The rank; 0.0 when every feature is zero, nan when one is not finite.
    """
    x = evenly_spaced(_matrix(features), RANKME_ROWS).double()
    if not bool(torch.isfinite(x).all()):
        return float("nan")
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    # Squared singular values: below 1e-16 of the largest they are rounding, and zero counts for nothing in the entropy.
    square = torch.linalg.eigvalsh(gram)
    square = square.where(square > square[-1] * 1e-15, 0.0)
    total = square.sqrt().sum()
    if total <= 0:
        return 0.0
    return float(torch.special.entr(square.sqrt() / total).sum().exp())


def alignment(z0: np.ndarray | Tensor, z1: np.ndarray | Tensor) -> float:
    """Return the mean squared distance between two views' normalised features: 0 (identical) to 4 (opposite).

    Args:
        z0: (n, D), any float.
        z1: (n, D), row i from the image of row i of z0.

    Raises:
        BadInput: the shapes differ.
    """
    a, b = _matrix(z0), _matrix(z1)
    if a.shape != b.shape:
        raise BadInput(f"alignment compares two views of one shape and got {tuple(a.shape)} and {tuple(b.shape)}")
    return float((_normalize(a) - _normalize(b)).square().sum(dim=1).mean())


def uniformity(z: np.ndarray | Tensor, t: float = 2.0) -> float:
    """Return the log of the mean of exp(-t |z_i - z_j|^2) over pairs i < j of normalised features; 0 when they all coincide.

    Lower is more evenly spread; with t = 2 a perfect spread in many dimensions tends to -4.

    Args:
        z: (n, D), n >= 2, any float; at most 4,096 evenly spaced rows are used.
        t: sharpness of the Gaussian potential.

    Raises:
        BadInput: fewer than 2 rows.
    """
    x = _normalize(evenly_spaced(_matrix(z), UNIFORMITY_ROWS))
    n = len(x)
    if n < 2:
        raise BadInput(f"uniformity needs 2 or more images and got {n}; give more")
    total = 0.0
    for start in range(0, n, _CHUNK):
        similarity = x[start : start + _CHUNK] @ x.T
        kernel = torch.exp(2 * t * (similarity - 1))  # |a - b|^2 = 2 - 2 a.b on the sphere
        total += float(torch.triu(kernel, diagonal=start + 1).sum())
    return float(np.log(total / (n * (n - 1) / 2)))


def evenly_spaced(x: Tensor, at_most: int) -> Tensor:
    """Return `at_most` rows from first to last, always the same ones."""
    if len(x) <= at_most:
        return x
    return x[torch.linspace(0, len(x) - 1, at_most, dtype=torch.float64).long().to(x.device)]


def _matrix(x: np.ndarray | Tensor) -> Tensor:
    """Return a detached (n, D) tensor, or refuse another shape."""
    tensor = torch.as_tensor(x).detach()
    if tensor.ndim != 2 or not len(tensor):
        raise BadInput(f"features of shape (n, D) with n > 0 are needed and {tuple(tensor.shape)} was given")
    return tensor


def _normalize(x: Tensor) -> Tensor:
    """Return float64 rows of unit length."""
    return functional.normalize(x.double(), dim=1)
