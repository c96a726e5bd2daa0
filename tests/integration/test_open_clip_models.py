"""Models of open_clip: loaded, trained from, used, and written back for open_clip alone."""

import json
import re
import subprocess
import sys

import pytest
import torch
from captioned import write_pairs
from clip_models import STARTED, write_tokenizer
from digits import environment
from safetensors.torch import load_file, save_file
from torch.nn import functional

import sogclr
from sogclr import cli
from sogclr.commands.export import export
from sogclr.errors import BadInput
from sogclr.models import torchvision_cpu
from sogclr.models.clip import ClipSetup, load_clip
from sogclr.models.two_tower import build_towers, load_two_tower

open_clip = pytest.importorskip("open_clip")

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NATIVE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SIGLIP = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        **{"context_length": 10, "vocab_size": 400, "width": 32, "heads": 2, "layers": 1, "pool_type": "last"},
        **{"no_causal_mask": True, "proj_bias": True, "hf_tokenizer_name": "its/own"},
        "tokenizer_kwargs": {"clean": "canonicalize"},
    },
}
SAID = [
    "It's  a DOG's life &amp; &lt;b&gt; Ünïcode — “quotes” 12345",
    "日本語 🙂 and <end_of_text> in between",
    "",
    "so long that it does not fit " * 9,
    "I'LL YOU'RE 'S !!!??? x_y_z",
]


@pytest.fixture(scope="module", params=["native", "siglip"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    folder.mkdir()
    about, preprocess = (NATIVE, {}) if request.param == "native" else (SIGLIP, {"resize_mode": "squash"})
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": about, "preprocess_cfg": preprocess}))
    if request.param == "siglip":
        write_tokenizer(folder, "siglip")
    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{folder}")
    torch.save({"state_dict": made.state_dict()}, folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "digits")


def towers_of(start):
    towers = build_towers(("images", "texts"), None, start.text, start.dim, clip=start.setup)
    towers.load_state_dict(start.weights)
    return towers.eval()


def test_tokens_and_rows_are_those_of_the_library(model):
    original = open_clip.create_model(f"local-dir:{model}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{model}")(SAID)
    start, images = load_clip(str(model)), torch.randn(3, 3, 32, 32)
    assert torch.equal(start.text.tokens(SAID, 1), tokens)
    towers = towers_of(start)
    with torch.inference_mode():
        wanted = original.encode_image(images, normalize=True), original.encode_text(tokens, normalize=True)
        for column, inputs in ((0, images), (1, tokens)):
            found = functional.normalize(towers.project(inputs, column), dim=1)
            torch.testing.assert_close(found, wanted[column], rtol=0, atol=1e-5)
    siglip = model.name == "siglip"
    assert (start.inputs.squash, start.bias) == (siglip, -10.0 if siglip else None)


WITHOUT_US = """
import json, runpy, sys, torch
sys.modules["sogclr"] = None
runpy.run_path(sys.argv[1])["import_timm"]()  # for CPU builds of torch, where torchvision does not import by itself
import open_clip
model = open_clip.create_model(sys.argv[2], pretrained=sys.argv[3] or None).eval()
tokens = open_clip.get_tokenizer(sys.argv[2])(json.loads(sys.argv[4]))
size = model.visual.image_size
size = size if isinstance(size, int) else size[0]
images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))
with torch.inference_mode():
    rows = model.encode_image(images, normalize=True).tolist(), model.encode_text(tokens, normalize=True).tolist()
print(json.dumps([*rows, float(model.logit_scale)]))
"""


def assert_alone(run, name, weights):
    """That open_clip, in a process without this package, gives the rows of the run."""
    words = ["-W", "ignore", "-c", WITHOUT_US, torchvision_cpu.__file__, name, weights, json.dumps(SAID)]
    environ = {k: v for k, v in environment().items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    images, texts, scale = json.loads(done.stdout.splitlines()[-1])
    towers = load_two_tower(run)
    size = towers.info.image_size
    given = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(torch.tensor(images), towers.images(given), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(texts), towers.encode_texts(SAID), rtol=0, atol=1e-5)
    assert scale == pytest.approx(-torch.tensor(run.config().loss.temperature).log().item(), rel=1e-5)


def test_a_run_is_used_and_written_back(model, data, tmp_path, monkeypatch):
    run = sogclr.train(data, tmp_path / "run", clip=str(model), quiet=True, **STARTED | {"lr": 1e-3})
    out = export(run.path, "open-clip", tmp_path / "Ann's", quiet=True)
    assert_alone(run, f"local-dir:{out}", "")
    called = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.S)[1]
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(called, found)
    with torch.inference_mode():
        rows = found["model"].eval().encode_text(found["tokenizer"](SAID), normalize=True)
    torch.testing.assert_close(rows, load_two_tower(run).encode_texts(SAID), rtol=0, atol=1e-5)
    assert load_clip(str(out)).inputs == load_clip(str(model)).inputs
    for column in ("image", "caption"):
        for format in ("onnx", "torchscript"):
            assert cli.main(["export", str(run.path), "--format", format, "--column", column]) == 0
    about = json.loads((run.path / "text_tower.json").read_text())
    assert (about["full"], about["clean"]) == (True, "canonicalize" if model.name == "siglip" else "lower")
    run.two_tower_file.unlink()
    run.latest_checkpoint().unlink()
    assert sogclr.resume(run, quiet=True).finished


def test_an_architecture_with_a_file_of_weights(data, tmp_path):
    made = open_clip.create_model("ViT-S-32-alt")
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    what = f"ViT-S-32-alt:{tmp_path / 'weights.pt'}"
    options = STARTED | {"batch_size": 8, "max_steps": 1}
    run = sogclr.train(data, tmp_path / "run", clip=what, quiet=True, **options)
    assert (run.config().model.model, run.config().data.image_size) == ("clip:ViT-S-32-alt", 224)
    out = export(run.path, "open-clip", tmp_path / "out", quiet=True)
    assert_alone(run, "ViT-S-32-alt", str(out / "open_clip_model.safetensors"))
    assert set(load_file(out / "open_clip_model.safetensors")) == set(made.state_dict())


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("ViT-S-32-al:x", "did you mean ViT-S-32-alt"),
        ("ViT-S-32-alt:x", "neither a file nor a tag"),
        ("ViT-B-32:openai", "give ViT-B-32-quickgelu:openai"),
        ("coca_ViT-B-32:laion2b_s13b_b90k", "CoCa"),
        ("xlm-roberta-base-ViT-B-32:laion5b_s13b_b90k", "those of another model"),
    ],
)
def test_what_open_clip_does_not_have_is_refused(what, sentence):
    with pytest.raises(BadInput, match=sentence):
        load_clip(what)


