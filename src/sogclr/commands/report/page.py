"""The report as one HTML page that asks nothing of the network. Every text that comes from outside is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from ... import __version__
from ...evaluation.scores import SCORES, Score
from ...progress import clock
from . import charts
from .pictures import NEIGHBOURS
from .report_data import ReportData, Thumbnail
from .run_summary import RunSummary
from .tables import configuration, score, scores

LEGEND = 24  # classes with a button of their own
SECTIONS = ("overview", "curves", "neighbours", "embedding-map", "normalizers", "configuration")
# The browser itself refuses whatever would leave the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


def page(facts: RunSummary, content: ReportData) -> str:
    """The whole document."""
    title = f"{facts.name} · sogclr report"
    sections = [_curves(facts), *_texts(content), _gallery(content), _map(content), _normalizers(facts, content)]
    sections.append(_section("configuration", "Configuration, time and files", configuration(facts)))
    titles = zip(SECTIONS[1:], ("Curves", "Neighbours", "Map", "Normalizers", "Configuration"), strict=True)
    nav = "".join(f'<a href="#{id}">{text}</a>' for id, text in titles)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_file("page.css")}</style>
</head>
<body>
<header id="overview">
{_overview(facts, content, nav)}
</header>
<main>
{"".join(sections)}
</main>
<footer>Written by sogclr {escape(__version__)}. This page holds everything it shows and loads nothing.</footer>
<script>
{_file("page.js")}</script>
</body>
</html>
"""


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(id: str, title: str, body: str) -> str:
    return f'<section id="{id}" aria-labelledby="{id}-title">\n<h2 id="{id}-title">{title}</h2>\n{body}\n</section>\n'


# ------------------------------------------------------------------------------------------------------------ overview
def _overview(facts: RunSummary, content: ReportData, nav: str) -> str:
    data = str(facts.get("data", "data") or "")
    total = facts.get("run", "max_steps")
    if facts.finished:
        badge = '<span class="badge">finished</span>'
    else:
        of = f" of {total:,}" if isinstance(total, int) else ""
        badge = f'<span class="badge open">unfinished: step {facts.step:,}{of}</span>'
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in content.notes)
    return (
        f'<h1>{escape(facts.name)}{badge}</h1>\n<p class="lead">trained on {escape(data)}</p>\n<nav>{nav}</nav>\n'
        f'<dl class="facts">{"".join(_tiles(facts, content))}</dl>\n{notes}{scores(facts)}'
    )


def _tiles(facts: RunSummary, content: ReportData) -> Iterable[str]:
    def tile(name: str, value: str, more: str = "") -> str:
        small = f"<small>{escape(more)}</small>" if more else ""
        breakable = escape(value).replace("_", "_<wbr>")  # model names are long
        return f"<div><dt>{escape(name)}</dt><dd>{breakable}{small}</dd></div>"

    classes = f"{len(content.labels.classes):,} classes" if content.labels else "no classes used"
    if content.images:
        yield tile("Images", f"{content.images:,}", classes)
    size = facts.get("data", "image_size")
    yield tile("Encoder", str(facts.get("model", "model") or "?"), f"{size} × {size} pixels" if size else "")
    yield tile("Method", facts.method, f"temperature {facts.get('loss', 'temperature')}")
    yield tile("Batch size", str(facts.get("run", "batch_size") or "?"), str(facts.get("optim", "optimizer") or ""))
    planned = facts.get("run", "epochs")
    yield tile("Epochs", f"{facts.epoch:.4g}", f"of {planned} planned, {facts.step:,} steps")
    seconds = facts.seconds()
    rate = facts.images_per_second()
    yield tile("Training time", clock(seconds) if seconds else "not timed", f"{rate:,.0f} images/s" if rate else "")
    for key, value in list(facts.online_scores().items())[:1]:  # the curves show the others
        yield tile(f"Online {SCORES[key].title}", score(key, value), "on training images, last")


