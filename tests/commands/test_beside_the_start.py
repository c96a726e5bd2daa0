"""A run beside its start, in `eval`, `export` and `report`; mixes of both."""

import json
import re
import shutil

import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL
from safetensors.torch import load_file

import sogclr
from sogclr.cli import main
from sogclr.commands.evaluate import evaluate
from sogclr.commands.export import export
from sogclr.commands.export_formats import run_torchscript
from sogclr.commands.report import report
from sogclr.errors import BadInput

QUIET = {"device": "cpu", "workers": 0, "quiet": True}


@pytest.fixture(scope="module")
def tuned(digits_data, digits_run, tmp_path_factory):
    """A run that began from `digits_run`; not to be written to."""
    options = SMALL | {"epochs": 2, "optimizer": "adamw", "lr": 3e-3, "precision": "fp32", "quiet": True}
    out = tmp_path_factory.mktemp("runs") / "tuned"
    return sogclr.train(digits_data, out, init_from=digits_run, validation=digits_data / "test", **options).path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A table and a run on it that began from another; not to be written to."""
    root = tmp_path_factory.mktemp("pairs")
    data, options = write_pairs(root / "data"), PAIRS | {"epochs": 2, "batch_size": 16, "quiet": True}
    first = sogclr.train(data, root / "first", **options)
    return data, sogclr.train(data, root / "run", init_from=first, **(options | {"lr": 3e-3})).path


@pytest.fixture
def copied(tuned, tmp_path):
    return shutil.copytree(tuned, tmp_path / "run")


# ----------------------------------------------------------------------------------------------------------------- eval
def test_eval_has_the_start_beside_the_run(copied, digits_run, digits_data, capsys):
    words = ["eval", str(copied), str(digits_data), "--mix", "0.5", "1", "--workers", "0"]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    before = evaluate(digits_run, digits_data, **QUIET)
    found = json.loads((copied / "eval.json").read_text())
    assert list(found["baselines"]) == ["start", "mix_0.5", "mix_1"]
    assert found["baselines"]["start"] == dict(before)
    assert found["baselines"]["mix_1"] == {k: found[k] for k in before}
    assert found["worth"] in said
    assert re.search(r"kNN \d+\.\d -> \d+\.\d \([+-]\d+\.\d points", found["worth"])
    assert before.worth is None
    assert before.baselines is None
    assert list(evaluate(copied, digits_data, baselines=True, **QUIET).baselines) == [
        "start",
        "raw_pixels",
        "untrained",
    ]


def test_eval_of_pairs_and_of_images_alone(pairs):
    data, run = pairs
    found = evaluate(run, data, mix=(0.25,), **QUIET)
    assert list(found.baselines) == ["start", "mix_0.25", "chance"]
    assert found.baselines["start"].keys() == found.scores.keys()
    assert "image to text, R@1" in found.worth
    assert "zero-shot" in found.worth
    on_images = evaluate(run, data.parent, **QUIET)
    assert on_images.baselines["start"].keys() == on_images.scores.keys()
    assert "zero_shot_top1" in on_images.baselines["start"]


def test_without_labels_the_start_is_shown_and_nothing_is_claimed(tuned, digits_data):
    found = evaluate(tuned, digits_data, labels="none", **QUIET)
    assert found.baselines["start"].keys() == {"rankme", "alignment", "uniformity"}
    assert found.worth is None


# --------------------------------------------------------------------------------------------------------------- export
def test_a_mix_lies_between_start_and_end(copied, digits_run):
    path = export(copied, mix=0.25, quiet=True)
    assert path == copied / "encoder-mix0.25.safetensors"
    start, end = load_file(digits_run / "encoder.safetensors"), load_file(copied / "encoder.safetensors")
    for key, value in load_file(path).items():
        if value.is_floating_point():  # running statistics too
            expected = 0.75 * start[key].double() + 0.25 * end[key].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, start[key])
    assert "running_mean" in " ".join(start)
    assert sogclr.load_encoder(path).fingerprint() == sogclr.load_encoder(copied, mix=0.25).fingerprint()
    for share, weights in ((0, start), (1, end)):
        mixed = sogclr.load_encoder(copied, mix=share).backbone.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in mixed.items())


def test_the_card_says_that_it_is_a_mix_and_has_its_scores(copied, digits_data):
    found = evaluate(copied, digits_data, mix=(0.5,), **QUIET)
    found.save()
    export(copied, "torchscript", mix=0.5, quiet=True)
    card = (copied / "README.md").read_text()
    assert "(1 − a) start + a end with a = 0.5" in card
    assert f"| knn_top1 | {found.baselines['mix_0.5']['knn_top1']:.4g} |" in card
    assert str(digits_data) not in card
    export(copied, mix=0.75, quiet=True)  # was not scored
    assert "## Scores" not in (copied / "README.md").read_text()
    export(copied, quiet=True)
    card = (copied / "README.md").read_text()
    assert found.worth in card
    assert "a mix" not in card


def test_towers_are_mixed_in_every_format(pairs, tmp_path):
    _, run = pairs
    run = shutil.copytree(run, tmp_path / "run")
    text = export(run, "torchscript", column="caption", mix=0.5, quiet=True)
    assert text.name == "text_tower-mix0.5.pt"
    image = export(run, "torchscript", mix=0.5, quiet=True)
    assert image.name == "image_tower-mix0.5.pt"
    towers, images = sogclr.load_two_tower(run, mix=0.5), torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        found = run_torchscript(image, images)
        torch.testing.assert_close(found, towers.images(images), rtol=1e-4, atol=1e-5)
        end = sogclr.load_two_tower(run).images(images)
    assert not torch.allclose(found, end, atol=1e-4)
    backbone = export(run, "timm", mix=0.5, quiet=True)
    mixed = sogclr.load_encoder(backbone).backbone.state_dict()
    assert all(torch.equal(v, mixed[k]) for k, v in towers.model.backbone.state_dict().items())


def test_what_cannot_be_mixed_is_one_sentence_and_nothing_is_written(copied, digits_run, pairs, tmp_path):
    file = export(copied, out=tmp_path / "e.safetensors", quiet=True)
    before = sorted(p.name for p in copied.iterdir())
    for run, options, message in [
        (
            digits_run,
            {"mix": 0.5},
            r"kept no start to mix with \(start.safetensors\); only runs that begin from weights",
        ),
        (file, {"mix": 0.5}, "kept no start to mix with"),
        (tmp_path / "nowhere", {"mix": 0.5}, "there is no run or encoder file"),
        (copied, {"mix": 1.5}, r"--mix must be from 0 \(the start\) to 1 \(the end\) and was 1.5"),
        (copied, {"mix": -0.1}, "was -0.1"),
        (copied, {"mix": float("nan")}, "was nan"),
        (copied, {"mix": 0.5, "out": copied / "start.safetensors"}, "holds the run's own weights"),
        (copied, {"mix": 0.5, "out": copied / "encoder.safetensors"}, "holds the run's own weights"),
    ]:
        with pytest.raises(BadInput, match=message):
            export(run, quiet=True, **options)
    assert sorted(p.name for p in copied.iterdir()) == before
    for run in (digits_run, file):
        with pytest.raises(BadInput, match="kept no start"):
            evaluate(run, tmp_path, mix=(0.5,), **QUIET)
    shutil.copy(pairs[1] / "start.safetensors", copied)
    with pytest.raises(BadInput, match=r"start.safetensors holds another model than encoder.safetensors"):
        sogclr.load_encoder(copied, mix=0.5)
    (copied / "start.safetensors").write_bytes((copied / "encoder.safetensors").read_bytes()[:5000])
    with pytest.raises(BadInput, match=r"start.safetensors is no readable safetensors file .*; restore it"):
        sogclr.load_encoder(copied, mix=0.5)


# --------------------------------------------------------------------------------------------------------------- report
def test_the_report_shows_the_start(copied, digits_data):
    html = report(copied, workers=0, device="cpu", quiet=True).read_text()
    first = next(row for row in sogclr.RunFolder(copied).metrics() if row["kind"] == "eval")
    assert f"on validation images, last; {100 * first['knn_top1']:.1f}% at the start" in html
    assert "leave-one-out accuracy on the validation images" in html
    curve = json.loads(re.search(r"<h3>Online kNN<.*?data-chart='(.*?)'", html, flags=re.S)[1].replace("&#34;", '"'))
    assert curve["points"][0] == [0, pytest.approx(100 * first["knn_top1"], rel=1e-4)]
    assert re.search(r'<p class="worth">(worth it |as before|worse than its start:) kNN', html)
    evaluate(copied, digits_data, **QUIET).save()
    html = report(copied, workers=0, device="cpu", quiet=True).read_text()
    worth = json.loads((copied / "eval.json").read_text())["worth"]
    assert html.index(worth.replace(">", "&gt;")) < html.index('<table class="scores ours">')
    assert re.findall(r'<th scope="col">([^<]*)</th>', html)[:3] == ["score", "this encoder", "start"]
