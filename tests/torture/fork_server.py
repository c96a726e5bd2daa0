"""Runs that are killed, or refused by the system, at each file-system event, and then finished: `python fork_server.py --help`.

Torch is imported once; each trial is a process of its own, forked from this one and really killed. An event is what Python
tells its audit hooks before it happens, below the folder of the run: open, rename, remove, link, mkdir, rmdir, chmod; and
fsync. A trial is as good as a run that nothing has happened to if its weights are the same bytes, and its metrics, its
normalizers and its optimizer are equal.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # imported once, for all trials
from captioned import PAIRS, write_pairs
from digits import SMALL, words, write_digits

import sogclr  # noqa: F401
from sogclr import cli
from sogclr.commands import train  # noqa: F401  (all that a run imports)
from sogclr.run_folder import RunFolder, load_checkpoint

FAULTS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EMFILE")}
EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.chmod")
OPTIONS = {"epochs": 3, "save_every": 2, "eval_every": 1, "log_every": 1, "lr": 0.01, "precision": "fp32"}


class Meddler:
    """Counts the events below a folder, and does something at one of them.

    Args:
        folder: of the run.
        at: which, from 1 on; 0 is none.
        what: `kill`, or the name of an error that the system gives.
    """

    def __init__(self, folder: Path, at: int, what: str) -> None:
        self.folder, self.at, self.what, self.count = str(folder), at, what, 0
        sys.addaudithook(self._hear)
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self._happens()
            real(descriptor)

        os.fsync = fsync

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if event in EVENTS and any(isinstance(a, str | os.PathLike) and self._inside(a) for a in args[:2]):
            self._happens()

    def _inside(self, path: str | os.PathLike[str]) -> bool:
        return os.fspath(path).startswith(self.folder)

    def _happens(self) -> None:
        self.count += 1
        if self.count == self.at:
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            number = FAULTS[self.what]
            raise OSError(number, os.strerror(number), self.folder)


def in_a_process(argv: list[str], run: Path, at: int, what: str) -> tuple[int, int, str]:
    """Run a command in a forked process; return its exit code (-9 where it was killed), its events and what it said."""
    said, counted = run.with_name(f"{run.name}.said"), run.with_name(f"{run.name}.count")
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with open(said, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            meddler = Meddler(run, at, what)
            code = cli.main(argv)
            counted.write_text(str(meddler.count))
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    count = int(counted.read_text()) if counted.is_file() else 0
    return os.waitstatus_to_exitcode(status), count, said.read_text(errors="replace")


def result(run: RunFolder) -> dict[str, object]:
    """Return all that two equal runs have in common."""
    state = load_checkpoint(run.end_checkpoint())
    last = load_checkpoint(run.latest_checkpoint())
    weights = run.two_tower_file if run.holds_pairs() else run.encoder_file
    return {
        "weights": weights.read_bytes(),
        "best": str((state["step"], state["model"])),
        "state": str([last[k] for k in ("step", "loss", "optimizer", "best", "bad")]),
        "metrics": [{k: v for k, v in row.items() if k != "timing"} for row in run.metrics()],
        # a lock that is held by nobody is none
        "files": sorted(
            p.relative_to(run.path).as_posix()
            for p in run.path.rglob("*")
            if "tensorboard" not in p.parts and p.name != ".lock"
        ),
    }


def finish(train_argv: list[str], run: RunFolder, at: int = 0, what: str = "kill") -> tuple[int, int, str]:
    """Go on as the user would: resume where there is a run, else start again."""
    begun = run.config_file.is_file()
    argv = ["resume", str(run.path)] if begun else train_argv
    return in_a_process(argv, run.path, at, what)


def torture(kind: str, what: str, trials: int, twice: bool) -> dict[str, object]:
    """Return how many trials there were of how many events, and the first that ended otherwise than they should."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="sogclr-torture-"))
    os.environ["SOGCLR_CACHE"] = str(folder / "cache")
    try:
        if kind == "pairs":
            data, held_out = (
                write_pairs(folder / "data", per_digit=2),
                write_pairs(folder / "held", per_digit=1, start=2),
            )
            options = PAIRS | OPTIONS
        else:
            data, held_out = write_digits(folder / "data", 2), write_digits(folder / "held", 2, start=2)
            options = SMALL | OPTIONS
        (folder / "runs").mkdir()

        def command(run: RunFolder) -> list[str]:
            return ["train", str(data), "--out", str(run.path), "--validation", str(held_out), *words(options)]

        whole = RunFolder(folder / "runs" / "whole")
        code, events, said = in_a_process(command(whole), whole.path, 0, what)
        assert code == 0, said
        expected, wrong, done = result(whole), [], 0
        for at in (
            range(1, events + 1) if not trials else sorted({1 + k * (events - 1) // trials for k in range(trials)})
        ):
            run = RunFolder(folder / "runs" / f"run-{at}")
            codes = [in_a_process(command(run), run.path, at, what)]
            if twice:
                codes.append(finish(command(run), run, 1 + at * 7 % 60, what))
            codes.append(finish(command(run), run))
            found = result(run) if run.finished else {}
            done += 1
            unlike = [key for key, value in expected.items() if found.get(key) != value]
            broken = [text for code, _, text in codes[:-1] if "Traceback" in text]
            if codes[-1][0] != 0 or unlike or broken:
                wrong.append(
                    {
                        "event": at,
                        "codes": [c for c, _, _ in codes],
                        "unlike": unlike,
                        "said": [t[-600:] for _, _, t in codes],
                    }
                )
            shutil.rmtree(run.path, ignore_errors=True)
        return {"kind": kind, "what": what, "events": events, "trials": done, "wrong": wrong}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("images", "pairs"), default="images")
    parser.add_argument("--what", choices=("kill", *FAULTS), default="kill")
    parser.add_argument("--trials", type=int, default=0, help="evenly among the events; 0 is each of them")
    parser.add_argument("--twice", action="store_true", help="and once more while it goes on")
    given = parser.parse_args()
    report = torture(given.kind, given.what, given.trials, given.twice)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["wrong"] else 0)
