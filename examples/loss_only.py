"""The loss in a training loop of your own: plain PyTorch, real 8x8 digits, half a minute on one CPU core.

python examples/loss_only.py [steps]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import sogclr

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)

encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
loss_fn = sogclr.GlobalContrastiveLoss(num_samples=len(images), temperature=0.1, gamma=0.9)
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)


def augment(x: torch.Tensor) -> torch.Tensor:
    """Turn, shift and scale a little, and add noise."""
    theta = torch.eye(2, 3).repeat(len(x), 1, 1) + 0.15 * torch.randn(len(x), 2, 3)
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False) + 0.1 * torch.randn_like(x)


@torch.no_grad()
def accuracy_with_one_label_per_class(draws: int = 50) -> float:
    """Each digit gets the class of the nearest of ten labelled ones; the mean over draws of these ten."""
    z, right = nn.functional.normalize(encoder.eval()(images), dim=1), []
    encoder.train()
    for _ in range(draws):
        labelled = torch.stack([(labels == c).nonzero().flatten()[torch.randint(170, (1,))[0]] for c in range(10)])
        right.append(((z @ z[labelled].T).argmax(dim=1) == labels).float().mean())
    return float(torch.stack(right).mean())


print(f"before: {accuracy_with_one_label_per_class():.1%} right with one label per class")
for step in range(steps):
    index = torch.randperm(len(images))[:16]  # which samples are in the batch: the loss keeps one number for each
    z0, z1 = encoder(torch.cat([augment(images[index]), augment(images[index])])).chunk(2)
    loss = loss_fn(z0, z1, index)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 500 == 0:
        print(f"step {step}: objective {loss.item():.3f}")
print(f"after: {accuracy_with_one_label_per_class():.1%}")
