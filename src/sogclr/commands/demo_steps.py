"""What the demos share: commands that are shown before they run, fresh runs, and the table at the end."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.text import Text

from ..errors import RunFailed
from ..progress import Progress, RichText
from ..run_folder import RunFolder
from .eval_result import comparisons

CommandLine = Callable[[list[str]], int]
"""Runs the words of one command and returns its exit code."""


@dataclass(frozen=True)
class DemoResult(RichText):
    """What a demo found: the scores of its methods and baselines, as in the table."""

    title: str
    scores: dict[str, dict[str, float]]
    """By method, and then by the names of `EvalResult`."""
    closing: str
    """Where to look, and what to type next."""

    def __rich__(self) -> Group:
        return Group(Text(self.title), *comparisons(self.scores), Text(self.closing))


def fresh_runs(folder: Path, names: tuple[str, ...]) -> dict[str, RunFolder]:
    """Return the folders of the demo's runs, without what an earlier demo left there; nothing else is touched."""
    runs = {name: RunFolder(folder / name) for name in names}
    for run in runs.values():
        if run.config_file.exists():
            shutil.rmtree(run.path)
    return runs


def announced(command: CommandLine, progress: Progress) -> Callable[..., None]:
    """Return `command` for words of any kind, which shows each line before it runs and stops at the first that fails."""

    def sogclr(*words: str | Path) -> None:
        line = [str(word) for word in words]
        progress.info(f"\n$ sogclr {shlex.join(line)}")
        code = command(line)
        sys.stdout.flush()  # or the results would all come at the end of a pipe
        if code:
            raise RunFailed(
                f"the demo stopped: `sogclr {line[0]}` ended with exit code {code}; its message stands above"
            )

    return sogclr


def read_scores(run: RunFolder, baseline: str | None = None) -> dict[str, float]:
    """Return the scores that `sogclr eval` wrote into a run, its own or those of a baseline."""
    found = json.loads(run.eval_file.read_text(encoding="utf-8"))
    values = found if baseline is None else found["baselines"][baseline]
    return {name: value for name, value in values.items() if isinstance(value, float)}
