"""What each rank sends and receives in a step of the loss: formulas, bytes counted on real processes, and 1,024 simulated ranks.

    python -m benchmarks.traffic [--quick]

Counted: every collective of four real gloo processes goes through a wrapper that notes its bytes, which must be those of the
formulas, one by one; and, where the system allows a network of its own (`unshare --net`), all that crosses its loopback. Simulated: the
ids that 1,024 ranks draw, step by step, and with them the all-to-all of log u divided among the ranks, whose parts depend on the ids.
Writes docs/results/traffic.md.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sogclr import GlobalContrastiveLoss, estimators

from . import pages

LO_STEPS = 40


# -------------------------------------------------------------------------------------------------------------- formulas
def owners(index: np.ndarray, ranks: int, n: int, by: str) -> np.ndarray:
    """Return which rank keeps each id: by the remainder, as the library does, or in contiguous blocks."""
    return index % ranks if by == "remainder" else index // -(-n // ranks)


def all_to_all(index: np.ndarray, ranks: int, n: int, by: str = "remainder") -> np.ndarray:
    """Return (ranks, ranks) bytes from each owner to each rank that asks: rank k for the k-th block of the batch's ids."""
    asking = np.arange(len(index)) // -(-len(index) // ranks)
    counts = np.zeros((ranks, ranks), dtype=np.int64)
    np.add.at(counts, (owners(index, ranks, n, by), asking), 1)
    return 4 * counts


def formulas(ranks: int, b: int, width: int) -> list[tuple[str, str, float]]:
    """Return (what, collective, bytes that each rank receives) of a step, in order; the all-to-all apart."""
    other = ranks - 1
    return [
        ("sizes of the ranks' parts, between hosts", "all_reduce", 2 * other / ranks * 8 * ranks),
        ("ids", "all_gather", 8 * b * other),
        ("embeddings of view 0", "all_gather", 4 * b * width * other),
        ("embeddings of view 1", "all_gather", 4 * b * width * other),
        ("log-sums of the anchors", "all_gather", 2 * 4 * b * other),
        ("log u, from the block that asked to all", "all_gather", 4 * b * other),
    ]


