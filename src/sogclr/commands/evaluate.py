"""`sogclr eval`: how good an encoder is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ..config.ranges import check_least
from ..data.beir import is_retrieval_set
from ..data.pair_columns import ColumnNames
from ..data.source import kind_of
from ..errors import BadInput
from ..evaluation.zero_shot import TEMPLATES
from ..hardware import computing_on
from ..progress import ProgressCallback, progress_bar
from .eval_result import EvalResult, EvalSettings
from .evaluate_beir import evaluate_beir
from .evaluate_images import evaluate_images
from .evaluate_pairs import evaluate_pairs, open_pairs


def evaluate(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    labels: str = "auto",
    baselines: bool = False,
    k: int = 20,
    protocol: Literal["quick", "published"] = "quick",
    seed: int = 0,
    templates: tuple[str, ...] = TEMPLATES,
    columns: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    mix: tuple[float, ...] = (),
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    progress: ProgressCallback | None = None,
) -> EvalResult:
    """Score an encoder: kNN and linear probes, or label-free health; retrieval and zero-shot of a run on pairs.

    Without labels the scores are RankMe, alignment and uniformity. A run on images with texts also knows texts. On a
    table of pairs or tar shards a run on pairs is scored by retrieval both ways, with chance (and, with `baselines`, untrained
    towers) beside it; wherever there are labels, by zero-shot classification from the classes' names too.
    A run that began from weights (--pretrained, --clip, --init-from, --text-model) stands beside these, its start, with whether training was worth it.
    A run on pairs of two texts is also scored on a retrieval set: a folder in BEIR's layout, with corpus.jsonl, queries.jsonl and qrels/test.tsv.

    Args:
        run: A run's folder, or an exported encoder (.safetensors).
        data: A folder with train/ and test/ (or val/), or one that is split 80/20. For a run on pairs: a table or tar shards too. Or the URL of one.
        labels: auto, folder, none, or a CSV file of path,label.
        baselines: Score raw pixels and an untrained encoder too.
        k: Neighbours of kNN.
        protocol: published adds the linear probe of papers: raw features of a new random crop and flip of each image in each of 90 epochs, through the encoder each time.
        seed: Seed of the split and of the few-label draws.
        templates: Sentences for the class names in zero-shot classification, of a run on pairs.
        columns: Two columns of a table of pairs, as for `sogclr train`; those of the run when left out.
        image_column: Column of the images' paths in a table of pairs; found by its name when left out.
        caption_column: Column of the captions; found by its name when left out.
        mix: Of a run that began from weights: score mixes of these and its own too, shares of its own as for `sogclr export --mix`; none when left out.
        split: Of a retrieval set in BEIR's layout: which file of qrels/; test when left out.
        batch_size: Images at a time.
        workers: Processes that read images; chosen from the cores when left out.
        device: auto, cpu, cuda, mps.
        quiet: Show no progress.
        progress: Called with (images done, images to do), in the place of a bar.

    Returns:
        The scores, by name, and what they were measured on.

    Raises:
        BadInput: something in the input cannot be used.
    """
    check_least({"--k": (k, 1), "--batch-size": (batch_size, 1), "--seed": (seed, 0)})
    named = ColumnNames(image_column, caption_column, columns)
    beir = is_retrieval_set(Path(data))
    if split is not None and not beir:
        raise BadInput(f"--split is for retrieval sets (corpus.jsonl, queries.jsonl), and {data} is none; leave it out")
    pairs = open_pairs(run, data, named) if not beir and kind_of(data).samples == "pairs" else None
    if protocol == "published" and (beir or pairs is not None):
        raise BadInput(f"--protocol published is for images with classes, and {data} holds pairs; leave it out")
    with progress_bar("evaluating", quiet, progress) as show, computing_on(device, workers) as (chosen, readers):
        settings = EvalSettings(
            labels, baselines, k, seed, templates, batch_size, readers, chosen, show, mix, protocol == "published"
        )
        if beir:
            return evaluate_beir(run, Path(data), split or "test", settings)
        return evaluate_images(run, data, settings) if pairs is None else evaluate_pairs(run, pairs, settings)
