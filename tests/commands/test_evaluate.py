"""`evaluate` and `sogclr eval`: where the scores come from, their names, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from digits import sogclr, write_digits
from rich.console import Console
from safetensors.torch import load_file, save_file

import sogclr as package
from sogclr import cli
from sogclr.commands.eval_result import EvalSettings, comparison
from sogclr.commands.evaluate import evaluate
from sogclr.commands.evaluate_images import RawPixels, split_labelled, untrained
from sogclr.commands.random_crops import random_crops
from sogclr.data.manifest import Manifest
from sogclr.errors import BadInput
from sogclr.evaluation import linear
from sogclr.evaluation.knn import knn_predict
from sogclr.models.encoder import EncoderInfo, load_encoder

ACCURACIES = ("knn_top1", "linear_top1", "linear_top1_1_per_class", "linear_top1_10_per_class")


def rendered(what, width=80):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the run, to be written to."""
    return shutil.copytree(digits_run, tmp_path / "run")


def flat_with_csv(folder, images=40):
    """Images of one folder without classes, and a csv of their labels."""
    write_digits(folder / "by_class", images // 10)
    (folder / "flat").mkdir()
    rows = ["path,label"]
    for path in sorted((folder / "by_class").rglob("*.png")):
        name = f"{path.parent.name}-{path.name}"
        shutil.copy(path, folder / "flat" / name)
        rows.append(f"{name},digit {path.parent.name}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "flat", folder / "labels.csv"


def test_train_and_test_folders_are_fitted_on_and_scored_on(digits_run, digits_data):
    result = evaluate(digits_run, digits_data, workers=0, baselines=True)
    assert set(ACCURACIES) <= result.keys()
    assert result.split == ("fitted on 120 images of train/, scored on 60 of test/; labels: folder, 10 classes")
    assert (result.images, result.fit_images, result.score_images, result.classes) == (180, 120, 60, 10)
    assert result.unreadable == 0
    assert all(0 <= result[key] <= 1 for key in ACCURACIES)
    assert result["knn_top1"] > 0.5  # 0.1 is chance
    assert 1 < result["rankme"] < 128
    assert result.baselines.keys() == {"raw_pixels", "untrained"}
    assert all(set(ACCURACIES) <= scores.keys() for scores in result.baselines.values())
    assert result.baselines["raw_pixels"]["linear_top1"] > 0.7
    json.dumps(result.to_json(), allow_nan=False)
    assert evaluate(digits_run, digits_data, workers=0, baselines=True) == result


def test_knn_of_the_raw_pixels_is_what_a_user_would_compute(digits_run, digits_data):
    """An independent route to one of the numbers: files read by hand, no loader and no split of ours."""
    from PIL import Image

    parts = {}
    for part in ("train", "test"):
        files = sorted((digits_data / part).rglob("*.png"))
        x = np.stack([np.asarray(Image.open(f).convert("RGB"), dtype=np.float32).ravel() for f in files])
        parts[part] = (x / 255, np.array([int(f.parent.name) for f in files]))
    (x, y), (test_x, test_y) = parts["train"], parts["test"]
    expected = (knn_predict(x, y, test_x, k=7, num_classes=10) == test_y).mean()
    result = evaluate(digits_run, digits_data, workers=0, baselines=True, k=7)
    assert result.baselines["raw_pixels"]["knn_top1"] == pytest.approx(expected)
    assert result.protocol["knn"] == "cosine, weighted, k=7, T=0.07"


def test_the_published_probe_is_fitted_on_new_crops_in_each_epoch(digits_run, digits_data, monkeypatch):
    for name, value in {"EPOCHS": 20, "BATCH_SIZE": 40, "LR": 0.1}.items():
        monkeypatch.setattr(linear, name, value)
    quick = evaluate(digits_run, digits_data, workers=0, seed=1)
    result, again = (evaluate(digits_run, digits_data, workers=0, seed=1, protocol="published") for _ in range(2))
    assert again == result
    assert result.keys() - quick.keys() == {"linear_top1_published"}
    assert all(result[key] == quick[key] for key in quick)
    assert result["linear_top1_published"] > 0.5  # 0.1 is chance
    words = "SGD, 20 epochs, batch 40, lr 0.1, momentum 0.9, no weight decay; raw features, a random crop and flip of"
    assert result.protocol["linear_published"].startswith(words)
    assert "published" in rendered(result)


def test_its_crops_are_those_of_the_images(digits_run, digits_data, monkeypatch):
    monkeypatch.setattr(linear, "EPOCHS", 2)
    monkeypatch.setattr(linear, "BATCH_SIZE", 50)
    manifest, encoder = Manifest.scan(digits_data), load_encoder(digits_run / "encoder.safetensors")
    split = split_labelled(manifest, "auto", 0)
    settings = EvalSettings("auto", False, 20, 0, (), 7, 0, torch.device("cpu"), lambda *_: None)
    batches, steps = random_crops(encoder, manifest, split.fit, split.values, settings)
    found = list(batches)
    assert steps == len(found) == 4  # 120 images: two batches of 50 an epoch
    assert {(tuple(z.shape), z.dtype) for z, _ in found} == {((50, encoder.num_features), torch.float32)}
    for first, second in ((found[:2], found[2:]),):
        counts = [torch.bincount(torch.cat([y for _, y in epoch]), minlength=10) for epoch in (first, second)]
        assert all(int(count.max()) <= 12 for count in counts)  # 12 images a class, each once at most
        nearest = torch.cdist(torch.cat([z for z, _ in first]), torch.cat([z for z, _ in second])).amin(dim=1)
        assert float(nearest.min()) > 0  # no crop comes again


def test_the_published_probe_needs_classes(digits_run, tmp_path):
    flat, _ = flat_with_csv(tmp_path)
    with pytest.raises(BadInput, match="--protocol published needs classes"):
        evaluate(digits_run, flat, workers=0, protocol="published")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(BadInput, match=r"--protocol published is for images with classes, and .* holds pairs"):
        evaluate(digits_run, tmp_path, protocol="published")


@pytest.mark.parametrize("names", [("training", "val"), ("train", "validation")])
def test_other_names_of_the_parts_are_known(names, digits_run, digits_data, tmp_path):
    for own, name in zip(("train", "test"), names, strict=True):
        shutil.copytree(digits_data / own, tmp_path / name)
    result = evaluate(digits_run, tmp_path, workers=0)
    assert result.split.startswith(f"fitted on 120 images of {names[0]}/, scored on 60 of {names[1]}/")


def test_classes_of_one_part_alone_are_kept_apart(digits_run, tmp_path):
    """A class that only test/ has can only be missed; numbers of classes do not get mixed up."""
    write_digits(tmp_path / "train", 4, digits=3)
    write_digits(tmp_path / "test", 4, digits=5, start=4)
    result = evaluate(digits_run, tmp_path, workers=0)
    assert result.classes == 5
    assert 0.3 < result["linear_top1"] <= 0.6


def test_one_folder_is_split_within_each_class_and_always_alike(digits_run, digits_data):
    data = digits_data / "train"
    result = evaluate(digits_run, data, workers=0)
    assert result.split.startswith(
        "a fixed stratified split of one folder (seed 0): fitted on 100 images, scored on 20"
    )
    assert result.split.endswith("; 20 of the 20 scored were trained on, without labels")
    first, again = (split_labelled(Manifest.scan(data), "auto", 0) for _ in range(2))
    assert np.array_equal(first.fit, again.fit)
    assert np.array_equal(first.score, again.score)
    assert not set(first.fit) & set(first.score)
    assert np.bincount(first.values[first.score]).tolist() == [2] * 10
    other = split_labelled(Manifest.scan(data), "auto", 1)
    assert not np.array_equal(first.score, other.score)


def test_images_that_were_trained_on_are_counted_wherever_they_lie(digits_run, digits_data, tmp_path):
    """A copy of what was trained on is the same; a part of it is where it lies, and new images are new."""
    shutil.copytree(digits_data / "train", tmp_path / "copy")
    for digit in range(10):
        shutil.copytree(digits_data / "test" / str(digit), tmp_path / "new" / str(digit))
    listed = sorted((digits_data / "train").rglob("*.png")) + sorted((tmp_path / "new").rglob("*.png"))
    (tmp_path / "both.txt").write_text("\n".join(map(str, listed)))
    rows = [f"{path},{path.parent.name}" for path in listed]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    assert "20 of the 20 scored were trained on" in evaluate(digits_run, tmp_path / "copy", workers=0).split
    assert "trained on" not in evaluate(digits_run, tmp_path / "new", workers=0).split
    found = evaluate(digits_run, tmp_path / "both.txt", labels=str(tmp_path / "labels.csv"), workers=0)
    seen = int(re.search(r"(\d+) of the 40 scored were trained on", found.split)[1])
    assert 10 < seen < 40
    exported = evaluate(digits_run / "encoder.safetensors", digits_data, workers=0)
    assert exported.split.endswith("whether the encoder was trained on these images is not known")


def test_labels_may_come_from_a_csv(digits_run, tmp_path):
    flat, labels = flat_with_csv(tmp_path)
    result = evaluate(digits_run, flat, labels=str(labels), workers=0)
    assert result.classes == 10
    assert "labels: labels.csv, 10 classes" in result.split
    by_folder = evaluate(digits_run, tmp_path / "by_class", workers=0)
    assert {k: result[k] for k in ACCURACIES} == {k: by_folder[k] for k in ACCURACIES}


def test_images_without_a_label_are_left_out(digits_run, tmp_path):
    flat, labels = flat_with_csv(tmp_path)
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join(rows[:21]) + "\n")
    result = evaluate(digits_run, flat, labels=str(labels), workers=0)
    assert (result.classes, result.images) == (5, 20)


@pytest.mark.parametrize("how", ["none", "auto"])
def test_without_labels_health_is_reported(how, digits_run, digits_data, tmp_path):
    data = digits_data / "test" if how == "none" else flat_with_csv(tmp_path)[0]
    result = evaluate(digits_run, data, labels=how, workers=0, baselines=True)
    for scores in (result, *result.baselines.values()):
        assert {"rankme", "alignment", "uniformity"} <= scores.keys()
        assert not set(ACCURACIES) & scores.keys()
        assert 1 <= scores["rankme"] <= len(list(data.rglob("*.png")))
        assert 0 <= scores["alignment"] <= 4
        assert scores["uniformity"] <= 0
    assert result.split is None
    assert "images without labels" in rendered(result)
    json.dumps(result.to_json(), allow_nan=False)


def test_files_that_cannot_be_read_are_counted(digits_run, tmp_path):
    data = write_digits(tmp_path / "data", 6)
    (data / "3" / "bad.png").write_bytes(b"")
    cut = sorted((data / "4").iterdir())[0]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    result = evaluate(digits_run, data, workers=0)
    assert (result.images, result.unreadable) == (59, 2)
    assert result.fit_images + result.score_images == 59
    assert "2 could not be read" in rendered(result, 200)


def test_the_untrained_baseline_is_the_same_network_with_drawn_weights():
    info = EncoderInfo("resnet10_mini", 16)
    state = torch.get_rng_state()
    first, again, other = untrained(info, 0), untrained(info, 0), untrained(info, 1)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_raw_pixels_are_the_pixels():
    crops = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    pixels = RawPixels(EncoderInfo("any", 4))
    assert torch.equal(pixels.encode(crops), crops.reshape(2, 48) / 255)
    assert pixels.num_features == 48
    assert RawPixels(EncoderInfo("any", 224)).info.image_size == 32


@pytest.mark.slow
@pytest.mark.integration
def test_json_is_one_object_and_lies_in_the_run(run, digits_data):
    result = sogclr("eval", run, digits_data, "--json", "--workers", "0", check=0)
    found = json.loads(result.stdout)
    assert set(ACCURACIES) <= found.keys()
    assert json.loads((run / "eval.json").read_text()) == found


def test_the_table_fits_a_narrow_terminal(run, digits_data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["eval", str(run), str(digits_data), "--baselines", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "fitted on 120 images of train/, scored on 60 of test/" in out.replace("\n", " ")
    rows = [line.split() for line in out.splitlines()]
    names = [row[0] for row in rows if row and row[0] in ("run", "raw", "untrained")]
    assert names == ["run", "raw", "untrained"]
    assert "…" not in out


def test_the_table_shows_percent_with_the_spread_over_draws():
    scores = {"knn_top1": 0.5, "linear_top1_1_per_class": 0.25, "linear_top1_1_per_class_std": 0.031, "rankme": 7.0}
    text = rendered(comparison({"mine": scores, "other": {"knn_top1": 1.0}}))
    assert "50.0" in text
    assert "25.0 ± 3.1" in text
    assert "100.0" in text
    assert "RankMe" not in text  # beside accuracies there is no room for it
    assert "RankMe" in rendered(comparison({"mine": {"rankme": 7.0}}))


def test_bad_input_is_one_sentence_and_nothing_is_written(run, digits_data, tmp_path, capsys):
    places = {name: tmp_path / name for name in ("empty", "broken", "one", "single", "diverged")}
    for name in ("empty", "broken", "single"):
        places[name].mkdir()
    for k in range(3):
        (places["broken"] / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_digits(places["one"], 4, digits=1)
    shutil.copy(next((digits_data / "test").rglob("*.png")), places["single"])
    (tmp_path / "other.csv").write_text("path,label\nno.png,cat\n")
    shutil.copytree(run, places["diverged"])
    file = places["diverged"] / "encoder.safetensors"
    info = json.dumps({"name": "resnet10_mini", "image_size": 16})
    weights = load_file(file)
    weights["conv1.weight"].fill_(float("nan"))
    save_file(weights, file, metadata={"sogclr": "sogclr-encoder-1", "info": info})
    pair = write_digits(tmp_path / "pair", 1, digits=2)
    names = [p.relative_to(pair).as_posix() for p in sorted(pair.rglob("*.png"))]
    (tmp_path / "pair.csv").write_text(f"path,label\n{names[0]},a\n{names[1]},b\n")
    before = sorted(tmp_path.rglob("*"))
    for args, message in [
        ((tmp_path / "nowhere", digits_data), "there is no run or encoder file"),
        ((places["empty"], digits_data), "holds no finished encoder"),
        ((run, tmp_path / "nowhere"), "there is no folder or list file"),
        ((run, places["empty"]), "empty"),
        ((run, places["broken"]), "none of the 3 images in"),
        ((run, places["one"], "--labels", "folder"), "one"),
        ((run, places["single"]), "1 readable image; give 2 or more"),
        ((run, digits_data / "test", "--labels", tmp_path / "no.csv"), "there is no labels file"),
        ((run, digits_data / "test", "--labels", tmp_path / "other.csv"), "none of the 1 paths in"),
        ((run, digits_data / "test", "--labels", "maybe"), "maybe"),
        ((run, digits_data, "--k", "0"), "--k must be 1 or more and was 0"),
        ((run, digits_data, "--batch-size", "0"), "--batch-size must be 1 or more and was 0"),
        ((run, digits_data, "--seed", "-1"), "--seed must be 0 or more and was -1"),
        ((run, digits_data, "--workers", "-1"), "--workers must be 0 or more and was -1"),
        ((run, digits_data, "--device", "cuda:9"), "--device cuda:9 is not there"),
        ((places["diverged"], digits_data), "not finite; the encoder has diverged"),
        ((places["diverged"], digits_data, "--labels", "none"), "not finite; the encoder has diverged"),
        ((run, pair, "--labels", tmp_path / "pair.csv"), "2 labelled images of 2 classes to fit on and 0 to score on"),
    ]:
        assert cli.main(["eval", "--workers", "0", *map(str, args)]) == 2, message
        error = capsys.readouterr().err
        assert error.startswith("sogclr: ")
        assert error.count("\n") == 1, error
        assert message in error
        assert sorted(tmp_path.rglob("*")) == before, message


def test_the_names_of_the_package_are_the_functions_of_the_commands():
    assert package.evaluate is evaluate
    assert all(callable(getattr(package, name)) for name in ("train", "resume", "embed", "evaluate", "load_encoder"))


def test_an_exported_encoder_scores_like_its_run(digits_run, digits_data):
    from_run = evaluate(digits_run, digits_data, workers=0)
    from_file = evaluate(digits_run / "encoder.safetensors", digits_data, workers=0)
    assert {k: from_run[k] for k in ACCURACIES} == {k: from_file[k] for k in ACCURACIES}
    assert load_encoder(digits_run).info.name == from_file.model


def test_progress_counts_every_encoder_once(digits_run, digits_data):
    seen = []
    evaluate(digits_run, digits_data, workers=0, baselines=True, progress=lambda *x: seen.append(x))
    assert seen == sorted(seen)
    assert seen[-1] == (540, 540)


def test_unreadable_images_of_a_whole_part_are_refused(digits_run, digits_data, tmp_path):
    shutil.copytree(digits_data / "train", tmp_path / "train")
    shutil.copytree(digits_data / "test", tmp_path / "test")
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match="none of the 60 images to score on can be read"):
        evaluate(digits_run, tmp_path, workers=0)
