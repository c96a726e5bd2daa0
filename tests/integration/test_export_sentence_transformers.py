"""The exported folder is loaded by the real package, in a process where this one cannot be imported."""

import json
import os
import subprocess
import sys

import pytest
import torch
from captioned import PAIRS, write_pairs
from text_pairs import TEXTS, question, write_beir, write_bert, write_questions

import sogclr
from sogclr.commands.export import export
from sogclr.errors import BadInput
from sogclr.models import torchvision_cpu
from sogclr.models.two_tower import load_two_tower

pytestmark = [pytest.mark.slow, pytest.mark.integration]

ALONE = """
import json, runpy, sys, torch
sys.modules["sogclr"] = None
runpy.run_path(sys.argv.pop(1))["import_timm"]()  # for CPU builds of torch, where torchvision does not import by itself
from sentence_transformers import SentenceTransformer
for folder in sys.argv[2:]:
    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    texts = json.load(open(sys.argv[1]))
    rows = {"query": model.encode_query(texts), "document": model.encode_document(texts), "plain": model.encode(texts)}
    torch.save({name: torch.from_numpy(x) for name, x in rows.items()}, folder + "/rows.pt")
"""
SAID = ["which number has nine tens?", "It is 7", "a", "and a longer one, longer than any position allows " * 20]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("data") / "questions.csv")


def load_alone(folders):
    words = folders[0].parent / "texts.json"
    words.write_text(json.dumps(SAID))
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", ALONE, torchvision_cpu.__file__, words, *folders]
    subprocess.run(command, check=True, env=environ, cwd="/")
    return [torch.load(folder / "rows.pt") for folder in folders]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    assert (found[0] - found[1]).abs().max() > 0.01  # what is said matters


def test_the_package_alone_gives_our_rows(data, tmp_path):
    """Built in and Hugging Face, two towers and a shared one, pooled either way; with captions of images."""
    pytest.importorskip("sentence_transformers")
    built_in = {"text_width", "text_layers", "vocab_size"}
    bert = {k: v for k, v in TEXTS.items() if k not in built_in}
    bert["text_model"] = str(write_bert(tmp_path / "bert", data.read_text().splitlines(), "cls"))
    prompts = {"query_prompt": "ask: ", "document_prompt": "say: "}
    two = sogclr.train(data, tmp_path / "two", quiet=True, **TEXTS, **prompts)
    shared = sogclr.train(data, tmp_path / "shared", quiet=True, shared_tower=True, **bert, **prompts)
    images = sogclr.train(write_pairs(tmp_path / "images"), tmp_path / "pairs", quiet=True, **PAIRS | {"epochs": 1})
    folders = [
        export(two.path, "sentence-transformers", tmp_path / "answers"),
        export(two.path, "sentence-transformers", column="question"),
        export(shared.path, "sentence-transformers", column="question"),
        export(images.path, "sentence-transformers"),
    ]
    assert [f.name for f in folders] == ["answers", "query_text_tower", "text_tower", "text_tower"]
    assert not list(tmp_path.rglob("*.tmp"))
    answers, questions, both, captions = load_alone(folders)
    towers = load_two_tower(two.path)
    close(answers["document"], towers.encode_texts(SAID, 1))
    close(answers["plain"], towers.encode_texts(SAID, 1))
    close(questions["query"], towers.encode_texts(SAID, 0))
    close(questions["plain"], towers.encode_texts(SAID, 0))
    towers = load_two_tower(shared.path)
    assert towers.text.info.pooling == "cls"
    close(both["query"], towers.encode_texts(SAID, 0))
    close(both["document"], towers.encode_texts(SAID, 1))
    assert not torch.allclose(both["query"], both["document"], atol=0.01)
    close(captions["document"], load_two_tower(images.path).encode_texts(SAID))
    with pytest.raises(BadInput, match="--format sentence-transformers is for texts and image holds images"):
        export(images.path, "sentence-transformers", tmp_path / "no", column="image")


def test_a_missing_package_is_named(data, tmp_path, monkeypatch):
    run = sogclr.train(data, tmp_path / "run", quiet=True, **TEXTS | {"epochs": 1})
    pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(BadInput, match=r"needs the package of that name; install it: pip install"):
        export(run.path, "sentence-transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_its_evaluator_scores_the_folder_as_eval_scores_the_run(data, tmp_path):
    """A retrieval set with several relevant documents a query; prompts on both sides."""
    pytest.importorskip("sentence_transformers")
    prompts = {"query_prompt": "ask: ", "document_prompt": "say: "}
    run = sogclr.train(data, tmp_path / "run", quiet=True, shared_tower=True, **TEXTS, **prompts)
    corpus = {f"d{n}": f"{n}, and no other" for n in range(130)}
    queries = {f"q{n}": question(*divmod(n, 10)) for n in range(25)}
    qrels = {f"q{n}": {f"d{d}": 1 for d in (n, n + 3, 7 * n % 130, 129 - n)} for n in range(25)}
    found = sogclr.evaluate(run, write_beir(tmp_path / "set", corpus, queries, qrels), device="cpu", quiet=True)
    folder = export(run.path, "sentence-transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    evaluator = InformationRetrievalEvaluator(
        queries,
        corpus,
        {query: set(documents) for query, documents in qrels.items()},
        accuracy_at_k=[1, 5, 10],
        precision_recall_at_k=[100],
        write_csv=False,
    )
    theirs = evaluator(SentenceTransformer(str(folder), device="cpu", local_files_only=True))
    names = {f"r{k}": f"accuracy@{k}" for k in (1, 5, 10)}
    names |= {"ndcg10": "ndcg@10", "mrr10": "mrr@10", "recall100": "recall@100"}
    assert dict(found) == pytest.approx({f"query_to_document_{k}": theirs[f"cosine_{v}"] for k, v in names.items()})
    assert 0 < found["query_to_document_ndcg10"] < 1
