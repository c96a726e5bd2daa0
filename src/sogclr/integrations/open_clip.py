"""open_clip's training command with the two-way global contrastive loss in place of CLIP's.

    python -m sogclr.integrations.open_clip --train-data 'shards/{00000..00099}.tar' --model ViT-B-32 ...

All options are those of `open_clip_train.main`, and --sogclr-temperature and --sogclr-gamma. Samples have their ids from
the rows of the table (an image or a caption that stands in several rows has one id), or from the shard and their place in
it. The loss's state travels in the optimizer's part of open_clip's checkpoints, which open_clip itself can still read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import sys
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..losses import TwoTowerGlobalContrastiveLoss
from ..models.torchvision_cpu import import_timm

import_timm()  # open_clip imports torchvision, which may be built for another torch

from open_clip_train import data as train_data  # noqa: E402
from open_clip_train import main as train_main  # noqa: E402
from open_clip_train.distributed import broadcast_object, is_master  # noqa: E402
from open_clip_train.file_utils import pt_load  # noqa: E402
from open_clip_train.params import parse_args  # noqa: E402
from open_clip_train.train import train_one_epoch, unwrap_model  # noqa: E402

STATE = "sogclr"  # its key beside the optimizer's `state` and `param_groups`
INDEX = "__index__"  # a sample's key, beside webdataset's own `__key__` and `__url__`


# ------------------------------------------------------------------------------------------------------- ids of samples
class IndexedTable(train_data.CsvDataset):
    """open_clip's table of images and captions, whose items say which image and which caption they are."""

    def number(self) -> None:
        """Give equal images, and equal captions, one id each."""
        self.ids = [_numbers(self.images), _numbers(self.captions)]

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        return (*super().__getitem__(i), *(ids[i] for ids in self.ids))


def _numbers(values: Iterable[object]) -> list[int]:
    seen: dict[object, int] = {}
    return [seen.setdefault(value, len(seen)) for value in values]


class IndexedShards:
    """open_clip's reader of tar shards, whose samples say where they stand in the list of all.

    Args:
        sizes: samples of each shard, by url.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes, self.first, total = sizes, {}, 0
        for url, size in sizes.items():
            self.first[url] = total
            total += size

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples of the shards with their index.

        Raises:
            BadInput: a shard holds more samples than when it was listed.
        """
        for shard in shards:
            url = shard["url"]
            for place, sample in enumerate(train_data.tarfile_to_samples_nothrow([shard])):
                if place >= self.sizes[url]:
                    raise BadInput(f"{url} held {self.sizes[url]} samples when the training began and has more now")
                yield {**sample, INDEX: self.first[url] + place}


def count_samples(url: str) -> int:
    """Return how many samples open_clip finds in a shard; of a local one only the headers are read."""
    with train_data.wds.gopen(url) as stream, _open_tar(stream) as archive:
        files = [member.name for member in archive if member.isreg()]
    names = [name for name in files if not re.match(r"__[^/]*__($|/)", name)]  # webdataset skips these
    members = ({"fname": name, "data": b"", "__url__": url} for name in names)
    return sum(1 for _ in train_data.group_by_keys_nothrow(members))


def _open_tar(stream: Any) -> tarfile.TarFile:
    seekable = hasattr(stream, "seekable") and stream.seekable()
    return tarfile.open(fileobj=stream, mode="r:*" if seekable else "r|*")


class IndexedLoader:
    """open_clip's loader: its loop gets the batches as ever, the loss their ids."""

    def __init__(self, loader: Any, loss: OpenClipLoss) -> None:
        self.loader, self.loss = loader, loss
        self.num_samples, self.num_batches = loader.num_samples, loader.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, texts, *ids in self.loader:
            self.loss.ids.append([torch.as_tensor(kind) for kind in ids])
            yield images, texts


# ----------------------------------------------------------------------------------------------------------------- loss
class OpenClipLoss(nn.Module):
    """The loss with open_clip's call.

    Args:
        loss_fn: on pairs.
        accum_freq: batches that open_clip puts together; it then asks as often for the loss of all of them, with the
            gradient of one, and the state moves on with the last.
    """

    def __init__(self, loss_fn: TwoTowerGlobalContrastiveLoss, accum_freq: int) -> None:
        super().__init__()
        self.loss_fn, self.accum_freq, self.calls = loss_fn, accum_freq, 0
        self.ids: deque[list[Tensor]] = deque(maxlen=accum_freq)

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, output_dict: bool = False
    ) -> dict[str, Tensor]:
        """Return the loss under open_clip's name.

        Args:
            image_features: (B, D), of the batches that were loaded last.
            text_features: (B, D).
            logit_scale: (), the model's, which is not used: its gradient is zero.
            output_dict: True, as open_clip calls it.
        """
        self.calls += 1
        self.loss_fn.begin_step()
        value = self.loss_fn(image_features, text_features, *map(torch.cat, zip(*self.ids, strict=True)))
        if self.calls % self.accum_freq:
            self.loss_fn.rollback()
        return {"contrastive_loss": value + 0 * logit_scale}  # DDP waits for a gradient of every parameter


