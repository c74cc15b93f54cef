"""Plots as SVG text: lines and points, in colours that follow a light or a dark page.

Own code, since matplotlib writes fixed colours into its SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 52
COLOURS = ("#0f8b8d", "#e4572e", "#6a5acd", "#c08a00", "#4a90d9", "#b0447f", "#6b8e23")
STYLE = """<style>
text { font: 13px sans-serif; fill: #333 } .title { font-size: 15px; font-weight: 600 } .grid { stroke: #8884 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } }
</style>"""


def lines(x: Sequence[float], series: Mapping[str, Sequence[float]], x_name: str, y_name: str, title: str) -> str:
    """A line for each series over the same places, from zero."""
    points = {name: list(zip(x, y, strict=True)) for name, y in series.items()}
    return plot(points, x_name, y_name, title, joined=True, from_zero=True)


def plot(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_name: str,
    y_name: str,
    title: str,
    log_x: bool = False,
    joined: bool = False,
    from_zero: bool = False,
    names: Mapping[tuple[float, float], str] | None = None,
) -> str:
    """Points of several series, joined to lines or with a name beside each.

    Arguments:
        series: (x, y) of each point.
        names: what stands beside a point.
    """
    places = [place for points in series.values() for place in points]
    to_x = Axis([x for x, _ in places], LEFT, WIDTH - RIGHT, log_x)
    to_y = Axis([0.0] * from_zero + [y for _, y in places], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', STYLE]
    parts.append(
        f'<title>{escape(title)}</title><text class="title" x="{LEFT}" y="20">{escape(f"{title}: {y_name}")}</text>'
    )
    for value in to_y.ticks:
        y = to_y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in to_x.ticks:
        parts.append(f'<text x="{to_x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{escape(x_name)}</text>')
    parts += _legend(list(series), LEFT)
    for number, points in enumerate(series.values()):
        parts += _series(points, COLOURS[number % len(COLOURS)], to_x, to_y, joined, names or {})
    return "\n".join([*parts, "</svg>"]) + "\n"


def bars(rows: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Bars of some series in each row, with their numbers: `rows[row][series]`."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    high, left, thick = max(value for row in rows.values() for value in row.values()), 130, 13
    height = TOP + len(rows) * (thick * len(series) + 9) + 8
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">', STYLE]
    parts.append(f'<title>{escape(title)}</title><text class="title" x="8" y="20">{escape(title)}</text>')
    parts += _legend(series, 8)
    y = TOP
    for name, row in rows.items():
        parts.append(
            f'<text x="{left - 8}" y="{y + thick * len(series) / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for place, own in enumerate(series):
            if own in row:
                width, top = (WIDTH - left - 60) * row[own] / high, y + thick * place
                colour = COLOURS[place % len(COLOURS)]
                parts.append(f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{thick - 2}" fill="{colour}"/>')
                parts.append(f'<text x="{left + width + 5:.1f}" y="{top + 10}">{row[own]:g}</text>')
        y += thick * len(series) + 9
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(names: Sequence[str], across: int) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        parts.append(f'<rect x="{across}" y="27" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{across + 15}" y="36">{escape(name)}</text>')
        across += 45 + 7 * len(name)
    return parts


class Axis:
    """A scale from values to pixels, with its ticks."""

    def __init__(self, values: Sequence[float], begin: float, end: float, log: bool = False) -> None:
        self._log, self._begin, self._end = log, begin, end
        low, high = min(values), max(values)
        if log:
            self.ticks = [10.0**n * step for n in range(-3, 10) for step in (1, 3) if low <= 10.0**n * step <= high]
            self._low, self._high = math.log(low / 1.15), math.log(high * 1.15)
            return
        step = _step(high - low)
        first, last = math.floor(low / step), math.ceil(high / step)
        self.ticks = [round(step * n, 10) for n in range(first, last + 1)]
        self._low, self._high = first * step, max(last, first + 1) * step

    def __call__(self, value: float) -> float:
        place = math.log(value) if self._log else value
        return self._begin + (place - self._low) / (self._high - self._low) * (self._end - self._begin)


def _step(span: float) -> float:
    """A round distance of ticks, of which five or so fit into a span."""
    rough = (span or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)


def _series(
    points: Sequence[tuple[float, float]],
    colour: str,
    to_x: Axis,
    to_y: Axis,
    joined: bool,
    names: Mapping[tuple[float, float], str],
) -> list[str]:
    parts = []
    places = [(to_x(x), to_y(y)) for x, y in points]
    if joined:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    if not joined or len(places) < 30:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
    for place, (x, y) in zip(points, places, strict=True):
        if place in names:
            right = x > WIDTH - 160
            anchor = f'x="{x - 8:.1f}" text-anchor="end"' if right else f'x="{x + 8:.1f}"'
            parts.append(f'<text {anchor} y="{y + 4:.1f}">{escape(names[place])}</text>')
    return parts
