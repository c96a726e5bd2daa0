"""Runs that are killed, or refused by the system, at each file-system event, and then finished: `python fork_server.py --help`.

Torch is imported once; each trial is a process of its own, forked from this one and really killed. An event is what Python
tells its audit hooks before it happens, below the folder of the run: open, rename, remove, link, mkdir, rmdir, chmod; and
fsync, and the 1st, 16th and 256th write to a file that Python has opened. A trial is as good as a run that nothing has
happened to if its weights are the same bytes, and its metrics, its normalizers and its optimizer are equal.

A trial takes 1 to 2 s, and twice that on a busy machine; a pass is some hundred of them, in memory where the system has
/dev/shm. A line a minute says how far it is, and another whatever has gone wrong, at once; `--trials 60` is a tenth.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # imported once, for all trials
from captioned import PAIRS, write_pairs
from digits import SMALL, words, write_digits

import sogclr  # noqa: F401
from sogclr import cli
from sogclr.commands import train  # noqa: F401  (all that a run imports)
from sogclr.run_folder import RunFolder, load_checkpoint

FAULTS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EMFILE", "ENOMEM")}
EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.chmod")
WRITES = (1, 16, 256)  # of each file
OPTIONS = {"epochs": 3, "save_every": 2, "eval_every": 1, "log_every": 1, "lr": 0.01, "precision": "fp32"}
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where fsync takes no time
PATIENCE = 300  # seconds that a command may take
Act = Callable[[int, int | None], None]
"""What is done before each event: of its number, from 1 on, and the descriptor that is flushed, if one is; 0 is the end."""


def nothing(count: int, flushed: int | None) -> None:
    """Let an event happen."""


class Meddler:
    """Hears the events below a folder before they happen, and counts them.

    Args:
        folder: of the run.
        act: called before each event.
    """

    def __init__(self, folder: Path, act: Act) -> None:
        self.folder, self.act, self.count = str(folder), act, 0
        sys.addaudithook(self._hear)
        self._fsync, self._open, self._raw = os.fsync, io.open, _counted_file(self.happens)
        os.fsync = self.fsync
        io.open = builtins.open = self.open  # type: ignore[assignment]

    def fsync(self, descriptor: int) -> None:
        """Take the place of `os.fsync`."""
        self.happens(descriptor)
        self._fsync(descriptor)

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        """Take the place of `open`: the writes to a file below the folder are events."""
        if not self.inside(file) or mode.strip("bt") not in ("w", "a", "x"):
            return self._open(file, mode, buffering, *args, **kwargs)
        buffered = io.BufferedWriter(self._raw(file, mode.replace("t", "").replace("b", "")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if event in EVENTS and any(self.inside(a) for a in args[:2]):
            self.happens()

    def inside(self, path: Any) -> bool:
        """Return whether a path is below the folder, or the folder."""
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        return name == self.folder or name.startswith(f"{self.folder}{os.sep}")

    def happens(self, flushed: int | None = None) -> None:
        """Count an event."""
        self.count += 1
        self.act(self.count, flushed)


def _counted_file(happens: Callable[[], None]) -> type[io.FileIO]:
    class Counted(io.FileIO):
        writes = 0

        def write(self, content: Any, /) -> int:
            self.writes += 1
            if self.writes in WRITES:
                happens()
            return super().write(content)

    return Counted


def fault(run: Path, at: int, what: str) -> Act:
    """Return what happens at one event, `kill` or the name of an error that the system gives."""

    def act(count: int, flushed: int | None) -> None:
        if count == at:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(FAULTS[what], os.strerror(FAULTS[what]), str(run))

    return act


def in_a_process(argv: list[str], run: Path, act: Act) -> tuple[int, int, str]:
    """Run a command in a forked process; return its exit code (-9 where it was killed), its events and what it said."""
    _, status = os.waitpid(_fork(argv, run, act, {}), 0)
    return os.waitstatus_to_exitcode(status), *_told(run)


def on_ranks(argv: list[str], run: Path, acts: list[Act]) -> list[tuple[int, int, str]]:
    """Run a command on several forked ranks, each with an act of its own; when one fails the others are ended, as torchrun does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": len(acts), "LOCAL_WORLD_SIZE": len(acts)}
    ranks = [_fork(argv, run, act, same | {"RANK": r, "LOCAL_RANK": r}, f"-{r}") for r, act in enumerate(acts)]
    codes: dict[int, int] = {}
    while len(codes) < len(ranks):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in ranks:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    return [(codes[child], *_told(run, f"-{r}")) for r, child in enumerate(ranks)]


def _told(run: Path, rank: str = "") -> tuple[int, str]:
    counted = run.with_name(f"{run.name}.count{rank}")
    said = run.with_name(f"{run.name}.said{rank}").read_text(errors="replace")
    return int(counted.read_text()) if counted.is_file() else 0, said


