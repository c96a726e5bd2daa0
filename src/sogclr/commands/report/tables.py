"""The tables of the report: scores, configuration, time, files, and the commands to do it again."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from ...evaluation.scores import SCORES
from ...progress import clock
from .run_summary import RunSummary

BAD_FILES_SHOWN = 20


def score(key: str, value: float) -> str:
    """A value as it is shown: a fraction in percent, all else with three digits."""
    return f"{100 * value:.1f}%" if SCORES[key].fraction else f"{value:.3g}".replace("-", "−")


def scores(facts: RunSummary) -> str:
    """The table of `eval.json`."""
    rows = facts.evaluations()
    if not rows:
        return (
            '<p class="hint">No evaluation is on file. The score above is measured on training images; '
            f"<code>{escape(dict(facts.commands())['score'])}</code> measures on images kept apart.</p>"
        )
    keys = [key for key in SCORES if any(key in scores for _, scores in rows)]
    head = "".join(f'<th scope="col">{escape(SCORES[key].title)}</th>' for key in keys)
    body = "".join(
        f'<tr{" class=ours" if k == 0 else ""}><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{score(key, scores[key]) if key in scores else '–'}</td>" for key in keys)
        + "</tr>"
        for k, (name, scores) in enumerate(rows)
    )
    table = f'<table class="scores"><caption>Evaluation</caption><thead><tr><th scope="col">features</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    split = (facts.evaluation or {}).get("split")
    where = f'<p class="hint">{escape(str(split))}</p>' if isinstance(split, str) else ""
    return f'<div class="card wide">{table}{where}</div>'


def configuration(facts: RunSummary) -> str:
    """Everything that was chosen, how long it took, which files were skipped, and the commands."""
    tables = "".join(
        _table(name, values.items()) for name, values in facts.config.items() if isinstance(values, dict) and values
    )
    commands = "\n".join(f"<i># {escape(what)}</i>\n{escape(line)}" for what, line in facts.commands())
    return (
        f'<div class="columns">{_table("time", _times(facts))}{tables}</div>\n{_skipped(facts)}{_bad_files(facts)}'
        f"<h3>How to do it again</h3>\n<pre>{commands}</pre>"
    )


def _table(name: str, rows: Iterable[tuple[str, Any]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_shown(value))}</td></tr>' for key, value in rows
    )
    return f'<div class="card"><table><caption>{escape(name)}</caption><tbody>{body}</tbody></table></div>'


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _times(facts: RunSummary) -> list[tuple[str, str]]:
    seconds, rate, wait = facts.seconds(), facts.images_per_second(), facts.data_wait()
    rows = [
        ("training, in all", clock(seconds) if seconds else "not timed"),
        ("of it, online evaluation", clock(facts.evaluation_seconds())),
        ("images per second", f"{rate:,.0f} (median, two views each)" if rate else "not timed"),
        ("waiting for data", f"{wait:.1%} of the training steps’ time" if wait is not None else "not timed"),
        ("skipped steps", f"{len(facts.skipped):,}"),
        ("unreadable files", f"{len(facts.bad_files):,}"),
    ]
    return rows


def _skipped(facts: RunSummary) -> str:
    if not facts.skipped:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(row.get('step')))}</td><td>{escape(str(row.get('reason')))}</td></tr>"
        for row in facts.skipped[:BAD_FILES_SHOWN]
    )
    return (
        f'<div class="card wide files"><table><caption>skipped steps, without a finite gradient: {len(facts.skipped):,}</caption>'
        f'<thead><tr><th scope="col">step</th><th scope="col">reason</th></tr></thead><tbody>{rows}</tbody></table></div><br>'
    )


def _bad_files(facts: RunSummary) -> str:
    bad = facts.bad_files
    if not bad:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(reason)}</td></tr>" for name, reason in bad[:BAD_FILES_SHOWN]
    )
    which = f", the first {BAD_FILES_SHOWN}" if len(bad) > BAD_FILES_SHOWN else ""
    return (
        f'<div class="card wide files"><table><caption>files that could not be read and were skipped: {len(bad):,}{which}</caption>'
        f'<thead><tr><th scope="col">file</th><th scope="col">reason</th></tr></thead><tbody>{rows}</tbody></table></div><br>'
    )
