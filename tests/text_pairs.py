"""Pairs of two texts for the tests: questions about numbers and their answers, and retrieval sets in BEIR's layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from captioned import NAMES
from digits import SMALL

from sogclr.models.text import train_tokenizer

TEXTS = {k: v for k, v in SMALL.items() if k not in ("model", "image_size", "recipe")} | {
    "text_width": 32,
    "text_layers": 2,
    "vocab_size": 300,
    "batch_size": 16,
    "epochs": 2,
    "columns": "question,answer",
}


def question(tens: int, ones: int) -> str:
    return f"which number has {NAMES[tens]} tens and {NAMES[ones]} ones?"


def write_questions(path: Path) -> Path:
    """A CSV of 100 questions, each with two answers."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        for number in range(100):
            for answer in (f"it is {number}", f"{number}, and no other"):
                writer.writerow([question(*divmod(number, 10)), answer])
    return path


def write_beir(
    folder: Path, corpus: dict[str, str], queries: dict[str, str], qrels: dict[str, dict[str, int]], split: str = "test"
) -> Path:
    """A retrieval set; the first word of each document is its title."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    documents = [
        {"_id": id, "title": text.split(" ")[0], "text": " ".join(text.split(" ")[1:])} for id, text in corpus.items()
    ]
    for name, entries in (
        ("corpus", documents),
        ("queries", [{"_id": id, "text": text} for id, text in queries.items()]),
    ):
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    rows = [f"{q}\t{d}\t{score}" for q, scores in qrels.items() for d, score in scores.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return folder


def write_bert(folder: Path, texts: list[str], pooling: str = "mean") -> Path:
    """A real BERT with drawn weights, two layers of 32, as `save_pretrained` writes it."""
    import torch
    import transformers

    inner = train_tokenizer(texts, 400, 16).inner
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=20,
        pad_token_id=0,
        initializer_range=0.3,  # so that what is said matters
    )
    transformers.BertModel(config).save_pretrained(folder)
    inner.no_truncation()
    inner.no_padding()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    return folder
