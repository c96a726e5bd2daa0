"""`export` of the tower of a column of texts: one file for other runtimes, with what its caller has to know beside it."""

import json
import warnings

import pytest
import tokenizers
import torch
from captioned import PAIRS, write_pairs
from text_pairs import TEXTS, write_bert, write_questions

import sogclr
from sogclr import cli
from sogclr.commands.export import export
from sogclr.errors import BadInput, RunFailed
from sogclr.models.text_as_esm import as_esm
from sogclr.models.two_tower import load_two_tower

SAID = ["which number has nine tens?", "it is 7", "", "a sentence that is longer than the others, and then some " * 9]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("data") / "questions.csv")


@pytest.fixture(scope="module")
def run(data):
    return sogclr.train(data, data.parent / "run", quiet=True, query_prompt="ask: ", **TEXTS).path


@pytest.fixture(scope="module")
def bert_run(data):
    pytest.importorskip("transformers")
    words = {k: v for k, v in TEXTS.items() if k not in ("text_width", "text_layers", "vocab_size")}
    words["text_model"] = str(write_bert(data.parent / "bert", data.read_text().splitlines()))
    return sogclr.train(
        data, data.parent / "bert-run", quiet=True, shared_tower=True, query_prompt="ask: ", **words
    ).path


def compute(path, tokens):
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["features"], {"tokens": tokens.numpy()})[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path)(tokens)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("format", ["torchscript", "onnx"])
@pytest.mark.parametrize("kind", ["run", "bert_run"])
def test_the_files_alone_give_the_rows_of_the_run(kind, format, request, tmp_path):
    """Tokens by the exported tokenizer, of any number and length; no tokenizer of ours is used."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    place = request.getfixturevalue(kind)
    path = export(place, format, tmp_path / f"tower{'.onnx' if format == 'onnx' else '.pt'}", column="question")
    about = json.loads((tmp_path / "tower.json").read_text())
    shared = {"answer": ""} if kind == "bert_run" else {}
    length = 20 if kind == "bert_run" else 64
    assert about == {"prompts": {"question": "ask: "} | shared, "length": length, "pad": 0, "width": 128}
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tower.tokenizer.json"))
    tower = load_two_tower(place).texts(0)
    for texts in (SAID, SAID[:1], SAID[1:3], SAID * 3):
        batch = tokenizer.encode_batch([about["prompts"]["question"] + text for text in texts])
        found = compute(path, torch.tensor([e.ids for e in batch]))
        torch.testing.assert_close(found, tower.encode(texts), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


@pytest.mark.slow
def test_names_say_which_tower_it_is_and_nothing_else_is_left(run, data, tmp_path):
    pairs = sogclr.train(write_pairs(tmp_path / "images"), tmp_path / "pairs", quiet=True, **PAIRS | {"epochs": 1})
    for place, column, name in (
        (run, None, "text_tower"),
        (run, "answer", "text_tower"),
        (run, "question", "query_text_tower"),
        (pairs.path, None, "image_tower"),
        (pairs.path, "image", "image_tower"),
        (pairs.path, "caption", "text_tower"),
    ):
        before = set(place.iterdir())
        assert export(place, "torchscript", column=column) == place / f"{name}.pt"
        beside = {f"{name}.json", f"{name}.tokenizer.json"} if "text" in name else set()
        assert {p.name for p in place.iterdir()} - {p.name for p in before} <= {f"{name}.pt"} | beside
        assert beside <= {p.name for p in place.iterdir()}


def test_a_file_that_computes_something_else_is_not_kept(run, tmp_path, monkeypatch):
    from sogclr.commands import export_texts as module

    write, other = module.write_torchscript, load_two_tower(run).texts(0)
    monkeypatch.setattr(module, "write_torchscript", lambda path, tower, example: write(path, other, example))
    with pytest.raises(RunFailed, match=r"exported text tower differs from PyTorch by .*; nothing was written"):
        export(run, "torchscript", tmp_path / "tower.pt")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_sentence(run, digits_run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for args, column, message in [
        ((run, "timm"), None, "for a tower of .* give torchscript, onnx or sentence-transformers"),
        ((run, "onnx"), "word", "has no column 'word'; its columns are question and answer"),
        ((run, "onnx", tmp_path / "a.pt"), None, r"give a name in .onnx"),
        ((run, "sentence-transformers", tmp_path / "full"), None, "is there and not empty"),
        ((run, None, tmp_path / "full"), None, "is there and not empty"),
        ((run, "sentence-transformers", tmp_path / "no" / "where"), None, "there is no folder"),
        ((digits_run, "onnx"), "word", "--column is for runs on pairs"),
    ]:
        with pytest.raises(BadInput, match=message):
            export(*args, column=column)
    assert cli.main(["export", str(run), "--format", "onnx", "--column", "word"]) == 2


@pytest.mark.integration
def test_the_built_in_transformer_is_an_esm(run):
    """The hidden states of every token that is no padding, not only their mean."""
    pytest.importorskip("transformers")
    tower = load_two_tower(run).texts(1)
    tokens, model = tower.text.tokens(SAID, 1), tower.backbone
    there, expected = tokens != 0, []
    handle = model.blocks.register_forward_hook(lambda *parts: expected.append(parts[2]))
    model(tokens)
    handle.remove()
    found = as_esm(model)(input_ids=tokens, attention_mask=there.long()).last_hidden_state
    torch.testing.assert_close(found[there], expected[0][there], rtol=1e-4, atol=1e-5)
