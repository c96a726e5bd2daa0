"""The command line: words to a function of a command, and what it returns or raises to text and an exit code.

Each command is one public function of `sogclr`; its signature and docstring are the options and the help. The functions
are imported when they are called for, so that `sogclr --help` and `sogclr train --help` do not wait for torch.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from . import __version__
from .config.removed import check_none_removed
from .config.schema import BASIC_OPTIONS
from .config.toml import check_weights_said, from_options, read_table, split_weights_names
from .errors import BadInput, Interrupted, RunFailed
from .options import REQUIRED, Option, flags, parse_options, read_sections, read_signature
from .progress import Progress
from .run_folder import RunFolder


@dataclass(frozen=True)
class Command:
    """A row of the table of commands."""

    function: str
    """module:name, in `sogclr.commands`."""
    summary: str
    positional: tuple[str, ...] = ()
    """The parameters that are given without a name."""

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, name = self.function.split(":")
        function: Callable[..., Any] = getattr(importlib.import_module(f".commands.{module}", __package__), name)
        return function


COMMANDS = {
    "demo": Command("demo:demo", "see it work on real data, in a few minutes; nothing is downloaded"),
    "train": Command(
        "train:train", "train an encoder on a folder of images, without labels; or two on pairs", ("data",)
    ),
    "resume": Command("train:resume", "continue a run from its last checkpoint", ("run",)),
    "embed": Command("embed:embed", "write the embeddings of images or texts", ("run", "data")),
    "eval": Command(
        "evaluate:evaluate", "score an encoder: kNN and linear probes, or label-free health", ("run", "data")
    ),
    "classify": Command("classify:classify", "make a classifier of an encoder and a few labels", ("run", "data")),
    "predict": Command(
        "predict:predict", "write the class of each image, by such a classifier", ("classifier", "data")
    ),
    "search": Command("search:search", "find images or texts by a text or an image", ("run", "text")),
    "export": Command(
        "export:export", "write the encoder for timm, ONNX, Sentence Transformers and other libraries", ("run",)
    ),
    "report": Command("report:report", "write one HTML page about a run, or about several", ("run", "beside")),
    "cache": Command("cache:cache", "decode all images once, for training at memory speed", ("data",)),
    "inspect": Command("inspect:inspect", "what is in a run, a folder of images or an encoder", ("path",)),
}


def usage() -> str:
    """Return the text of `sogclr --help`."""
    lines = [f"  {name:<9}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"sogclr {__version__}: contrastive learning of image encoders at a small batch size",
            "",
            "usage: sogclr COMMAND ...      sogclr COMMAND --help",
            "",
            *lines,
            "",
            "  sogclr help COMMAND         the options of a command",
            "  sogclr completion bash      a script that completes commands and options; also zsh",
            "",
            "  sogclr train photos/ --out runs/photos      a first run; exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code. Errors are one sentence on standard error."""
    args = sys.argv[1:] if argv is None else argv
    # A thread that waits for others should sleep, not spin: on shared cores spinning starves the very thread it waits for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale without the letters of a name is no error
    try:
        return _dispatch(args)
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
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        # torch tells of it by a signal, wherever the main process is at the moment
        reason = " ".join(str(error).split())[:200]
        return _complain(
            f"a reader process ended from outside ({reason}), mostly for want of memory; lower --workers", 1
        )
    except BrokenPipeError:
        # so that the flush at exit does not complain too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # a full disk, a folder that may not be written; files are replaced whole, so the old ones stand
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}; files written before are as they were", 1)


