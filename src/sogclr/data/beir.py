"""Retrieval sets in BEIR's layout: a folder with `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`.

The judgements and their queries are read into memory; the corpus, of any size, block by block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"


def is_retrieval_set(data: Path) -> bool:
    """Return whether DATA is a folder in BEIR's layout."""
    return (data / CORPUS).is_file() and (data / QUERIES).is_file()


@dataclass(frozen=True)
class RetrievalSet:
    """Queries with the documents that were judged relevant to them, and a corpus to find them in."""

    folder: Path
    split: str
    """Which judgements: the name of a file in `qrels/`."""
    ids: list[str]
    """Of the q queries that have judgements."""
    queries: list[str]
    """Their texts."""
    rows: np.ndarray
    """int64 (p,): the query of each relevant document."""
    documents: list[str]
    """The p ids of these documents."""
    gains: np.ndarray
    """float64 (p,): how relevant each is, above 0."""

    @classmethod
    def open(cls, folder: Path, split: str) -> RetrievalSet:
        """Read queries and judgements. Queries without judgements are left out.

        Raises:
            BadInput: no such split, a line that cannot be read, or a judged query that is not there.
        """
        path = folder / "qrels" / f"{split}.tsv"
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in (folder / "qrels").glob("*.tsv"))) or "none"
            raise BadInput(f"there is no {path}; give another --split (there: {there})")
        judged: dict[str, dict[str, float]] = {}
        for number, line in _lines(path):
            query, document, score = _judgement(path, number, line)
            if score is not None:
                judged.setdefault(query, {})[document] = score
        texts = {}
        for number, entry in _entries(folder / QUERIES):
            if entry["_id"] in judged:
                texts[entry["_id"]] = _text(folder / QUERIES, number, entry, "text")
        missing = [query for query in judged if query not in texts]
        if missing or not judged:
            what = f"query {missing[0]!r}, which is not in {QUERIES}" if missing else "nothing"
            raise BadInput(f"{path} judges {what}; restore the files of the set")
        relevant = [(k, d, s) for k, q in enumerate(judged) for d, s in judged[q].items() if s > 0]
        return cls(
            folder,
            split,
            list(judged),
            [texts[query] for query in judged],
            np.array([k for k, _, _ in relevant], np.int64),
            [document for _, document, _ in relevant],
            np.array([score for _, _, score in relevant], np.float64),
        )

    def corpus(self, size: int) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the ids and the texts (title and text) of `size` documents at a time, the shortest of them first.

        Raises:
            BadInput: a line that cannot be read.
        """
        path = self.folder / CORPUS
        entries = _entries(path)
        while block := list(islice(entries, size)):
            texts = [f"{_text(path, n, entry, 'title')} {_text(path, n, entry, 'text')}".strip() for n, entry in block]
            order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
            yield [block[k][1]["_id"] for k in order], [texts[k] for k in order]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers."""
    with open(path, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError:
            raise BadInput(f"{path} is not UTF-8; convert it") from None


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file, with an `_id` that is text."""
    for number, line in _lines(path):
        try:
            entry = json.loads(line)
            entry["_id"] = str(entry["_id"])
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{path}:{number} is no JSON object with an _id; correct the line") from None
        yield number, entry


def _text(path: Path, number: int, entry: dict[str, Any], name: str) -> str:
    found = entry.get(name)
    if found is None and name == "title":
        return ""
    if not isinstance(found, str):
        raise BadInput(f"{path}:{number} has no text under {name!r}; correct the line")
    return found


def _judgement(path: Path, number: int, line: str) -> tuple[str, str, float | None]:
    """Return query, document and score of a line; the first line, which names the columns, has no score."""
    parts = line.rstrip("\r\n").split("\t")
    try:
        query, document, score = parts
        return query, document, float(score)
    except ValueError:
        if number == 1 and len(parts) == 3:
            return parts[0], parts[1], None
        raise BadInput(f"{path}:{number} is not query-id, corpus-id and score between tabs; correct the line") from None
