"""open_clip's own training command with the global loss: its tables and shards, its checkpoints, two processes."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from digits import environment
from PIL import Image

import sogclr
from sogclr.errors import BadInput

pytest.importorskip("open_clip_train.main")

from open_clip_train import main as train_main
from open_clip_train.params import parse_args

from sogclr.integrations import open_clip

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # webdataset leaves its shards to the collector
]
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
N, CAPTIONS, PER_SHARD = 32, 12, 16
OPEN_CLIPS = {name: getattr(train_main, name) for name in ("pt_load", "get_data", "create_loss", "train_one_epoch")}


@pytest.fixture(autouse=True)
def _mains_own_functions(monkeypatch):
    """What the launcher puts into open_clip's `main` is taken out again."""
    for name, function in OPEN_CLIPS.items():
        monkeypatch.setattr(train_main, name, function)
    monkeypatch.setattr(train_main, "setup_logging", lambda *args: None)  # it would outlive the test


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A table of 33 rows, one image twice, and two shards: 32 images of one value each, 12 captions."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["filepath\ttitle"]
    for shard in range(N // PER_SHARD):
        with tarfile.open(folder / f"s{shard}.tar", "w") as tar:
            for i in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                bytes_, caption = io.BytesIO(), f"caption {i % CAPTIONS}"
                Image.fromarray(np.full((16, 16, 3), i, dtype=np.uint8)).save(bytes_, "png")
                (folder / f"{i}.png").write_bytes(bytes_.getvalue())
                rows.append(f"{folder}/{i}.png\t{caption}")
                for name, value in ((f"{i:04d}.png", bytes_.getvalue()), (f"{i:04d}.txt", caption.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))
    (folder / "pairs.csv").write_text("\n".join([*rows, f"{folder}/7.png\tcaption 11"]) + "\n")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    return folder


def command(data, name, *more):
    """The words of a training of four steps an epoch."""
    small = {"device": "cpu", "batch-size": 8, "workers": 0, "warmup": 0, "epochs": 1, "log-every-n-steps": 100}
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    return [*words, "--model", f"local-dir:{data}", "--train-data", str(data / name), *map(str, more)]


def checkpoint(logs, name, epoch):
    return torch.load(logs / name / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True)


SHARDS = f"s{{0..{N // PER_SHARD - 1}}}.tar"


@pytest.mark.parametrize(("source", "texts"), [("pairs.csv", CAPTIONS), (SHARDS, N)])
def test_a_training_is_resumed_with_its_normalizers(source, texts, data, tmp_path):
    words = command(data, source, "--logs", tmp_path, "--name", "run", "--save-most-recent")
    open_clip.main([*words, "--sogclr-gamma", "0.7"])
    saved = checkpoint(tmp_path, "run", 1)
    loss = saved["optimizer"]["sogclr"]["loss"]
    assert loss["image_estimator.log_u"].shape == (N,)
    assert loss["text_estimator.log_u"].shape == (texts,)
    assert torch.isfinite(loss["image_estimator.log_u"]).sum() >= N - 8  # of a table of 33 the last batch is left out
    assert float(saved["state_dict"]["logit_scale"]) == pytest.approx(-np.log(0.07), rel=1e-5)
    open_clip.main([*words, "--epochs", "2", "--resume", "latest"])
    again = checkpoint(tmp_path, "run", 2)["optimizer"]["sogclr"]["loss"]
    assert (int(loss["image_estimator.step"]), int(again["image_estimator.step"])) == (4, 8)
    assert not torch.equal(again["image_estimator.log_u"], loss["image_estimator.log_u"])


def test_what_is_loaded_is_what_was_saved(data, tmp_path):
    """An epoch of no steps: the state that is written is the one that was read, and other data are refused."""
    words = command(data, SHARDS, "--logs", tmp_path)
    open_clip.main([*words, "--name", "first"])
    first = tmp_path / "first" / "checkpoints" / "epoch_1.pt"
    training = open_clip.Training(open_clip.argparse.Namespace(sogclr_temperature=0.07, sogclr_gamma=0.9))
    training.pt_load(str(first))
    args = parse_args([*words, "--resume", str(first)])
    args.distributed, args.world_size, args.rank, args.local_rank = False, 1, 0, 0
    training.get_data(args, (pixels, pixels), tokenizer=tokens)
    state = checkpoint(tmp_path, "first", 1)["optimizer"]["sogclr"]["loss"]
    assert all(torch.equal(value, state[name]) for name, value in training.loss.loss_fn.state_dict().items())
    with pytest.raises(BadInput, match=r"epoch_1.pt was trained on other data than .*s0.tar"):
        open_clip.main([*command(data, "s0.tar"), "--logs", str(tmp_path), "--name", "b", "--resume", str(first)])


def test_open_clip_and_the_launcher_read_each_others_checkpoints(data, tmp_path, caplog, monkeypatch):
    words = command(data, "pairs.csv", "--logs", tmp_path)
    train_main.main([*words, "--name", "clip"])
    clip = tmp_path / "clip" / "checkpoints" / "epoch_1.pt"
    open_clip.main([*words, "--name", "ours", "--resume", str(clip), "--epochs", "2"])
    assert "was saved without sogclr: its normalizers begin anew" in caplog.text
    resumed = ["--name", "back", "--resume", str(tmp_path / "ours" / "checkpoints" / "epoch_2.pt"), "--epochs", "3"]
    assert "sogclr" in checkpoint(tmp_path, "ours", 2)["optimizer"]
    for name, function in OPEN_CLIPS.items():
        monkeypatch.setattr(train_main, name, function)
    train_main.main([*words, *resumed])
    assert "sogclr" not in checkpoint(tmp_path, "back", 3)["optimizer"]


def pixels(image):
    return torch.from_numpy(np.array(image)[:, :, 0].astype(np.int64))


def tokens(text):
    return torch.tensor([[int((text if isinstance(text, str) else text[0]).split()[1])]])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("more", [[], ["--dataset-resampled"]], ids=["", "resampled"])
@pytest.mark.parametrize("source", ["pairs.csv", SHARDS])
def test_ids_are_those_of_the_samples(source, more, workers, data):
    """An image is of one value, which is its id; over two epochs, shuffled."""
    training = open_clip.Training(open_clip.argparse.Namespace(sogclr_temperature=0.07, sogclr_gamma=0.9))
    args = parse_args([*command(data, source, *more), "--workers", str(workers)])
    args.distributed, args.world_size, args.rank, args.local_rank = False, 1, 0, 0
    info = training.get_data(args, (pixels, pixels), tokenizer=tokens)["train"]
    seen = set()
    for epoch in range(2):
        info.set_epoch(epoch)
        for images, texts in info.dataloader:
            ids = training.loss.ids[-1]
            assert torch.equal(images[:, 0, 0], ids[0])
            if source == "pairs.csv":
                assert torch.equal(texts[:, 0], ids[1])
            seen.update(ids[0].tolist())
    assert len(seen) > N // 2


def test_batches_that_are_put_together_count_as_one():
    """As open_clip does it: all features without gradient but for one batch's, in turn."""
    together, alone = (sogclr.TwoTowerGlobalContrastiveLoss(40, gamma=0.5) for _ in range(2))
    loss = open_clip.OpenClipLoss(together, accum_freq=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        ids = torch.randperm(40, generator=generator)[:16]
        image, text = torch.randn(2, 16, 8, generator=generator, requires_grad=True)
        expected = torch.autograd.grad(alone(image, text, ids), [image, text])
        loss.ids.extend([[part] for part in ids.split(8)])
        found = [torch.zeros(16, 8), torch.zeros(16, 8)]
        for rows in (slice(0, 8), slice(8, 16)):
            mixed = [z.detach().clone() for z in (image, text)]
            own = [z.detach()[rows].requires_grad_() for z in (image, text)]
            for all_rows, part in zip(mixed, own, strict=True):
                all_rows[rows] = part
            value = loss(*mixed, torch.tensor(14.0), output_dict=True)["contrastive_loss"]
            for sum_, gradient in zip(found, torch.autograd.grad(value, own), strict=True):
                sum_[rows] = gradient
        torch.testing.assert_close(found, list(expected))
        for name, value in together.state_dict().items():
            assert torch.equal(value, alone.state_dict()[name]), name


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from sogclr.integrations import open_clip
# open_clip gives a device id, which is refused on the CPU
ddp = torch.nn.parallel.DistributedDataParallel
torch.nn.parallel.DistributedDataParallel = lambda model, device_ids: ddp(model)
kept = []
build = open_clip.Training.build
open_clip.Training.build = lambda self, *args: kept.append(build(self, *args)) or kept[0]
open_clip.main(sys.argv[1:])
states = [None, None]
dist.all_gather_object(states, kept[0].loss_fn.state_dict())
assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
assert int(states[0]["image_estimator.step"]) == 4
assert int(torch.isfinite(states[0]["image_estimator.log_u"]).sum()) == 32
dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_have_one_state(data, tmp_path):
    (tmp_path / "ranks.py").write_text(TWO_RANKS)
    words = command(data, SHARDS, "--logs", tmp_path, "--name", "run", "--batch-size", 4, "--accum-freq", 1)
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--",  # without it torchrun takes --logs for an option of its own
        str(tmp_path / "ranks.py"),
    ]
    result = subprocess.run([*run, *words], env=environment(), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "sogclr" in checkpoint(tmp_path, "run", 1)["optimizer"]


@pytest.mark.parametrize("words", [["--siglip"], ["--model", "coca_ViT-B-32"], ["--dataset-type", "synthetic"]])
def test_what_does_not_go_with_the_loss_is_refused(words, data, tmp_path):
    with pytest.raises(BadInput, match="does not go with the global contrastive loss"):
        open_clip.main([*command(data, "pairs.csv", "--logs", tmp_path / "logs"), *words])
    assert not os.path.exists(tmp_path / "logs")
