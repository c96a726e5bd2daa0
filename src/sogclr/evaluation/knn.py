"""Weighted k-nearest-neighbour classification of frozen features, the usual quick test (arXiv 1805.01978).

Each of the k training images most similar to a test image votes for its class with weight exp(s / T), where s is the
cosine similarity and T the temperature. Among equal similarities the lower training row comes first, and among equal
votes the lower class, so that the result does not depend on how the work is cut into pieces. The paper has k = 200; the default
of 20 is what small data sets bear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInput
from .label_free import refuse_non_finite

if TYPE_CHECKING:
    from .scores import LabelledSplit

TEMPERATURE = 0.07  # T
_ROWS, _COLUMNS = 1024, 16_384  # one tile of similarities is 64 MiB


def knn_top1(split: LabelledSplit) -> float:
    """Return the fraction of test rows whose class the k nearest training rows name.

    Raises:
        BadInput: as `knn_predict`.
    """
    found = knn_predict(
        split.train_x, split.train_y, split.test_x, k=split.k, num_classes=split.num_classes, device=split.device
    )
    return float((found == split.test_y).mean())


def knn_predict(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray,
    test_x: np.ndarray | Tensor,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
    num_classes: int,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Return the class of each test row by weighted vote of its k nearest training rows.

    Args:
        train_x: (m, D), any float; rows are compared by cosine similarity in float32.
        train_y: int64 (m,), in [0, num_classes).
        test_x: (t, D), any float.
        k: neighbours; all m when there are fewer.
        temperature: T > 0.
        num_classes: C.
        device: where similarities are computed.

    Returns:
        int64 (t,), the classes.

    Raises:
        BadInput: k or temperature out of range, labels that do not fit the features, or features that are not finite.
    """
    train, test = _normalize(train_x, device), _normalize(test_x, device)
    if train.shape[1] != test.shape[1]:
        raise BadInput(f"training features have {train.shape[1]} columns and test features {test.shape[1]}")
    labels = _check(train, train_y, k, temperature, num_classes)
    refuse_non_finite(train.cpu().numpy(), test.cpu().numpy())
    similarity, row = nearest(test, train, min(k, len(train)))
    return _vote(similarity, labels[row], temperature, num_classes)


def knn_leave_one_out(
    x: np.ndarray | Tensor,
    y: np.ndarray,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
    num_classes: int,
    device: str | torch.device = "cpu",
) -> float:
    """Return the fraction of rows whose class is found from all the others.

    Args:
        x: (n, D), n >= 2, any float.
        y: int64 (n,), in [0, num_classes).
        k: neighbours; all n - 1 when there are fewer.
        temperature: T > 0.
        num_classes: C.
        device: where similarities are computed.

    Returns:
        The fraction; nan when a feature is not finite, as those of an encoder that has diverged.

    Raises:
        BadInput: as `knn_predict`, or fewer than 2 rows.
    """
    unit = _normalize(x, device)
    labels = _check(unit, y, k, temperature, num_classes)
    if len(unit) < 2:
        raise BadInput(f"leave-one-out needs 2 or more labelled images and got {len(unit)}; label more")
    if not bool(torch.isfinite(unit).all()):
        return float("nan")
    similarity, row = nearest(unit, unit, min(k, len(unit) - 1), own=np.arange(len(unit)))
    return float((_vote(similarity, labels[row], temperature, num_classes) == labels).mean())


def nearest(queries: Tensor, keys: Tensor, k: int, *, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar keys of each query, best first, the lower row first among equals.

    Args:
        queries: float32 (q, D), of unit length.
        keys: float32 (m, D), of unit length, on the same device.
        k: at most m (m - 1 with `own`).
        own: int64 (q,), the row of `keys` that each query is itself, which is none of its neighbours.

    Returns:
        Similarities, float32 (q, k), and rows of `keys`, int64 (q, k).
    """
    similarities = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _ROWS):
        stop = min(start + _ROWS, len(queries))
        best: tuple[Tensor, Tensor] | None = None
        for left in range(0, len(keys), _COLUMNS):
            tile = queries[start:stop] @ keys[left : left + _COLUMNS].T
            if own is not None:
                _mask(tile, own[start:stop] - left)
            values, columns = _top(tile, min(k, tile.shape[1]))
            columns += left
            if best is not None:  # what came before has lower rows, and stands first
                values, columns = torch.cat([best[0], values], dim=1), torch.cat([best[1], columns], dim=1)
            best = _sort(values, columns, k)
        assert best is not None
        similarities[start:stop], rows[start:stop] = best[0].cpu().numpy(), best[1].cpu().numpy()
    return similarities, rows


def _top(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row, in order of their columns; of equal ones the first columns."""
    values, columns = tile.topk(k, dim=1)
    # topk may take any of the values that equal the k-th; rows where it had such a choice are sorted in full.
    tied = ((tile >= values[:, -1:]).sum(dim=1) > k).nonzero().flatten()
    if len(tied):
        columns[tied] = tile[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    return tile.gather(1, columns), columns


def _sort(values: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row, largest first, with their columns."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return values.gather(1, order), columns.gather(1, order)


def _mask(tile: Tensor, columns: np.ndarray) -> None:
    """Set one similarity of each row to -inf, where its column lies in this tile."""
    rows = np.flatnonzero((columns >= 0) & (columns < tile.shape[1]))
    tile[torch.from_numpy(rows).to(tile.device), torch.from_numpy(columns[rows]).to(tile.device)] = -torch.inf


def _vote(similarity: np.ndarray, labels: np.ndarray, temperature: float, num_classes: int) -> np.ndarray:
    """Return the class with the largest sum of weights, int64 (t,), from (t, k) similarities and classes."""
    # Relative to the best neighbour, which no temperature can make overflow.
    weight = np.exp((similarity.astype(np.float64) - similarity[:, :1]) / temperature)
    chosen = np.empty(len(similarity), dtype=np.int64)
    step = max(1, (1 << 23) // num_classes)
    for start in range(0, len(similarity), step):
        rows = slice(start, start + step)
        votes = np.zeros((len(similarity[rows]), num_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], labels[rows]), weight[rows])
        chosen[rows] = votes.argmax(axis=1)
    return chosen


def _normalize(x: np.ndarray | Tensor, device: str | torch.device) -> Tensor:
    """Return float32 (n, D) rows of unit length on the device."""
    tensor = torch.as_tensor(x).to(device=device, dtype=torch.float32)
    if tensor.ndim != 2 or not len(tensor):
        raise BadInput(f"kNN needs features of shape (n, D) with n > 0 and got {tuple(tensor.shape)}")
    return functional.normalize(tensor, dim=1)


def _check(x: Tensor, y: np.ndarray, k: int, temperature: float, num_classes: int) -> np.ndarray:
    """Return the labels as int64 once everything is known to fit."""
    labels = np.asarray(y, dtype=np.int64)
    if k < 1:
        raise BadInput(f"kNN was asked for {k} neighbours; give --k 1 or more")
    if not temperature > 0:
        raise BadInput(f"the temperature of kNN was {temperature}; give a value above 0")
    if labels.shape != (len(x),):
        raise BadInput(f"{len(x):,} features and labels of shape {labels.shape} do not fit; give one label each")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise BadInput(
            f"labels run from {labels.min()} to {labels.max()} and there are {num_classes} classes; "
            f"leave unlabelled images out"
        )
    return labels
