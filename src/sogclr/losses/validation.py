"""What a loss refuses. On the CPU errors are raised and name the rows; on CUDA nothing here waits for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import BadInput
from ..kernels.choice import can_sync


class NonFinite(BadInput):
    """Embeddings that hold NaN or infinity; `rows` are their positions in the batch. The loss's state is untouched."""

    def __init__(self, message: str, rows: list[int] | None = None) -> None:
        super().__init__(message)
        self.rows = rows or []


_FEW = 256  # ids that a list compares sooner than a tensor
VIEWS = "the two views' embeddings"


def check_pairs(
    z0: Tensor, z1: Tensor, index: Tensor, num_samples: int | None, what: str = VIEWS, finite: bool = True
) -> Tensor:
    """Return `index` as int64 on the embeddings' device, after every check that needs no wait for that device.

    Args:
        z0: (B, D) floating.
        z1: (B, D) floating.
        index: (B,) int64 or int32, on any device.
        num_samples: ids run from 0 to num_samples - 1; None: ids are any.
        what: the embeddings, in words.
        finite: False leaves it to the caller to look for what is not finite.

    Raises:
        BadInput: shapes, dtypes or the range of the ids are wrong (ids on CUDA: a device-side assertion instead).
        NonFinite: an embedding on the CPU is not finite.
    """
    _check_shapes(z0, z1, index, what)
    if torch.compiler.is_compiling():
        return index.to(device=z0.device, dtype=torch.int64)
    if index.device.type == "cpu":
        _check_ids(index, num_samples)
    elif num_samples is not None:
        outside = (index < 0) | (index >= num_samples)
        torch._assert_async(~outside.any(), f"index out of range for a loss built for {num_samples} samples")
    if finite and z0.device.type == "cpu":
        check_finite(z0, z1, index)
    return index.to(device=z0.device, dtype=torch.int64, non_blocking=True)


def _check_shapes(z0: Tensor, z1: Tensor, index: Tensor, what: str) -> None:
    if z0.ndim != 2 or z0.shape != z1.shape:
        raise BadInput(f"{what} must be (B, D) and alike, and are {tuple(z0.shape)} and {tuple(z1.shape)}")
    if not (z0.is_floating_point() and z1.is_floating_point()):
        raise BadInput(
            f"embeddings must be floating and are {z0.dtype} and {z1.dtype}; pass the projection head's output"
        )
    if z0.device != z1.device:
        raise BadInput(f"{what} are on {z0.device} and {z1.device}; move them to one device")
    if index.ndim != 1 or index.shape[0] != z0.shape[0]:
        raise BadInput(f"index must be ({len(z0)},), an id for each row of the embeddings, and is {tuple(index.shape)}")
    if index.dtype not in (torch.int64, torch.int32):
        raise BadInput(f"index must be int64 or int32 and is {index.dtype}; convert it with index.long()")


def _range(index: Tensor) -> tuple[int, int]:
    if index.shape[0] <= _FEW:
        ids = index.tolist()
        return min(ids), max(ids)
    lowest, highest = index.aminmax()
    return int(lowest), int(highest)


def _check_ids(index: Tensor, num_samples: int | None) -> None:
    if num_samples is None or not index.shape[0]:
        return
    lowest, highest = _range(index)
    if lowest < 0 or highest >= num_samples:
        raise BadInput(
            f"index {lowest if lowest < 0 else highest} is out of range for a loss built for {num_samples} samples "
            f"(valid: 0..{num_samples - 1}); build it with num_samples=len(dataset)"
        )


def check_negatives(index: Tensor) -> None:
    """Refuse a batch of all ranks with ids (B,) that has nothing to contrast with; ids on CUDA are not looked at.

    Raises:
        BadInput: there are fewer than two different ids.
    """
    if index.shape[0] < 2:
        raise BadInput(f"a batch of {len(index)} has no negatives; use 2 samples or more (32 or more works well)")
    if not can_sync(index):
        return
    lowest, highest = _range(index)
    if lowest == highest:
        raise BadInput(
            f"all {len(index)} rows of the batch have id {lowest}, so there are no negatives; mix samples in a batch"
        )


def check_not_negative(index: Tensor) -> None:
    """Refuse ids (B,) below 0, which a queue takes for empty places; ids on CUDA are not looked at.

    Raises:
        BadInput: there is one.
    """
    if can_sync(index) and (lowest := _range(index)[0]) < 0:
        raise BadInput(f"index {lowest} is below 0, which means an empty place in the queue; give ids of 0 or more")


def check_finite(z0: Tensor, z1: Tensor, index: Tensor) -> None:
    """Refuse (B, D) embeddings on the CPU that are not finite.

    Raises:
        NonFinite: with the rows.
    """
    if math.isfinite((z0.detach().sum() + z1.detach().sum()).item()):
        return  # one pass is enough nearly always; a sum of finite numbers that overflows is sorted out below
    finite = torch.isfinite(z0).all(dim=1) & torch.isfinite(z1).all(dim=1)
    rows = (~finite).nonzero().flatten().tolist()
    if rows:
        ids = index[~finite.to(index.device)].tolist()
        raise NonFinite(
            f"{len(rows)} of {len(z0)} embeddings are not finite (rows {_few(rows)}, ids {_few(ids)}); "
            "lower the learning rate or look at these inputs",
            rows,
        )


def _few(values: list[int], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "")


def all_distinct(index: Tensor) -> bool:
    """Return whether ids (B,) are all different, where asking does not wait for a device; False elsewhere."""
    if not can_sync(index):
        return False
    ids = index.tolist()
    return len(set(ids)) == len(ids)


def check_built_for(part: object, count: int, what: str, advice: str) -> None:
    """Refuse an estimator or a temperature that keeps something for another number of samples than its loss.

    Raises:
        BadInput: it does; `what` the samples are, and `advice`, are in the sentence.
    """
    theirs = getattr(part, "num_samples", count)
    if theirs != count:
        raise BadInput(f"{type(part).__name__} is built for {theirs} samples and the loss for {count} {what}; {advice}")
