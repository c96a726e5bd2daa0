"""What an evaluation found: scores with what they were measured on, as JSON and as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..evaluation.scores import SCORES
from ..files import write_text
from ..models.mix import check_mix
from ..progress import ProgressCallback, RichText
from ..run_folder import RunFolder


@dataclass(frozen=True)
class EvalSettings:
    """How an evaluation is done, whatever it is of."""

    labels: str
    baselines: bool
    k: int
    seed: int
    templates: tuple[str, ...]
    batch_size: int
    workers: int
    device: torch.device
    progress: ProgressCallback
    mix: tuple[float, ...] = ()
    """Shares of the end, of mixes of a run's start and end that are scored too."""
    published: bool = False
    """Fit the linear probe of papers too."""


def compared_with(run: str | os.PathLike[str], mix: Sequence[float]) -> dict[str, float]:
    """Return what a run's scores stand beside, as shares of its end: `start`, where it kept one, and the mixes asked for.

    Raises:
        BadInput: a share that is not from 0 to 1, or a run that kept no start to mix with.
    """
    folder = RunFolder(run)
    for share in mix:
        check_mix(folder, share)
    start = {"start": 0.0} if folder.start_file.is_file() else {}
    return start | {f"mix_{share:g}": share for share in mix}


@dataclass(frozen=True)
class EvalResult(RichText, Mapping[str, float]):
    """Scores of an encoder, by name: `result["knn_top1"]`; accuracies are fractions."""

    scores: dict[str, float]
    """`knn_top1`, `linear_top1`, `linear_top1_10_per_class`, ...; with `_std`, the spread over draws of the labels."""
    encoder: str
    """What was scored."""
    model: str
    data: str
    seed: int
    images: int
    unreadable: int
    """Files that could not be read."""
    split: str | None = None
    """What was fitted and scored on what, in one line; None without labels."""
    classes: int | None = None
    fit_images: int | None = None
    """Images that classifiers were fitted on."""
    score_images: int | None = None
    captions: int | None = None
    """Different things of the second column, of pairs."""
    templates: tuple[str, ...] | None = None
    """Sentences for the class names, of images with texts and classes."""
    protocol: dict[str, str] | None = None
    """How each kind of classifier was fitted, in words."""
    baselines: dict[str, dict[str, float]] | None = None
    """The same scores of the weights that the run started from, of mixes with them, of raw pixels, an untrained encoder, or chance."""
    worth: str | None = None
    """Whether training was worth it, in words, of a run that kept its start."""

    def __getitem__(self, name: str) -> float:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __rich__(self) -> Group:
        rows: dict[str, Mapping[str, float]] = {Path(self.encoder).resolve().name: self}
        rows |= {name.replace("_", " "): scores for name, scores in (self.baselines or {}).items()}
        lost = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        title = self.split or f"{self.images:,} images without labels"
        return Group(Text(title + lost), *comparisons(rows), *([] if self.worth is None else [Text(self.worth)]))

    def to_json(self) -> dict[str, object]:
        """Return one flat JSON object: the scores, and what is known of how they were measured."""
        about = {name: value for name, value in vars(self).items() if name != "scores" and value is not None}
        return {**self.scores, **about}

    def save(self) -> None:
        """Write `eval.json` into the run's folder; of an encoder file alone there is none."""
        if Path(self.encoder).is_dir():
            write_text(RunFolder(self.encoder).eval_file, json.dumps(self.to_json(), indent=2))


def comparisons(rows: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """Return `comparison`, in several tables where there are more columns than a terminal has room for."""
    keys = [key for key in SCORES if any(key in scores for scores in rows.values())]
    groups = sorted(dict.fromkeys(SCORES[key].group for key in keys), key=lambda group: not group)
    others = [{key for key in SCORES if SCORES[key].group != group} for group in groups]
    return [comparison({n: {k: v for k, v in s.items() if k not in o} for n, s in rows.items()}) for o in others]


def comparison(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Return several results beside each other: accuracies in percent (± standard deviation), or label-free scores."""
    keys = [key for key in SCORES if any(key in scores for scores in rows.values())]
    accuracies = [key for key in keys if SCORES[key].fraction]
    # On a terminal's width there is room for one kind; the JSON has both.
    shown = accuracies or keys
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    group = SCORES[shown[0]].group if len({SCORES[key].group for key in shown}) == 1 else ""
    table.add_column(group.replace("_", " "), no_wrap=True)
    for key in shown:  # what a group has in common stands above its rows
        title = SCORES[key].title.removeprefix(f"{group.replace('_', ' ')}, ")
        table.add_column(title.replace(", ", "\n"), justify="right", no_wrap=True)
    for name, scores in rows.items():
        table.add_row(name, *(_cell(scores, key) for key in shown))
    return table


def _cell(scores: Mapping[str, float], key: str) -> str:
    if key not in scores:
        return ""
    if not SCORES[key].fraction:
        return f"{scores[key]:.3g}"
    spread = scores.get(f"{key}_std")
    return f"{100 * scores[key]:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