def test_the_code_of_a_tokenizer_is_not_run(tmp_path):
    """Neither where its files name some nor where the model's configuration asks that they may."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_tokenizer(folder, "siglip")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Tok: pass\n")
    table = json.loads((folder / "tokenizer_config.json").read_text())
    table |= {"auto_map": {"AutoTokenizer": [None, "evil.Tok"]}, "tokenizer_class": "Tok"}
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    made = open_clip.CustomTextCLIP(**{k: v for k, v in SIGLIP.items() if k != "custom_text"})
    save_file(made.state_dict(), folder / "open_clip_model.safetensors")
    for options in ({}, {"trust_remote_code": True}):
        about = SIGLIP | {"text_cfg": SIGLIP["text_cfg"] | {"tokenizer_kwargs": options}}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": about, "preprocess_cfg": {}}))
        with pytest.raises(BadInput, match="cuts texts in a way" if options else "could not be loaded"):
            load_clip(str(folder))
        assert not ran.exists()


def test_a_saved_model_is_not_trusted(model, tmp_path):
    load_clip(str(model)).setup.save(tmp_path)
    table = json.loads((tmp_path / "setup.json").read_text())
    for part, change in (
        ("text_cfg", {"hf_model_name": "somebody/else"}),
        ("vision_cfg", {"timm_model_name": "hf-hub:somebody/else"}),
        ("vision_cfg", {"layers": 10**6}),
        ("vision_cfg", {"layers": [3, 4, 10**6, 3]}),
        ("vision_cfg", {"mlp_ratio": 1e6}),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}),
    ):
        about = table["config"]["model_cfg"]
        changed = table | {"config": {"model_cfg": about | {part: about[part] | change}, "name": None}}
        (tmp_path / "setup.json").write_text(json.dumps(changed))
        with pytest.raises(BadInput):
            ClipSetup.load(tmp_path)
