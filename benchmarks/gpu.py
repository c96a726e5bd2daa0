"""All that a machine with a CUDA device can tell, by one command: python -m benchmarks.gpu

1. the tests marked `gpu`, and those of the Triton kernel, on the device instead of in its interpreter;
2. the losses' benchmark and the throughput of whole steps, with `--device cuda`;
3. a short training that is killed (SIGKILL) and resumed, beside the one that never stopped;
4. the waits of the host for the device in a training step, counted;
5. how long a step takes, how long the host alone takes to launch it, and how many kernels it launches.

A part that fails does not keep the others from running; the exit code says whether all went well. Writes
docs/results/gpu.md, and the pages of the benchmarks. With `--device cpu --quick` it shows on any machine that the command
itself works, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from sogclr.training.trainer import Trainer

from . import pages
from .loader import write_tiles
from .throughput import Case, ceiling, ours, trainer_of

ROOT = Path(__file__).parent.parent
STEPS = 10  # that are counted and profiled, after as many that warm up
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
TRITON_TESTS = "tests/kernels/test_triton.py"
CASES_CUDA = ((160, 96, "resnet50", 256), (160, 128, "resnet50", 32), (60, 32, "resnet18_small", 256))
CASES_QUICK = ((48, 32, "resnet10_mini", 16),)
METHODS = ("sogclr", "simclr", "moco", "isogclr", "neuclip")


def module(*words: str) -> str:
    """Run a module in a process of its own, and return what it printed.

    Raises:
        RuntimeError: it failed; with its last lines.
    """
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
    return done.stdout


# ------------------------------------------------------------------------------------------------------- tests and pages
def run_tests(device: str, quick: bool) -> str:
    """Run the tests marked gpu and those of the Triton kernel."""
    if device == "cpu":
        return "left out, as each needs a GPU"
    told = [module("pytest", *words, "-p", "no:cacheprovider") for words in (["-m", "gpu", "tests"], [TRITON_TESTS])]
    return "; ".join(out.strip().splitlines()[-1] for out in told)


def run_losses(device: str, quick: bool) -> str:
    """Run the benchmark of the losses, whose page is its own."""
    if quick:
        return "left out"
    module("benchmarks.losses", "--device", device, "--largest", "65536")
    return "see [losses_cuda.md](losses_cuda.md)"


def run_throughput(device: str, quick: bool) -> str:
    """Run the benchmark of whole steps, whose page is its own."""
    if quick:
        return "left out"
    module("benchmarks.throughput", "--device", device)
    return "see [throughput_cuda.md](throughput_cuda.md)"


# ------------------------------------------------------------------------------------------------------ kill and resume
def kill_and_resume(device: str, quick: bool) -> str:
    """Train, kill the process at a third of the way, resume; compare the last line of metrics with that of a whole run."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name) / "tiles"
        folder.mkdir()
        write_tiles(folder, 48, 64 if quick else 1024)
        words = ["--model", "resnet10_mini" if quick else "resnet18_small", "--image-size", "32", "--device", device]
        words += ["--batch-size", "16" if quick else "128", "--epochs", "6", "--save-every", "2", "--log-every", "1"]

        def command(run: str) -> list[str]:
            return [sys.executable, "-m", "sogclr", "train", str(folder), "--out", f"{name}/{run}", *words]

        subprocess.run(command("whole"), check=True, capture_output=True)
        whole = last_row(Path(name) / "whole")
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and step_of(Path(name) / "killed") < whole["step"] // 3:
            time.sleep(0.02)
        killed_at = step_of(Path(name) / "killed")
        process.send_signal(signal.SIGKILL)
        process.wait()
        resume = [sys.executable, "-m", "sogclr", "resume", f"{name}/killed"]
        subprocess.run(resume, check=True, capture_output=True)
        resumed = last_row(Path(name) / "killed")
    if resumed["step"] != whole["step"]:
        raise RuntimeError(f"the resumed run ended at step {resumed['step']} and the whole one at {whole['step']}")
    same = "bit for bit the same" if resumed["objective"] == whole["objective"] else "not the same bit for bit"
    return (
        f"killed at step {killed_at} of {whole['step']}, resumed to the end; last objective {resumed['objective']:.6f} "
        f"against {whole['objective']:.6f}, {same}"
    )


