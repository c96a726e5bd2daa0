"""The command line. Torch is imported by the commands that need it, not by this file: `--help` answers at once."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro import MISSING
from tyro.conf import Positional, arg

from . import __version__
from .config.schema import TrainConfig
from .config.toml import from_options, read_table
from .errors import BadInput, Interrupted, RunFailed
from .progress import Progress


class Command:
    """A command: its fields are its options, `run` does it."""

    def run(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Reading:
    """Options of the commands that read images."""

    workers: int | None = None
    """Processes that read images; chosen from the cores when left out."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


# ------------------------------------------------------------------------------------------------------------ commands
@dataclass(frozen=True)
class Demo(Command):
    """See it work: trains on real digits, compares, writes a report. Nothing is downloaded."""

    quick: bool = False
    """A short run, only to see that everything works."""
    out: str | None = None
    """Folder for the runs; runs/demo when left out. The images go to the cache folder."""
    pairs: bool = False
    """Images with captions instead: OpenMoji's emoji and their names, searched by words."""
    language: str | None = None
    """With --pairs: captions in a second language too, such as de, fr, es, ja."""

    def run(self) -> None:
        folder = None if self.out is None else Path(self.out)
        if self.pairs:
            from .commands.demo_pairs import run_pair_demo

            run_pair_demo(main, quick=self.quick, folder=folder, language=self.language)
            return
        if self.language is not None:
            raise BadInput(f"--language {self.language} is for captions; give --pairs too")
        from .commands.demo import run_demo

        run_demo(main, quick=self.quick, folder=folder)


@dataclass(frozen=True)
class Resume(Command):
    """Continue a run from its last checkpoint, bit for bit as if it had never stopped."""

    folder: Annotated[Positional[str], arg(metavar="RUN")]
    """The run's folder."""
    workers: int | None = None
    """Another number of reader processes; the result does not depend on it."""
    device: str | None = None
    """Another device; the result then agrees to rounding only."""

    def run(self) -> None:
        from .commands import train

        _finished(train.resume(self.folder, workers=self.workers, device=self.device))


@dataclass(frozen=True)
class Embed(Reading, Command):
    """Write the embeddings of a folder of images. The same command again goes on where an interrupted one stopped."""

    encoder: Annotated[Positional[str], arg(metavar="RUN")] = MISSING
    """A run's folder, or an exported encoder (.safetensors)."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = MISSING
    """Images: a folder, a .txt list of files, a table of pairs, or tar shards."""
    out: str = MISSING
    """The file to write: .parquet, .npz or .safetensors, with ids and paths."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers."""
    batch_size: int = 256
    """Images at a time."""

    def run(self) -> None:
        from .commands.embed import embed

        with Progress() as screen:
            progress = screen.progress("embedding")
            result = embed(
                self.encoder, self.data, self.out, dtype=self.dtype, batch_size=self.batch_size, workers=self.workers,
                device=self.device, progress=progress,
            )  # fmt: skip
        print(result)


@dataclass(frozen=True)
class Eval(Reading, Command):
    """How good an encoder is: kNN and linear probes, or label-free health; retrieval and zero-shot of a run on pairs."""

    encoder: Annotated[Positional[str], arg(metavar="RUN")] = MISSING
    """A run's folder, or an exported encoder (.safetensors)."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = MISSING
    """A folder with train/ and test/ (or val/), or one that is split 80/20. For a run on pairs: a table or tar shards too."""
    labels: str = "auto"
    """auto, folder, none, or a CSV file of path,label."""
    baselines: bool = False
    """Score raw pixels and an untrained encoder too."""
    json: bool = False
    """Print one JSON object instead of a table."""
    k: int = 20
    """Neighbours of kNN."""
    seed: int = 0
    """Seed of the split and of the few-label draws."""
    templates: tuple[str, ...] = ("{}", "a photo of {}", "a picture of {}")
    """Sentences for the class names in zero-shot classification, of a run on pairs."""
    image_column: str | None = None
    """Column of the images' paths in a table of pairs; found by its name when left out."""
    caption_column: str | None = None
    """Column of the captions."""
    batch_size: int = 256
    """Images at a time."""

    def run(self) -> None:
        from .commands.evaluate import evaluate, table
        from .files import write_text
        from .run_folder import RunFolder

        with Progress() as screen:
            result = evaluate(
                self.encoder, self.data, labels=self.labels, baselines=self.baselines, k=self.k, seed=self.seed,
                templates=self.templates, image_column=self.image_column, caption_column=self.caption_column,
                batch_size=self.batch_size, workers=self.workers, device=self.device,
                progress=screen.progress("evaluating"),
            )  # fmt: skip
        _show(_json(result) if self.json else table(result))  # first: the run's folder may be read-only
        if Path(self.encoder).is_dir():
            write_text(RunFolder(self.encoder).eval_file, _json(result))


