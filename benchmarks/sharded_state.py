"""Log u divided among processes, against a copy on each: bytes and seconds, n = 10^8.

    python -m benchmarks.sharded_state [--quick]

Real processes, gloo, one thread each, on this machine's cores. A step is forward and backward of the whole loss, its state
updated, on embeddings of width 128; the variants take turns, and the median is of the slowest process of each step.
A checkpoint is `sharded.whole_state`: the main process puts all parts together. Writes docs/results/sharded_state.md.
"""

from __future__ import annotations

import gc
import os
import socket
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sogclr import GlobalContrastiveLoss, estimators
from sogclr.losses.estimators import sharded

from . import pages

D, MIB = 128, 2**20
WAYS = ("a copy on each", "divided, all-to-all", "divided, all-reduce")


def resident() -> int:
    """Return the bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Return the most bytes of this process that have been in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def build(way: str, n: int) -> GlobalContrastiveLoss:
    return GlobalContrastiveLoss(n, 0.1, estimator=estimators.MovingAverage(n, 0.9, sharded=way != WAYS[0]))


def step(loss: GlobalContrastiveLoss, way: str, batch: int, number: int) -> float:
    """Return the seconds that the slowest process takes."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(number)
    index = torch.randint(0, loss.estimator.num_samples, (batch,), generator=generator)
    z = torch.randn(2, batch, D, generator=generator)
    own = slice(rank * batch // ranks, (rank + 1) * batch // ranks)
    z0, z1 = (view[own].requires_grad_() for view in z)
    if loss.estimator.part is not None:
        exchange = "all-to-all" if "all-to-all" in way else "all-reduce"
        loss.estimator.read = partial(_read, loss.estimator, exchange)  # type: ignore[method-assign]
    dist.barrier()
    begun = time.perf_counter()
    torch.autograd.grad(loss(z0, z1, index[own]), [z0, z1])
    seconds = torch.tensor(time.perf_counter() - begun)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)


def _read(estimator: estimators.MovingAverage, exchange: sharded.Exchange, index: torch.Tensor) -> torch.Tensor:
    return sharded.read(estimator.log_u, index, estimator.part, exchange)  # type: ignore[arg-type]


def worker(rank: int, ranks: int, port: int, n: int, batches: tuple[int, ...], rounds: int, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    found, losses = {}, {}
    for way in WAYS:
        losses[way] = build(way, n)
        found["bytes", way] = losses[way].estimator.log_u.nbytes
    for batch in batches:
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds + 3):
            for way, loss in losses.items():
                seconds = step(loss, way, batch, number)
                if number >= 3:
                    times[way].append(seconds)
        for way in WAYS:
            found["step", way, batch] = statistics.median(times[way])
    whole = losses.pop(WAYS[0]).estimator.log_u
    for way in WAYS[1:]:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
        now, begun = resident(), time.perf_counter()
        state = sharded.whole_state(losses[way])
        found["checkpoint"] = time.perf_counter() - begun
        found["checkpoint memory"] = peak() - now
        if rank == 0 and not torch.equal(state["estimator.log_u"], whole):
            raise SystemExit(f"{way}: the state differs from the copies")
        del state
    if rank == 0:
        torch.save(found, out)
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def measure(ranks: int, n: int, batches: tuple[int, ...], rounds: int) -> dict:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/found.pt"
        mp.start_processes(worker, (ranks, port, n, batches, rounds, out), nprocs=ranks, start_method="spawn")
        return torch.load(out, weights_only=True)


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a small n, few rounds, no page")
    options = parser.parse_args()
    n, batches, rounds = (10**5, (64,), 3) if options.quick else (10**8, (256, 1024), 31)
    heads = " | ".join(f"step at B = {b:,}, ms | against copies" for b in batches)
    rows = [f"| processes | log u | bytes a process | {heads} |", "|---:|---|---:|" + "---:|---:|" * len(batches)]
    saving = ["| processes | seconds | the main process's memory grew by, MiB |", "|---:|---:|---:|"]
    for ranks in (2,) if options.quick else (2, 4):
        found = measure(ranks, n, batches, rounds)
        for way in WAYS:
            cells = " | ".join(
                f"{1e3 * found['step', way, b]:.1f} | {found['step', way, b] / found['step', WAYS[0], b]:.2f}×"
                for b in batches
            )
            rows.append(f"| {ranks} | {way} | {found['bytes', way]:,} | {cells} |")
        saving.append(f"| {ranks} | {found['checkpoint']:.2f} | {found['checkpoint memory'] / MIB:,.0f} |")
    about = (
        f"n = {n:,} samples; a step is forward and backward of `GlobalContrastiveLoss` on embeddings of width {D}, B the batch of all "
        f"processes; medians of {rounds} steps, the variants taking turns. All variants end with the same state, bit for bit."
    )
    more = ". Processes share its cores and talk by gloo"
    lines = [*pages.head("State divided among processes", "benchmarks.sharded_state", more), about, "", *rows, ""]
    lines += ["Putting the parts together for a checkpoint, on the main process:", "", *saving, ""]
    text = "\n".join(lines)
    pages.write_page("sharded_state.md", text, options.quick)


if __name__ == "__main__":
    sys.exit(main())