# -------------------------------------------------------------------------------------------------------------- curves
def _curves(facts: RunSummary) -> str:
    mean, spread = facts.series("train", "normalizer_mean"), dict(facts.series("train", "normalizer_std"))
    band = [(x, y - spread[x], y + spread[x]) for x, y in mean if x in spread]
    step = max(1, len(band) // charts.MOST_POINTS)
    panels = [
        _panel(facts.series("train", "objective"), "Objective",
               "the estimate of the global objective; lower is better"),
        *_online(facts),
        _panel(mean, "Normalizer", "mean of the estimates of log g, and their spread (one standard deviation)",
               band=band[::step]),
        _panel(facts.series("train", "weight_max"), "Largest weight",
               "the largest exp(log ĝ − ν) since the line before; 1 is a mini-batch’s", pick=np.max, from_zero=True),
        _panel(facts.series("train", "lr"), "Learning rate", "warm-up, then a cosine to 0", from_zero=True),
    ]  # fmt: skip
    gamma = facts.series("train", "gamma")
    if len({value for _, value in gamma}) > 1:  # a constant one stands in the configuration
        panels.append(_panel(gamma, "γ", "weight of the new estimate in the moving average", from_zero=True))
    panels.append(
        _panel(facts.series("train", "grad_norm"), "Gradient norm", "before clipping, mean since the line before",
               from_zero=True)
    )  # fmt: skip
    unfinished = "" if facts.finished else " The run is unfinished; the curves end where it stands."
    lead = f'<p class="hint">Each over epochs, with its last value.{unfinished}</p>'
    return _section("curves", "Curves", f'{lead}\n<div class="charts">{"".join(panels)}</div>')


def _online(facts: RunSummary) -> list[str]:
    curves = [score for score in SCORES.values() if score.curve]
    found = [score for score in curves if facts.series("eval", score.key)]
    return [_online_panel(facts, score) for score in found or curves[:1]]


def _online_panel(facts: RunSummary, score: Score) -> str:
    title = score.curve_title or score.title[0].upper() + score.title[1:]
    text = f"{score.curve}; {'higher' if score.higher_is_better else 'lower'} is better"
    return _panel(facts.series("eval", score.key), title, text, percent=score.fraction)


def _panel(points: list[charts.Point], title: str, text: str, *, pick: Any = np.mean, **how: Any) -> str:
    last = ""
    if points:
        value = points[-1][1]
        last = f"<b>{100 * value:.1f}%</b>" if how.get("percent") else f"<b>{value:.4g}</b>".replace("-", "−")
    chart = charts.line_chart(charts.thinned(points, pick), title, **how)
    return f'<figure class="card"><figcaption><h3>{escape(title)}{last}</h3>{escape(text)}</figcaption>{chart}</figure>'


# ------------------------------------------------------------------------------------------------------------- gallery
def _gallery(content: ReportData) -> str:
    if not content.queries:
        return _section("neighbours", "Nearest neighbours", _nothing())
    sampled = "all" if content.sampled == content.images else f"a sample of {content.sampled:,} of"
    lead = (
        f"Some images, each with its {NEIGHBOURS} nearest by cosine similarity of the backbone’s features (the number below), "
        f"among {sampled} {content.images:,} images."
    )
    if content.labels:
        lead += (
            ' Frames: <span class="key same"></span>same class <span class="key other"></span>another class. '
            "The encoder has not seen the classes."
        )
    if content.same_class is not None:
        lead += f" Over the whole sample, {100 * content.same_class:.1f}% of the {NEIGHBOURS} nearest have the class of their image."
    rows = "".join(
        f'<div class="card row">{_tile(query, "query", _caption(query))}'
        + "".join(
            _tile(t, "" if t.same is None else "same" if t.same else "other", f"{t.value:.2f}", f", cosine {t.value:.2f}")
            for t in found
        )
        + "</div>"
        for query, found in content.queries
    )  # fmt: skip
    return _section(
        "neighbours",
        "Nearest neighbours",
        f'<p class="hint">{lead}</p>\n<div class="gallery{_crisp(content)}">{rows}</div>',
    )


def _caption(tile: Thumbnail) -> str:
    return tile.class_name if tile.class_name is not None else tile.path.rsplit("/", 1)[-1]


def _tile(tile: Thumbnail, kind: str, caption: str, more: str = "") -> str:
    of_class = f", class {tile.class_name}" if tile.class_name is not None else ""
    text = escape(f"{tile.path}{of_class}{more}")
    named = kind == "other" and tile.class_name is not None
    shown = escape(caption + (f" · {tile.class_name}" if named else ""))
    return (
        f'<div class="tile {kind}" title="{text}"><img src="{tile.uri}" alt="{text}" loading="lazy">'
        f"<span>{shown}</span></div>"
    )


def _crisp(content: ReportData) -> str:
    return " crisp" if content.crisp else ""


def _nothing() -> str:
    return '<p class="nothing">Nothing to show; the notes at the top say why.</p>'


def _texts(content: ReportData) -> Iterable[str]:
    """The section on captions, of a run on pairs only."""
    if not content.texts:
        return
    lead = (
        f"Some captions of the run, each with the {NEIGHBOURS} images whose embedding is nearest to the text’s (cosine "
        'similarity below). Frames: <span class="key same"></span>the caption is this image’s own '
        '<span class="key other"></span>another image’s.'
    )
    rows = "".join(
        f'<div class="card row captioned"><p class="caption">{escape(caption)}</p>'
        + "".join(
            _tile(
                replace(t, class_name=None), "same" if t.same else "other", f"{t.value:.2f}", f", cosine {t.value:.2f}"
            )
            for t in tiles
        )
        + "</div>"
        for caption, tiles in content.texts
    )
    body = f'<p class="hint">{lead}</p>\n<div class="gallery{_crisp(content)}">{rows}</div>'
    yield _section("texts", "From text to image", body)


# ----------------------------------------------------------------------------------------------------------------- map
def _map(content: ReportData) -> str:
    if content.map_data is None:
        return _section("embedding-map", "Map of the embeddings", _nothing())
    shown = len(content.map_data["names"])
    how = "t-SNE of the 50 first principal components" if shown >= 30 else "the first two principal components"
    lead = (
        f"{shown:,} images, placed by {how} of their features: near means similar, far apart means little. "
        "Images that would overlap are dots. Point at one to see it; zoom in to make room (buttons, double click, or "
        "Ctrl and the wheel), drag to move."
    )
    crisp = _crisp(content).strip()
    label = f"Map of {shown:,} images by similarity of their features"
    body = f"""<p class="hint">{lead}</p>
<div class="card map" id="map">
<canvas role="img" aria-label="{label}" class="{crisp}"></canvas>
<div class="zoom"><button data-zoom="out" aria-label="zoom out">−</button><button data-zoom="in" aria-label="zoom in">+</button><button data-zoom="all">all</button></div>
<div class="pop" hidden><canvas class="{crisp}" aria-hidden="true"></canvas><b></b><span></span></div>
<noscript><p class="nothing">The map is drawn by a script in this page, and scripts are switched off.</p></noscript>
</div>
{_legend(content.map_data)}
<script type="application/json" id="map-data">{_json_in_html(content.map_data)}</script>"""
    return _section("embedding-map", "Map of the embeddings", body)


def _legend(data: dict[str, Any]) -> str:
    names, counts = data["classes"], np.bincount([c for c in data["y"] if c >= 0], minlength=len(data["classes"]))
    if not names:
        return ""
    buttons = "".join(
        f'<button data-class="{k}" aria-pressed="false"><i style="background:{data["colours"][k]}"></i>{escape(name)} '
        f"<small>{int(counts[k]):,}</small></button>"
        for k, name in enumerate(names[:LEGEND])
    )
    more = f'<span class="hint">and {len(names) - LEGEND:,} more classes</span>' if len(names) > LEGEND else ""
    return f'<div class="legend" aria-label="classes; press one to show it alone">{buttons}{more}</div>'


def _json_in_html(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# --------------------------------------------------------------------------------------------------------- normalizers
def _normalizers(facts: RunSummary, content: ReportData) -> str:
    title = "What the loss finds common and rare"
    values = content.log_u
    if values is None:
        keeps = (
            "Its checkpoint could not be read."
            if any("normalizers are not shown" in n for n in content.notes)
            else f"{facts.method} keeps no normalizer per image: each batch is compared within itself."
            if facts.run.latest_checkpoint() is not None
            else "The run has no checkpoint to read them from."
        )
        return _section("normalizers", title, f'<p class="nothing">{escape(keeps)}</p>')
    if not len(values):
        return _section("normalizers", title, '<p class="nothing">No image has been visited yet.</p>')
    unseen = f" {content.unseen:,} images have not been visited." if content.unseen else ""
    lead = (
        f"log u of {len(values):,} images: the running estimate of how crowded the embedding is around each image, log of the "
        f"mean of exp(similarity / temperature) over the other images.{unseen} It moves with every visit and is noisy; read the "
        "two ends as a tendency, not as a ranking."
    )
    chart = charts.histogram(values, "log u", "log u")
    strips = ""
    if content.ends[0]:
        strips = (
            f'<div class="strips{_crisp(content)}">'
            + _strip("Largest log u.", "Many other images lie near these in the embedding: what the loss finds common. "
                     "Near-duplicates end up here.", content.ends[0])
            + _strip("Smallest log u.", "Few other images lie near these: what the loss finds rare. Odd and damaged images "
                     "end up here, and classes with few members.", content.ends[1])
            + "</div>"
        )  # fmt: skip
    body = f'<p class="hint">{lead}</p>\n<figure class="card" style="margin-top:12px">{chart}</figure>\n{strips}'
    return _section("normalizers", title, body)


def _strip(name: str, text: str, tiles: list[Thumbnail]) -> str:
    cells = "".join(
        _tile(
            t,
            "",
            f"{t.value:.2f}".replace("-", "−") + (f" · {t.class_name}" if t.class_name is not None else ""),
            f", log u {t.value:.2f}",
        )
        for t in tiles
    )
    return f'<figure class="card"><figcaption class="hint"><b>{name}</b> {text}</figcaption><div class="strip">{cells}</div></figure>'