@dataclass(frozen=True)
class Search(Reading, Command):
    """Find images by a text, or by an image, with a run on image-caption pairs; writes a page of what was found."""

    folder: Annotated[Positional[str], arg(metavar="RUN")] = MISSING
    """The run's folder."""
    text: Annotated[Positional[str | None], arg(metavar="TEXT")] = None
    """What to look for."""
    source: Annotated[str, arg(name="in", metavar="EMBEDDINGS|FOLDER")] = MISSING
    """A file of `sogclr embed` (fast), or images that are embedded now."""
    image: str | None = None
    """Look for images like this one, instead of a text."""
    top: int = 20
    """How many."""
    out: str | None = None
    """The page; RUN/search.html when left out."""

    def run(self) -> None:
        from .commands.search import search

        with Progress() as screen:
            hits, page = search(
                self.folder, self.text, self.source, image=self.image, top=self.top, out=self.out,
                workers=self.workers, device=self.device, progress=screen.progress("embedding"),
            )  # fmt: skip
        for hit in hits:
            print(f"{hit.score:.4f}  {hit.path}")
        print(f"page    {page}")


@dataclass(frozen=True)
class Export(Command):
    """Write the encoder for use elsewhere, checked against PyTorch."""

    encoder: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or an exported encoder. Of a run on pairs, the image tower."""
    format: Literal["timm", "safetensors", "torchscript", "onnx"] = "timm"
    """timm and safetensors: weights that timm.create_model(checkpoint_path=) loads."""
    out: str | None = None
    """The file; in the run's folder when left out."""

    def run(self) -> None:
        from .commands.export import export

        print(export(self.encoder, self.format, self.out))


@dataclass(frozen=True)
class Report(Reading, Command):
    """Write RUN/report.html: curves, nearest neighbours, a map of the embeddings, the normalizers, the configuration."""

    folder: Annotated[Positional[str], arg(metavar="RUN")] = MISSING
    """The run's folder."""
    data: str | None = None
    """Where the images are now, if they moved."""
    images: int = 3000
    """The most images on the map."""

    def run(self) -> None:
        from .commands.report import report

        with Progress() as screen:
            path = report(
                self.folder, data=self.data, images=self.images, workers=self.workers, device=self.device,
                progress=screen.progress("reading images"),
            )  # fmt: skip
        print(path)


@dataclass(frozen=True)
class Inspect(Command):
    """What is in a run, a folder of images or an encoder: sizes, bad files, configuration."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """A run, a folder or list of images, or an encoder file."""
    decode: bool = False
    """Decode every image, to find the truncated ones too."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from .commands.inspect import inspect, render

        with Progress() as screen:
            result = inspect(self.path, decode=self.decode, progress=screen.progress("reading images"))
        _show(_json(result) if self.json else render(result))


@dataclass(frozen=True)
class Cache(Command):
    """Decode all images once into one file of the cache folder, which `sogclr train` then reads instead: epochs at memory speed."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """As for `sogclr train`: a folder of images (its train/ part, if it has one), a .txt list, a table of pairs, or tar shards."""
    side: int = 0
    """Longer shorter sides are made this many pixels, for want of room on the disk; 0 keeps full size. Give 2 to 4 times the size of the views."""
    background: str = "white"
    """What transparent pixels are laid on, as for `sogclr train`."""
    image_column: str | None = None
    """Column of the images' paths in a table of pairs; found by its name when left out."""
    caption_column: str | None = None
    """Column of the captions."""

    def run(self) -> None:
        from .commands.cache import cache

        result = cache(
            self.data, side=self.side, background=self.background, image_column=self.image_column,
            caption_column=self.caption_column,
        )  # fmt: skip
        print(result)


@dataclass(frozen=True)
class Train(Command):
    """Train an encoder on a folder of images, without labels."""

    config: TrainConfig

    def run(self) -> None:
        from .commands import train

        with Progress() as screen:
            _finished(train.start(self.config, screen))


def _finished(run: Any) -> None:
    from .distributed import is_rank0

    if not is_rank0():
        return
    print(f"encoder   {run.encoder_file}")
    print(
        f"next      sogclr report {run.path}   |   sogclr eval {run.path} DATA   |   sogclr embed {run.path} DATA --out F.parquet"
    )


def _json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2)


def _show(what: Any) -> None:
    if isinstance(what, str):
        print(what)
    else:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        # in a file or a pipe a line of the table is one line, unless the user says how wide it may be
        console = Console(highlight=False, width=None if terminal or "COLUMNS" in os.environ else 200)
        with console.capture() as shown:
            console.print(what)
        print("\n".join(line.rstrip() for line in shown.get().splitlines()))