def _dispatch(args: list[str]) -> int:
    if args[:1] == ["help"] and len(args) > 1:
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(), flush=True)
        return 0 if args else 2
    if args[0] == "completion":
        print(completion(*args[1:2]), flush=True)
        return 0
    if args[0] == "--version":
        print(__version__, flush=True)
        return 0
    name, words = args[0], args[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise BadInput(
            f"there is no command {name!r}; "
            + (f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}")
        )
    run = _run_train if name == "train" else _run
    run(name, words)
    return 0


def completion(shell: str = "") -> str:
    """Return the script that completes the commands and their options.

    Raises:
        BadInput: it is for another shell.
    """
    if shell not in _COMPLETED:
        raise BadInput(f"there is no completion for {shell or 'no shell'}; give one of {', '.join(_COMPLETED)}")
    cases = [f'    {name}) words="{" ".join(_flags(name))}" ;;' for name in COMMANDS]
    return _SCRIPT.format(
        head=_COMPLETED[shell], commands=" ".join([*COMMANDS, "help", "completion"]), cases="\n".join(cases)
    )


def _flags(name: str) -> list[str]:
    if name == "train":
        return [*flags(read_sections(from_options({"data": ".", "out": "."}))), "--config", "--help", "--help-all"]
    return [*flags(read_signature(COMMANDS[name].load(), COMMANDS[name].positional)), "--help"]


_COMPLETED = {
    "bash": "# sogclr completion bash > ~/.local/share/bash-completion/completions/sogclr",
    "zsh": "# sogclr completion zsh > ~/.sogclr.zsh; echo 'source ~/.sogclr.zsh' >> ~/.zshrc\n"
    "autoload -Uz compinit bashcompinit && compinit && bashcompinit",
}
"""The first lines of the script for a shell, which say where it goes."""
_SCRIPT = """{head}
_sogclr() {{
  local words="" current="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else case "${{COMP_WORDS[1]}}" in
    help) words="{commands}" ;;
    completion) words="bash zsh" ;;
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -o bashdefault -F _sogclr sogclr"""


# ------------------------------------------------------------------------------------------------------------ commands
def _run(name: str, words: list[str]) -> None:
    """Parse the words, call the function of the command, and show what it returns."""
    command = COMMANDS[name]
    function = command.load()
    options = read_signature(function, command.positional)
    if hasattr(get_type_hints(function)["return"], "to_json"):
        options.append(Option("json", bool, "Print one JSON object.", False))
    summary = (function.__doc__ or "").split("\n\n")[0]
    values = _parse(name, words, options, " ".join(summary.split()))
    if values is None:
        return
    as_json = values.pop("json", False)
    result = function(**values)
    _show(result, as_json)
    if name == "eval":
        result.save()  # after it was shown: the run's folder may be read-only


def _run_train(name: str, words: list[str]) -> None:
    """As `_run`, with the options of the configuration, which may stand in a file too."""
    words, file = _take_config(words)
    table, named = split_weights_names(read_table(file) if file else {})
    check_none_removed(table, file)
    if "own" in table:
        from .training.own.config import check_given
        from .training.own.parts import OwnParts

        check_given(table, OwnParts())
    needed = [option for option in ("data", "out") if option not in table.get("data", {})]
    base = from_options(dict.fromkeys(needed, "."), table)
    options = [replace(option, default=REQUIRED) if option.name in needed else option for option in read_sections(base)]
    options.append(Option("config", str | None, "A TOML file with any of these options.", None))
    values = _parse(name, words, options, f"{COMMANDS[name].summary.capitalize()}.", (*BASIC_OPTIONS, "config"))
    if values is None:
        return
    from .commands import train

    del values["config"]
    check_weights_said(named, values)
    augmentation = {name: value for name, value in vars(base).items() if isinstance(value, dict)}
    with Progress() as progress:
        _show(train.start(from_options(values, augmentation), progress))


def _take_config(words: list[str]) -> tuple[list[str], str | None]:
    """Return the words without `--config FILE`, and the file: it says what the other options default to."""
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise BadInput("--config needs the path of a TOML file")
            return words[:i] + words[i + 2 :], words[i + 1]
        if word.startswith("--config="):
            return words[:i] + words[i + 1 :], word.removeprefix("--config=")
    return words, None


# ------------------------------------------------------------------------------------------------------------- parsing
def _parse(
    name: str, words: list[str], options: list[Option], description: str, basic: tuple[str, ...] | None = None
) -> dict[str, Any] | None:
    """Return the values of the options, or None after the help was shown.

    Raises:
        BadInput: an unknown option (the nearest is given), or a value that does not fit.
    """
    shown = basic if {"-h", "--help"} & {*words} and "--help-all" not in words else None
    if shown is not None:
        description += f" These are the options that a first run may need; all: sogclr {name} --help-all"
    words = ["--help" if word == "--help-all" else word for word in words]
    errors, plain = io.StringIO(), io.StringIO()
    no_colour = contextlib.redirect_stdout(plain) if os.environ.get("NO_COLOR") else contextlib.nullcontext()
    try:
        with contextlib.redirect_stderr(errors), no_colour:  # tyro colours a terminal, whatever NO_COLOR says
            return parse_options(options, words, prog=f"sogclr {name}", description=description, shown=shown)
    except SystemExit as exit:
        if exit.code:
            raise BadInput(_sentence(errors.getvalue())) from None
        print(plain.getvalue(), end="", flush=True)
        return None


def _sentence(box: str) -> str:
    """Return the parser's framed message as one sentence, without the help texts that it quotes."""
    lines = [line.strip(" │─╭╮╰╯") for line in box.splitlines()]
    body = [line for line in lines[1:] if line and not re.match(r"For full helptext|sogclr \S+ --help$|-+$", line)]
    text = re.sub(r"^Error parsing \S+: ", "", " ".join(body))
    what, _, near = text.partition("Perhaps you meant:")
    if near:
        words = re.findall(r"(?<![\w(])--[a-z][a-z-]*", near)
        return f"{what.strip()}; did you mean {' or '.join(dict.fromkeys(words))}?"
    if choices := re.match(r"(invalid choice .*)\. Expected one of (\(.*\))", text):
        names = set(re.findall(r"'(.*?)'", choices[2])) - {"None"}
        return f"{choices[1]}; give one of {', '.join(sorted(names))}"
    if number := re.search(r"(could not convert|invalid literal)[^:]*: (.*) Argument helptext: (\S+)", text):
        return (
            f"{number[3]} must be {'a' if number[1] == 'could not convert' else 'a whole'} number and was {number[2]}"
        )
    return text


# ------------------------------------------------------------------------------------------------------------- showing
def _show(result: Any, as_json: bool = False) -> None:
    """Print a result: as JSON, as the table that it is for people, or as its text; of a run what to do next."""
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    elif isinstance(result, RunFolder):
        _show_run(result)
    else:
        print(result)


def _show_run(run: RunFolder) -> None:
    """Print what a training has written, once where it has several processes."""
    from .distributed import is_rank0

    if is_rank0():
        images = run.encoder_file.is_file()  # which a run on texts has no encoder of
        print(f"encoder   {run.encoder_file}" if images else f"encoders  {run.two_tower_file}")
        print(
            f"next      sogclr report {run.path}   |   sogclr eval {run.path} DATA   |   sogclr embed {run.path} DATA --out F.parquet"
        )


def _complain(sentence: str, code: int, by_all: bool = False) -> int:
    """Show a sentence, once on each machine where all processes of a run raise the same, and return the exit code."""
    if not by_all or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"sogclr: {sentence}", file=sys.stderr, flush=True)
    return code