def rows_of(run: Path) -> list[dict[str, float]]:
    """Return the `train` lines of a run that are whole."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in found if row["kind"] == "train"]


def last_row(run: Path) -> dict[str, float]:
    return rows_of(run)[-1]


def step_of(run: Path) -> int:
    rows = rows_of(run)
    return int(rows[-1]["step"]) if rows else 0


# ---------------------------------------------------------------------------------------------------------------- waits
def waits(device: str, quick: bool) -> str:
    """Return a table of the host's waits a step, for each method: those that torch warns of, and the runtime's calls."""
    lines = ["", "| method | warnings of a synchronization a step | synchronizing calls a step |", "|---|---:|---:|"]
    for method in METHODS[: 1 if quick else None]:
        with tempfile.TemporaryDirectory(prefix="gpu-") as name:
            folder = Path(name) / "tiles"
            folder.mkdir()
            write_tiles(folder, 48, 256)
            trainer = trainer_of(folder, (48, 32, "resnet10_mini", 32), device, method=method)
            warned, calls = counted(trainer, device)
        lines.append(f"| {method} | {warned / STEPS:.1f} | {calls / STEPS:.1f} |")
    return "\n".join(lines)


def counted(trainer: Trainer, device: str) -> tuple[int, int]:
    """Return how many warnings of torch's sync debug mode, and calls of the runtime that wait, `STEPS` steps make."""
    turn = ours(trainer)
    for _ in range(STEPS):
        turn()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with warnings.catch_warnings(record=True) as seen, torch.profiler.profile(activities=activities) as profile:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            turn()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    warned = sum("synchroniz" in str(w.message) for w in seen)
    calls = sum(event.count for event in profile.key_averages() if event.key in WAITS)
    return warned, calls


# ----------------------------------------------------------------------------------------------------------- a step's time
def step_times(device: str, quick: bool) -> str:
    """Return a table of a step's milliseconds, the host's and those of the encoder alone, and the kernels launched."""
    lines = [
        "",
        "| step | ms | the host's ms | encoder and optimizer alone, ms | kernels |",
        "|---|---:|---:|---:|---:|",
    ]
    for case in CASES_QUICK if quick else CASES_CUDA:
        with tempfile.TemporaryDirectory(prefix="gpu-") as name:
            folder = Path(name) / "tiles"
            folder.mkdir()
            lines.append(step_row(case, folder, device))
    return "\n".join(lines)


def step_row(case: Case, folder: Path, device: str) -> str:
    """Return the table's row of one case, with images in `folder`, which is empty."""
    tile, size, model, batch = case
    write_tiles(folder, tile, 8 * batch)
    trainer = trainer_of(folder, case, device)
    stream = trainer.task.batches(0, pin_memory=device == "cuda")
    batches = [next(stream) for _ in range(STEPS)]
    alone = ceiling(trainer)

    def steps() -> None:
        for batch in batches:
            trainer.train_step([batch])

    def steps_alone() -> None:
        for _ in batches:
            alone()

    whole, host = timed(steps, device)
    bare, _ = timed(steps_alone, device)
    return f"| {model}, {size} px, B = {batch} | {whole:.1f} | {host:.1f} | {bare:.1f} | {launches(steps, device)} |"


def timed(steps: Callable[[], object], device: str) -> tuple[float, float]:
    """Return the milliseconds of one of `STEPS` steps, and those until the host is done with it; run twice, the first to warm up."""
    for _ in range(2):
        begun = time.perf_counter()
        steps()
        host = time.perf_counter() - begun
        if device == "cuda":
            torch.cuda.synchronize()
        whole = time.perf_counter() - begun
    return 1e3 * whole / STEPS, 1e3 * host / STEPS


def launches(steps: Callable[[], object], device: str) -> int:
    """Return how many kernels one of `STEPS` steps launches."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=activities) as profile:
        steps()
    return sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key) // STEPS


PARTS: dict[str, Callable[[str, bool], str]] = {
    "Tests": run_tests,
    "Losses": run_losses,
    "Throughput": run_throughput,
    "Killed and resumed": kill_and_resume,
    "Waits for the device in a step": waits,
    "The time of a step": step_times,
}


def main() -> int:
    """Run all parts, write the page, and return the exit code: 1 if one of them failed."""
    parser: argparse.ArgumentParser = pages.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, no benchmarks, no page")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu --quick shows that the command works", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name() if options.device == "cuda" else "the CPU"
    lines, failed = pages.head("On a GPU", "benchmarks.gpu", f", {device}"), []
    for title, part in PARTS.items():
        begun = time.monotonic()
        try:
            said = part(options.device, options.quick)
        except Exception as error:  # the other parts still have something to tell
            failed.append(title)
            said = f"FAILED\n\n```\n{type(error).__name__}: {error}\n```"
        lines += [f"## {title}", "", said, "", f"({time.monotonic() - begun:.0f} s)", ""]
    pages.write_page("gpu.md", "\n".join(lines), quick=options.quick or options.device == "cpu")
    print(f"failed: {', '.join(failed)}" if failed else "all parts went well")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
