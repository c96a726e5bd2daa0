"""The report as one HTML page that asks nothing of the network: its values, which the templates beside it lay out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from ... import __version__
from ...evaluation.scores import SCORES
from ...progress import clock
from ..templates import render
from . import charts
from .report_data import ReportData
from .run_summary import RunSummary
from .sample import NEIGHBOURS
from .tables import configuration, file_tables, score_table, score_text

LEGEND = 24  # classes with a button of their own


class Fact(NamedTuple):
    """One of the numbers at the top."""

    name: str
    value: str
    detail: str


class Panel(NamedTuple):
    """A curve with its title, its last value and what it is."""

    title: str
    last: str
    text: str
    chart: Markup


def page(summary: RunSummary, data: ReportData, extremes_file: str = "") -> str:
    """Return the whole document.

    Args:
        summary: what the run's own files say.
        data: what there is to show of its images.
        extremes_file: name of the file beside it that lists near-duplicates and outliers.
    """
    log_u = data.log_u
    return render(
        "report/page.html.j2",
        version=__version__,
        run=summary,
        data=data,
        extremes_file=extremes_file,
        facts=list(_facts(summary, data)),
        scores=score_table("Evaluation", summary.evaluations()),
        split=(summary.evaluation or {}).get("split"),
        panels=list(_panels(summary)),
        neighbours=NEIGHBOURS,
        map_json=None if data.map is None else vars(data.map),
        legend=LEGEND,
        without_normalizers=_without_normalizers(summary, data),
        unit=summary.unit,
        histogram=charts.histogram(log_u, "log u", "log u", "texts" if data.of_texts else "images")
        if log_u is not None and len(log_u)
        else "",
        configuration=configuration(summary),
        files=file_tables(summary),
        commands=dict(summary.commands()),
    )


def _facts(summary: RunSummary, data: ReportData) -> Iterator[Fact]:
    if data.images:
        classes = f"{len(data.labels.classes):,} classes" if data.labels else "no classes used"
        yield Fact("Images", f"{data.images:,}", classes)
    if data.pairs is not None:
        both = " and ".join(f"{kind} ({name})" for kind, name in zip(data.pairs.kinds, data.pairs.names, strict=True))
        yield Fact("Pairs", f"{len(data.pairs):,}", both)
    if data.of_texts:
        text, layers, width = (summary.get("pairs", key) for key in ("text_model", "text_layers", "text_width"))
        yield Fact("Encoder", str(text or "transformer"), "" if text else f"{layers} layers, {width} wide")
    else:
        size = summary.get("data", "image_size")
        yield Fact("Encoder", str(summary.get("model", "model") or "?"), f"{size} × {size} pixels" if size else "")
    temperature = summary.get("loss", "temperature")
    shown = f"{temperature:.4g}" if isinstance(temperature, float) else temperature
    method, *more = summary.method.split(", ")
    yield Fact("Method", method, ", ".join([*more, f"temperature {shown}"]))
    batch_size, optimizer = summary.get("run", "batch_size"), summary.get("optim", "optimizer")
    yield Fact("Batch size", str(batch_size or "?"), str(optimizer or ""))
    planned = summary.get("run", "epochs")
    yield Fact("Epochs", f"{summary.epoch:.4g}", f"of {planned} planned, {summary.step:,} steps")
    seconds, rate = summary.seconds(), summary.per_second()
    yield Fact(
        "Training time", clock(seconds) if seconds else "not timed", f"{rate:,.0f} {summary.unit}/s" if rate else ""
    )
    for key, value in list(summary.online_scores().items())[:1]:  # the curves show the others
        start = [first for epoch, first in summary.series("eval", key)[:1] if epoch == 0]
        beside = f"; {score_text(key, start[0])} at the start" if start else ""
        yield Fact(f"Online {SCORES[key].title}", score_text(key, value), f"on {summary.scored}, last{beside}")


def _panels(summary: RunSummary) -> Iterator[Panel]:
    def train(key: str) -> list[charts.Point]:
        return summary.series("train", key)

    yield _panel(train("objective"), "Objective", "the estimate of the global objective; lower is better")
    yield from _score_panels(summary)
    mean, spread = train("normalizer_mean"), dict(train("normalizer_std"))
    band = [(x, y - spread[x], y + spread[x]) for x, y in mean if x in spread]
    text = "mean of the estimates of log g, and their spread (one standard deviation)"
    yield _panel(mean, "Normalizer", text, band=band[:: max(1, len(band) // charts.MOST_POINTS)])
    text = "the largest exp(log ĝ − ν) since the line before; 1 is a mini-batch’s"
    yield _panel(train("weight_max"), "Largest weight", text, pick=np.max, from_zero=True)
    yield _panel(train("lr"), "Learning rate", "warm-up, then a cosine to 0", from_zero=True)
    gamma = train("gamma")
    if len({value for _, value in gamma}) > 1:  # a constant one stands in the configuration
        yield _panel(gamma, "γ", "weight of the new estimate in the moving average", from_zero=True)
    yield _panel(train("grad_norm"), "Gradient norm", "before clipping, mean since the line before", from_zero=True)


def _score_panels(summary: RunSummary) -> Iterator[Panel]:
    """Yield the curves of the scores taken during training; an empty one where there are none yet."""
    curves = [score for score in SCORES.values() if score.curve]
    for score in [score for score in curves if summary.series("eval", score.key)] or curves[:1]:
        title = score.curve_title or score.title[0].upper() + score.title[1:]
        curve = score.curve
        if summary.get("data", "validation") is not None:
            curve = curve.replace("a fixed sample of training", "the validation")
        text = f"{curve}; {'higher' if score.higher_is_better else 'lower'} is better"
        yield _panel(summary.series("eval", score.key), title, text, percent=score.fraction)


def _panel(
    points: list[charts.Point],
    title: str,
    text: str,
    *,
    pick: Callable[[np.ndarray], float] = np.mean,
    band: Sequence[tuple[float, float, float]] = (),
    percent: bool = False,
    from_zero: bool = False,
) -> Panel:
    value = points[-1][1] if points else 0.0
    last = f"{100 * value:.1f}%" if percent else f"{value:.4g}".replace("-", "−")
    chart = charts.line_chart(charts.thinned(points, pick), title, band=band, percent=percent, from_zero=from_zero)
    return Panel(title, last if points else "", text, chart)


def _without_normalizers(summary: RunSummary, data: ReportData) -> str:
    """Return why no log u is shown; nothing where it is."""
    if data.log_u is not None:
        return "" if len(data.log_u) else "No image has been visited yet."
    if any("normalizers are not shown" in note for note in data.notes):
        return "Its checkpoint could not be read."
    if summary.run.latest_checkpoint() is None:
        return "The run has no checkpoint to read them from."
    return f"{summary.method} keeps no normalizers: each batch is compared within itself."
