"""The disk as a power cut may leave it at each file-system event of a run, which is then finished: `python power_cut.py --help`.

What was not brought onto the disk by fsync may be lost, in any order: a file then holds what it held at its last fsync, or
zeros after that, or what was written; a folder has the names of its last fsync, and any of what was done to them since. From
each disk the run must end as one that nothing has happened to, and no checkpoint may be missing that training went on after.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from fork_server import MEMORY, Bench, finish, nothing, spread

from sogclr.data.source import load_source
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder
from sogclr.training import trainer

Names = dict[str, int]
"""Path relative to the folder that the run lies in -> inode."""


class Disk:
    """What is on the disk below a run's folder for certain, and what may be; `observe` writes down what a power cut may leave.

    Args:
        run: the run.
        into: a folder: of contents by their digest, and a line for each different disk in `disks.jsonl`.
    """

    def __init__(self, run: Path, into: Path) -> None:
        self.run, self.into = run, into
        self.now: Names = {}
        self.safe: Names = {}
        self.pending: list[dict[str, int | None]] = []  # names that were given and taken (None) at once
        self.flushed: dict[int, bytes] = {}
        self.held: dict[int, int] = {}  # inode -> descriptor, so that no inode's number is used again
        self.promised, self.finished = 0, False
        self._busy = False
        self._seen: set[str] = set()

    def note_promises(self) -> None:
        """Note from now on of which step a checkpoint was written when training went on, and whether the run has ended."""
        save, end = trainer.write_checkpoint, trainer.write_trained

        def saved(state: dict[str, Any], *args: Any) -> None:
            save(state, *args)
            self.promised = state["step"]

        def ended(*args: Any) -> None:
            end(*args)
            self.finished = True

        trainer.write_checkpoint, trainer.write_trained = saved, ended

    def observe(self, count: int, flushed: int | None) -> None:
        """Take notice of what the event before has done, write down the disks, and take notice of a flush."""
        if self._busy:
            return  # an event of this class's own
        self._busy = True
        if count == 1:
            self.note_promises()
        self._look()
        self._write_disks(count)
        if flushed is not None:
            inode = os.fstat(flushed).st_ino
            if inode in self.held:
                self.flushed[inode] = self._content(inode)
            else:
                self._flush_names(Path(os.readlink(f"/proc/self/fd/{flushed}")))
        self._busy = False

    def _look(self) -> None:
        found: Names = {}
        for path in [self.run, *self.run.rglob("*")] if self.run.exists() else []:
            inode = -1 if path.is_dir() else path.stat().st_ino
            found[path.relative_to(self.run.parent).as_posix()] = inode
            if inode >= 0 and inode not in self.held:
                self.held[inode] = os.open(path, os.O_RDONLY)
        changed: dict[str, int | None] = dict.fromkeys(self.now.keys() - found.keys())
        changed |= {name: inode for name, inode in found.items() if self.now.get(name) != inode}
        if changed:
            self.pending.append(changed)
        self.now = found

    def _flush_names(self, folder: Path) -> None:
        for changed in self.pending:
            for name in [name for name in changed if (self.run.parent / name).parent == folder]:
                _apply(self.safe, {name: changed.pop(name)})

    def _content(self, inode: int) -> bytes:
        return os.pread(self.held[inode], os.fstat(self.held[inode]).st_size, 0)

    def _write_disks(self, count: int) -> None:
        chance = random.Random(count)
        every, some = dict(self.safe), dict(self.safe)
        for changed in self.pending:
            _apply(every, changed)
            if chance.random() < 0.5:
                _apply(some, changed)
        for names, kinds in (
            (self.safe, ["flushed"]),
            (every, ["flushed"]),
            (every, ["zeros"]),
            (self.safe, ["written"]),
            (some, ["flushed", "zeros", "half", "written"]),
        ):
            disk = {
                name: None if inode < 0 else self._keep(inode, chance.choice(kinds))
                for name, inode in sorted(names.items())
                if all(parent.as_posix() in names for parent in list(Path(name).parents)[:-1])
            }
            line = {"event": count, "promised": self.promised, "finished": self.finished, "disk": disk}
            digest = hashlib.sha256(json.dumps([disk, self.promised, self.finished]).encode()).hexdigest()
            if digest not in self._seen:
                self._seen.add(digest)
                with open(self.into / "disks.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")

    def _keep(self, inode: int, kind: str) -> str:
        """Write down what a file may hold, and return its digest."""
        flushed, written = self.flushed.get(inode, b""), self._content(inode)
        content = {
            "flushed": flushed,
            "zeros": flushed.ljust(len(written), b"\0"),
            "half": written[: len(written) // 2] if len(written) // 2 > len(flushed) else flushed,
            "written": written,
        }[kind]
        digest = hashlib.sha256(content).hexdigest()
        if not (self.into / digest).exists():
            (self.into / digest).write_bytes(content)
        return digest


def _apply(names: Names, changed: dict[str, int | None]) -> None:
    for name, inode in changed.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def build(disk: dict[str, str | None], contents: Path, root: Path) -> None:
    """Make the folders and files of a disk below `root`."""
    for name, digest in disk.items():  # a folder comes before what lies in it
        if digest is None:
            (root / name).mkdir()
        else:
            shutil.copyfile(contents / digest, root / name)


def look(run: RunFolder, promised: int, finished: bool) -> str:
    """Return what is wrong with a run as the power cut has left it, before anything goes on; nothing mostly."""
    if run.step < promised or run.finished < finished:
        return f"is at step {run.step}, was at {promised}{' and finished' if finished else ''}"
    try:
        if run.config_file.is_file() and type(load_source(run)) is not type(load_source(run.validation)):
            return "lists another kind of samples for --validation"
    except BadInput as error:
        return str(error)
    return ""


def torture(kind: str, trials: int) -> bool:
    """Return whether each disk has the run that it should, and whether it could be finished from as many as are asked for."""
    into = Path(tempfile.mkdtemp(prefix="sogclr-disks-", dir=MEMORY))
    bench = Bench(kind, lambda run: Disk(run, into).observe)
    try:
        disks = [json.loads(line) for line in (into / "disks.jsonl").read_text().splitlines()]
        chosen = {*spread(len(disks), trials)}

        def trial(number: int) -> dict[str, object] | None:
            given, run = disks[number - 1], bench.run("whole")
            shutil.rmtree(run.path, ignore_errors=True)
            build(given["disk"], into, run.path.parent)
            wrong, code, said = look(run, given["promised"], given["finished"]), 0, ""
            finished = run.finished
            if number in chosen:
                code, _, said = finish(bench.command(run), run, nothing)
            unlike = bench.unlike(run) if finished or number in chosen else []
            if code == 0 and not unlike and not wrong and "Traceback" not in said:
                return None
            about = {"event": given["event"], "disk": list(given["disk"]), "wrong": wrong}
            return {**about, "code": code, "unlike": unlike, "said": said[-900:]}

        name = f"{kind}, power cut, {bench.events} events, {len(disks)} disks, {len(chosen)} of them finished"
        return bench.report(name, list(range(1, len(disks) + 1)), trial)
    finally:
        bench.close()
        shutil.rmtree(into, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("images", "pairs"), default="images")
    parser.add_argument("--trials", type=int, default=0, help="evenly among the disks; 0 is each of them")
    given = parser.parse_args()
    sys.exit(0 if torture(given.kind, given.trials) else 1)