# ------------------------------------------------------------------------------------------------------------ dispatch
COMMANDS: dict[str, tuple[type[Command], str]] = {
    "demo": (Demo, "see it work on real digits, in a few minutes; nothing is downloaded"),
    "train": (Train, "train an encoder on a folder of images, without labels"),
    "resume": (Resume, "continue a run from its last checkpoint"),
    "embed": (Embed, "write the embeddings of a folder of images"),
    "eval": (Eval, "score an encoder: kNN and linear probes, or label-free health"),
    "search": (Search, "find images by a text or an image, with a run on image-caption pairs"),
    "export": (Export, "write the encoder for timm, TorchScript or ONNX"),
    "report": (Report, "write one HTML page about a run"),
    "cache": (Cache, "decode all images once, for training at memory speed"),
    "inspect": (Inspect, "what is in a run, a folder of images or an encoder"),
}


def usage() -> str:
    """The text of `sogclr --help`."""
    lines = [f"  {name:<9}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"sogclr {__version__}: contrastive learning of image encoders at a small batch size",
            "",
            "usage: sogclr COMMAND ...      sogclr COMMAND --help",
            "",
            *lines,
            "",
            "  sogclr train photos/ --out runs/photos      a first run; exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one sentence on standard error."""
    args = sys.argv[1:] if argv is None else argv
    # A thread that waits for others should sleep, not spin: on shared cores spinning starves the very thread it waits for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale without the letters of a name is no error
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(usage(), flush=True)
            return 0 if args else 2
        if args[0] == "--version":
            print(__version__, flush=True)
            return 0
        command = parse(args[0], args[1:])
        if command is not None:
            command.run()
        return 0
    except BadInput as error:
        return _complain(str(error), 2, by_all=True)
    except MemoryError as error:
        last = (str(error).strip() or "no memory left").splitlines()[-1]
        return _complain(f"out of memory ({last}); lower --batch-size, --image-size or --workers", 1)
    except RunFailed as error:
        return _complain(str(error), 1, by_all=True)
    except Interrupted as error:
        return _complain(str(error), 130, by_all=True)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that the flush at exit does not complain too
        return 0
    except (
        OSError
    ) as error:  # a full disk, a folder that may not be written; files are replaced whole, so the old ones stand
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}; files written before are as they were", 1)


def parse(name: str, args: list[str]) -> Command | None:
    """The command with its options, or None after its help was shown.

    Raises:
        BadInput: an unknown command or option (the nearest is given), or a value that does not fit.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise BadInput(
            f"there is no command {name!r}; "
            + (f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}")
        )
    kind = COMMANDS[name][0]
    options: dict[str, Any] = {"prog": f"sogclr {name}", "config": (tyro.conf.OmitArgPrefixes,)}
    if kind is Train:
        args, file = _take_config(args)
        table = read_table(file) if file else {}
        needed = [name for name in ("data", "out") if name not in table.get("data", {})]
        config = from_options(dict.fromkeys(needed, ""), table)
        options["default"] = Train(replace(config, data=replace(config.data, **dict.fromkeys(needed, MISSING))))
        options["description"] = f"{Train.__doc__} Any of these options may stand in a TOML file: --config FILE."
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=args, **options)
    except SystemExit as exit:
        if exit.code:
            raise BadInput(_sentence(said.getvalue())) from None
        return None


def _take_config(args: list[str]) -> tuple[list[str], str | None]:
    for i, word in enumerate(args):
        if word == "--config":
            if i + 1 == len(args):
                raise BadInput("--config needs the path of a TOML file")
            return args[:i] + args[i + 2 :], args[i + 1]
        if word.startswith("--config="):
            return args[:i] + args[i + 1 :], word.removeprefix("--config=")
    return args, None


def _sentence(box: str) -> str:
    """The parser's framed message as one sentence, without the help texts that it quotes."""
    lines = [line.strip(" │─╭╮╰╯") for line in box.splitlines()]
    body = [line for line in lines[1:] if line and not re.match(r"For full helptext|sogclr \S+ --help$", line)]
    text = re.sub(r"^Error parsing \S+: ", "", " ".join(body))
    said, _, near = text.partition("Perhaps you meant:")
    if near:
        words = re.findall(r"(?<![\w(])--[a-z][a-z-]*", near)
        return f"{said.strip()}; did you mean {' or '.join(dict.fromkeys(words))}?"
    if invalid := re.match(r"(invalid literal.*?) Argument helptext: (--\S+|\S+)", text):
        return f"{invalid[2]}: {invalid[1]}"
    return text


def _complain(sentence: str, code: int, by_all: bool = False) -> int:
    """Show a sentence, once on each machine where all processes of a run raise the same, and return the exit code."""
    if not by_all or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"sogclr: {sentence}", file=sys.stderr, flush=True)
    return code
