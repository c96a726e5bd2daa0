"""How the figures look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import pages

# Okabe and Ito's colours (the yellow darker), told apart by every common kind of colour vision; markers differ too
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999", "#B2A100")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*", "h")


def style(k: int) -> dict[str, Any]:
    """Return how the line of the k-th method is drawn."""
    return {"color": COLOURS[k % 9], "marker": MARKERS[k % 9], "markersize": 5, "linewidth": 1.4, "capsize": 2.5}


def figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    """Return a figure and its panels' axes, always as a 2-D array."""
    return plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False, layout="constrained")


def dress(
    axis: Any, x: str, y: str, title: str = "", ticks: Sequence[float] = (), base: int = 0, log_y: bool = False
) -> None:
    """Name an axis and draw its grid.

    Args:
        axis: one panel.
        x: label of the abscissa.
        y: label of the ordinate.
        title: above the panel, if any.
        ticks: abscissae that were run; where matplotlib likes if empty.
        base: of the abscissa's logarithm, 2 or 10; 0: linear.
        log_y: whether the ordinate is logarithmic.
    """
    if base:
        axis.set_xscale("log", base=base)
    if log_y:
        axis.set_yscale("log")
    if ticks:
        axis.set_xticks(ticks, [str(t) for t in ticks])
    if base == 10:
        axis.minorticks_off()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title)
    axis.grid(alpha=0.3)


def save(fig: Any, name: str) -> None:
    """Write docs/results/NAME and close the figure."""
    pages.RESULTS.mkdir(parents=True, exist_ok=True)
    fig.savefig(pages.RESULTS / name, dpi=110, metadata={"Software": None})
    plt.close(fig)
