"""How good the towers of a run on texts are at retrieval from a corpus: BEIR's sets, and all in their layout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..data.beir import CORPUS, RetrievalSet
from ..errors import BadInput
from ..evaluation.judged import NearestWrong
from ..evaluation.label_free import refuse_non_finite
from ..evaluation.retrieval import chance
from ..evaluation.scores import compute
from ..evaluation.worth import worth_of_scores
from ..models.two_tower import TwoTower, load_two_tower
from ..run_folder import RunFolder
from .eval_result import EvalResult, EvalSettings, compared_with
from .evaluate_pairs import untrained_towers

BLOCK = 16384  # documents at a time


def evaluate_beir(run: str | os.PathLike[str], data: Path, split: str, settings: EvalSettings) -> EvalResult:
    """Score the retrieval of a set's documents, beside the run's start and chance; with `baselines`, by untrained towers too.

    Raises:
        BadInput: the run is not on pairs of texts, the set is damaged, or there is nothing to mix.
    """
    columns = RunFolder(run).pair_columns()
    kinds = ("images",) if columns is None else columns[1]
    if kinds != ("texts", "texts"):
        raise BadInput(
            f"{data} holds queries and documents, both texts, and {run} was trained on {' and '.join(kinds)}; "
            "give a run on pairs of two texts"
        )
    shares = compared_with(run, settings.mix)
    towers, judged = load_two_tower(run, settings.device), RetrievalSet.open(data, split)
    scores, documents = _score(towers, judged, settings)
    others = {
        name: _score(load_two_tower(run, settings.device, mix=share), judged, settings)[0]
        for name, share in shares.items()
    }
    rows = np.unique(judged.rows)
    by_chance = chance(np.searchsorted(rows, judged.rows), documents) if len(rows) else {}
    share = len(rows) / len(judged.queries)
    others["chance"] = {f"query_to_document_r{k}": share * value for k, value in by_chance.items()}
    if settings.baselines:
        others["untrained"] = _score(untrained_towers(towers, settings.seed), judged, settings)[0]
    return EvalResult(
        scores,
        encoder=os.fspath(run),
        model="texts",
        data=os.fspath(data),
        seed=settings.seed,
        images=len(judged.queries),
        unreadable=0,
        split=(
            f"{len(judged.queries):,} queries with {len(judged.rows):,} relevant documents ({split}), "
            f"among {documents:,} documents"
        ),
        captions=documents,
        baselines=others,
        worth=worth_of_scores(others["start"], scores, {"": len(judged.queries)}) if "start" in others else None,
    )


def _score(towers: TwoTower, judged: RetrievalSet, settings: EvalSettings) -> tuple[dict[str, float], int]:
    """Return the scores and the number of documents.

    A document with the id of the query is not found by it, as BEIR has it: there the query is a document itself.
    """
    queries = towers.encode_texts(judged.queries, 0)
    refuse_non_finite(queries.cpu().numpy())
    wrong, similarities = NearestWrong(queries), np.full(len(judged.rows), -np.inf, np.float32)
    of_document: dict[str, list[int]] = {}
    for k, document in enumerate(judged.documents):
        of_document.setdefault(document, []).append(k)
    of_query = {id: row for row, id in enumerate(judged.ids)}
    seen, documents = np.zeros(len(judged.rows), np.int64), 0
    for ids, texts in judged.corpus(BLOCK):
        rows = towers.encode_texts(texts, 1)
        refuse_non_finite(rows.cpu().numpy())
        # (relevant document or -1 for the query itself, its query, its column)
        there = [(k, int(judged.rows[k]), c) for c, id in enumerate(ids) for k in of_document.get(id, ())]
        there += [(-1, of_query[id], c) for c, id in enumerate(ids) if id in of_query]
        place, row, column = np.array(there, np.int64).reshape(-1, 3).T
        found, relevant = wrong.add(rows, row, column), place >= 0
        similarities[place[relevant]] = found[relevant]
        np.add.at(seen, place[relevant], 1)
        if (seen > 1).any():
            twice = judged.documents[int(seen.argmax())]
            raise BadInput(f"{judged.folder / CORPUS} has two documents of _id {twice!r}; keep one")
        documents += len(ids)
        settings.progress(documents, documents)
    if not documents:
        raise BadInput(f"{judged.folder / CORPUS} holds no document; restore it")
    itself = [judged.ids[row] == id for row, id in zip(judged.rows, judged.documents, strict=True)]
    similarities[np.array(itself, bool)] = -np.inf
    return compute(judgements=(wrong.similarities, judged.rows, judged.gains, similarities)), documents
