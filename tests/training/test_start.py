"""Where a run started: its weights are kept and scored, it is judged by held-out data, and a kill changes nothing of that."""

import re
import shutil

import numpy as np
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, write_digits
from safetensors.torch import load_file
from text_pairs import TEXTS, write_bert, write_questions

import sogclr
from sogclr.data.source import load_source
from sogclr.errors import BadInput
from sogclr.models.text import TextSetup
from sogclr.run_folder import load_checkpoint

IMAGES = SMALL | {"epochs": 3, "optimizer": "adamw", "lr": 3e-3, "precision": "fp32", "quiet": True}  # 15 steps
ON_PAIRS = PAIRS | {"epochs": 3, "batch_size": 16, "precision": "fp32", "quiet": True}  # 15 steps


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder to train on, one that is held out, and a run that learned something."""
    root = tmp_path_factory.mktemp("images")
    data, held_out = write_digits(root / "data"), write_digits(root / "held_out", 6, start=8)
    return data, held_out, sogclr.train(data, root / "first", **IMAGES)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The same of pairs."""
    root = tmp_path_factory.mktemp("pairs")
    data, held_out = write_pairs(root / "data"), write_pairs(root / "held_out", per_digit=6, start=8)
    return data, held_out, sogclr.train(data, root / "first", **ON_PAIRS)


def scored(run):
    return [row for row in run.metrics() if row["kind"] == "eval"]


def same_weights(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items()) and one.keys() == other.keys()


# ------------------------------------------------------------------------------------------------------- the start is kept
def test_an_encoder_is_kept_as_it_was_before_the_first_step(images, tmp_path):
    data, held_out, first = images
    run = sogclr.train(data, tmp_path / "run", pretrained=first.encoder_file, validation=held_out, **IMAGES)
    start = sogclr.load_encoder(run, mix=0)
    assert start.fingerprint() == sogclr.load_encoder(first).fingerprint()
    assert start.fingerprint() != sogclr.load_encoder(run).fingerprint()
    rows = scored(run)
    assert [row["step"] for row in rows] == [0, 5, 10, 15]
    # that score is the encoder's own, and no step was made before it
    from_scratch = sogclr.train(data, tmp_path / "scratch", validation=held_out, **(IMAGES | {"max_steps": 15}))
    assert rows[0]["knn_top1"] == scored(from_scratch)[-1]["knn_top1"]
    assert not from_scratch.start_file.exists()
    assert scored(from_scratch)[0]["step"] > 0


def test_both_towers_are_kept_and_the_image_tower_is_found_in_them(pairs, tmp_path):
    data, _, first = pairs
    run = sogclr.train(data, tmp_path / "run", init_from=first, **ON_PAIRS)
    start, before = (sogclr.load_two_tower(run, mix=0), sogclr.load_two_tower(first))
    assert same_weights(start.model.state_dict(), before.model.state_dict())
    alone = sogclr.load_encoder(run, mix=0)
    assert same_weights(alone.backbone.state_dict(), before.model.backbone.state_dict())
    assert scored(run)[0]["step"] == 0


def test_towers_of_which_only_one_knows_something_have_a_start_too(pairs, tmp_path):
    data, _, first = pairs
    run = sogclr.train(data, tmp_path / "run", pretrained=first.encoder_file, **ON_PAIRS)
    start = sogclr.load_two_tower(run, mix=0).model.backbone.state_dict()
    assert same_weights(start, sogclr.load_encoder(first).backbone.state_dict())
    assert scored(run)[0]["step"] == 0


@pytest.mark.integration
def test_a_text_encoder_of_hugging_face_is_a_start(pairs, tmp_path):
    pytest.importorskip("transformers")
    text_model = write_bert(tmp_path / "bert", ["the digit three", "a handwritten four"])
    run = sogclr.train(pairs[0], tmp_path / "run", text_model=text_model, **(ON_PAIRS | {"epochs": 1}))
    start, given = sogclr.load_two_tower(run, mix=0).texts(), TextSetup.from_pretrained(str(text_model), 64).build()
    assert same_weights(start.backbone.state_dict(), given.state_dict())
    assert [row["step"] for row in scored(run)] == [0, 5]


