"""How figures of the benchmarks look, and what is said of the machine."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours (the yellow darker), told apart by every common kind of colour vision; markers differ too
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999", "#B2A100")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*", "h")


def style(k: int) -> dict[str, Any]:
    """The line of the k-th method."""
    return {"color": COLOURS[k % 9], "marker": MARKERS[k % 9], "markersize": 5, "linewidth": 1.4, "capsize": 2.5}


def figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    """A row of panels, axes always as a 2-D array."""
    return plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False, layout="constrained")


def save(fig: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


def write_page(path: Path, text: str) -> None:
    """Write a page of results, and show it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


def host() -> str:
    """`2026-11-24, AMD EPYC, 2 cores, torch 2.13.0`."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next(
            (x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")), name
        )
    return f"{datetime.date.today()}, {name}, {os.cpu_count()} cores (one used), torch {torch.__version__}"
