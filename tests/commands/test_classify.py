"""`classify` and `predict`: what is said of a classifier holds on images that it has not seen, wherever it is used."""

import csv
import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import sogclr as command
from digits import write_digits
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sogclr
from sogclr import cli
from sogclr.commands import classify as module
from sogclr.commands import predict as predict_module
from sogclr.commands.classify import classify
from sogclr.commands.predict import predict
from sogclr.errors import BadInput, RunFailed
from sogclr.models.classifier import FILE, load_classifier

ON_CPU = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """40 images of each digit; not to be written to. Beside it `unseen/` with 60 others by the same writers."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "labelled", 100)
    for digit in (folder / "labelled").iterdir():
        (folder / "unseen" / digit.name).mkdir(parents=True)
        for k, file in enumerate(sorted(digit.iterdir())):
            if k % 5 > 1:
                file.rename(folder / "unseen" / digit.name / file.name)
    return folder / "labelled"


@pytest.fixture(scope="module")
def unseen(labelled):
    """60 other images of each digit; not to be written to."""
    return labelled.parent / "unseen"


@pytest.fixture(scope="module")
def result(digits_run, labelled, tmp_path_factory):
    """What `classify` returned; not to be written to."""
    out = tmp_path_factory.mktemp("classifiers") / "clf"
    return classify(digits_run, labelled, out, onnx=False, quiet=True, **ON_CPU)


def read(path):
    """Columns by name."""
    table = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


# --------------------------------------------------------------------------------------------------------------- worth
def test_what_is_said_holds_on_other_images(result, unseen, tmp_path):
    found = predict(result.path, unseen, tmp_path / "p.csv", quiet=True, **ON_CPU)
    rows = read(found.path)
    right = rows["class"].astype(str) == np.array([path.split("/")[0] for path in rows["path"]])
    said = result.scores
    assert (found.images, said.rows, said.folds) == (600, 400, 5)
    assert 0.5 < said.accuracy < 1
    assert right.mean() == pytest.approx(said.accuracy, abs=0.06)
    # calibrated: right as often as the probabilities say
    assert rows["probability"].mean() == pytest.approx(right.mean(), abs=0.05)
    assert said.log_loss < said.log_loss_before + 0.01
    # the sure ones are right as often as was asked for
    sure = ~rows["unsure"]
    assert sure.sum() == found.images - found.unsure > 100
    assert right[sure].mean() > 0.93 > right.mean()
    assert sure.mean() == pytest.approx(said.sure, abs=0.1)


@pytest.mark.slow
@pytest.mark.integration
def test_the_table_and_the_json_say_the_same(digits_run, labelled, tmp_path, capfd):
    words = [digits_run, labelled, "--no-onnx", "--device", "cpu", "--workers", 0, "--out"]
    done = command("classify", *words, tmp_path / "a", "--json", check=0)
    found = json.loads(done.stdout)
    assert cli.main(["classify", *map(str, words), str(tmp_path / "b")]) == 0
    shown = " ".join(capfd.readouterr().out.split())  # a terminal's lines are shorter than a sentence
    assert f"accuracy: {100 * found['accuracy']:.1f} ± {100 * found['accuracy_std']:.1f} % in 5-fold" in shown
    assert "10 classes from 400 images, 40 each" in shown
    assert "the largest class alone 10.0 %" in shown
    for name, recall in found["recalls"].items():
        assert re.search(rf"{name} +40 +{100 * recall:.1f}", shown)
    assert found["balanced_accuracy"] == pytest.approx(np.mean([*found["recalls"].values()]))
    assert f"next sogclr predict {tmp_path / 'b'} PHOTOS" in shown
    # the same command gives the same classifier
    first, second = load_file(tmp_path / "a" / FILE), load_file(tmp_path / "b" / FILE)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_card_says_what_is_known_and_no_place(result, labelled, digits_run):
    card = (result.path / "README.md").read_text()
    assert f"without the temperature of {result.temperature:.2f})" in card
    assert card.startswith("---\nlicense: unknown\n")
    assert f"| 3 | 40 | {100 * result.recalls['3']:.1f} |" in card
    assert f"fingerprint `{result.fingerprint}`" in card
    assert f"weights `{sogclr.load_encoder(digits_run).fingerprint()}`" in card
    assert str(labelled.parent) not in card
    assert str(digits_run.parent) not in card
    assert "onnx" not in card


# ---------------------------------------------------------------------------------------------------------- prediction
@pytest.mark.slow
@pytest.mark.integration
def test_all_ways_of_predicting_agree(result, unseen, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "PART_ROWS", 250)
    seen = []
    predict(result.path, unseen, tmp_path / "p.csv", progress=lambda *x: seen.append(x), **ON_CPU)
    assert seen[-1] == (600, 600)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    words = [result.path, unseen, "--out", tmp_path / "p.parquet", "--all", "--json", "--workers", 1, "--device", "cpu"]
    said = json.loads(command("predict", *words, check=0).stdout)
    text, table = read(tmp_path / "p.csv"), read(tmp_path / "p.parquet")
    assert [*text] == ["path", "class", "probability", "unsure"]
    assert [*table] == [*text, *(f"probability_{digit}" for digit in range(10))]
    assert text["path"].tolist() == sorted(path.relative_to(unseen).as_posix() for path in unseen.rglob("*.png"))
    assert text["class"].astype(str).tolist() == table["class"].tolist()
    np.testing.assert_allclose(text["probability"], table["probability"], rtol=1e-5)
    every = np.stack([table[f"probability_{digit}"] for digit in range(10)], axis=1)
    np.testing.assert_allclose(every.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(every.max(1), table["probability"])
    assert said["counts"] == {str(k): int((table["class"] == str(k)).sum()) for k in range(10)}
    # from Python
    classifier = sogclr.load_classifier(result.path)
    assert classifier.classes == [str(digit) for digit in range(10)]
    files = [unseen / path for path in text["path"][::50]]
    for one, row in zip(classifier.predict_files(files), range(0, 600, 50), strict=True):
        assert (one.label, one.unsure) == (table["class"][row], table["unsure"][row])
        assert one.probability == pytest.approx(table["probability"][row], rel=1e-4)
    crops = torch.stack([classifier.model.crop(file) for file in files])
    np.testing.assert_allclose(classifier(crops).numpy(), every[::50], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        classifier.model(torch.stack([classifier.model.transform(f) for f in files])), every[::50], rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.integration
def test_the_onnx_file_says_the_same_of_real_images(digits_run, labelled, unseen, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    classify(digits_run, labelled, tmp_path / "clf", quiet=True, **ON_CPU)
    classifier = load_classifier(tmp_path / "clf")
    path = tmp_path / "clf" / "classifier.onnx"
    about = {p.key: json.loads(p.value) for p in onnx.load(str(path)).metadata_props}
    assert about["classes"] == classifier.classes
    assert about["threshold"] == classifier.threshold
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    crops = torch.stack([classifier.model.crop(file) for file in sorted(unseen.rglob("*.png"))[::30]]).numpy()
    assert crops.shape == (20, about["image_size"], about["image_size"], 3)
    mean, std = (np.array(about[name], np.float32) for name in ("mean", "std"))
    images = ((crops / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    (found,) = session.run(["probabilities"], {"images": images})
    np.testing.assert_allclose(found, classifier(torch.from_numpy(crops)).numpy(), atol=1e-4)
    assert "classifier.onnx" in (tmp_path / "clf" / "README.md").read_text()


def test_files_that_cannot_be_read_are_listed(result, tmp_path):
    photos = write_digits(tmp_path / "photos", 1)
    (photos / "0" / "cut.png").write_bytes((photos / "0" / "0000.png").read_bytes()[:60])
    (photos / "text.png").write_text("no image")
    found = predict(result.path, photos, tmp_path / "p.csv", quiet=True, **ON_CPU)
    assert (found.images, found.bad) == (10, 2)
    assert str(found).endswith(f"2 files could not be read, see {tmp_path / 'p.csv.bad_files.txt'}")
    listed = (tmp_path / "p.csv.bad_files.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["0/cut.png", "text.png"]
    # a newer file without any takes the list away
    (photos / "text.png").unlink()
    (photos / "0" / "cut.png").unlink()
    predict(result.path, photos, tmp_path / "p.csv", quiet=True, **ON_CPU)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "photos"]


# -------------------------------------------------------------------------------------------------------------- labels
def write_labels(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "label"], *rows])
    return path


def test_labels_from_a_csv_file(digits_run, labelled, tmp_path):
    """Images that it does not name have no part in it."""
    files = [f for digit in "38" for f in sorted((labelled / digit).iterdir())[:25]]
    rows = [[f.relative_to(labelled).as_posix(), f"digit {f.parent.name}"] for f in files]
    table = write_labels(tmp_path / "labels.csv", [*rows, ["gone.png", "digit 3"]])
    result = classify(digits_run, labelled, tmp_path / "clf", labels=str(table), onnx=False, quiet=True, **ON_CPU)
    assert result.counts == {"digit 3": 25, "digit 8": 25}
    assert result.notes == ["rows of the labels that name no image that is there: 1"]
    assert result.scores.accuracy > 0.7
    # what a folder of these images alone gives
    for file in files:
        (tmp_path / "two" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "two" / file.parent.name)
    same = classify(digits_run, tmp_path / "two", tmp_path / "clf2", onnx=False, quiet=True, **ON_CPU)
    assert same.scores == result.scores
    for key, value in load_file(tmp_path / "clf" / FILE).items():
        torch.testing.assert_close(value, load_file(tmp_path / "clf2" / FILE)[key])


@pytest.mark.slow
def test_groups_say_what_it_is_worth_on_other_writers(digits_run, tmp_path):
    """Writers follow one another in the data set: neighbours in it are often by one hand."""
    photos, later = write_digits(tmp_path / "photos", 80), write_digits(tmp_path / "later", 60, start=80)
    files = sorted(photos.rglob("*.png"))
    rows = [[f.relative_to(photos).as_posix(), f.parent.name, int(f.stem) // 60] for f in files]
    said = {}
    for name, width in (("plain", 2), ("grouped", 3)):
        with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["path", "label", "group"][:width], *(row[:width] for row in rows)])
        options = {"labels": str(tmp_path / f"{name}.csv"), "onnx": False, "quiet": True, **ON_CPU}
        result = classify(digits_run, photos, tmp_path / name, **options)
        assert ("cross-validation by groups" in str(result)) == (name == "grouped")
        predict(result.path, later, tmp_path / "p.csv", quiet=True, **ON_CPU)
        found = read(tmp_path / "p.csv")
        right = found["class"].astype(str) == [path.split("/")[0] for path in found["path"]]
        said[name] = result.scores.accuracy, right.mean(), right[~found["unsure"]].mean()
    (plain, truth, few), (grouped, same, more) = said.values()
    assert same == pytest.approx(truth, abs=0.02)  # the classifier itself hardly changes, but what is said of it
    assert abs(grouped - truth) < 0.03 < plain - truth
    assert more > few


def test_the_training_part_of_a_folder_is_taken(digits_run, digits_data, tmp_path):
    result = classify(digits_run, digits_data, tmp_path / "clf", onnx=False, quiet=True, **ON_CPU)
    assert (result.images, result.data) == (120, str(digits_data / "train"))


def test_classes_with_few_images_are_told_of(digits_run, tmp_path):
    photos = write_digits(tmp_path / "photos", 6, digits=3)
    for few, digit in ((1, 7), (3, 8)):
        shutil.copytree(write_digits(tmp_path / str(few), few, digits=9) / str(digit), photos / str(digit))
    Image.new("RGB", (16, 16)).save(photos / "0" / "z.png")
    (photos / "0" / "zz.png").write_text("no image")
    result = classify(digits_run, photos, tmp_path / "clf", onnx=False, quiet=True, **ON_CPU)
    assert result.counts == {"0": 7, "1": 6, "2": 6, "7": 1, "8": 3}
    assert (result.images, result.unreadable, result.scores.rows) == (23, 1, 22)
    assert result.recalls["7"] is None
    assert result.threshold is None
    text = " ".join(str(result).split())  # a terminal's lines are shorter than a sentence
    assert "classes with fewer images than the 5 folds, so little can be said of it: 2, 7 (1), 8 (3)" in text
    assert "classes with one image or group, so never held out: 1, 7" in text
    assert "unsure: all predictions, as 95 % right cannot be reached on these images" in text
    assert "1 could not be read" in text
    found = predict(result.path, photos, tmp_path / "p.csv", quiet=True, **ON_CPU)
    assert found.unsure == found.images == 23


def test_the_image_tower_of_a_run_on_pairs(tmp_path):
    data = write_pairs(tmp_path / "digits", per_digit=8, digits=4)
    run = sogclr.train(data, tmp_path / "run", quiet=True, **PAIRS | {"epochs": 1}).path
    data.unlink()
    result = classify(run, data.parent, tmp_path / "clf", onnx=False, quiet=True, **ON_CPU)
    assert [*result.counts] == ["one", "three", "two", "zero"]
    assert predict(result.path, data.parent, tmp_path / "p.csv", quiet=True, **ON_CPU).images == 32


# -------------------------------------------------------------------------------------------------------------- errors
def test_bad_input_is_one_sentence_and_nothing_is_written(digits_run, labelled, result, tmp_path, capfd):
    one = tmp_path / "one"
    shutil.copytree(labelled / "1", one / "1")
    single = write_digits(tmp_path / "single", 1)
    broken = write_digits(tmp_path / "broken", 3)
    for file in (broken / "4").iterdir():
        file.write_text("no image")
    cut = shutil.copytree(labelled, tmp_path / "cut")
    for file in (cut / "5").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    dark = tmp_path / "dark"
    for name in "ab":
        (dark / name).mkdir(parents=True)
        (dark / name / "x.png").write_text("no image")
    table = write_labels(tmp_path / "one.csv", [[f"1/{next((one / '1').iterdir()).name}", "one"]])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    out = tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    for words, message in [
        ((digits_run, labelled / "3", "--out", out), "has no labels to classify by; put each class into a folder"),
        ((digits_run, one, "--out", out), "has no labels to classify by"),
        ((digits_run, one, "--labels", "folder", "--out", out), "there is only 1 folder"),
        ((digits_run, labelled, "--labels", "none", "--out", out), "has no labels to classify by"),
        ((digits_run, one, "--labels", table, "--out", out), "has 1 class for the images"),
        ((digits_run, labelled, "--labels", tmp_path / "no.csv", "--out", out), "there is no labels file"),
        ((digits_run, single, "--out", out), "each of the 10 classes has one image that can be read"),
        ((digits_run, broken, "--out", out), "class '4' of"),
        ((digits_run, cut, "--out", out), "class '5' of"),
        ((digits_run, dark, "--out", out), "none of the 2 images in"),
        ((tmp_path / "nowhere", labelled, "--out", out), "there is no run or encoder file"),
        ((result.path / FILE, labelled, "--out", out), "is marked 'sogclr-classifier-1'"),
        ((digits_run, labelled, "--out", tmp_path / "full"), "is there and not empty"),
        ((digits_run, labelled, "--out", tmp_path / "no" / "clf"), "there is no folder"),
        ((digits_run, labelled, "--folds", 1, "--out", out), "--folds must be 2 or more and was 1"),
        ((digits_run, labelled, "--sure", 95, "--out", out), "--sure must be between 0 and 1 and was 95.0"),
    ]:
        code = cli.main(["classify", *map(str, words), "--workers", "0"])
        error = capfd.readouterr().err.splitlines()[-1:]
        assert (code, [message in line for line in error]) == (2, [True]), (message, error)
        assert sorted(tmp_path.rglob("*")) == before, message
    for words, message in [
        ((digits_run, labelled, "--out", tmp_path / "p.csv"), f"holds no classifier ({FILE})"),
        ((result.path, labelled, "--out", tmp_path / "p.npz"), "give a name in .csv, .parquet"),
        ((result.path, tmp_path / "nowhere", "--out", tmp_path / "p.csv"), "there is no folder or list file"),
        ((result.path, dark, "--out", tmp_path / "p.csv"), "none of the 2 images in"),
        ((result.path, labelled, "--batch-size", 0, "--out", tmp_path / "p.csv"), "--batch-size must be 1 or more"),
    ]:
        code = cli.main(["predict", *map(str, words), "--workers", "0"])
        error = capfd.readouterr().err.splitlines()[-1:]
        assert (code, [message in line for line in error]) == (2, [True]), (message, error)
        assert sorted(tmp_path.rglob("*")) == before, message


@pytest.mark.parametrize("what", ["bit", "cut", "class", "threshold", "key", "json"])
def test_a_damaged_classifier_is_refused(what, result, tmp_path):
    path = shutil.copytree(result.path, tmp_path / "clf") / FILE
    content, weights = bytearray(path.read_bytes()), load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if what == "bit":
        content[-100] ^= 64
        path.write_bytes(content)
    elif what == "cut":
        path.write_bytes(content[:-100])
    else:
        about = json.loads(metadata["classifier"])
        if what == "class":
            about["classes"][0] = "nought"
        elif what == "threshold":
            about["threshold"] = 0.0
        metadata["classifier"] = "{" if what == "json" else json.dumps(about)
        if what == "key":
            del weights["linear.bias"]
        save_file(weights, path, metadata=metadata)
    with pytest.raises(BadInput, match=r"restore it from a copy, or make it again with `sogclr classify`"):
        load_classifier(tmp_path / "clf")


def test_without_the_packages_for_onnx_the_rest_is_written(digits_run, digits_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = classify(digits_run, digits_data, tmp_path / "clf", quiet=True, **ON_CPU)
    (note,) = result.notes
    assert note.startswith("there is no classifier.onnx: ONNX export needs the package onnx; install it")
    assert sorted(p.name for p in result.path.iterdir()) == ["README.md", FILE]


@pytest.mark.slow
@pytest.mark.integration
def test_a_graph_that_computes_something_else_is_not_kept(digits_run, digits_data, tmp_path, monkeypatch):
    """The graph is tampered with on the way."""
    pytest.importorskip("onnxruntime")
    run_onnx = module.run_onnx
    monkeypatch.setattr(module, "run_onnx", lambda path, images: run_onnx(path, images.flip(0)))
    with pytest.raises(RunFailed, match=r"the exported classifier differs from PyTorch by .*; nothing was written"):
        classify(digits_run, digits_data, tmp_path / "clf", quiet=True, **ON_CPU)
    assert not [*tmp_path.iterdir()]


def test_of_many_classes_those_that_are_found_least_are_shown(result):
    counts = {f"class [{k}]": 10 for k in range(100)}
    recalls = [None, *(k / 100 for k in range(1, 100))]
    many = replace(result, counts=counts, images=1000, scores=replace(result.scores, recalls=recalls))
    shown = str(many)
    assert "the 30 classes that are found least, of 100" in shown
    assert re.findall(r"class \[(\d+)\] +10 ", shown) == [str(k) for k in range(1, 31)]