def test_a_run_on_held_out_data_keeps_its_best_weights_which_may_be_the_start(images, tmp_path, capfd):
    data, held_out, first = images
    options = IMAGES | {"quiet": False, "lr": 100.0, "epochs": 2}
    run = sogclr.train(data, tmp_path / "run", init_from=first, validation=held_out, **options)
    rows = scored(run)
    assert rows[-1]["knn_top1"] < rows[0]["knn_top1"]
    assert load_checkpoint(run.best_checkpoint)["step"] == 0
    before, after = (f"{100 * rows[k]['knn_top1']:.1f}" for k in (0, -1))
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == (
        f"as before kNN {before} at the start, {after} at the end, on validation images; nothing was better than the start, "
        "whose weights the run keeps; lower --lr"
    )
    assert same_weights(sogclr.load_encoder(run).backbone.state_dict(), load_file(run.start_file))
    # another run goes on from these
    again = sogclr.train(
        data, tmp_path / "again", init_from=run, **(options | {"quiet": True, "max_steps": 1, "lr": 1e-3})
    )
    assert same_weights(load_file(again.start_file), load_file(run.start_file))


def test_a_run_without_held_out_data_ends_with_its_last_weights(images, tmp_path):
    data, _, first = images
    run = sogclr.train(data, tmp_path / "run", init_from=first, **(IMAGES | {"lr": 100.0, "epochs": 2}))
    last = load_checkpoint(run.latest_checkpoint())["model"]
    found = sogclr.load_encoder(run).backbone.state_dict()
    assert same_weights(found, {k.removeprefix("backbone."): v for k, v in last.items() if k.startswith("backbone.")})
    assert not same_weights(found, load_file(run.start_file))


# --------------------------------------------------------------------------------------------------------------- a kill
class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [("eval", 0), ("train", 2), ("eval", 10)], ids=str)
def test_a_run_that_stops_anywhere_goes_on_as_if_it_had_not(at, pairs, tmp_path):
    """Rows and weights are the same, that of the start once; also where it stops between the start's row and its checkpoint."""
    data, held_out, first = pairs
    options = ON_PAIRS | {"init_from": first, "validation": held_out, "log_every": 2, "eval_every": 1, "save_every": 4}

    def kill(row):
        if (row["kind"], row["step"]) == at:
            raise Killed

    whole = sogclr.train(data, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        sogclr.train(data, tmp_path / "run", on_metrics=kill, **options)
    run = sogclr.resume(tmp_path / "run", quiet=True)
    rows = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (whole, run)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in scored(run)] == [0, 5, 10, 15]
    a, b = (load_checkpoint(r.latest_checkpoint()) for r in (whole, run))
    assert same_weights(a["model"], b["model"])
    assert a["best"] == b["best"]
    assert load_checkpoint(whole.best_checkpoint)["step"] == load_checkpoint(run.best_checkpoint)["step"]
    assert same_weights(load_file(whole.start_file), load_file(run.start_file))


# ----------------------------------------------------------------------------------------------------------- validation
def test_the_scores_are_those_of_the_held_out_pairs(pairs, tmp_path):
    data, held_out, _ = pairs
    run = sogclr.train(data, tmp_path / "run", validation=held_out, **ON_PAIRS)
    said = sogclr.evaluate(run, held_out, device="cpu", workers=0, quiet=True)
    best = max(scored(run), key=lambda row: row["image_to_text_r1"])  # the first of these, whose weights the run keeps
    assert {k: best[k] for k in said if k in best} == pytest.approx({k: said[k] for k in said if k in best})
    assert run.config().data.validation == str(held_out)


