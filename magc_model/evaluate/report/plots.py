"""Rate-quality plots as SVG: a logarithmic axis of rates, bands for intervals, and labels at the curves themselves.

A plot carries its colours as attributes, so that its file stands alone; the page's style sheet overrides them by class,
for dark windows. Colours are Okabe and Ito's ("Color Universal Design", 2008), which people of all kinds of colour
vision can tell apart, some darkened so that names in them can be read; markers differ too.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from magc_model.evaluate.report.labels import Box, place_labels
from magc_model.evaluate.report.wording import BYTES_A_TILE

COLORS = ("#d1495b", "#0072b2", "#c98a00", "#009e73", "#3d9fd6", "#8c5fb0", "#5b6770", "#a6761d", "#cc79a7", "#1b1b1b")
"""By number of the codec; after the last the first comes again, with another marker."""

MARKERS = ("circle", "square", "triangle", "diamond", "cross", "ring")

WIDTH, HEIGHT = 520, 372
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 46
FONT_PX = 12
_PAPER = "#7d8884"
_INK, _LINE = "#1b2422", "#e0e4df"


class Place(NamedTuple):
    """A point of a curve."""

    bpp: float
    value: float
    low: float | None
    high: float | None
    hint: str


class Series(NamedTuple):
    """A curve."""

    label: str
    code: int | None
    """Number of the codec; None for a curve of the paper, which is dashed."""
    places: tuple[Place, ...]


class Plot(NamedTuple):
    """A picture of curves."""

    title: str
    y_label: str
    series: tuple[Series, ...]
    ceiling: tuple[float, str] | None = None
    """A level that curves are read against, and its name."""


class _Frame(NamedTuple):
    """From figures to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, bpp: float) -> float:
        share = (math.log10(bpp) - math.log10(self.x_low)) / (math.log10(self.x_high) - math.log10(self.x_low))
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def plot_svg(plot: Plot) -> str:
    """The picture; curves without points are left out."""
    series = [each for each in plot.series if each.places]
    frame = _frame(plot, series)
    # The paper's curves lie below ours, and the first codec, whom the report is about, on top.
    ordered = sorted(series, key=lambda each: (each.code is not None, -(each.code or 0)))
    parts = [_axes(plot, frame)]
    if plot.ceiling:
        level, name = frame.y(plot.ceiling[0]), html.escape(plot.ceiling[1])
        parts.append(
            f'<g class="ceiling"><path d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}" stroke="{_INK}" stroke-dasharray="2 3"/>'
            f'<text x="{WIDTH - RIGHT - 4}" y="{level - 5:.1f}" text-anchor="end" fill="{_INK}">{name}</text></g>'
        )
    parts += [_band(each, frame) for each in ordered]
    parts += [_curve(each, frame) for each in ordered]
    parts += _labels(plot, ordered, frame)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(plot.title)}" font-family="Inter, Segoe UI, Helvetica, Arial, sans-serif" '
        f'font-size="{FONT_PX}">' + "".join(parts) + "</svg>"
    )


def color_of(code: int) -> str:
    """Of a codec."""
    return COLORS[code % len(COLORS)]


def _frame(plot: Plot, series: Sequence[Series]) -> _Frame:
    places = [each for one in series for each in one.places]
    rates = [each.bpp for each in places] or [0.01, 1.0]
    values = [v for each in places for v in (each.value, each.low, each.high) if v is not None] or [0.0, 1.0]
    if plot.ceiling:
        values.append(plot.ceiling[0])
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return _Frame(min(rates) / 1.15, max(rates) * 1.15, low - pad, high + pad)


def _axes(plot: Plot, frame: _Frame) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = ['<g class="axes">']
    for value in y_ticks(frame.y_low, frame.y_high):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}" stroke="{_LINE}"/>')
        text = f"{value:.10g}".replace("-", "−")
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end" fill="{_INK}">{text}</text>')
    for bpp in _rate_ticks(frame.x_low, frame.x_high):
        x = frame.x(bpp)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}" stroke="{_LINE}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{_INK}">{bpp:.10g}</text>')
        size = f"{bpp * BYTES_A_TILE:,.0f}"
        parts.append(
            f'<text class="minor" x="{x:.1f}" y="{TOP - 6}" text-anchor="middle" fill="{_PAPER}">{size}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(f'<path class="frame" d="M{LEFT} {bottom}H{right}" stroke="{_INK}"/>')
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle" fill="{_INK}">bits a pixel</text>')
    parts.append(f'<text class="minor" x="{middle}" y="11" text-anchor="middle" fill="{_PAPER}">bytes a tile</text>')
    y_middle = (TOP + bottom) / 2
    parts.append(
        f'<text x="14" y="{y_middle}" text-anchor="middle" transform="rotate(-90 14 {y_middle})" fill="{_INK}">'
        f"{html.escape(plot.y_label)}</text></g>"
    )
    return "".join(parts)


def y_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, four to nine of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (5, 2.5, 2, 1) if (high - low) / (step * factor) >= 4 or factor == 1)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def _rate_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [each for each in ticks if low <= each <= high]
        if len(ticks) <= 7:
            break
    return ticks


