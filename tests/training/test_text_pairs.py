"""Pairs of two texts or of two images, with hard negatives: trained, killed, resumed and scored as images with captions are."""

import csv
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from captioned import write_pairs

import sogclr as package
from sogclr.commands.evaluate import evaluate
from sogclr.data.pair_columns import ColumnNames
from sogclr.data.pairs import Pairs
from sogclr.errors import BadInput
from sogclr.run_folder import load_checkpoint

NOUNS = ("apple", "river", "stone", "cloud", "horse", "needle", "candle", "bridge", "window", "ladder")
COLOURS = ("red", "blue", "green", "black", "white", "grey")
TEXTS = {
    "epochs": 2,
    "batch_size": 10,
    "text_width": 32,
    "text_layers": 1,
    "vocab_size": 300,
    "save_every": 4,
    "log_every": 1,
    "device": "cpu",
    "precision": "fp32",
    "quiet": True,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 pairs of a sentence and two words, a third of them with a hard negative."""
    path = tmp_path_factory.mktemp("texts") / "pairs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["definition", "word", "wrong"])
        for i, noun in enumerate(NOUNS):
            for k, colour in enumerate(COLOURS):
                wrong = f"{COLOURS[k - 1]} {noun}" if (i + k) % 3 == 0 else ""
                writer.writerow([f"a thing called {noun} that is {colour}", f"{colour} {noun}", wrong])
    return path


def state(run):
    return load_checkpoint(run.latest_checkpoint())


def assert_same(a, b):
    assert a["step"] == b["step"]
    for part in ("model", "loss"):
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), key


@pytest.mark.parametrize(
    "options",
    [
        {"columns": "definition,word"},
        {"columns": "definition,word,wrong", "accumulate": 2},
        {"columns": "definition,word,wrong", "shared_tower": True, "share_negatives": True, "query_prompt": "find: "},
        {"columns": "definition,word,wrong", "method": "clip", "micro_batch": 4},
        {"columns": "definition,word,wrong", "method": "siglip"},
    ],
    ids=str,
)
def test_texts_train_and_resume_bit_for_bit(options, table, tmp_path):
    whole = package.train(table, tmp_path / "whole", **(TEXTS | options))
    part = package.train(table, tmp_path / "part", **(TEXTS | options))
    assert part.finished
    assert not part.encoder_file.exists()
    part.two_tower_file.unlink()
    part.latest_checkpoint().unlink()
    package.resume(part.path, quiet=True)
    assert_same(state(whole), state(part))


def test_a_shared_tower_is_one_set_of_weights_and_two_are_two(table, tmp_path):
    options = TEXTS | {"columns": "definition,word", "max_steps": 2}
    two = package.load_two_tower(package.train(table, tmp_path / "two", **options))
    one = package.load_two_tower(package.train(table, tmp_path / "one", shared_tower=True, **options))
    texts = ["a red apple", "a stone"]
    assert torch.equal(one.encode_texts(texts, 0), one.encode_texts(texts, 1))
    assert not torch.equal(two.encode_texts(texts, 0), two.encode_texts(texts, 1))
    torch.testing.assert_close(two.encode_texts(texts).norm(dim=1), torch.ones(2))
    with pytest.raises(BadInput, match="was trained on texts and knows no images"):
        two.encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def test_a_prompt_is_put_before_the_texts_of_its_column(table, tmp_path):
    options = TEXTS | {"columns": "definition,word", "max_steps": 2, "shared_tower": True}
    run = package.train(table, tmp_path / "run", query_prompt="find: ", **options)
    towers = package.load_two_tower(run)
    assert torch.equal(towers.encode_texts(["a red apple"], 0), towers.encode_texts(["find: a red apple"], 1))


@pytest.mark.slow
def test_it_learns_which_words_a_sentence_means(table, tmp_path):
    options = TEXTS | {"columns": "definition,word,wrong", "epochs": 40, "lr": 3e-3, "precision": "auto"}
    run = package.train(table, tmp_path / "run", **options)
    scores = evaluate(run, table, baselines=True, quiet=True)  # with the columns of the run
    assert scores["query_to_document_r1"] > 0.8 > 0.2 > scores.baselines["untrained"]["query_to_document_r1"]
    assert scores["query_to_document_r1"] <= scores["query_to_document_mrr"] <= scores["query_to_document_r5"]
    assert "60 definition (query), 60 word (document)" in scores.split


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_train_what_one_does(table, tmp_path):
    options = TEXTS | {"columns": "definition,word,wrong", "shared_tower": True, "share_negatives": True}
    one = package.train(table, tmp_path / "one", **options)
    flags = [f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in options.items() if k != "quiet"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    command += ["-m", "sogclr", "train", str(table), "--out", str(tmp_path / "two"), *flags]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    a, b = state(one), state(package.RunFolder(tmp_path / "two"))
    for part in ("model", "loss"):
        for key, value in a[part].items():
            torch.testing.assert_close(b[part][key], value, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- images, images
def test_two_columns_of_images_train_resume_and_are_scored(tmp_path):
    folder = write_pairs(tmp_path / "digits", digits=6).parent
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = folder / "two.csv"
    rows = [f"{a},{b}" for a, b in zip(names[::2], names[1::2], strict=False) if a.split("/")[0] == b.split("/")[0]]
    table.write_text("one,other\n" + "\n".join(rows) + "\nzero/gone.png," + names[0] + "\n")
    options = {"epochs": 2, "batch_size": 6, "model": "resnet10_mini", "image_size": 16, "max_bad": 0.2, "quiet": True}
    options |= {"save_every": 2, "device": "cpu", "precision": "fp32", "workers": 1}
    whole = package.train(table, tmp_path / "whole", **options)
    part = package.train(table, tmp_path / "part", **(options | {"workers": 0}))
    part.two_tower_file.unlink()
    part.latest_checkpoint().unlink()
    package.resume(part.path, quiet=True)
    assert_same(state(whole), state(part))
    assert whole.encoder_file.is_file()
    pairs = whole.pairs()
    assert (pairs.kinds, pairs.names) == (("images", "images"), ("one", "other"))
    assert [reason for _, reason in pairs.bad] == ["does not exist"]
    scores = evaluate(whole, table, quiet=True)
    assert 0 < scores["query_to_document_r10"] <= 1


# ---------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "definition"}, "--columns must be two different names"),
        ({"columns": "definition,words"}, "has no column 'words'; its columns are definition, word, wrong"),
        ({"columns": "definition,word", "caption_column": "word"}, "--columns names both columns already"),
        (
            {"columns": "definition,word", "model": "resnet18"},
            "--model and --pretrained are for images and .* holds texts",
        ),
        ({"columns": "definition,word", "image_rate": 0.5}, "--image-rate is for images and .* holds texts"),
        ({"columns": "definition,word", "share_negatives": True}, "--share-negatives is for pairs with hard negatives"),
        ({"columns": "definition,word", "pooling": "cls"}, "--pooling is for a Hugging Face encoder"),
        (
            {"columns": "definition,word", "text_model": "no/such-encoder"},
            "no/such-encoder is no folder here and could not",
        ),
        (
            {"columns": "definition,word", "text_model": "some/encoder", "init_from": "another"},
            "--text-model and --init-from both give the texts' first weights",
        ),
        ({"columns": "definition,word", "text_rate": 0.0}, "--text-rate 0 freezes a text tower that knows nothing"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_nothing_is_written(options, message, table, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "text_model" in options:
        pytest.importorskip("transformers")
    with pytest.raises(BadInput, match=message):
        package.train(table, tmp_path / "run", **(TEXTS | options))
    assert not (tmp_path / "run").exists()


def test_a_run_is_scored_on_columns_of_its_own_kinds(table, tmp_path):
    run = package.train(table, tmp_path / "run", **(TEXTS | {"columns": "definition,word", "max_steps": 2}))
    other = write_pairs(tmp_path / "digits", digits=4)
    with pytest.raises(BadInput, match=r"was trained on pairs of texts and texts, and .* holds images"):
        evaluate(run, other, columns="image,caption", quiet=True)


# ----------------------------------------------------------------------------------------------------------- the columns
def test_what_columns_hold_is_found_by_looking(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("a,b\nx.png,a house\ny.jpg,a tree\n")
    assert Pairs.scan(path).kinds == ("images", "texts")
    path.write_text("a,b\na house,x.png\na tree,y.jpg\n")
    turned = Pairs.scan(path)
    assert (turned.kinds, turned.names) == (("images", "texts"), ("b", "a"))
    assert turned.relative(0) == "x.png"
    path.write_text("a,b\nx.png,y.png\ny.png,z.png\n")
    both = Pairs.scan(path)
    assert (both.kinds, len(both.images)) == (("images", "images"), 3)
    assert both.images_of(np.array([0, 1])).tolist() == [[0, 1], [1, 2]]
    path.write_text("a;b\nthe first, then;second\nwell.,png\n")
    assert Pairs.scan(path).kinds == ("texts", "texts")


def test_a_text_in_both_columns_is_one_thing_and_hard_negatives_are_kept_once(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"q": "one", "d": ["1", "I"], "n": ["2", "3", "2"]}\n{"q": "two", "d": "2", "n": "one"}\n'
        '{"q": "one", "d": "3", "n": null}\n{"q": "2", "d": "deux"}\n'
    )
    pairs = Pairs.scan(path, ColumnNames(columns="q,d,n"))
    assert sorted(pairs.texts.to_pylist()) == ["1", "2", "3", "I", "deux", "one", "two"]
    found = {(pairs.relative(int(p)), pairs.name(1, int(t))) for p, t in pairs.negatives.T}
    assert found == {("one | 1", "2"), ("one | I", "2"), ("two | 2", "one")}  # 3 matches by another row
    assert pairs.contradicted == 2
    assert "3 hard negatives (and 2 left out, as another row says that they match)" in pairs.describe()


def test_a_table_is_the_same_in_parquet(table, tmp_path):
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), tmp_path / "p.parquet")
    columns = ColumnNames(columns="definition,word,wrong")
    here, there = Pairs.scan(table, columns), Pairs.scan(tmp_path / "p.parquet", columns)
    assert (here.negatives.shape[1], here.rejected) == (20, [])
    assert (there.negatives.tolist(), there.rejected) == (here.negatives.tolist(), [])
    assert there.texts.equals(here.texts)


def test_hard_negatives_take_turns(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"q": "a", "d": "b", "n": ["x", "y", "z"]}\n{"q": "c", "d": "d"}\n')
    pairs = Pairs.scan(path, ColumnNames(columns="q,d,n"))
    drawn = [pairs.negatives_of(np.array([0, 1]), epoch).tolist() for epoch in range(4)]
    assert [pairs.name(1, first) for first, _ in drawn] == ["x", "y", "z", "x"]
    assert {second for _, second in drawn} == {-1}
    path.write_text('{"q": "a", "d": "b.png", "n": "x"}\n')
    with pytest.raises(BadInput, match="hard negatives of them"):
        Pairs.scan(path, ColumnNames(columns="q,d,n"))