# --------------------------------------------------------------------------------------------------------- real processes
class Counted:
    """The collectives of this process, each noted as (name, bytes received, bytes sent); a ring's for all-reduce."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float]] = []
        gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
        for name, note in (
            (gather, self._gather),
            ("all_reduce", self._reduce),
            ("all_to_all_single", self._all_to_all),
        ):
            setattr(dist, name, self._noting(getattr(dist, name), note))

    def _noting(self, collective: Any, note: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(note(*args))
            return collective(*args, **kwargs)

        return call

    def _gather(self, out: torch.Tensor, local: torch.Tensor) -> tuple[str, float, float]:
        each = local.nbytes * (dist.get_world_size() - 1)
        return "all_gather", each, each

    def _reduce(self, values: torch.Tensor) -> tuple[str, float, float]:
        ranks = dist.get_world_size()
        each = 2 * (ranks - 1) / ranks * values.nbytes
        return "all_reduce", each, each

    def _all_to_all(self, out: torch.Tensor, given: torch.Tensor, got: list, sent: list) -> tuple[str, float, float]:
        own = dist.get_rank()
        sizes = (sum(parts) - parts[own] for parts in (got, sent))
        received, out_bytes = (out.element_size() * size for size in sizes)
        return "all_to_all", received, out_bytes


def on_loopback() -> int:
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if x.strip().startswith("lo:"))
    return int(line.split()[1])


def draw(step: int, n: int, batch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[7, step])).integers(n, size=batch)


def worker(
    rank: int, ranks: int, port: int, n: int, b: int, width: int, steps: int, loopback: bool, folder: str
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    loss = GlobalContrastiveLoss(n, estimator=estimators.MovingAverage(n, sharded=True))
    counted, before = Counted(), 0
    for step in range(steps):
        if loopback and step == steps - LO_STEPS:
            dist.barrier()
            before = on_loopback()
        index = torch.from_numpy(draw(step, n, ranks * b))[rank * b : (rank + 1) * b]
        z0, z1 = torch.randn(2, b, width, generator=torch.Generator().manual_seed(step)).requires_grad_()
        torch.autograd.grad(loss(z0, z1, index), [z0, z1])
    dist.barrier()
    crossed = (on_loopback() - before) / LO_STEPS if loopback else 0.0
    torch.save({"calls": counted.calls, "crossed": crossed}, f"{folder}/{rank}.pt")
    del loss
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def real(ranks: int, n: int, b: int, width: int, steps: int, loopback: bool = False) -> list[dict[str, Any]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            worker, (ranks, port, n, b, width, steps, loopback, folder), nprocs=ranks, start_method="spawn"
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(ranks)]


def check(ranks: int, n: int, b: int, width: int, steps: int) -> tuple[float, int]:
    """Return the mean bytes that all ranks receive in a step, and stop where a single collective differs from the formulas."""
    found = real(ranks, n, b, width, steps)
    expected = formulas(ranks, b, width)
    compared, total = 0, 0.0
    for step in range(steps):
        matrix = all_to_all(draw(step, n, ranks * b), ranks, n)
        for rank in range(ranks):
            calls = found[rank]["calls"][step * (len(expected) + 1) : (step + 1) * (len(expected) + 1)]
            received = matrix[:, rank].sum() - matrix[rank, rank]
            sent = matrix[rank].sum() - matrix[rank, rank]
            wanted = [*((kind, size, size) for _, kind, size in expected[:-1]), ("all_to_all", received, sent)]
            wanted.append((expected[-1][1], expected[-1][2], expected[-1][2]))
            if [tuple(call) for call in calls] != wanted:
                raise SystemExit(f"step {step}, rank {rank}: counted {calls}, formulas say {wanted}")
            compared += len(calls)
            total += sum(call[1] for call in calls)
    return total / steps, compared


def loopback(ranks: int, n: int, b: int, width: int) -> float | None:
    """Return the bytes of a step that cross the loopback of a network of its own; None where the system has none to give."""
    own = [sys.executable, "-m", "benchmarks.traffic", "--inside", *map(str, (ranks, n, b, width))]
    command = ["unshare", "--map-root-user", "--net", *own]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def inside(ranks: int, n: int, b: int, width: int) -> None:
    with socket.socket() as s:  # the loopback of a new network is down
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))
    print(real(ranks, n, b, width, LO_STEPS + 3, loopback=True)[0]["crossed"])


# ------------------------------------------------------------------------------------------------------------- simulation
def simulate(ranks: int, n: int, b: int, steps: int, order: str, by: str) -> tuple[float, float, float]:
    """Return of an owner's sent bytes the mean, and the largest owner's against it, in a mean step and in the worst one."""
    sums = []
    generator = np.random.Generator(np.random.Philox(key=3))
    for step in range(steps):
        if order == "shuffled":
            index = generator.integers(n, size=ranks * b)
        else:
            index = (step * ranks * b + np.arange(ranks * b)) % n
        sums.append(4 * np.bincount(owners(index, ranks, n, by), minlength=ranks))
    sent = np.stack(sums)
    ratio = sent.max(axis=1) / sent.mean(axis=1)
    return float(sent.mean()), float(ratio.mean()), float(ratio.max())


def collectives_table(ranks: int, big: int, b: int, width: int) -> tuple[list[str], float]:
    """Return the table of the formulas at few and at many ranks, and the bytes of embeddings at many."""
    few, many = formulas(ranks, b, width), formulas(big, b, width)
    rows = [
        "| what | collective | formula at 4 ranks, bytes received by each | at 1,024 ranks |",
        "|---|---|---:|---:|",
    ]
    rows += [
        f"| {what} | {kind} | {one:,.0f} | {other[2]:,.0f} |"
        for (what, kind, one), other in zip(few, many, strict=True)
    ]
    expected = 4 * b * (ranks - 1) / ranks, 4 * b * (big - 1) / big
    rows.insert(
        -1,
        f"| log u, from its owners to who asked | all_to_all | {expected[0]:,.0f} expected | {expected[1]:,.0f} expected |",
    )
    sums = [sum(size for *_, size in part) + extra for part, extra in zip((few, many), expected, strict=True)]
    rows.append(f"| **all** | | {sums[0]:,.0f} | {sums[1]:,.0f} |")
    return rows, many[2][2] + many[3][2]


def simulated_table(big: int, n: int, b: int, steps: int) -> list[str]:
    """Return the table of what an owner sends, for each order of the data and way to divide the state."""
    rows = [
        "| order of the data | state divided | an owner sends, mean bytes | largest owner / mean, mean step | worst step |",
        "|---|---|---:|---:|---:|",
    ]
    for order in ("shuffled", "as stored"):
        for by in ("remainder", "blocks"):
            mean, usual, worst = simulate(big, n, b, steps, order, by)
            rows.append(f"| {order} | by {by} | {mean:,.0f} | {usual:,.2f} | {worst:,.2f} |")
    return rows


def page(quick: bool) -> str:
    """Measure, simulate, and return the page."""
    ranks, n, b, width, steps = 4, 1_000_003, 64, 128, 4 if quick else 50
    counted, compared = check(ranks, n, b, width, steps)
    crossed = loopback(ranks, n, b, width)
    big, big_n, big_steps = 1024, 10**9, 20 if quick else 2000
    rows, embeddings = collectives_table(ranks, big, b, width)
    wire = "the system gave no network of its own, so what crosses the wire was not measured"
    if crossed is not None:
        wire = (
            f"{crossed:,.0f} bytes a step crossed the loopback of a network of their own (mean of {LO_STEPS} steps), "
            f"{crossed / counted:.3f} times the formulas' {counted:,.0f} for all four: TCP and gloo's own headers"
        )
    lines = [*pages.head("Traffic of a step", "benchmarks.traffic", "; gloo")]
    lines += [
        f"A step of the loss, forward and backward, with log u divided among the ranks: {b} samples a rank, two views, width {width}. Gradients of "
        "the model come on top. All-reduce counted as a ring's.",
        "",
        *rows,
        "",
        f"**Counted on {ranks} real processes**: {compared:,} collectives in {steps} steps, each with the bytes that its formula says, the all-to-all's with "
        f"those that the ids drawn say; and {wire}.",
        "",
        f"**Simulated: {big:,} ranks, n = 10⁹, {big_steps:,} steps.** What the all-to-all asks of an owner depends on the ids in the batch:",
        "",
        *simulated_table(big, big_n, b, big_steps),
        "",
        "Shuffled, an owner's load is that of balls in bins, whichever way the state is divided; what the largest sends is a few hundred bytes, next to the "
        f"{embeddings:,.0f} of embeddings. In the order in which the data are stored, blocks would have one owner answer everybody.",
        "",
        f"On CUDA one all-reduce of 4 B bytes stands for the all-to-all and the gather behind it: {8 * big * b * (big - 1) / big:,.0f} bytes a rank by a ring at "
        f"{big:,} ranks, the same for all whatever the ids are.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps, no page")
    parser.add_argument("--inside", nargs=4, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(*options.inside)
        return
    pages.write_page("traffic.md", page(options.quick), options.quick)


if __name__ == "__main__":
    main()