def _band(series: Series, frame: _Frame) -> str:
    known = [each for each in series.places if each.low is not None and each.high is not None]
    if series.code is None or len(known) < 2:
        return ""
    upper = [(frame.x(each.bpp), frame.y(each.high or 0.0)) for each in known]
    lower = [(frame.x(each.bpp), frame.y(each.low or 0.0)) for each in reversed(known)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (*upper, *lower)) + "Z"
    color = color_of(series.code)
    return (
        f'<path class="band f{series.code % len(COLORS)}" data-codec="{series.code}" d="{path}" fill="{color}" '
        'fill-opacity=".16"/>'
    )


def _curve(series: Series, frame: _Frame) -> str:
    xy = [(frame.x(each.bpp), frame.y(each.value)) for each in series.places]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in xy)
    if series.code is None:
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_PAPER}"><title>{html.escape(each.hint)}</title></circle>'
            for (x, y), each in zip(xy, series.places, strict=True)
        )
        return (
            f'<g class="paper"><path d="{path}" fill="none" stroke="{_PAPER}" stroke-width="1.2" '
            f'stroke-dasharray="5 3"/>{dots}</g>'
        )
    color, number = color_of(series.code), series.code % len(COLORS)
    width = 2.4 if series.code == 0 else 1.7
    marker = MARKERS[(series.code + series.code // len(COLORS)) % len(MARKERS)]
    markers = "".join(
        f"<g><title>{html.escape(each.hint)}</title>{_marker(marker, x, y, color, number)}</g>"
        for (x, y), each in zip(xy, series.places, strict=True)
    )
    return (
        f'<g data-codec="{series.code}"><path class="s{number}" d="{path}" fill="none" stroke="{color}" '
        f'stroke-width="{width}" stroke-linejoin="round"/>{markers}</g>'
    )


_SHAPES = {
    "square": "M{l} {t}H{r}V{b}H{l}Z",
    "triangle": "M{x} {t}L{r} {b}H{l}Z",
    "diamond": "M{x} {t2}L{r2} {y}L{x} {b2}L{l2} {y}Z",
}


def _marker(name: str, x: float, y: float, color: str, number: int) -> str:
    filled = f'class="f{number}" fill="{color}"'
    if name == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" {filled}/>'
    if name == "ring":
        hollow = f'class="s{number} hollow" stroke="{color}" stroke-width="1.6" fill="#fff"'
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" {hollow}/>'
    if name == "cross":
        path = f"M{x - 3.2:.1f} {y - 3.2:.1f}l6.4 6.4m0-6.4l-6.4 6.4"
        return f'<path class="s{number}" d="{path}" stroke="{color}" stroke-width="2" fill="none"/>'
    sides = {"l": x - 3.3, "r": x + 3.3, "t": y - 3.3, "b": y + 3.3, "x": x, "y": y}
    sides |= {"l2": x - 4.4, "r2": x + 4.4, "t2": y - 4.4, "b2": y + 4.4}
    path = _SHAPES[name].format(**{each: f"{value:.1f}" for each, value in sides.items()})
    return f'<path d="{path}" {filled}/>'


def _labels(plot: Plot, ordered: Sequence[Series], frame: _Frame) -> list[str]:
    # Ours are placed first, as they have the first choice of room.
    series = sorted(ordered, key=lambda each: (each.code is None, each.code or 0))
    curves = [[(frame.x(each.bpp), frame.y(each.value)) for each in one.places] for one in series]
    sizes = [(FONT_PX if one.code is not None else FONT_PX - 2) for one in series]
    inside = Box(LEFT + 2.0, TOP + 2.0, WIDTH - RIGHT - 1.0, HEIGHT - BOTTOM - 2.0)
    taken = []
    if plot.ceiling:
        level = frame.y(plot.ceiling[0])
        taken.append(Box(WIDTH - RIGHT - 6.2 * len(plot.ceiling[1]) - 8, level - 16, float(WIDTH - RIGHT), level + 2))
    places = place_labels([each.label for each in series], curves, sizes, inside, taken)
    texts = []
    for one, place, size in zip(series, places, sizes, strict=True):
        if place is None:
            continue
        x, y = place
        paper = one.code is None
        color = _PAPER if one.code is None else color_of(one.code)
        kind = "paper" if paper else f"t{(one.code or 0) % len(COLORS)}"
        data = "" if paper else f' data-codec="{one.code}"'
        weight = ' font-weight="600"' if not paper else ""
        texts.append(
            f'<text class="label {kind}"{data} x="{x:.1f}" y="{y:.1f}" font-size="{size}"{weight} fill="{color}" '
            f'stroke="#fff" stroke-width="3" stroke-linejoin="round" paint-order="stroke">'
            f"{html.escape(one.label)}</text>"
        )
    return texts
