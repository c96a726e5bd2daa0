"""Weights to start from: timm's names of them from the hub's cache, files, and how their inputs are made."""

import pytest
import torch
from digits import SMALL, sogclr_here, words
from safetensors.torch import save_file

import sogclr as package
from sogclr.config.objective import OptimConfig
from sogclr.errors import BadInput
from sogclr.models.backbone import create_backbone, freeze, timm
from sogclr.models.encoder import EncoderInfo, load_encoder, save_encoder
from sogclr.models.pretrained import describe_weights, resolve_pretrained, weights_file
from sogclr.models.two_view import ContrastiveModel
from sogclr.training.optim import build_optimizer

NAME, HALF = "test_resnet.r160_in1k", (0.5, 0.5, 0.5)
RUN = {k: v for k, v in SMALL.items() if k not in ("model", "image_size")} | {"max_steps": 2, "precision": "fp32"}


def put_in_cache(folder, name, weights):
    """Write weights as huggingface_hub keeps what it has downloaded."""
    place = folder / f"models--timm--{name}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(weights, place / "snapshots" / ("0" * 40) / "model.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    import huggingface_hub.constants as constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))  # of the processes that a test starts
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def published(hub):
    """Weights of a classifier with 1000 classes, as timm publishes them, in the cache."""
    torch.manual_seed(5)
    weights = timm.create_model("test_resnet").state_dict()
    put_in_cache(hub, NAME, weights)
    return weights


def test_a_name_brings_its_model_and_a_default_tag():
    assert resolve_pretrained(None, "test_resnet") == (NAME, NAME)
    assert resolve_pretrained("test_resnet", NAME) == (NAME, NAME)
    assert resolve_pretrained("resnet18", None) == ("resnet18", None)
    with pytest.raises(BadInput, match=r"weights of test_resnet and --model is resnet18; leave --model out"):
        resolve_pretrained("resnet18", NAME)
    with pytest.raises(BadInput, match=r"no weights named 'test_resnet.none'; timm has test_resnet.r160_in1k"):
        resolve_pretrained(None, "test_resnet.none")
    with pytest.raises(BadInput, match=r"no weights named 'resnet18_small'; it has none of that model: give a file"):
        resolve_pretrained(None, "resnet18_small")


def test_a_tag_says_how_inputs_are_made():
    inputs, size = describe_weights(NAME, NAME)
    crop = {"crop_fraction": 0.95, "interpolation": "bilinear", "squash": False}
    assert (inputs, size) == ({"mean": HALF, "std": HALF} | crop, 160)
    assert describe_weights(NAME, None) == describe_weights("test_resnet", "file.pth") == ({}, None)


def test_a_file_of_ours_says_its_model_and_inputs(digits_data, tmp_path):
    file = tmp_path / "e.safetensors"
    info = EncoderInfo("resnet10_mini", 16, HALF, (0.25, 0.25, 0.25), 0.9, interpolation="bicubic")
    save_encoder(file, create_backbone("resnet10_mini", 16), info)
    with pytest.raises(BadInput, match=r"holds weights of resnet10_mini and --model is resnet18; leave --model out"):
        resolve_pretrained("resnet18", str(file))
    run = package.train(digits_data, tmp_path / "run", pretrained=file, quiet=True, **RUN)
    assert run.config().data.image_size == 16
    assert load_encoder(run).info == info


def test_a_run_starts_from_published_weights_and_keeps_their_inputs(published, digits_data, tmp_path):
    run = package.train(digits_data, tmp_path / "run", pretrained="test_resnet", quiet=True, **RUN)
    config = run.config()
    assert (config.model.model, config.model.pretrained, config.data.image_size) == (NAME, NAME, 160)
    first = torch.load(run.checkpoint_files()[0], weights_only=True)
    assert first["step"] == 0
    kept = {k.removeprefix("backbone."): v for k, v in first["model"].items() if k.startswith("backbone.")}
    assert kept.keys() == published.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(v, published[k]) for k, v in kept.items())
    info = load_encoder(run.path).info
    assert (info.name, info.image_size, info.mean, info.std) == (NAME, 160, HALF, HALF)
    assert (info.crop_fraction, info.interpolation) == (0.95, "bilinear")


