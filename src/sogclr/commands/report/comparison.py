"""Several runs on one page: curves over each other, scores with their spread, and the options in which they differ."""

from __future__ import annotations

from markupsafe import Markup

from ... import __version__
from ...evaluation.scores import SCORES
from ...progress import clock
from ..templates import render
from .charts import overlaid_chart, thinned
from .embedding_map import colours
from .run_summary import RunSummary, scores_of
from .tables import Table, score_table, shown_value, with_effect

_CURVES = (("objective", "Objective"), ("normalizer_mean", "Normalizer"), ("grad_norm", "Gradient norm"))
_PLACES = {("data", "out"), ("data", "workers")}


def comparison(summaries: list[RunSummary]) -> str:
    """Return the whole document about two runs or more."""
    names = names_of(summaries)
    return render(
        "report/comparison.html.j2",
        version=__version__,
        runs=list(zip(names, colours(len(names)), summaries, strict=True)),
        scores=compared_scores(summaries),
        charts=_charts(summaries, names),
        differences=differences(summaries),
        clock=clock,
    )


def names_of(summaries: list[RunSummary]) -> list[str]:
    """Return a name for each run: its folder's, or its path where two have one name."""
    short = [summary.name for summary in summaries]
    return short if len(set(short)) == len(short) else [str(summary.run.path) for summary in summaries]


def compared_scores(summaries: list[RunSummary]) -> Table | None:
    """Return the scores of each run's `eval.json`, else of its training, a row a score; None without any."""
    caption = "Those of sogclr eval, ± the standard deviation over draws of the labels; else the last during training."
    evaluated = [summary.evaluation or {} for summary in summaries]
    columns = [
        (name, values if scores_of(values) else summary.online_scores())
        for name, values, summary in zip(names_of(summaries), evaluated, summaries, strict=True)
    ]
    return score_table(caption, columns)


def differences(summaries: list[RunSummary]) -> Table:
    """Return the options that are not the same in all runs, among those that do something in one of them."""
    rows = []
    for section in dict.fromkeys(name for s in summaries for name in s.config):
        sections = [with_effect(s, section) if section in s.config else {} for s in summaries]
        for key in dict.fromkeys(key for one in sections for key in one):
            values = [shown_value(one[key]) if key in one else "–" for one in sections]
            if len(set(values)) > 1 and (section, key) not in _PLACES:
                rows.append([f"{section}.{key}", *values])
    return Table("Of those that do something in one of the runs.", rows, ["option", *names_of(summaries)])


def _charts(summaries: list[RunSummary], names: list[str]) -> list[tuple[str, Markup]]:
    """Return (title, chart) of what two runs or more have logged."""
    curves = [("train", key, title, False) for key, title in _CURVES]
    curves += [("eval", s.key, s.curve_title or s.title, s.fraction) for s in SCORES.values() if s.curve]
    found = []
    for kind, key, title, percent in curves:
        lines = [
            (name, colour, thinned(summary.series(kind, key)))
            for name, colour, summary in zip(names, colours(len(names)), summaries, strict=True)
        ]
        if sum(bool(points) for *_, points in lines) > 1:
            found.append((title, overlaid_chart(lines, title, percent)))
    return found