class Training:
    """What open_clip's `main` is given in place of functions of its own, and what passes between them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loss: OpenClipLoss
        self.data = ""  # a hash of the listing: other data have other ids
        self.saved: dict[str, Any] | None = None
        self.hook: Any = None

    def pt_load(self, path: str, map_location: Any = None) -> Any:
        """Load a checkpoint, and keep the loss's state in it."""
        checkpoint = pt_load(path, map_location=map_location)
        self.saved = checkpoint.get("optimizer", {}).pop(STATE, None)
        return checkpoint

    def get_data(self, args: Any, preprocess: Any, epoch: int = 0, tokenizer: Any = None) -> dict[str, Any]:
        """Return open_clip's data sets, of which the one to train on gives ids, and build the loss for as many samples."""
        if not args.train_data:
            return dict(train_data.get_data(args, preprocess, epoch=epoch, tokenizer=tokenizer))
        table = train_data.get_dataset_fn(args.train_data, args.dataset_type) is train_data.get_csv_dataset
        sizes = {} if table else self.list_shards(args)
        data = dict(train_data.get_data(args, preprocess, epoch=epoch, tokenizer=tokenizer))
        loader = data["train"].dataloader
        if table:
            dataset = loader.dataset
            dataset.__class__ = IndexedTable
            dataset.number()
            counts = [max(ids) + 1 for ids in dataset.ids]
            listing: object = [dataset.images, dataset.captions]
        else:
            stages = loader.pipeline[0].dataset.pipeline
            stages[stages.index(train_data.tarfile_to_samples_nothrow)] = IndexedShards(sizes)
            (to_tuple,) = (s for s in stages if getattr(s, "args", None) == ("image", "text"))
            to_tuple.args += (INDEX,)
            counts = [sum(sizes.values())]
            listing = [[os.path.basename(url), size] for url, size in sizes.items()]
        self.data = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        self.loss = self.build(counts, args)
        data["train"].dataloader = IndexedLoader(loader, self.loss)
        return data

    def list_shards(self, args: Any) -> dict[str, int]:
        """Return the samples of each shard, counted on rank 0, and tell open_clip how many there are."""
        urls, _ = train_data.expand_urls(args.train_data)
        sizes = {url: count_samples(url) for url in urls} if is_master(args) else {}
        sizes = broadcast_object(args, sizes) if args.distributed else sizes
        args.train_num_samples = args.train_num_samples or sum(sizes.values())
        return dict(sizes)

    def build(self, counts: list[int], args: Any) -> OpenClipLoss:
        """Return the loss for so many images, and so many texts where they are counted apart, as it was saved."""
        o = self.options
        loss_fn = TwoTowerGlobalContrastiveLoss(
            counts[0], temperature=o.sogclr_temperature, gamma=o.sogclr_gamma, num_texts=counts[-1]
        )
        if self.saved is not None:
            if self.saved["data"] != self.data:
                raise BadInput(
                    f"{args.resume} was trained on other data than {args.train_data}; give the same, in order"
                )
            loss_fn.load_state_dict(self.saved["loss"])
        elif args.resume:
            logging.warning(f"{args.resume} was saved without sogclr: its normalizers begin anew")
        return OpenClipLoss(loss_fn, args.accum_freq).to(args.device)

    def train_one_epoch(
        self, model: Any, data: Any, loss: Any, epoch: int, optimizer: Any, *rest: Any, **named: Any
    ) -> None:
        """Train for an epoch, after which the optimizer's state holds the loss's."""
        with torch.no_grad():
            unwrap_model(model).logit_scale.fill_(-torch.tensor(self.options.sogclr_temperature).log())
        train_one_epoch(model, data, loss, epoch, optimizer, *rest, **named)
        self.hook = self.hook or optimizer.register_state_dict_post_hook(self.add_state)

    def add_state(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state with the loss's."""
        return state | {STATE: {"loss": self.loss.loss_fn.state_dict(), "data": self.data}}


# -------------------------------------------------------------------------------------------------------------- command
def main(argv: Sequence[str] | None = None) -> None:
    """Train as `open_clip_train.main` does, with the global loss.

    Args:
        argv: the command line's words; those of the process when left out.

    Raises:
        BadInput: an option asks for what does not go with this loss.
    """
    parser = argparse.ArgumentParser(prog="sogclr.integrations.open_clip", add_help=False, allow_abbrev=False)
    parser.add_argument("--sogclr-temperature", type=float, default=0.07)
    parser.add_argument("--sogclr-gamma", type=float, default=0.9)
    options, words = parser.parse_known_args(argv)
    args = parse_args(words)
    refused = {
        "--distill-model": args.distill_model,
        "--siglip": args.siglip,
        "--horovod": args.horovod,
        "--dataset-type synthetic": args.dataset_type == "synthetic",
        f"--model {args.model}": "coca" in args.model.lower(),
    }
    for name, given in refused.items():
        if given:
            raise BadInput(
                f"{name} does not go with the global contrastive loss; leave it out, or train by open_clip_train"
            )
    training = Training(options)
    train_main.pt_load = training.pt_load
    train_main.get_data = training.get_data
    train_main.create_loss = lambda args: training.loss
    train_main.train_one_epoch = training.train_one_epoch
    train_main.main(words)


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"error: {error}")