def test_a_run_is_resumed_without_the_weights(published, hub, digits_data, tmp_path):
    """Its own configuration reaches neither the network nor the cache: the checkpoint has what became of them."""
    options = RUN | {"image_size": 32, "pretrained": NAME, "quiet": True}
    whole = package.train(digits_data, tmp_path / "whole", **options)
    halted = package.train(digits_data, tmp_path / "halted", **options)
    halted.encoder_file.unlink()
    halted.checkpoint_files()[-1].unlink()
    for file in hub.rglob("*.safetensors"):
        file.unlink()
    package.resume(halted.path, quiet=True)
    ours, theirs = (torch.load(r.checkpoint_files()[-1], weights_only=True)["model"] for r in (halted, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    # but where no checkpoint is left, they are missed
    halted.encoder_file.unlink()
    for file in halted.checkpoint_files():
        file.unlink()
    with pytest.raises(BadInput, match="it is not in the hub's cache"):
        package.resume(halted.path, quiet=True)


def test_without_a_network_the_file_to_bring_is_named(hub, digits_data, tmp_path):
    out = tmp_path / "run"
    result = sogclr_here("train", digits_data, "--out", out, *words(RUN), "--pretrained", NAME, check=2)
    assert "`hf download timm/test_resnet.r160_in1k model.safetensors`, bring the file, and give" in result.stderr
    assert f"--model {NAME} --pretrained FILE" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_a_name_in_a_file_is_not_enough(published, digits_data, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(f'[model]\npretrained = "{NAME}"\n')
    with pytest.raises(BadInput, match=f"names the weights {NAME}.*--pretrained {NAME}"):
        package.train(digits_data, tmp_path / "run", config=file, quiet=True, **RUN)
    args = ["train", digits_data, "--out", tmp_path / "run", *words(RUN | {"image_size": 32}), "--config", file]
    assert "say so yourself" in sogclr_here(*args, check=2).stderr
    assert f"{NAME} (timm's, licence apache-2.0); mean 0.5" in sogclr_here(*args, "--pretrained", NAME, check=0).stderr


def test_a_file_with_the_name_of_its_weights_is_prepared_as_they_are(digits_data, tmp_path):
    torch.manual_seed(5)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    options = RUN | {"model": NAME, "pretrained": tmp_path / "w.safetensors", "image_size": 32}
    run = package.train(digits_data, tmp_path / "run", quiet=True, **options)
    assert load_encoder(run.path).info.mean == HALF
    config = tmp_path / "c.toml"
    config.write_text("[inputs]\nmean = [0.1, 0.2, 0.3]\n")
    run = package.train(digits_data, tmp_path / "other", config=config, quiet=True, **options)
    info = load_encoder(run.path).info
    assert (info.mean, info.std) == ((0.1, 0.2, 0.3), HALF)


def test_positions_of_another_image_size_are_converted(tmp_path):
    torch.manual_seed(5)
    weights = timm.create_model("test_vit").state_dict()  # positions of 160 pixels
    save_file(weights, tmp_path / "w.safetensors")
    backbone = create_backbone("test_vit.r160_in1k", 64, tmp_path / "w.safetensors")
    assert torch.equal(backbone.state_dict()["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])
    assert backbone.pos_embed.shape != weights["pos_embed"].shape
    assert torch.equal(backbone.cls_token, weights["cls_token"])
    assert "state_dict" not in backbone.pretrained_cfg
    weights.pop("blocks.0.attn.qkv.weight")
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(BadInput, match=r"does not hold the weights of test_vit: 1 of \d+ tensors are missing"):
        create_backbone("test_vit", 64, tmp_path / "cut.safetensors")


def test_names_and_files_lead_to_a_file(hub, published, tmp_path):
    assert weights_file(NAME).name == "model.safetensors"
    assert weights_file("some/file.pth").as_posix() == "some/file.pth"
    with pytest.raises(BadInput, match="would be downloaded or read from a folder, which no file may ask for"):
        create_backbone("hf-hub:timm/test_resnet.r160_in1k", 32)


@pytest.mark.parametrize(("name", "drawn_with"), [("test_vit", "adamw"), ("test_resnet", "lars")])
def test_a_pretrained_encoder_is_tuned_gently(name, drawn_with, digits_data, tmp_path, capsys):
    """AdamW at a tenth of the rule's rate, less in each layer below; drawn weights get the rule's."""
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    options = RUN | {"model": name, "image_size": 32}
    drawn = package.train(digits_data, tmp_path / "drawn", **options).config().optim
    assert (drawn.optimizer, drawn.layer_decay) == (drawn_with, 1.0)
    assert drawn.lr == pytest.approx({"adamw": 1e-3 * (8 / 256) ** 0.5, "lars": 3 * 0.075 * 8**0.5}[drawn_with])
    capsys.readouterr()
    tuned = package.train(digits_data, tmp_path / "tuned", pretrained=tmp_path / "w.safetensors", **options)
    found = tuned.config().optim
    assert (found.optimizer, found.layer_decay) == ("adamw", 0.75)
    assert found.lr == pytest.approx(1e-4 * (8 / 256) ** 0.5)
    assert "(0.1 of the rule's: pretrained), times 0.75 a layer down" in " ".join(capsys.readouterr().err.split())
    asked = options | {"optimizer": "lars", "layer_decay": 0.9}
    assert package.train(digits_data, tmp_path / "asked", quiet=True, **asked).config().optim.layer_decay == 0.9
    tuned.encoder_file.unlink()
    tuned.checkpoint_files()[-1].unlink()
    package.resume(tuned.path, quiet=True)
    assert tuned.finished


def changed(run):
    """Which tensors of the backbone differ between a run's first and last checkpoint."""
    first, *_, last = (torch.load(file, weights_only=True)["model"] for file in run.checkpoint_files())
    start = "backbone."
    return {k.removeprefix(start) for k in first if k.startswith(start) and not torch.equal(first[k], last[k])}, last


@pytest.mark.parametrize(
    ("name", "options", "trained"),
    [
        ("test_resnet", {"freeze": True}, ()),
        ("test_resnet", {"train_last": 1}, ("layer4.",)),
        ("test_resnet", {"train_last": 1, "method": "moco", "queue": 16}, ("layer4.",)),
        ("test_vit", {"train_last": 2, "micro_batch": 8}, ("blocks.4.", "blocks.5.", "norm.", "fc_norm.")),
    ],
)
def test_what_is_frozen_stays_as_it_was(name, options, trained, digits_data, tmp_path):
    """Statistics of BatchNorm too; the rest trains, and a run that was halted goes on to the same end."""
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    options = RUN | {"model": name, "image_size": 32, "pretrained": tmp_path / "w.safetensors"} | options
    options |= {"quiet": True, "keep": 9, "save_every": 1, "optimizer": "adamw", "lr": 0.01}
    run = package.train(digits_data, tmp_path / "run", **options)
    moved, last = changed(run)
    assert bool(moved) is bool(trained)
    assert all(key.startswith(trained) for key in moved)
    assert any("head" in key for key in last)
    run.encoder_file.unlink()
    run.checkpoint_files()[-1].unlink()
    package.resume(run.path, quiet=True)
    again = torch.load(run.checkpoint_files()[-1], weights_only=True)["model"]
    assert all(torch.equal(again[k], last[k]) for k in last)


@pytest.mark.parametrize(
    ("options", "stays"), [({}, True), ({"batchnorm": "train"}, False), ({"method": "moco", "queue": 16}, True)]
)
def test_the_statistics_of_pretrained_batchnorm_stay(options, stays, digits_data, tmp_path, capsys):
    """Its scales and shifts train; after a halt too."""
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    options = RUN | {"model": "test_resnet", "image_size": 32, "keep": 9, "save_every": 1, "lr": 0.01} | options
    run = package.train(digits_data, tmp_path / "run", pretrained=tmp_path / "w.safetensors", **options)
    assert ("BatchNorm's statistics stay" in " ".join(capsys.readouterr().err.split())) is stays
    moved, last = changed(run)
    assert {"bn1.weight", "bn1.bias", "conv1.weight"} & moved
    assert not [key for key in moved if "running" in key or "tracked" in key] if stays else "bn1.running_mean" in moved
    run.encoder_file.unlink()
    run.checkpoint_files()[-1].unlink()
    package.resume(run.path, quiet=True)
    again = torch.load(run.checkpoint_files()[-1], weights_only=True)["model"]
    assert all(torch.equal(again[k], last[k]) for k in last)


def test_frozen_parts_are_no_part_of_the_optimizer(tmp_path):
    backbone = create_backbone("test_resnet", 32)
    frozen = freeze(backbone, 2)
    model = ContrastiveModel(backbone, torch.nn.Identity(), frozen).train()
    assert {"bn1", "layer1", "layer2"} <= {*frozen}
    assert not model.backbone.layer2[0].bn1.training
    assert model.backbone.layer3[0].bn1.training
    groups = build_optimizer(model, OptimConfig(optimizer="sgd", lr=0.1, weight_decay=0.0)).param_groups
    trained = {p for group in groups for p in group["params"]}
    assert trained == {p for p in model.parameters() if p.requires_grad}
    assert trained == {*backbone.layer3.parameters(), *backbone.layer4.parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": True}, "--freeze freezes an encoder that knows nothing; give its weights"),
        ({"freeze": True, "train_last": 1}, "--freeze trains nothing of the encoder and --train-last a part"),
        ({"batchnorm": "frozen"}, "--batchnorm frozen freezes an encoder that knows nothing; give its weights"),
        ({"train_last": 5, "pretrained": NAME}, r"--train-last 5 is all that ResNet has \(4 stages"),
    ],
)
def test_what_cannot_be_frozen_is_refused(options, message, published, digits_data, tmp_path):
    with pytest.raises(BadInput, match=message):
        package.train(digits_data, tmp_path / "run", quiet=True, **(RUN | {"image_size": 32} | options))
    assert not (tmp_path / "run").exists()
