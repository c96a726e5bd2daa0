"""The global contrastive loss in open_clip's own training loop: two lines change. Generated data, a minute on one CPU core.

python examples/open_clip_loss.py [epochs]          needs open_clip_torch (pip install open_clip_torch)
"""

import sys
from types import SimpleNamespace

import torch
from torch import nn

import sogclr
import sogclr.models  # makes torchvision importable beside a CPU-only torch, which open_clip needs as well

from open_clip.model import CLIP  # isort: skip
from open_clip_train.train import train_one_epoch  # isort: skip

COLOURS, PLACES, N, BATCH = 8, 4, 512, 32


class Generated:
    """A coloured square somewhere, and two words that say which colour and where. Batches come with their ids."""

    num_samples, num_batches = N, N // BATCH

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        colour, place = (
            torch.randint(COLOURS, (N,), generator=generator),
            torch.randint(PLACES**2, (N,), generator=generator),
        )
        palette = torch.rand(COLOURS, 3, generator=generator)
        self.images = 0.1 * torch.randn(N, 3, 32, 32, generator=generator)
        for i, (c, p) in enumerate(zip(colour.tolist(), place.tolist(), strict=True)):
            y, x = 8 * (p // PLACES), 8 * (p % PLACES)
            self.images[i, :, y : y + 8, x : x + 8] += 3 * palette[c, :, None, None]
        self.texts = torch.zeros(N, 8, dtype=torch.int64)
        self.texts[:, 0], self.texts[:, 1], self.texts[:, 2] = 1 + colour, 20 + place, 99  # 99 ends a text
        _, self.text_ids = torch.unique(self.texts, dim=0, return_inverse=True)  # images of one sentence share its id

    def __iter__(self):
        for index in torch.randperm(N).split(BATCH):
            self.current = index, self.text_ids[index]
            yield self.images[index], self.texts[index]


class GlobalLoss(nn.Module):
    """open_clip's call, `loss(image_features=, text_features=, logit_scale=, output_dict=)`, for a loss that wants ids."""

    def __init__(self, data: Generated) -> None:
        super().__init__()
        self.data = data
        self.inner = sogclr.TwoTowerGlobalContrastiveLoss(N, temperature=0.07, num_texts=int(data.text_ids.max()) + 1)

    def forward(self, image_features, text_features, logit_scale=None, output_dict=False):
        value = self.inner(image_features, text_features, *self.data.current)
        return {"contrastive_loss": value} if output_dict else value


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
torch.manual_seed(0)
data = Generated()
model = CLIP(
    embed_dim=64,
    output_dict=True,
    vision_cfg={"image_size": 32, "patch_size": 4, "width": 64, "layers": 2, "head_width": 32},
    text_cfg={"context_length": 8, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2},
)
loss = GlobalLoss(data)  # was: open_clip.ClipLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
args = SimpleNamespace(
    device="cpu",
    precision="fp32",
    distill=False,
    accum_freq=1,
    skip_scheduler=True,
    horovod=False,
    grad_clip_norm=None,
    rank=0,
    local_rank=0,
    log_local=False,
    log_every_n_steps=N,
    batch_size=BATCH,
    world_size=1,
    wandb=False,
    save_logs=False,
)


@torch.no_grad()
def recall_at_1() -> float:
    """Over all images: how often the nearest text is the own sentence."""
    out = model.eval()(data.images, data.texts)
    nearest = (out["image_features"] @ out["text_features"].T).argmax(dim=1)
    return float((data.text_ids[nearest] == data.text_ids).float().mean())


print(f"before: {recall_at_1():.1%} of the images find their sentence")
loader = SimpleNamespace(dataloader=data, set_epoch=lambda epoch: None)
for epoch in range(epochs):
    train_one_epoch(model, {"train": loader}, loss, epoch, optimizer, None, None, None, args)
print(f"after: {recall_at_1():.1%}, objective {float(loss.inner.statistics['objective']):.3f}")
