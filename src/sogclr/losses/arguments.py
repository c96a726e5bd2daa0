"""What a loss refuses when it is built."""

from __future__ import annotations

import math
import operator

from ..errors import BadInput


def check_num_samples(count: int, name: str = "num_samples") -> int:
    """Return the number of samples in the data set.

    Raises:
        BadInput: it is no integer, or less than 2.
    """
    try:
        checked = operator.index(count)
    except TypeError:
        raise BadInput(f"{name} must be an integer and was {count!r}; pass len(dataset)") from None
    if checked < 2:
        raise BadInput(f"{name} must be 2 or more and was {count}; pass len(dataset)")
    return checked


def check_num_negatives(count: float | None) -> float | None:
    """Return the number of negatives of a softmax; None for infinitely many, beside which the positive does not count.

    Raises:
        BadInput: it is not greater than 0.
    """
    if count is not None and not count > 0:
        raise BadInput(
            f"num_negatives must be greater than 0 and was {count}; 255 is a batch of 256, None leaves the positive out"
        )
    return None if count == math.inf else count


def check_built_for(part: object, count: int, what: str, advice: str) -> None:
    """Refuse an estimator or a temperature that keeps something for another number of samples than its loss.

    Raises:
        BadInput: it does; `what` the samples are, and `advice`, are in the sentence.
    """
    theirs = getattr(part, "num_samples", count)
    if theirs != count:
        raise BadInput(f"{type(part).__name__} is built for {theirs} samples and the loss for {count} {what}; {advice}")
