"""CLIP and SigLIP models of Hugging Face: loaded, trained from, used, and written back."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from captioned import PAIRS, write_pairs
from clip_models import SENTENCES, STARTED, write_hugging_face
from digits import environment, write_digits
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

import sogclr
from sogclr import cli
from sogclr.commands.export import export
from sogclr.commands.report.run_summary import RunSummary
from sogclr.config.toml import to_toml
from sogclr.errors import BadInput, RunFailed
from sogclr.models import torchvision_cpu
from sogclr.models.clip import ClipSetup, load_clip, temperature_of
from sogclr.models.two_tower import build_towers, load_two_tower
from sogclr.run_folder import RunFolder, load_checkpoint

transformers = pytest.importorskip("transformers")

SAID = ["the digit seven", "A handwritten  ZERO!", "", "a photo of one and two and three and four " * 5]
KINDS = ["clip", "siglip"]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return write_hugging_face(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_hugging_face(tmp_path_factory.mktemp("models") / "clip", "clip")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def run(clip, data):
    return sogclr.train(data, data.parent.parent / "run", clip=str(clip), quiet=True, **STARTED, save_every=1)


def rows_of(folder, images, texts):
    """By transformers alone: unit rows of normalised images and of texts."""
    original = transformers.AutoModel.from_pretrained(folder).eval()
    siglip = original.config.model_type == "siglip"
    padding = {"padding": "max_length", "max_length": 10} if siglip else {"padding": True, "max_length": 12}
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, truncation=True, return_tensors="pt", **padding)
    mask = {} if siglip else {"attention_mask": tokens["attention_mask"]}
    with torch.inference_mode():
        found = original(input_ids=tokens["input_ids"], pixel_values=images, **mask)
    return functional.normalize(found.image_embeds, dim=1), functional.normalize(found.text_embeds, dim=1)


def towers_of(start):
    towers = build_towers(("images", "texts"), None, start.text, start.dim, clip=start.setup)
    towers.load_state_dict(start.weights)
    return towers.eval()


# -------------------------------------------------------------------------------------------------------------- loading
def test_rows_are_those_of_the_library(model):
    start = load_clip(str(model))
    towers, images = towers_of(start), torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        mine = [
            functional.normalize(towers.project(x, k), dim=1) for k, x in ((0, images), (1, start.text.tokens(SAID, 1)))
        ]
    for found, wanted in zip(mine, rows_of(model, images, SAID), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert float((mine[1][0] - mine[1][1]).norm()) > 0.01  # the texts do matter


def test_old_clips_with_the_wrong_end_token_pool_where_their_library_does(tmp_path):
    old = write_hugging_face(tmp_path / "old", "clip", old_end=True)
    start, images = load_clip(str(old)), torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        found = functional.normalize(towers_of(start).project(start.text.tokens(SAID, 1), 1), dim=1)
    torch.testing.assert_close(found, rows_of(old, images, SAID)[1], rtol=0, atol=1e-5)


def test_padding_stays_on_its_side(tmp_path):
    folder = write_hugging_face(tmp_path / "siglip", "siglip")
    table = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(table | {"padding_side": "left"}))
    text = load_clip(str(folder)).text
    text.save(tmp_path / "text")
    for one in (text, sogclr.models.text.TextSetup.load(tmp_path / "text")):
        tokens = one.tokens(SENTENCES[:3], 1)
        assert (tokens.shape[1], set(tokens[:, 0].tolist())) == (10, {1})


def test_what_the_model_says_of_its_inputs(model):
    start = load_clip(str(model))
    kind = start.setup.config["model_type"]
    assert (start.image_size, start.inputs.interpolation, start.inputs.squash) == (32, "bicubic", kind == "siglip")
    assert start.dim == (24 if kind == "clip" else 32)
    assert start.temperature == pytest.approx(np.exp(-2.6592 if kind == "clip" else -2.5))
    assert start.bias == (None if kind == "clip" else -4.0)
    tokens = start.text.tokens(SENTENCES[:3], 1)
    assert tokens.shape[1] == (10 if kind == "siglip" else tokens.ne(1).sum(dim=1).max() + 1)


def test_files_are_read_as_the_library_reads_them(model, tmp_path):
    start = load_clip(str(model))
    towers, draw = towers_of(start), np.random.default_rng(0)
    info = sogclr.models.encoder.EncoderInfo("clip:x", 32, **vars(start.inputs))
    encoder = sogclr.models.encoder.Encoder(towers.backbone, info).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for size, most in (((32, 32), 1e-5), ((90, 60), 0.05)):  # (exactly, where nothing is resized)
        path = tmp_path / "image.png"
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
        with Image.open(path) as image:
            theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
        assert float((encoder.transform(path) - theirs).abs().mean()) < most, size


def test_what_differs_from_its_library_is_refused(clip, monkeypatch):
    from sogclr.models import clip_hugging_face

    def forget(config, where):
        return {**check(config, where), "vision_config": check(config, where)["vision_config"] | {"hidden_act": "relu"}}

    check = clip_hugging_face.check_config
    monkeypatch.setattr(clip_hugging_face, "check_config", forget)
    with pytest.raises(RunFailed, match=r"embeddings of images by --clip .* differ by"):
        load_clip(str(clip))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "siglip2"}, "variable resolution"),
        ({"model_type": "bert"}, "type 'bert'"),
        ({"text_config": {"vocab_size": 10**9}}, "vocab_size 1000000000"),
        ({"vision_config": {"num_hidden_layers": 5000}}, "num_hidden_layers 5000"),
        ({"vision_config": {"layer_norm_eps": 1e9}}, "layer_norm_eps 1000000000.0"),
    ],
    ids=str,
)
def test_a_folder_of_another_kind_is_refused(change, sentence, clip, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "changed")
    table = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        table[key] = table[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(BadInput, match=sentence):
        load_clip(str(folder))


@pytest.mark.parametrize("change", [{"size": {"shortest_edge": 0}}, {"size": "large"}, {"image_mean": 3}], ids=str)
def test_a_preprocessing_that_is_none_is_refused(change, clip, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "changed")
    (folder / "preprocessor_config.json").write_text(json.dumps(change))
    with pytest.raises(BadInput, match=r"a file of --clip .* is not as hugging-face writes it"):
        load_clip(str(folder))


def test_a_configuration_does_not_bring_code_of_the_hub(clip, tmp_path):
    """transformers would fetch the kernel that is named."""
    folder = shutil.copytree(clip, tmp_path / "changed")
    table = json.loads((folder / "config.json").read_text())
    table["attn_implementation"] = table["text_config"]["attn_implementation"] = "nobody/kernel"
    (folder / "config.json").write_text(json.dumps(table))
    changed, plain = (load_clip(str(one)).weights for one in (folder, clip))
    assert all(torch.equal(value, plain[key]) for key, value in changed.items())


def test_weights_that_are_not_all_there_are_refused(clip, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "less")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="lack 1 tensors, first: visual_projection"):
        load_clip(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"with model\.safetensors"):
        load_clip(str(folder))


def test_what_is_no_model_is_refused(data, tmp_path):
    with pytest.raises(BadInput, match="is no folder of a CLIP or SigLIP model"):
        load_clip(str(tmp_path))
    with pytest.raises(BadInput, match="is no folder of a CLIP or SigLIP model"):
        load_clip("nowhere")


def test_a_saved_model_is_not_trusted(clip, tmp_path):
    setup = load_clip(str(clip)).setup
    setup.save(tmp_path)
    assert ClipSetup.load(tmp_path) == setup
    table = json.loads((tmp_path / "setup.json").read_text())
    table["config"]["text_config"]["auto_map"] = {"AutoModel": "evil.py"}
    (tmp_path / "setup.json").write_text(json.dumps(table))
    assert "auto_map" not in ClipSetup.load(tmp_path).config["text_config"]
    for change in ({"library": "os"}, {"config": None}, {"files": 3}, {"files": ["../secret"]}):
        (tmp_path / "setup.json").write_text(json.dumps(table | change))
        with pytest.raises(BadInput, match=r"does not hold the model of a run|no text_config"):
            ClipSetup.load(tmp_path)
    table["config"]["text_config"]["hidden_act"] = "nonsense"
    (tmp_path / "setup.json").write_text(json.dumps(table))
    with pytest.raises(BadInput, match="hugging-face cannot build the model clip"):
        ClipSetup.load(tmp_path).build()


# -------------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "resnet18"}, "--model does not go with --clip"),
        ({"text_model": "x"}, "--text-model does not go with --clip"),
        ({"head_dim": 64}, "--head-dim does not go with --clip"),
        ({"image_size": 64}, "the model of --clip takes 32 pixels"),
        ({"layer_decay": 0.75}, "--layer-decay 0.75 is for timm's encoders .* towers of hugging-face; leave it out"),
        ({"bias": -1.0}, "--bias -1.0 does not go with --method sogclr"),
    ],
    ids=str,
)
def test_options_that_the_model_answers_are_refused(options, sentence, clip, data, tmp_path):
    with pytest.raises(BadInput, match=sentence):
        sogclr.train(data, tmp_path / "run", clip=str(clip), quiet=True, **options)
    assert not (tmp_path / "run").exists()


def test_something_has_to_train(data, tmp_path):
    model = write_hugging_face(tmp_path / "siglip", "siglip")
    frozen = {"image_rate": 0.0, "text_rate": 0.0}
    with pytest.raises(BadInput, match=r"leave nothing of .* to train"):
        sogclr.train(data, tmp_path / "run", clip=str(model), quiet=True, **frozen)


def test_it_is_for_images_with_texts(clip, data, tmp_path):
    with pytest.raises(BadInput, match=r"--clip is for pairs of images and texts and .* holds images alone"):
        sogclr.train(data.parent, tmp_path / "run", clip=str(clip), quiet=True)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "ViT-B-32:weights.pt"])
def test_a_name_in_a_configuration_file_has_to_be_said(name, data, tmp_path):
    (tmp_path / "c.toml").write_text(f'[model]\nclip = "{name}"\n')
    with pytest.raises(BadInput, match=f"say so yourself: --clip {name}"):
        sogclr.train(data, tmp_path / "run", config=tmp_path / "c.toml", quiet=True)


def test_the_models_answers_are_in_the_configuration(run, clip):
    config = run.config()
    assert (config.model.model, config.model.clip, config.model.head_dim) == ("clip:clip", str(clip), 24)
    assert config.loss.temperature == pytest.approx(np.exp(-2.6592), rel=1e-4)
    assert (config.optim.optimizer, config.optim.lr) == ("adamw", pytest.approx(1e-5 * (32 / 256) ** 0.5))
    assert config.inputs["interpolation"] == "bicubic"
    with pytest.raises(BadInput, match=r"its encoder is sogclr\.load_two_tower\(.*\)\.images"):
        sogclr.load_encoder(run)


def test_a_runs_own_configuration_trains_again(run, data, tmp_path, capfd):
    again = sogclr.train(data, tmp_path / "again", config=run.config_file)
    assert "(0.01 of the rule's: a CLIP model)" in " ".join(capfd.readouterr().err.split())
    ours, theirs = load_file(again.two_tower_file), load_file(run.two_tower_file)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_siglips_scale_and_bias_go_on(data, tmp_path):
    model = write_hugging_face(tmp_path / "siglip", "siglip")
    run = sogclr.train(
        data, tmp_path / "run", clip=str(model), method="siglip", quiet=True, **STARTED, save_every=1, keep=9
    )
    first = load_checkpoint(run.checkpoint_files()[0])["loss"]
    assert (float(first["log_scale"]), float(first["bias"])) == (pytest.approx(2.5), -4.0)
    out = export(run.path, "hugging-face", tmp_path / "out", quiet=True)
    weights, last = load_file(out / "model.safetensors"), load_checkpoint(run.latest_checkpoint())["loss"]
    ends = {"logit_scale": (2.5, float(last["log_scale"])), "logit_bias": (-4.0, float(last["bias"]))}
    half = load_file(export(run.path, "hugging-face", tmp_path / "half", mix=0.5, quiet=True) / "model.safetensors")
    for name, (start, end) in ends.items():
        assert start != end
        assert float(weights[name]) == pytest.approx(end)
        assert float(half[name]) == pytest.approx((start + end) / 2)
    assert temperature_of(run, None, 0.0) == (pytest.approx(np.exp(-2.5)), -4.0)


def test_siglips_bias_stays_where_another_loss_trains(data, tmp_path):
    model = write_hugging_face(tmp_path / "siglip", "siglip")
    run = sogclr.train(data, tmp_path / "run", clip=str(model), quiet=True, **STARTED)
    weights = load_file(export(run.path, "hugging-face", tmp_path / "out", quiet=True) / "model.safetensors")
    assert float(weights["logit_bias"]) == -4.0
    assert load_clip(str(run.path)).bias == -4.0


# ------------------------------------------------------------------------------------------------------- the run's life
def test_it_resumes_bit_for_bit_without_the_model_it_came_from(data, tmp_path):
    model = write_hugging_face(tmp_path / "model", "clip")
    whole = sogclr.train(data, tmp_path / "whole", clip=str(model), quiet=True, **STARTED, save_every=1, keep=9)
    shutil.rmtree(model)
    part = RunFolder(shutil.copytree(whole.path, tmp_path / "part"))
    assert not part.encoder_file.exists()
    part.two_tower_file.unlink()
    part.latest_checkpoint().unlink()
    assert sogclr.resume(part, quiet=True).finished
    ours, theirs = load_file(part.two_tower_file), load_file(whole.two_tower_file)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert load_two_tower(part).encode_texts(SAID).shape == (4, 24)


def test_frozen_towers_keep_their_weights(clip, data, tmp_path):
    start = load_clip(str(clip))
    options = STARTED | {"image_rate": 0.0, "lr": 1e-2}
    run = sogclr.train(data, tmp_path / "run", clip=str(clip), quiet=True, **options)
    for key, value in load_file(run.two_tower_file).items():
        assert torch.equal(value, start.weights[key]) == key.startswith("backbone."), key


def test_a_run_goes_on_with_its_own_tokenizer_and_weights(run, data, tmp_path):
    """A run that started from a model, and one with towers of our own."""
    plain = sogclr.train(data, tmp_path / "plain", quiet=True, **PAIRS | {"epochs": 1, "text_length": 16})
    for one in (run, plain):
        options = STARTED | {"lr": 1e-12}
        again = sogclr.train(data, tmp_path / f"{one.path.name}-on", clip=str(one.path), quiet=True, **options)
        assert (again.text_folder / "tokenizer.json").read_text() == (one.text_folder / "tokenizer.json").read_text()
        assert again.clip_folder.is_dir() == one.clip_folder.is_dir()
        mine, theirs = load_two_tower(again), load_two_tower(one)
        torch.testing.assert_close(mine.encode_texts(SAID), theirs.encode_texts(SAID), rtol=0, atol=1e-4)
        assert mine.info == theirs.info
        assert again.encoder_file.is_file() == one.encoder_file.is_file()
    with pytest.raises(BadInput, match="start from it with --clip"):
        sogclr.train(data, tmp_path / "wrong", init_from=str(run.path), quiet=True, **STARTED)


def test_what_a_failed_start_has_left_is_not_the_next_runs(run, data, tmp_path):
    left = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    for path in (left.config_file, left.two_tower_file):  # the first is written last
        path.unlink()
    plain = sogclr.train(data, left.path, quiet=True, **PAIRS | {"epochs": 1})
    assert plain.encoder_file.is_file()
    assert not plain.start_file.exists()
    assert not plain.clip_folder.exists()
    assert [row["epoch"] > 0 for row in plain.metrics() if row["kind"] == "eval"] == [True]
    assert load_two_tower(plain).clip is None


# -------------------------------------------------------------------------------------------------------------- exports
WITHOUT_US = """
import json, runpy, sys, torch
sys.modules["sogclr"] = None
runpy.run_path(sys.argv.pop(1))["import_timm"]()  # for CPU builds of torch, where torchvision does not import by itself
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]).eval(), AutoTokenizer.from_pretrained(sys.argv[1])
siglip = model.config.model_type == "siglip"
tokens = tokenizer(json.loads(sys.argv[2]), padding="max_length" if siglip else True, truncation=True,
                   max_length=10 if siglip else 12, return_tensors="pt")