def test_all_labelled_images_of_the_validation_are_scored(images, tmp_path):
    data, held_out, _ = images
    run = sogclr.train(data, tmp_path / "run", validation=held_out, **IMAGES)
    right = [60 * row["knn_top1"] for row in scored(run)]  # of 60 images; of 40 to train on
    assert right == pytest.approx(np.round(right))
    assert any(round(r) % 3 for r in right)  # which shares of 40 would not give
    without = sogclr.train(data, tmp_path / "without", validation=held_out, labels="none", **IMAGES)
    assert {"rankme", "alignment", "uniformity"} <= scored(without)[-1].keys()


@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_other_validation_data_are_refused_on_resume(kind, images, pairs, tmp_path):
    data, held_out, _ = images if kind == "images" else pairs
    root = held_out if kind == "images" else held_out.parent
    mine = shutil.copytree(root, tmp_path / "mine")
    validation = mine if kind == "images" else mine / held_out.name
    options = IMAGES if kind == "images" else ON_PAIRS
    run = sogclr.train(data, tmp_path / "run", validation=validation, **(options | {"epochs": 1}))
    (run.encoder_file if kind == "images" else run.two_tower_file).unlink()
    if kind == "images":
        next(mine.rglob("*.png")).unlink()
    else:
        validation.write_text("".join(validation.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(BadInput, match=r"1 removed \(first: .*\); restore the data of --validation"):
        sogclr.resume(run, quiet=True)


def test_validation_data_that_cannot_be_used_are_named_before_anything_is_written(images, pairs, tmp_path):
    folder, held_out, _ = images
    table, held_out_table, _ = pairs
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, image in enumerate(sorted(held_out.rglob("*.png"))[:5]):
        shutil.copy(image, loose / f"{number}.png")
    one = held_out_table.with_name("one.csv")
    one.write_text("".join(held_out_table.read_text().splitlines(keepends=True)[:2]))
    other = held_out_table.with_name("texts.csv")
    other.write_text("question,answer\nwho?,me\nwhat?,that\n")
    for data, validation, message in [
        (folder, held_out_table, "holds pairs and .* images; give held-out images"),
        (table, held_out, "holds images and .* pairs; give held-out pairs"),
        (folder, tmp_path / "nowhere", "nowhere"),
        (folder, loose, "has no labels .*; label it, or give --labels none"),
        (table, one, "holds 1 usable pairs; give 2 or more"),
        (table, other, "holds pairs of texts and texts and .* of images and texts"),
    ]:
        options = IMAGES if data == folder else ON_PAIRS
        with pytest.raises(BadInput, match=message):
            sogclr.train(data, tmp_path / "run", validation=validation, **options)
        assert not (tmp_path / "run").exists(), message


def test_validation_is_refused_with_a_transform_of_ones_own(images, tmp_path):
    data, held_out, _ = images

    def transform(image):
        return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1).float() / 255

    options = {k: v for k, v in IMAGES.items() if k != "recipe"}
    with pytest.raises(BadInput, match=re.escape("does not go with transform=")):
        sogclr.train(data, tmp_path / "run", transform=transform, validation=held_out, **options)


def test_two_columns_of_texts_are_found_by_the_names_that_data_has(tmp_path):
    data = write_questions(tmp_path / "questions.csv")
    lines = data.read_text().splitlines()
    swapped = [",".join(reversed(line.split(",", 1))) if "no other" not in line else None for line in lines]
    (tmp_path / "held_out.csv").write_text("\n".join(line for line in swapped if line) + "\n")
    options = {k: v for k, v in TEXTS.items() if k != "columns"} | {"max_steps": 2, "quiet": True}
    run = sogclr.train(data, tmp_path / "run", validation=tmp_path / "held_out.csv", **options)
    found = load_source(run.validation)
    assert found.names == ("question", "answer")
    assert found.name(0, int(found.first_ids[0])).startswith("which number")
