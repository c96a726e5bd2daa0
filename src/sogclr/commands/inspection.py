"""What `inspect` found: of images, of pairs, of a run, of an encoder; as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..progress import RichText
from .advise import Advice

FILES_SHOWN = 20  # on a screen; the JSON has all
CLASSES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Inspection(RichText):
    """What is at a path."""

    kind: ClassVar[str]
    """images, pairs, run or encoder."""
    nullable: ClassVar[frozenset[str]] = frozenset()
    """Fields that the JSON holds as null; others are left out where there is nothing to say."""
    path: str

    def to_json(self) -> dict[str, object]:
        """Return one JSON object."""
        values = {name: asdict(v) if isinstance(v, Advice) else v for name, v in vars(self).items()}
        kept = {name: value for name, value in values.items() if value is not None or name in self.nullable}
        return {"kind": self.kind, **kept}

    def rows(self) -> dict[str, str]:
        """Return the lines of the table: name -> text."""
        return {name: _shown(value) for name, value in vars(self).items() if name != "path"}

    def files(self) -> dict[str, dict[str, str]]:
        """Return the files to list below the table: what they are -> name -> reason."""
        return {}

    def __rich__(self) -> Group:
        table = Table(title=Text(self.path), title_justify="left", title_style="", box=box.SIMPLE, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self.rows().items():
            table.add_row(Text(name), Text(value))
        return Group(table, *(_listed(what, reasons) for what, reasons in self.files().items() if reasons))


@dataclass(frozen=True, kw_only=True)
class ImagesInspection(Inspection):
    """Of a folder or list of images."""

    kind: ClassVar[str] = "images"
    images: int
    bytes: int
    fingerprint: str
    folders: dict[str, int]
    """Images in each folder of the top."""
    classes: list[str]
    checked: str
    """What was read of each image: headers, decoded, or names and sizes only."""
    bad: dict[str, str]
    """Path -> why it cannot be read."""
    notes: dict[str, str]
    """Path -> what is odd about it."""
    shorter_side: dict[str, float] | None
    """`smallest`, `median` and `largest`, pixels; None where no header was read."""
    advice: Advice | None = None
    """What to train with, where that was asked for."""

    def rows(self) -> dict[str, str]:
        """Return the lines of the table."""
        side = self.shorter_side
        where = "a folder each" if set(self.classes) <= set(self.folders) else "named beside the images"
        rows = {
            "images": f"{self.images:,} ({self.bytes / 1e6:,.1f} MB), checked: {self.checked}",
            "folders": _counted(self.folders) or "none, all images lie side by side",
            "classes": f"{len(self.classes)} ({where})" if self.classes else "no class folders",
            "unreadable": f"{len(self.bad):,}",
            "fingerprint": self.fingerprint[:16],
        }
        if side is not None:
            rows["pixels"] = (
                f"shorter sides from {side['smallest']:,} to {side['largest']:,}, the median is {side['median']:g}"
            )
        return rows | (self.advice.rows(self.kind) if self.advice else {})

    def files(self) -> dict[str, dict[str, str]]:
        """Return the files to list."""
        return {"unreadable": self.bad, "odd": self.notes}


@dataclass(frozen=True, kw_only=True)
class PairsInspection(ImagesInspection):
    """Of pairs: their different images and texts."""

    kind: ClassVar[str] = "pairs"
    pairs: int
    captions: int
    """Different texts."""
    columns: dict[str, str]
    """Column -> what it holds."""
    negatives: int
    """Hard negatives."""
    repeated: int
    """Rows that were left out as the same pair had been there."""
    rejected: dict[str, str]
    """Row -> why it is no pair."""

    def rows(self) -> dict[str, str]:
        """Return the lines of the table."""
        texts = "captions" if "images" in self.columns.values() else "texts"
        first = f"{self.pairs:,} of {self.captions:,} {texts}; {self.repeated:,} were repeated"
        columns = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
        rows = {"pairs": first, "columns": columns, **super().rows()}
        if self.negatives:
            rows["negatives"] = f"{self.negatives:,}"
        pixels = {"pixels": rows.pop("pixels")} if "pixels" in rows else {}
        return {**rows, "unusable": f"{len(self.rejected):,} rows", **pixels}

    def files(self) -> dict[str, dict[str, str]]:
        """Return the files and rows to list."""
        return {**super().files(), "unusable": self.rejected}


@dataclass(frozen=True, kw_only=True)
class RunInspection(Inspection):
    """Of a run's folder."""

    kind: ClassVar[str] = "run"
    nullable: ClassVar[frozenset[str]] = frozenset({"steps", "latest_checkpoint", "last_train", "last_eval"})
    state: str
    """finished or unfinished."""
    step: int
    steps: int | None
    images: int
    pairs: int | None
    root: str
    """The folder of the images, or dataset=NAME."""
    bad: dict[str, str]
    checkpoints: list[str]
    latest_checkpoint: str | None
    damaged_checkpoint: str | None
    """Why the newest one cannot be read."""
    last_train: dict[str, float] | None
    """The newest line of the training in `metrics.jsonl`."""
    last_eval: dict[str, float] | None
    skipped_steps: int
    config: dict[str, dict[str, object]]
    """Section -> option -> value."""
    log_u: dict[str, float] | None
    """Of the log-normalizers: `seen`, `unseen`, `mean`, `std`; None where the method keeps none."""

    def rows(self) -> dict[str, str]:
        """Return the lines of the table."""
        rows = {
            "state": f"{self.state}, step {self.step:,} of {_shown(self.steps)}",
            "images": f"{self.images:,} in {self.root}"
            + (f", {self.pairs:,} pairs with captions" if self.pairs is not None else ""),
            "unreadable": f"{len(self.bad):,}",
            "skipped": f"{self.skipped_steps:,} steps",
            "checkpoints": ", ".join(self.checkpoints) or "none",
            "last": _named(self.last_train),
            "evaluation": _named(self.last_eval),
        }
        if self.damaged_checkpoint is not None:
            rows["damaged"] = self.damaged_checkpoint
        if self.log_u is not None:
            rows["normalizers"] = _named(self.log_u)
        return rows | {f"[{section}]": _named(values) for section, values in self.config.items()}

    def files(self) -> dict[str, dict[str, str]]:
        """Return the files to list."""
        return {"unreadable": self.bad}


@dataclass(frozen=True, kw_only=True)
class EncoderInspection(Inspection):
    """Of an encoder's file."""

    kind: ClassVar[str] = "encoder"
    name: str
    """timm name."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float
    interpolation: str
    squash: bool
    background: str
    features: int
    """Width of its features."""
    parameters: int
    bytes: int
    fingerprint: str


def _listed(what: str, reasons: dict[str, str]) -> Text:
    lines = [f"  {name}: {reason}" for name, reason in list(reasons.items())[:FILES_SHOWN]]
    if len(reasons) > FILES_SHOWN:
        lines.append(f"  and {len(reasons) - FILES_SHOWN:,} more (--json has all)")
    return Text("\n".join([f"{what}:", *lines]))


def _counted(folders: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(folders.items())[:CLASSES_SHOWN]]
    more = len(folders) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _named(values: Mapping[str, object] | None) -> str:
    return "nothing yet" if values is None else ", ".join(f"{k} {_shown(v)}" for k, v in values.items())


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