if siglip: tokens.pop("attention_mask", None)
images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
with torch.inference_mode():
    found = model(**{k: v for k, v in tokens.items() if k != "token_type_ids"}, pixel_values=images)
rows = [functional.normalize(rows, dim=1).tolist() for rows in (found.image_embeds, found.text_embeds)]
print(json.dumps([*rows, float(model.logit_scale)]))
"""


@pytest.mark.slow
@pytest.mark.integration
def test_the_exported_folder_gives_the_same_without_this_package(model, data, tmp_path):
    run = sogclr.train(data, tmp_path / "run", clip=str(model), quiet=True, **STARTED | {"lr": 1e-3})
    out = export(run.path, "hugging-face", tmp_path / "out", quiet=True)
    words = ["-W", "ignore", "-c", WITHOUT_US, torchvision_cpu.__file__, str(out), json.dumps(SAID)]
    environ = {k: v for k, v in environment().items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    *rows, scale = json.loads(done.stdout.splitlines()[-1])
    towers, images = load_two_tower(run), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(torch.tensor(rows[0]), towers.images(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(rows[1]), towers.encode_texts(SAID), rtol=0, atol=1e-5)
    assert scale == pytest.approx(-np.log(run.config().loss.temperature))
    assert load_clip(str(out)).inputs == load_clip(str(model)).inputs
    assert "hugging-face" not in (out / "README.md").read_text()
    with pytest.raises(BadInput, match="there and not empty"):
        export(run.path, "hugging-face", out, quiet=True)


def test_a_finished_run_says_how_to_go_on_from_it(run, capfd):
    assert cli.main(["resume", str(run.path)]) == 0
    assert f"start from it with --clip {run.path}" in capfd.readouterr().err


def test_a_runs_own_configuration_trains_it_again(run, tmp_path):
    again = sogclr.train(out=tmp_path / "again", config=run.config_file, quiet=True)
    first, second = (load_file(r.two_tower_file) for r in (run, again))
    assert all(torch.equal(first[k], second[k]) for k in first)
    table = {k: dict(v) for k, v in run.config_table().items()}
    table["model"]["clip"] = "openai/clip-vit-base-patch32"  # a name has to be said, so the page says it
    again.config_file.write_text(to_toml(table))
    assert " --clip openai/clip-vit-base-patch32 --out " in dict(RunSummary.read(again).commands())["train again"]


def test_a_mix_is_exported_as_the_last_line_of_training_says(run, capfd):
    out = run.path / "hugging-face-mix0.5"
    assert cli.main(["export", str(run.path), "--mix", "0.5"]) == 0
    assert f"AutoModel.from_pretrained('{out}')" in capfd.readouterr().err  # a bare name would be looked up on the hub
    assert "AutoModel.from_pretrained('hugging-face-mix0.5')" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("format", "column", "sentence"),
    [
        ("timm", None, "give hugging-face, torchscript or onnx"),
        ("sentence-transformers", None, "give hugging-face, torchscript or onnx"),
        ("open-clip", None, "are those of a model of hugging-face"),
        ("hugging-face", "caption", "leave --column out"),
        (None, "caption", "or give --format torchscript or onnx"),
    ],
)
def test_other_formats_are_refused(format, column, sentence, run, tmp_path):
    with pytest.raises(BadInput, match=sentence):
        export(run.path, format, tmp_path / "out", column=column)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of the tracers
def test_every_command_knows_the_towers(model, data, tmp_path, capsys):
    """The command line alone: train, resume, eval, embed, search, report, inspect, and both towers as ONNX."""
    run, short = tmp_path / "run", [word for k, v in STARTED.items() for word in (f"--{k.replace('_', '-')}", str(v))]

    def call(*words):
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    call("train", data, "--out", run, "--clip", model, *short)
    call("resume", run)
    scores = json.loads(call("eval", run, data, "--baselines", "--json", "--device", "cpu"))
    assert {"image_to_text_r1", "text_to_image_r1"} <= set(scores)
    folder = json.loads(call("eval", run, data.parent, "--baselines", "--json", "--device", "cpu"))
    assert "zero_shot_top1" in folder
    call("embed", run, data.parent, "--out", tmp_path / "images.parquet", "--device", "cpu")
    call("embed", run, data, "--as", "caption", "--out", tmp_path / "texts.parquet", "--device", "cpu")
    assert ".png" in call("search", run, "the digit seven", "--in", tmp_path / "images.parquet")
    call("report", run)
    assert "clip:" in call("inspect", run)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for column in ("image", "caption"):
        call("export", run, "--format", "onnx", "--column", column)
        call("export", run, "--format", "torchscript", "--column", column)


def test_a_classifier_of_its_images_needs_nothing_else(run, tmp_path):
    copy, photos = tmp_path / "run", write_digits(tmp_path / "photos", 6, digits=3)
    shutil.copytree(run.path, copy)
    sogclr.classify(copy, photos, tmp_path / "clf", folds=2, quiet=True, device="cpu", workers=0)
    shutil.rmtree(copy)
    classifier = sogclr.load_classifier(tmp_path / "clf")
    files = sorted(photos.rglob("*.png"))
    shown = [p.label for p in classifier.predict_files(files)]
    found = sogclr.predict(tmp_path / "clf", photos, tmp_path / "p.csv", quiet=True, device="cpu", workers=0)
    assert found.images == len(files)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == shown
    assert sum(label == path.parent.name for label, path in zip(shown, files, strict=True)) > len(files) / 2
