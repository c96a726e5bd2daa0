"""Time and memory of the losses, forward and backward: python -m benchmarks.losses [--device cpu|cuda] [--largest B]

Against floors and against peers, in one run. The floor is three bare `torch.mm(..., out=)`, what autograd needs for the
similarities and their gradient: 6 N^2 D operations for one tower (N = 2B), 6 B^2 D for two. All candidates of a row are
called in turn, round after round; a cell is the median over the rounds of the time divided by the floor's in that round,
so that what else the machine does falls on all alike. Peak memory is taken on a CPU in a process of its own for each call.
`make bench-peers` installs the peers in an environment of their own and runs this. Writes docs/results/losses.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sogclr import kernels
from sogclr.losses import ClipLoss, GlobalContrastiveLoss, NTXentLoss, TwoTowerGlobalContrastiveLoss

from . import pages, peers

SIZES = [(64, 128), (64, 256), (256, 128), (256, 256), (1024, 128), (1024, 256), (4096, 128), (4096, 256)]
ROUNDS = {64: 300, 256: 60, 1024: 15, 4096: 5}
ONE_TOWER, TWO_TOWERS = "one tower", "two towers"
OURS = {ONE_TOWER: ("GlobalContrastiveLoss", "NTXentLoss"), TWO_TOWERS: ("TwoTowerGlobalContrastiveLoss", "ClipLoss")}


def floor(z: Tensor) -> Callable[[], None]:
    similarities, gradient = z.new_empty(len(z), len(z)), torch.empty_like(z)

    def call() -> None:
        torch.mm(z, z.T, out=similarities)
        torch.mm(similarities, z, out=gradient)
        torch.mm(similarities.T, z, out=gradient)

    return call


def losses(towers: str, device: str, batch: int) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    samples = 4 * batch
    ids = torch.arange(batch)  # LibAUC keeps its state on the CPU, and takes ids as a loader gives them
    if towers == ONE_TOWER:
        result: dict[str, Callable] = {
            "GlobalContrastiveLoss": GlobalContrastiveLoss(samples, 0.1, 0.9).to(device),
            "NTXentLoss": NTXentLoss(0.1),
        }
        for name, loss in peers.one_tower(device, samples).items():
            more = () if "NTXent" in name else (ids,)
            result[name] = lambda a, b, i, loss=loss, more=more: loss(a, b, *more)
        return result
    result = {
        "TwoTowerGlobalContrastiveLoss": TwoTowerGlobalContrastiveLoss(samples, 0.1, 0.9).to(device),
        "ClipLoss": ClipLoss(0.1),
    }
    for name, loss in peers.two_towers(device, samples).items():
        if "open_clip" in name:
            scale = torch.tensor(10.0, device=device)
            result[name] = lambda a, b, i, loss=loss, scale=scale: loss(normalize(a, dim=1), normalize(b, dim=1), scale)
        else:
            result[name] = lambda a, b, i, loss=loss: loss(normalize(a, dim=1), normalize(b, dim=1), ids)[0]
    return result


def inputs(device: str, dtype: torch.dtype, batch: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(batch, width, generator=generator).to(device, dtype).requires_grad_() for _ in range(2))
    return a, b, torch.arange(batch, device=device)


def step(loss: Callable, a: Tensor, b: Tensor, index: Tensor) -> None:
    a.grad = b.grad = None
    loss(a, b, index).backward()


def seconds(call: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(towers: str, device: str, dtype: torch.dtype, batch: int, width: int) -> dict[str, tuple[float, float]]:
    """Return by name the median seconds, and the median over the rounds of the ratio to the floor."""
    a, b, index = inputs(device, dtype, batch, width)
    z = (torch.cat([a, b]) if towers == ONE_TOWER else a).detach()
    calls: dict[str, Callable[[], None]] = {"floor": floor(z)}
    for name, loss in losses(towers, device, batch).items():
        calls[name] = lambda loss=loss: step(loss, a, b, index)
    for call in calls.values():
        seconds(call, device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS[batch]):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {
        name: (
            statistics.median(values),
            statistics.median(v / f for v, f in zip(values, times["floor"], strict=True)),
        )
        for name, values in times.items()
    }


def peak(
    towers: str, device: str, dtype: torch.dtype, batch: int, width: int, name: str, first: str
) -> tuple[float, float]:
    """Return the MiB beyond what was there before one forward and backward pass, and its seconds; on a CPU in a fresh process."""
    a, b, index = inputs(device, dtype, batch, width)
    loss = losses(towers, device, batch)[name]
    if first == "second call":  # libraries load and compile code on their first use
        with kernels.use("tiled" if device == "cpu" else "triton"):
            step(losses(towers, device, 200)[name], *inputs(device, dtype, 200, width))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        took = seconds(lambda: step(loss, a, b, index), device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20, took
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    took = seconds(lambda: step(loss, a, b, index), device)
    return resident("VmHWM") - before, took


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def fresh_peak(
    towers: str, device: str, dtype: str, batch: int, width: int, name: str, first: str = "second call"
) -> tuple[float, float]:
    if device == "cuda":  # whose counters begin anew by themselves
        torch.cuda.empty_cache()
        return peak(towers, device, getattr(torch, dtype), batch, width, name, first)
    words = [towers, device, dtype, str(batch), str(width), name, first]
    command = [sys.executable, "-m", "benchmarks.losses", "--peak", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mib, took = done.stdout.splitlines()[-1].split()  # some peers print
    return float(mib), float(took)


def timing_table(towers: str, device: str, dtype: torch.dtype, sizes: list[tuple[int, int]]) -> list[str]:
    lines: list[str] = []
    for batch, width in sizes:
        result = measure(towers, device, dtype, batch, width)
        others = [name for name in result if name != "floor"]
        own = OURS[towers]
        rivals = [name for name in others if name not in own and not name.startswith("floor")]
        if not lines:
            ratios = [f"{rival} / ours" for rival in rivals]
            lines += [
                f"| B | D | floor, ms | {' | '.join(others + ratios)} |",
                "|---" * (len(others + ratios) + 3) + "|",
            ]
        # each peer against ours of its kind: a global loss, or the mini-batch's
        ratios = [f"{result[r][1] / result[own['GCLoss' not in r]][1]:.1f}" for r in rivals]
        cells = " | ".join([f"{result[name][1]:.2f}" for name in others] + ratios)
        lines.append(f"| {batch} | {width} | {result['floor'][0] * 1e3:.3g} | {cells} |")
        print(lines[-1], flush=True)
    return lines


def memory_table(device: str, dtype: str, batches: tuple[int, ...]) -> list[str]:
    lines = [f"| loss | {' | '.join(f'B = {b:,}' for b in batches)} |", "|---" * (len(batches) + 1) + "|"]
    for towers in (ONE_TOWER, TWO_TOWERS):
        for name in losses(towers, device, 32):
            cells = [f"{fresh_peak(towers, device, dtype, batch, 128, name)[0]:.1f}" for batch in batches]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{pages.processor()}, {os.cpu_count()} cores, {platform.system()}"


def page(arguments: argparse.Namespace) -> str:
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    sizes = [(b, d) for b, d in SIZES if b <= arguments.most]
    load = f"{os.getloadavg()[0]:.1f}"
    parts = [
        "# Loss kernels: time and memory",
        "",
        f"{datetime.date.today()}, {machine(device)}, torch {torch.__version__}, {arguments.threads} thread(s), "
        f"{arguments.dtype}, tau 0.1; {peers.versions()}.",
        f"Load average of the machine at the start {load}: trust ratios, not milliseconds.",
        f"`python -m benchmarks.losses {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        "Forward and backward, normalisation and state update included. The floor is three bare `torch.mm(..., out=)` "
        "into buffers that exist already: 6 N²D operations for one tower (N = 2B), 6 B²D for two. Cells are medians over "
        "interleaved rounds of the time divided by the floor's in the same round; the last columns divide a peer's by ours.",
    ]
    for towers in (ONE_TOWER, TWO_TOWERS):
        parts += ["", f"## {towers.capitalize()}", "", *timing_table(towers, device, dtype, sizes)]
    batches = tuple(b for b in (256, 1024, 4096) if b <= arguments.most)
    parts += ["", "## Peak extra memory of one forward and backward pass, MiB, D = 128", ""]
    parts += memory_table(device, arguments.dtype, batches)
    name = OURS[ONE_TOWER][0]
    if device == "cpu":
        first, _ = fresh_peak(ONE_TOWER, device, arguments.dtype, 1024, 128, name, "first call")
        parts += [
            "",
            "Measured after a small call that loads the libraries; the first call of a process at B = 1,024, with what "
            f"PyTorch's operators load then, takes {first:.0f} MiB for {name}.",
        ]
    if arguments.largest:
        mib, took = fresh_peak(ONE_TOWER, device, arguments.dtype, arguments.largest, 128, name)
        parts += [
            "",
            f"{name} at B = {arguments.largest:,}, D = 128: {mib:.0f} MiB beyond the embeddings, {took:.3g} s for "
            f"one forward and backward pass.",
        ]
    if device == "cpu":
        parts += ["", "## GPU", "", "Not run. `python -m benchmarks.losses --device cuda` writes losses_cuda.md."]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=int, default=4096, help="largest batch of the tables")
    parser.add_argument("--largest", type=int, default=0, help="one more batch, of ours alone, such as 65536")
    parser.add_argument("--peak", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        towers, device, dtype, batch, width, name, first = arguments.peak
        print(*peak(towers, device, getattr(torch, dtype), int(batch), int(width), name, first))
        return
    pages.write_page("losses.md" if arguments.device == "cpu" else "losses_cuda.md", page(arguments))


if __name__ == "__main__":
    main()
