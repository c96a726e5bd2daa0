"""`eval` on retrieval sets in BEIR's layout, and what it says of pairs that were trained on."""

import json
import math
import shutil

import numpy as np
import pytest
from text_pairs import TEXTS, question, write_beir, write_questions

import sogclr
from sogclr import cli
from sogclr.commands import evaluate_beir as module
from sogclr.errors import BadInput
from sogclr.models.two_tower import load_two_tower


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("data") / "questions.csv")


@pytest.fixture(scope="module")
def run(data):
    return sogclr.train(data, data.parent / "run", quiet=True, query_prompt="ask: ", **TEXTS).path


@pytest.fixture
def folder(tmp_path):
    """120 documents; graded judgements, some of what is wrong or not there; a query that is nobody's."""
    corpus = {f"d{n}": f"{n} is what it is" for n in range(119)} | {"q7": "7, and no other"}
    queries = {f"q{n}": question(*divmod(n, 10)) for n in range(30)}
    generator = np.random.default_rng(0)
    qrels = {f"q{n}": {f"d{d}": int(generator.integers(0, 4)) for d in (n, n + 1, 10 * n % 119)} for n in range(29)}
    qrels["q3"] = {"d3": 0}
    qrels["q4"]["gone"] = 2
    qrels["q7"]["q7"] = 1
    return write_beir(tmp_path / "set", corpus, queries, qrels)


def by_hand(run, folder, skip_itself=True):
    """Every query's documents by similarity, and trec_eval's scores of them."""
    towers = load_two_tower(run)
    lines = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("corpus", "queries")}
    entries = {name: [json.loads(line) for line in part] for name, part in lines.items()}
    qrels = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        qrels.setdefault(query, {})[document] = int(score)
    ids = [e["_id"] for e in entries["corpus"]]
    rows = towers.encode_texts([f"{e['title']} {e['text']}".strip() for e in entries["corpus"]], 1)
    found = {}
    for entry in entries["queries"]:
        sims = (rows @ towers.encode_texts([entry["text"]], 0)[0]).tolist()
        found[entry["_id"]] = {i: s for i, s in zip(ids, sims, strict=True) if not (skip_itself and i == entry["_id"])}
    return qrels, {query: found[query] for query in qrels}


@pytest.mark.slow
@pytest.mark.parametrize("block", [16384, 50])
def test_the_scores_are_those_of_slow_loops(block, run, folder, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    result = sogclr.evaluate(run, folder, device="cpu", quiet=True)
    qrels, found = by_hand(run, folder)
    ndcg, recall, first = [], [], []
    for query, scores in qrels.items():
        order = sorted(found[query], key=lambda d: -found[query][d])
        gains = sorted((g for g in scores.values() if g > 0), reverse=True)
        hits = [k for k, d in enumerate(order) if scores.get(d, 0) > 0]
        first.append(hits[0] if hits else math.inf)
        ideal = sum(g / math.log2(k + 2) for k, g in enumerate(gains[:10]))
        ndcg.append(ideal and sum(scores.get(d, 0) / math.log2(k + 2) for k, d in enumerate(order[:10])) / ideal)
        recall.append(sum(k < 100 for k in hits) / max(1, len(gains)))
    expected = {"ndcg10": np.mean(ndcg), "recall100": np.mean(recall)}
    expected |= {f"r{k}": np.mean([f < k for f in first]) for k in (1, 5, 10)}
    expected["mrr10"] = np.mean([1 / (f + 1) if f < 10 else 0 for f in first])
    assert dict(result) == pytest.approx({f"query_to_document_{k}": v for k, v in expected.items()}, abs=1e-6)
    relevant = sum(score > 0 for scores in qrels.values() for score in scores.values())
    assert result.split == f"29 queries with {relevant} relevant documents (test), among 120 documents"
    assert set(result.baselines) == {"chance"}


@pytest.mark.integration
def test_trec_eval_agrees(run, folder):
    trec = pytest.importorskip("pytrec_eval")
    qrels, found = by_hand(run, folder)
    theirs = trec.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(found)
    result = sogclr.evaluate(run, folder, device="cpu", quiet=True)
    for ours, name in (("ndcg10", "ndcg_cut_10"), ("recall100", "recall_100")):
        mean = np.mean([scores[name] for scores in theirs.values()])
        assert result[f"query_to_document_{ours}"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.slow
def test_the_command_shows_a_table_with_untrained_towers(run, folder, capsys):
    shutil.copy(folder / "qrels" / "test.tsv", folder / "qrels" / "dev.tsv")
    assert cli.main(["eval", str(run), str(folder), "--split", "dev", "--baselines", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("(dev)", "NDCG@10", "MRR@10", "recall@100", "untrained", "chance"))
    assert "query_to_document_recall100" in json.loads((run / "eval.json").read_text())


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", "{", r"corpus.jsonl:121 is no JSON object with an _id"),
        ("corpus.jsonl", "[1]", r"corpus.jsonl:121 is no JSON object with an _id"),
        ("corpus.jsonl", '{"_id": "x", "title": "a"}', r"corpus.jsonl:121 has no text under 'text'"),
        ("corpus.jsonl", '{"_id": "d5", "text": "again"}', r"two documents of _id 'd5'"),
        ("queries.jsonl", '{"text": "a"}', r"queries.jsonl:31 is no JSON object with an _id"),
        ("qrels/test.tsv", "q1 d1 1", r"test.tsv:88 is not query-id, corpus-id and score"),
        ("qrels/test.tsv", "q1\td1\tmuch", r"test.tsv:88 is not query-id, corpus-id and score"),
        ("qrels/test.tsv", "nobody\td1\t1", r"judges query 'nobody', which is not in queries.jsonl"),
    ],
)
def test_a_broken_line_is_named(file, line, message, run, folder):
    with open(folder / file, "a") as lines:
        lines.write(line + "\n")
    with pytest.raises(BadInput, match=message):
        sogclr.evaluate(run, folder, device="cpu", quiet=True)


def test_what_cannot_be_scored_is_refused(run, folder, data, digits_run):
    for who, what, split, message in (
        (run, folder, "dev", r"there is no .*dev.tsv; give another --split \(there: test\)"),
        (run, data, "test", "--split is for retrieval sets"),
        (digits_run, folder, None, "was trained on images; give a run on pairs of two texts"),
    ):
        with pytest.raises(BadInput, match=message):
            sogclr.evaluate(who, what, split=split, device="cpu", quiet=True)


def test_pairs_that_were_trained_on_are_counted(run, data, tmp_path):
    lines = data.read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join([*lines[:11], "which number is large?,it is 99"]))
    (tmp_path / "new.csv").write_text("question,answer\nwhich number is large?,it is 99\nwhat is not 9?,it is 3\n")
    for table, said in (
        (data, "200 of these 200 pairs were trained on"),
        (tmp_path / "some.csv", "10 of these 11 pairs were trained on"),
        (tmp_path / "new.csv", None),
    ):
        split = sogclr.evaluate(run, table, device="cpu", quiet=True).split
        assert said in split if said else "trained on" not in split
