"""What a loss refuses of a batch. On the CPU errors are raised and name the rows; on CUDA nothing here waits for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def check_views(first: Tensor, others: Sequence[Tensor], index: Tensor, num_samples: int | None) -> Tensor:
    """Return `index` after the checks of `check_pairs`, of all views of a batch.

    Args:
        first: (B, D) floating.
        others: V - 1 of (B, D) floating.
        index: (B,) int64 or int32, on any device.
        num_samples: as of `check_pairs`.

    Raises:
        BadInput: as `check_pairs`, or there is one view alone.
        NonFinite: as `check_pairs`.
    """
    if not len(others):
        raise BadInput(
            "a positive is another view of the same sample and there is 1 view; give embeddings of 2 or more"
        )
    what = VIEWS if len(others) == 1 else f"the {len(others) + 1} views' embeddings"
    checked = index
    for z in others:
        checked = check_pairs(first, z, index, num_samples, what)
    return checked


def check_tensors(**given: object) -> None:
    """Refuse arguments, by their names, that are no tensors: ids as a list or of NumPy.

    Raises:
        BadInput: one is none.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor):
            kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            raise BadInput(f"{name} must be a torch.Tensor and is a {kind}; convert it with torch.as_tensor(...)")


def _check_shapes(z0: Tensor, z1: Tensor, index: Tensor, what: str) -> None:
    check_tensors(**{f"each of {what}": z0}, index=index)
    check_tensors(**{f"each of {what}": z1})
    if z0.ndim != 2 or z0.shape != z1.shape:
        raise BadInput(f"{what} must be (B, D) and alike, and are {tuple(z0.shape)} and {tuple(z1.shape)}")
    if not z0.shape[1]:
        raise BadInput(f"{what} are 0 wide, {tuple(z0.shape)}; pass the projection head's output")
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


def check_some_negative(negative: Tensor) -> None:
    """Refuse a batch of all ranks none of whose anchors has a negative, (B, C) bool; on CUDA it is not looked at.

    Raises:
        BadInput: there is none.
    """
    if can_sync(negative) and not bool(negative.any()):
        raise BadInput(
            f"none of the {len(negative)} rows of the batch has a negative that is no known match; mix more in a batch"
        )


def check_not_negative(index: Tensor) -> None:
    """Refuse ids (B,) below 0, which a queue takes for empty places.

    Raises:
        BadInput: there is one (ids on CUDA: a device-side assertion instead; inside of `torch.compile`: no check).
    """
    if torch.compiler.is_compiling():
        return
    if not can_sync(index):
        torch._assert_async((index >= 0).all(), "an id is below 0, which means an empty place in the queue")
    elif (lowest := _range(index)[0]) < 0:
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


def check_hard_negatives(
    y: Tensor, negatives: Tensor | None, negative_index: Tensor | None, num_texts: int | None
) -> Tensor:
    """Return `negative_index` as int64 on the embeddings' device, (B, H), after what `check_pairs` checks of pairs.

    Args:
        y: (B, D) floating, the rows of the same kind in the batch.
        negatives: (B, H, D) or (B, D) floating; what has no id may hold anything.
        negative_index: (B, H) or (B,) int64 or int32, -1 where there is none.
        num_texts: ids run from 0 to num_texts - 1; None: from 0.

    Raises:
        BadInput: shapes, dtypes or the range of the ids are wrong, or one of the two is missing.
        NonFinite: an embedding on the CPU that has an id is not finite.
    """
    if negatives is None or negative_index is None:
        missing = "negatives" if negatives is None else "negative_index"
        raise BadInput(f"{missing} is missing; hard negatives are embeddings and their ids, give both or neither")
    check_tensors(negatives=negatives, negative_index=negative_index)
    z = negatives.unsqueeze(1) if negatives.ndim == 2 else negatives
    index = negative_index.unsqueeze(1) if negative_index.ndim == 1 else negative_index
    if z.ndim != 3 or not z.shape[1] or (z.shape[0], z.shape[2]) != y.shape:
        raise BadInput(
            f"negatives must be (B, H, D) or (B, D), beside embeddings of (B, D) {tuple(y.shape)}, and are "
            f"{tuple(negatives.shape)}"
        )
    if not z.is_floating_point() or z.device != y.device:
        raise BadInput(f"negatives must be floating and on {y.device}, and are {z.dtype} on {z.device}")
    if index.shape != z.shape[:2]:
        raise BadInput(
            f"negative_index must be {tuple(z.shape[:2])}, an id for each hard negative, and is "
            f"{tuple(negative_index.shape)}"
        )
    if index.dtype not in (torch.int64, torch.int32):
        raise BadInput(f"negative_index must be int64 or int32 and is {index.dtype}; convert it with .long()")
    if not torch.compiler.is_compiling():
        _check_hard_ids(index, num_texts)
        if z.device.type == "cpu":
            _check_hard_finite(z, index.to(z.device))
    return index.to(device=z.device, dtype=torch.int64, non_blocking=True)


def _check_hard_ids(index: Tensor, num_texts: int | None) -> None:
    most = torch.iinfo(torch.int64).max if num_texts is None else num_texts - 1
    valid = "0 or more" if num_texts is None else f"0..{most}"
    if index.device.type != "cpu":
        outside = (index < -1) | (index > most)
        torch._assert_async(~outside.any(), f"negative_index out of range (valid: {valid}, and -1)")
    elif index.numel():
        lowest, highest = _range(index.flatten())
        if lowest < -1 or highest > most:
            raise BadInput(
                f"negative_index {lowest if lowest < -1 else highest} is out of range (valid: {valid}, and -1 where "
                "there is none); give ids of the second kind"
            )


def _check_hard_finite(z: Tensor, index: Tensor) -> None:
    bad = ~torch.isfinite(z).all(dim=2) & (index >= 0)
    if bool(bad.any()):
        rows = bad.any(dim=1).nonzero().flatten().tolist()
        raise NonFinite(
            f"{int(bad.sum())} of {bad.numel()} hard negatives are not finite (rows {_few(rows)}, ids "
            f"{_few(index[bad].tolist())}); lower the learning rate or look at these inputs",
            rows,
        )


def check_positives(positives: tuple[Tensor, Tensor], num_samples: int | None, num_texts: int | None) -> None:
    """Refuse known pairs of a data set that are not two (P,) tensors of ids in range.

    Raises:
        BadInput: they are not.
    """
    for ids in positives:
        check_tensors(**{"each of positives": ids})
    shapes = [tuple(ids.shape) for ids in positives]
    if len(shapes) != 2 or len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise BadInput(f"positives must be two tensors of ids, (P,) each, and are {shapes}; give (first, second)")
    for ids, count in zip(positives, (num_samples, num_texts), strict=True):
        if ids.dtype not in (torch.int64, torch.int32):
            raise BadInput(f"positives must be int64 or int32 and are {ids.dtype}; convert them with .long()")
        if not len(ids):
            raise BadInput("positives hold no pairs; give all pairs of the data set, or None")
        lowest, highest = (int(end) for end in ids.aminmax())
        if lowest < 0 or (count is not None and highest >= count):
            raise BadInput(
                f"positives hold id {lowest if lowest < 0 else highest}, out of range for a loss of "
                f"{count if count is not None else 'any number of'} things (valid: from 0); number them as in the batches"
            )


def _few(values: list[int], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "")


def all_distinct(index: Tensor) -> bool:
    """Return whether ids (B,) are all different, where asking does not wait for a device; False elsewhere."""
    if not can_sync(index):
        return False
    ids = index.tolist()
    return len(set(ids)) == len(ids)
