"""What every page of results shares: its options, its head, the machine, and how it is written."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a script's docstring as it stands."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def processor() -> str:
    """Return the processor's name, as Linux has it or else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def host(used: str = " (one used)") -> str:
    """Return date and machine: `2026-11-24, AMD EPYC, 2 cores (one used), torch 2.13.0`; `used` says how many were."""
    return f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores{used}, torch {torch.__version__}"


def where(device: str) -> str:
    """Return what computes a run, without a date: the GPU, or a thread of the processor, and torch's version."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"a core of {processor()}"
    return f"{name}, torch {torch.__version__}"


def one_thread() -> str:
    """Return date and machine for a sentence: `2026-11-24, one thread of a machine with 2 cores, torch 2.13.0`."""
    cores = os.cpu_count()
    return f"{datetime.date.today()}, one thread of a machine with {cores} cores, torch {torch.__version__}"


def head(title: str, module: str, more: str = "") -> list[str]:
    """Return a page's first lines: its title, its command, and the machine with `more` said of it."""
    return [f"# {title}", "", f"`python -m {module}`", "", f"Machine: {host()}{more}.", ""]


def write_page(name: str, text: str, quick: bool = False) -> None:
    """Write docs/results/NAME and show it.

    Args:
        name: the page's file name.
        text: Markdown.
        quick: only show it.
    """
    if not quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)
