"""Line charts and histograms as inline SVG: colours come from the page's style sheet, values on hover from its script."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 34  # margins around the plot area, in the units of the view box
MOST_POINTS = 500  # more than a chart has pixels to show

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear scale with round ticks."""

    low: float
    high: float
    ticks: list[float]
    step: float

    @classmethod
    def of(cls, values: Sequence[float], *, tight: bool = False, wanted: int = 5) -> Axis:
        """Return an axis that covers the values.

        Args:
            values: one or more.
            tight: end at the outermost values, and not at round numbers.
            wanted: about so many ticks.
        """
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            room = abs(low) * 0.1 or 1.0
            low, high = low - room, high + room
        raw = (high - low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = [k * step for k in range(first, last + 1)]
        if tight:
            slack = 1e-9 * (high - low)
            ticks = [t for t in ticks if low - slack <= t <= high + slack]
            return cls(low, high, ticks, step)
        return cls(ticks[0], ticks[-1], ticks, step)

    def text(self, value: float) -> str:
        """Return a tick's label, with as many digits as the ticks need."""
        if value and not 1e-4 <= self.step < 1e6:
            digits = max(2, math.floor(math.log10(abs(value))) - math.floor(math.log10(self.step)) + 2)
            mantissa, _, exponent = f"{value:.{digits}g}".replace("-", "−").partition("e")
            return f"{mantissa}e{exponent.replace('−0', '−').replace('+0', '')}" if exponent else mantissa
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        if round(self.step * 10**digits, 6) % 1:  # 2.5 and 0.25 need one more than their size says
            digits += 1
        return f"{value + 0.0:,.{digits}f}".replace("-", "−")


def thinned(points: Sequence[Point], pick: Callable[[np.ndarray], float] = np.mean) -> list[Point]:
    """Return at most `MOST_POINTS`: the mean epoch, and `pick` of the values, of equal stretches."""
    if len(points) <= MOST_POINTS:
        return list(points)
    parts = np.array_split(np.array(points, dtype=np.float64), MOST_POINTS)
    return [(float(part[:, 0].mean()), float(pick(part[:, 1]))) for part in parts]


def line_chart(
    points: Sequence[Point],
    label: str,
    *,
    x_label: str = "epoch",
    band: Sequence[tuple[float, float, float]] = (),
    percent: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Return an SVG of one curve; one point is drawn as a dot.

    Args:
        points: (x, y), x ascending.
        label: what the curve is, for those who do not see it.
        x_label: below the axis.
        band: (x, low, high) of a spread around the curve.
        percent: the values are fractions, and are shown in percent.
        from_zero: the axis begins at 0.
    """
    if not points:
        return Markup('<p class="nothing">nothing was logged</p>')
    scale = 100.0 if percent else 1.0
    points = [(x, y * scale) for x, y in points]
    band = [(x, a * scale, b * scale) for x, a, b in band]
    heights = [y for _, y in points] + [edge for _, *edges in band for edge in edges] + [0.0] * from_zero
    x_axis = Axis.of([0.0] + [x for x, _ in points], tight=True, wanted=6)
    y_axis = Axis.of(heights)
    place = _placer(x_axis, y_axis)
    parts = [_frame(x_axis, y_axis, x_label, "%" if percent else "")]
    if len(band) > 1:
        edge = [place(x, b) for x, _, b in band] + [place(x, a) for x, a, _ in reversed(band)]
        parts.append(f'<path class="band" d="M{"L".join(edge)}Z"/>')
    if len(points) > 1:
        parts.append(f'<path class="curve" d="M{"L".join(place(x, y) for x, y in points)}"/>')
    last = place(*points[-1]).split(",")
    parts.append(f'<circle class="end" cx="{last[0]}" cy="{last[1]}" r="3.5"/>')
    data = {
        "points": [[float(f"{x:.5g}"), float(f"{y:.5g}")] for x, y in points],
        "x": [x_axis.low, x_axis.high],
        "y": [y_axis.low, y_axis.high],
        "unit": "%" if percent else "",
    }
    described = f"{label}: {len(points)} points, from {_plain(points[0][1])} to {_plain(points[-1][1])}"
    return _svg("".join(parts), described, f"data-chart='{escape(json.dumps(data, separators=(',', ':')))}'")


def overlaid_chart(curves: Sequence[tuple[str, str, Sequence[Point]]], label: str, percent: bool = False) -> Markup:
    """Return an SVG of several curves over each other, each with its name on hover.

    Args:
        curves: (name, CSS colour, (epoch, value) with epochs ascending).
        label: what they are, for those who do not see it.
        percent: the values are fractions, and are shown in percent.
    """
    scale = 100.0 if percent else 1.0
    placed = [(name, colour, [(x, y * scale) for x, y in points]) for name, colour, points in curves if points]
    if not placed:
        return Markup('<p class="nothing">nothing was logged</p>')
    x_axis = Axis.of([0.0] + [x for *_, points in placed for x, _ in points], tight=True, wanted=6)
    y_axis = Axis.of([y for *_, points in placed for _, y in points])
    place = _placer(x_axis, y_axis)
    parts = [_frame(x_axis, y_axis, "epoch", "%" if percent else "")]
    for name, colour, points in placed:
        line, last = "L".join(place(x, y) for x, y in points), place(*points[-1]).split(",")
        title = f"<title>{escape(name)}: {_plain(points[-1][1])}</title>"
        curve = f'<path class="curve" style="stroke:{colour}" d="M{line}"/>'
        end = f'<circle style="fill:{colour}" cx="{last[0]}" cy="{last[1]}" r="3.5"/>'
        parts.append(f"<g>{title}{curve}{end}</g>")
    ends = ", ".join(f"{name} ends at {_plain(points[-1][1])}" for name, _, points in placed)
    return _svg("".join(parts), f"{label}: {ends}", "")


def histogram(values: np.ndarray, label: str, x_label: str, things: str = "images", bins: int = 48) -> Markup:
    """Return an SVG of how often which value occurs; each bar says its range and count.

    Args:
        values: float (n,), one of each thing.
        label: what they are, for those who do not see it.
        x_label: below the axis.
        things: what has the values, in the plural.
        bins: bars.
    """
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values.astype(np.float64), bins=bins, range=(low, high))
    x_axis, y_axis = Axis.of([low, high], tight=True, wanted=6), Axis.of([0.0, float(counts.max())], wanted=4)
    place = _placer(x_axis, y_axis)
    bars = []
    for count, a, b in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            (x0, y0), (x1, y1) = (map(float, place(*corner).split(",")) for corner in ((a, count), (b, 0)))
            title = f"{_plain(a)} to {_plain(b)}: {count:,} {things}"
            bars.append(
                f'<rect class="bar" x="{x0 + 0.5:.1f}" y="{y0:.1f}" width="{max(x1 - x0 - 1, 0.5):.1f}" '
                f'height="{max(y1 - y0, 0.5):.1f}"><title>{title}</title></rect>'
            )
    described = f"{label}: {len(values):,} values from {_plain(low)} to {_plain(high)}"
    return _svg(_frame(x_axis, y_axis, x_label, "") + "".join(bars), described, "")


def _placer(x_axis: Axis, y_axis: Axis) -> Callable[[float, float], str]:
    """Return the function from values to "x,y" in the units of the view box."""
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> str:
        px = LEFT + across * (x - x_axis.low) / (x_axis.high - x_axis.low)
        py = TOP + down * (y_axis.high - y) / (y_axis.high - y_axis.low)
        return f"{px:.1f},{py:.1f}"

    return place


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, unit: str) -> str:
    """Return grid lines with the ticks' labels."""
    place = _placer(x_axis, y_axis)
    floor = HEIGHT - BOTTOM
    lines = []
    for tick in y_axis.ticks:
        y = float(place(x_axis.low, tick).split(",")[1])
        lines.append(f'<path class="grid" d="M{LEFT},{y}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{y_axis.text(tick)}{unit}</text>')
    for tick in x_axis.ticks:
        x = place(tick, y_axis.low).split(",")[0]
        lines.append(f'<text x="{x}" y="{floor + 15}" text-anchor="middle">{x_axis.text(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(lines)


def _svg(body: str, label: str, attributes: str) -> Markup:
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" data-plot="{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM}"'
    return Markup(f'<svg class="chart" role="img" aria-label="{escape(label)}" {box} {attributes}>{body}</svg>')


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
