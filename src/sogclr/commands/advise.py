"""What `inspect --advise` measures: short trainings at several batch sizes, and how far a batch's gradient is from the exact one."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..progress import ProgressCallback, clock
from ..run_folder import RunFolder

BATCHES = (16, 32, 64, 128, 256)
ENOUGH = 0.85  # of the highest rate: a larger batch gains no more than that
LEAST_STEPS = 8  # an epoch
EPOCHS = (30, 100)  # a look, and a run
OF_BATCHES = 0.6  # of the time
STEPS = 4  # that are timed at least, the first of them not counted
DIAGNOSIS = 6000  # images that could be trained on in the time of a diagnosis, about


class _Measured(Exception):
    """Ends a training that was long enough."""


@dataclass(frozen=True)
class Advice:
    """What to train with, and what it rests on."""

    rates: dict[int, float]
    """Batch size -> images, or pairs, a second of whole training steps on this machine."""
    images: int
    """Or pairs, that an epoch visits."""
    batch_size: int
    """The smallest that is nearly as fast as the fastest."""
    epochs: int
    seconds: dict[int, float]
    """Epochs -> the time that a run takes with this batch size."""
    chosen: dict[str, Any]
    """What the trainer chooses by itself: model, image_size, temperature, gamma, optimizer, and views of images."""
    gradient: dict[str, float]
    """Of one batch against the exact gradient, of images after a short training: `bias`, `variance`, both relative to its norm."""

    def rows(self, things: str) -> dict[str, str]:
        """Return the lines of a table: name -> text."""
        rates = ", ".join(f"{b}: {rate:,.0f}" for b, rate in self.rates.items())
        times = ", ".join(f"{epochs} epochs {clock(seconds)}" for epochs, seconds in self.seconds.items())
        chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.chosen.items())
        rows = {
            f"{things} a second": f"by batch size, {rates}",
            "advice": f"--batch-size {self.batch_size} --epochs {self.epochs}",
            "that takes": times,
            "by itself": chosen,
        }
        if self.gradient:
            noise, bias = self.gradient["variance"] ** 0.5, self.gradient["bias"]
            rows["a batch's gradient"] = f"noise {noise:.1f} and bias {bias:.2f} times the exact gradient's norm: " + (
                "a larger batch would mend the noise only" if noise > 3 * bias else "bias counts: a larger batch helps"
            )
        return rows


def advise(
    data: str | os.PathLike[str],
    kind: str,
    count: int,
    minutes: float,
    progress: ProgressCallback,
    **options: Any,
) -> Advice:
    """Train shortly at several batch sizes, for so many minutes in all, and return what to train with.

    Args:
        data: as of `sogclr train`.
        kind: images or pairs.
        count: how many there are.
        minutes: greater than 0.
        progress: called with (seconds gone, seconds in all).
        options: of `sogclr train`, such as the columns of pairs.

    Raises:
        BadInput: too few samples, or no time.
    """
    if not 0 < minutes < math.inf:
        raise BadInput(f"--minutes must be a finite number greater than 0 and was {minutes:g}")
    sizes = [b for b in BATCHES if count >= LEAST_STEPS * b]
    if not sizes:
        raise BadInput(f"advice needs at least {LEAST_STEPS * BATCHES[0]} {kind} to measure on and found {count}")
    total, begun = 60 * minutes, time.monotonic()
    rates: dict[int, float] = {}

    def gone() -> float:
        return time.monotonic() - begun

    with tempfile.TemporaryDirectory(prefix="sogclr-advice-") as folder:
        for size in sizes:
            share = OF_BATCHES * total / len(sizes)
            if rates and STEPS * size / max(rates.values()) > 2 * share:
                break  # a few steps would take longer than all that is measured
            rates[size] = _rate(data, Path(folder) / f"{size}", size, share, options)
            progress(min(int(total), int(gone())), int(total))
        batch = next(b for b in rates if rates[b] >= ENOUGH * max(rates.values()))
        images = rates[batch] * (total - gone())
        gradient = {}
        if kind == "images" and images > DIAGNOSIS:
            gradient = _gradient(data, Path(folder) / "gradient", batch, images - DIAGNOSIS, count, options)
        progress(int(total), int(total))
        config = RunFolder(Path(folder) / f"{batch}").config()
    names = {"model": config.model.model, "image_size": config.data.image_size, "temperature": config.loss.temperature}
    names |= {"gamma": config.loss.gamma, "optimizer": config.optim.optimizer}
    names |= {"views": config.data.views} if kind == "images" else {}
    return Advice(
        rates=rates,
        images=count,
        batch_size=batch,
        epochs=EPOCHS[-1],
        seconds={epochs: epochs * count / rates[batch] for epochs in EPOCHS},
        chosen={name: value for name, value in names.items() if value is not None},
        gradient=gradient,
    )


def _rate(data: Any, out: Path, batch: int, seconds: float, options: dict[str, Any]) -> float:
    """Return samples a second of a training that is ended after some seconds, the first of them not counted."""
    rows: list[tuple[float, int]] = []

    def watch(row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            rows.append((time.monotonic(), row["step"]))
            if len(rows) >= STEPS and rows[-1][0] - rows[0][0] > seconds / 2:
                raise _Measured

    _train(data, out, watch, batch_size=batch, log_every=1, epochs=1000, eval_every=1000, **options)
    (first, from_step), (last, to_step) = rows[0], rows[-1]
    return (to_step - from_step) * batch / (last - first)


def _gradient(data: Any, out: Path, batch: int, images: float, count: int, options: dict[str, Any]) -> dict[str, float]:
    """Return bias and variance of a batch's gradient after a training of about so many images."""
    steps = max(2 * LEAST_STEPS, int(images / batch))
    epochs = max(1, -(-steps * batch // count))
    given = {"max_steps": steps, "epochs": epochs, "diagnose_every": epochs, "eval_every": epochs}
    _train(data, out, None, batch_size=batch, **given, **options)
    found = next(row for row in reversed(RunFolder(out).metrics()) if row["kind"] == "diagnosis")
    return {name: found[name] for name in ("bias", "variance")}


def _train(data: Any, out: Path, watch: Callable[[dict[str, Any]], None] | None, **options: Any) -> None:
    from .train import train  # torch, which a plain `inspect` does not wait for

    try:
        train(data, out, on_metrics=watch, quiet=True, **options)
    except _Measured:
        return
