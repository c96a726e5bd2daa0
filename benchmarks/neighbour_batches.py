"""What the order of an epoch of neighbours costs, in time, memory and state: python -m benchmarks.neighbour_batches

Embeddings of clusters are kept as the trainer keeps them, 16 numbers of half precision a sample. Made of them: the order
of an epoch, beside a random one and a stable argsort of as many numbers, on one core. Then what a step pays to keep the
embeddings of a batch. Writes docs/results/neighbour_batches.md.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch

from sogclr.data.neighbour_order import GROUP, LEAF, neighbour_order
from sogclr.data.sampler import ResumableSampler
from sogclr.training.neighbours import WIDTH, Neighbours

from . import pages

BATCH, D = 32, 128
TIMES = 3  # each is measured so often, and the best counts


def clusters(count: int) -> np.ndarray:
    """Return projected embeddings of n / 100 clusters, float16 (n, WIDTH)."""
    random = np.random.default_rng(0)
    rows = np.empty((count, WIDTH), np.float16)
    centres = random.standard_normal((count // 100, WIDTH), dtype=np.float32)
    for part in np.array_split(rows, max(1, count // 1_000_000)):
        noise = random.standard_normal(part.shape, dtype=np.float32)
        part[:] = centres[random.integers(len(centres), size=len(part))] + 0.3 * noise
    return rows


def seconds_of(make: Callable[[], np.ndarray]) -> float:
    """Return the processor's seconds, the best of a few."""
    times = []
    for _ in range(TIMES):
        begun = time.process_time()
        make()
        times.append(time.process_time() - begun)
    return min(times)


def mib_of(make: Callable[[], np.ndarray]) -> float:
    """Return what NumPy's arrays take at their peak while one is made, itself included, MiB."""
    tracemalloc.start()
    make()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def spread(order: np.ndarray, rows: np.ndarray) -> float:
    """Return the mean variance within groups, of the first 100,000 of them."""
    groups = rows[order[: min(len(order) // GROUP, 100_000) * GROUP]].astype(np.float32).reshape(-1, GROUP, WIDTH)
    return float(groups.var(axis=1).mean())


def keeping(batch: int, rounds: int) -> float:
    """Return the median seconds in which the embeddings of a batch are kept."""
    neighbours, times = Neighbours(1_000_000, batch, seed=0), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        z = torch.randn(2 * batch, D, generator=generator)
        index = torch.randint(1_000_000, (batch,), generator=generator)
        begun = time.process_time()
        neighbours.keep(z.split(batch), index)
        times.append(time.process_time() - begun)
    return statistics.median(times)


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 samples, and no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = ["| samples | | seconds | times a random order | memory, MiB |", "|---:|---|---:|---:|---:|"]
    shares = []
    for count in (100_000,) if options.quick else (100_000, 1_000_000, 10_000_000):
        rows, sampler = clusters(count), ResumableSampler(np.arange(count), BATCH, seed=0)
        random, numbers = sampler.permutation(1), np.random.default_rng(0).standard_normal(count, dtype=np.float32)
        makes: dict[str, Callable[[], np.ndarray]] = {
            "random order": lambda sampler=sampler: sampler.permutation(1),
            "argsort": lambda numbers=numbers: np.argsort(numbers, kind="stable"),
            "order of neighbours": lambda random=random, rows=rows: neighbour_order(random, rows, BATCH, 0, 1),
        }
        base = None
        for name, make in makes.items():
            seconds = seconds_of(make)
            base = base or seconds
            table.append(f"| {count:,} | {name} | {seconds:.2f} | {seconds / base:.1f} | {mib_of(make):.0f} |")
        made = neighbour_order(random, rows, BATCH, 0, 1)
        shares.append(f"{spread(made, rows) / spread(random, rows):.2f} at {count:,}")
    kept = ", ".join(f"{1e6 * keeping(batch, 300):.0f} µs for a batch of {batch:,}" for batch in (32, 256, 1024))
    text = [
        *pages.head("The order of an epoch of neighbours", "benchmarks.neighbour_batches", ", shared with other work"),
        f"Batches of {BATCH} in groups of {GROUP}, of leaves of {LEAF} to {2 * LEAF - 1} samples. Seconds are the processor's, the best of {TIMES}. The random "
        "order is a stable argsort of 64-bit integers, the argsort beside it one of 32-bit floats. Memory is that of NumPy's arrays at their peak, beside the "
        f"embeddings that are kept: these are {2 * WIDTH} bytes a sample, and the order that is made {4}, both in each checkpoint.",
        "",
        *table,
        "",
        "The order is made once an epoch, on the main process. The variance within a group, as a share of that in random groups, in data of n / 100 "
        f"clusters: {', '.join(shares)}.",
        "",
        f"To keep the embeddings of a step (two views, width {D}): {kept}.",
        "",
    ]
    pages.write_page("neighbour_batches.md", "\n".join(text), options.quick)


if __name__ == "__main__":
    main()