def _fork(argv: list[str], run: Path, act: Act, environment: dict[str, Any], rank: str = "") -> int:
    said, counted = run.with_name(f"{run.name}.said{rank}"), run.with_name(f"{run.name}.count{rank}")
    counted.unlink(missing_ok=True)
    said.touch()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.environ |= {name: str(value) for name, value in environment.items()}
            signal.alarm(PATIENCE)  # which ends it: exit code -14
            with open(said, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            meddler = Meddler(run, act)
            code = cli.main(argv)
            act(0, None)
            counted.write_text(str(meddler.count))
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


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


def going_on(train_argv: list[str], run: RunFolder) -> list[str]:
    """Return the words by which a user would go on: resume where there is a run, else start again."""
    return ["resume", str(run.path)] if run.config_file.is_file() else train_argv


def finish(train_argv: list[str], run: RunFolder, act: Act) -> tuple[int, int, str]:
    """Go on as the user would."""
    return in_a_process(going_on(train_argv, run), run.path, act)


class Bench:
    """A folder with the data of a kind of run, and what such a run ends with.

    Args:
        kind: images or pairs.
        watch: the run's folder -> what is done at each event of the run that nothing happens to.
    """

    def __init__(self, kind: str, watch: Callable[[Path], Act] = lambda run: nothing) -> None:
        torch.set_num_threads(1)
        self.folder = Path(tempfile.mkdtemp(prefix="sogclr-torture-", dir=MEMORY))
        os.environ["SOGCLR_CACHE"] = str(self.folder / "cache")
        data, held_out = self.folder / "data", self.folder / "held"
        if kind == "pairs":
            data, held_out = write_pairs(data, per_digit=2), write_pairs(held_out, per_digit=1, start=2)
        else:
            write_digits(data, 2), write_digits(held_out, 2, start=2)
        options = (PAIRS if kind == "pairs" else SMALL) | OPTIONS
        self._words = ["train", str(data), "--validation", str(held_out), *words(options)]
        (self.folder / "runs").mkdir()
        whole = self.run("whole")
        code, self.events, said = in_a_process(self.command(whole), whole.path, watch(whole.path))
        assert code == 0, said
        self.expected = result(whole)

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.folder / "runs" / name)

    def command(self, run: RunFolder) -> list[str]:
        """Return the words that begin a run."""
        return [*self._words, "--out", str(run.path)]

    def unlike(self, run: RunFolder) -> list[str]:
        """Return what a run ended otherwise with than one that nothing has happened to."""
        found = result(run) if run.finished else {}
        return [key for key, value in self.expected.items() if found.get(key) != value]

    def report(self, name: str, trials: list[Any], trial: Callable[[Any], dict[str, object] | None]) -> bool:
        """Make the trials, say how far they are, and return whether none of them went wrong.

        Args:
            name: of all of them.
            trials: what `trial` takes.
            trial: returns what went wrong.
        """
        begun = said = time.monotonic()
        wrong = 0
        for done, given in enumerate(trials, 1):
            if (found := trial(given)) is not None:
                wrong += 1
                print(json.dumps(found, indent=2), flush=True)
            now = time.monotonic()
            if now - said > 60 or done == len(trials):
                said, rest = now, (now - begun) / done * (len(trials) - done) / 60
                print(f"{name}: {done:,} of {len(trials):,} trials, {wrong} wrong, {rest:.0f} min to go", flush=True)
        return not wrong

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def spread(events: int, trials: int) -> Iterable[int]:
    """Return so many of the events, evenly; all of them for 0."""
    return sorted({1 + k * (events - 1) // trials for k in range(trials)}) if trials else range(1, events + 1)


def torture(kind: str, what: str, trials: int, twice: bool) -> bool:
    """Return whether each trial ended as it should."""
    bench = Bench(kind)

    def trial(at: int) -> dict[str, object] | None:
        run = bench.run(f"run-{at}")
        codes = [in_a_process(bench.command(run), run.path, fault(run.path, at, what))]
        if twice:
            codes.append(finish(bench.command(run), run, fault(run.path, 1 + at * 7 % 60, what)))
        codes.append(finish(bench.command(run), run, nothing))
        unlike = bench.unlike(run)
        broken = any("Traceback" in text for _, _, text in codes[:-1])
        shutil.rmtree(run.path, ignore_errors=True)
        if codes[-1][0] == 0 and not unlike and not broken:
            return None
        return {
            "event": at,
            "codes": [code for code, _, _ in codes],
            "unlike": unlike,
            "said": [text[-900:] for _, _, text in codes],
        }

    try:
        name = f"{kind}, {what}{', twice' if twice else ''}, {bench.events} events"
        return bench.report(name, list(spread(bench.events, trials)), trial)
    finally:
        bench.close()


def torture_ranks(trials: int) -> bool:
    """Return whether each run on two ranks, of which one was killed at one of its events, ended as it should."""
    bench = Bench("images")
    whole = bench.run("whole-of-two")
    done = on_ranks(bench.command(whole), whole.path, [nothing, nothing])
    assert all(code == 0 for code, _, _ in done), done
    bench.expected = result(whole)
    events = [(rank, at) for rank, (_, count, _) in enumerate(done) for at in range(1, count + 1)]

    def trial(which: int) -> dict[str, object] | None:
        rank, at = events[which - 1]
        run = bench.run(f"run-{which}")
        acts = [fault(run.path, at, "kill") if r == rank else nothing for r in range(2)]
        begun = on_ranks(bench.command(run), run.path, acts)
        ended = on_ranks(going_on(bench.command(run), run), run.path, [nothing, nothing])
        unlike = bench.unlike(run)
        shutil.rmtree(run.path, ignore_errors=True)
        if all(code == 0 for code, _, _ in ended) and not unlike:
            return None
        told = [text[-900:] for _, _, text in (*begun, *ended)]
        return {"rank": rank, "event": at, "codes": [c for c, _, _ in (*begun, *ended)], "unlike": unlike, "said": told}

    try:
        return bench.report(f"two ranks, kill, {len(events)} events", list(spread(len(events), trials)), trial)
    finally:
        bench.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("images", "pairs"), default="images")
    parser.add_argument("--what", choices=("kill", *FAULTS), default="kill")
    parser.add_argument("--trials", type=int, default=0, help="evenly among the events; 0 is each of them")
    parser.add_argument("--twice", action="store_true", help="and once more while it goes on")
    parser.add_argument("--ranks", action="store_true", help="kill one of two ranks, and go on with two")
    given = parser.parse_args()
    well = torture_ranks(given.trials) if given.ranks else torture(given.kind, given.what, given.trials, given.twice)
    sys.exit(0 if well else 1)
