"""Claim 4, cost of state: bytes that a method keeps, and what its loss adds to a step.

    python -m benchmarks.state_cost [--quick]

State: the buffers of the losses, and for MoCo the key encoder's weights too. SimCLR keeps nothing, but needs a larger
batch; what that costs is the memory that an encoder holds for its backward pass, counted from the tensors that autograd
saves. Step: the median time of the loss's forward and backward pass on embeddings of width 128, one thread, interleaved.
Writes docs/results/state_cost.md.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

import sogclr
from sogclr.models.backbone import create_backbone

from . import pages

N, D = 1_281_167, 128
MIB = 2**20


def losses(batch: int) -> dict[str, nn.Module]:
    return {
        "SimCLR": sogclr.NTXentLoss(),
        "SogCLR": sogclr.GlobalContrastiveLoss(N),
        "MoCo (K = 65,536)": sogclr.MoCoLoss(D, 65_536),
    }


def buffer_bytes(module: nn.Module) -> int:
    return sum(b.numel() * b.element_size() for b in module.buffers())


def saved_bytes(encoder: nn.Module, image_size: int, batch: int = 2) -> float:
    """Return the bytes an image that a training step holds for its backward pass (float32), each storage once, weights not."""
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        encoder(torch.randn(batch, 3, image_size, image_size)).sum()
    return sum(seen.values()) / batch


def loss_times(batch: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of forward and backward, the losses taking turns."""
    modules, times = losses(batch), {name: [] for name in losses(batch)}
    generator = torch.Generator().manual_seed(0)
    for turn in range(rounds + 2):
        z0, z1 = torch.randn(2, batch, D, generator=generator, requires_grad=True)
        index = torch.randperm(N, generator=generator)[:batch]
        for name, module in modules.items():
            begun = time.perf_counter()
            torch.autograd.grad(module(z0, z1, index), [z0, z1], allow_unused=True)  # MoCo's keys have none
            if turn >= 2:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, a small encoder, no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    name, size = ("resnet18", 64) if options.quick else ("resnet50", 224)
    encoder = create_backbone(name, size)
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    image = saved_bytes(encoder, size)
    batches = (64,) if options.quick else (64, 256)
    rows = [
        "| method | state | bytes a sample of ImageNet | " + " | ".join(f"loss at B = {b}, ms" for b in batches) + " |",
        "|---|---:|---:|" + "---:|" * len(batches),
    ]
    times = {b: loss_times(b, 5 if options.quick else 15) for b in batches}
    for key, module in losses(batches[-1]).items():
        state = buffer_bytes(module) + (weights if key.startswith("MoCo") else 0)
        cells = " | ".join(f"{1e3 * times[b][key]:.1f}" for b in batches)
        rows.append(f"| {key} | {state / MIB:.1f} MiB | {state / N:.2f} | {cells} |")
    held = [f"| {b:,} | {2 * b * image / 2**30:.1f} GiB |" for b in (64, 256, 1024, 4096, 8192)]
    more = f"; {(time.monotonic() - begun) / 3600:.3f} hours"
    text = [
        *pages.head("Cost of state", "benchmarks.state_cost", more),
        f"n = {N:,} (ImageNet-1K), embeddings of width {D}; MoCo's state counts the key encoder, {name} "
        f"({weights / MIB:.0f} MiB). SogCLR keeps one float a sample.",
        "",
        *rows,
        "",
        f"What {name} holds for the backward pass at {size} pixels in float32 ({image / MIB:.0f} MiB an image), two views an image:",
        "",
        "| batch size | held |",
        "|---:|---:|",
        *held,
        "",
    ]
    pages.write_page("state_cost.md", "\n".join(text), options.quick)


if __name__ == "__main__":
    main()
