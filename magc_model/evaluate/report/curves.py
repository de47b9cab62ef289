"""Which curves a report draws: every metric over the rate, on tiles and on scenes, with the paper's own dashed in."""

from collections.abc import Iterator
from typing import NamedTuple

from magc_model.evaluate.bootstrap import Estimate
from magc_model.evaluate.measurement import On
from magc_model.evaluate.paper import paper_column, paper_results
from magc_model.evaluate.report.plots import Place, Plot, Series
from magc_model.evaluate.report.wording import ON_WORDS, bits, bytes_a_tile, heading, interval, number
from magc_model.evaluate.results import MetricInfo, Point, Results


class NamedPlot(NamedTuple):
    """A plot and where it belongs."""

    name: str
    """Of its file, and for links."""
    on: On
    metric: str
    class_name: str | None
    with_paper: bool
    plot: Plot


def metric_plots(results: Results, on: On) -> Iterator[NamedPlot]:
    """One plot a metric."""
    for info in results.metrics:
        series = [
            Series(each.label, code, _places(results, each.label, each.name, on, info))
            for code, each in enumerate(results.codecs)
        ]
        if not any(each.places for each in series):
            continue
        paper = _paper_series(info)
        title = f"{info.label} over the rate, on {ON_WORDS[on]}"
        ceiling = _ceiling(results, on, info)
        plot = Plot(title, heading(info), (*series, *paper), ceiling)
        yield NamedPlot(_file_name(info.name, on), on, info.name, None, bool(paper), plot)


def class_plots(results: Results, on: On) -> Iterator[NamedPlot]:
    """One plot a class of every score of confusions, the original's figure as the ceiling."""
    for score, classes in results.classes.items():
        info = next(each for each in results.metrics if each.name == score)
        original = next((each for each in results.originals if each.on is on and score in each.classes), None)
        for place, each in enumerate(classes):
            series = tuple(
                Series(codec.label, code, _class_places(results, codec.label, codec.name, on, info, place))
                for code, codec in enumerate(results.codecs)
            )
            if not any(one.places for one in series):
                continue
            ceiling = original.classes[score][place].value if original else None
            plot = Plot(
                f"{info.label} of {each.name} over the rate, on {ON_WORDS[on]}",
                f"{each.name}: intersection over union ↑",
                series,
                None if ceiling is None else (ceiling, "originals"),
            )
            name = _file_name(f"{score}-{each.name}", on)
            yield NamedPlot(name, on, score, each.name, with_paper=False, plot=plot)


def _file_name(name: str, on: On) -> str:
    return "".join(each if each.isalnum() or each in "-_" else "-" for each in f"{name}-{on}")


def _places(results: Results, label: str, codec: str, on: On, info: MetricInfo) -> tuple[Place, ...]:
    return tuple(
        place
        for point in results.curve(codec, on)
        if info.name in point.metrics and (place := _place(label, point, point.metrics[info.name], info)) is not None
    )


def _class_places(
    results: Results, label: str, codec: str, on: On, info: MetricInfo, number_: int
) -> tuple[Place, ...]:
    return tuple(
        place
        for point in results.curve(codec, on)
        if info.name in point.classes
        and (place := _place(label, point, point.classes[info.name][number_], info)) is not None
    )


def _place(label: str, point: Point, estimate: Estimate, info: MetricInfo) -> Place | None:
    bpp = point.bpp.value
    if bpp is None or bpp <= 0 or estimate.value is None:
        return None
    around = interval(estimate, info.decimals)
    hint = (
        f"{label}, setting {point.rate:g}: {bits(bpp)} bits a pixel ({bytes_a_tile(bpp)} bytes a tile), "
        f"{info.label} {number(estimate.value, info.decimals)}{f' ({around})' if around else ''}"
    )
    return Place(bpp, estimate.value, estimate.low, estimate.high, hint)


def _paper_series(info: MetricInfo) -> tuple[Series, ...]:
    column = paper_column(info.name)
    curves = paper_results().curves.get(column or "", {})
    return tuple(
        Series(
            f"{codec}, paper",
            None,
            tuple(
                Place(bpp, value, None, None, f"{codec} in the paper: {bits(bpp)} bits a pixel, {column} {value:g}")
                for bpp, value in zip(curve.bpp.tolist(), curve.metric.tolist(), strict=True)
            ),
        )
        for codec, curve in curves.items()
    )


_ORIGINALS_TELL = ("realism", "meaning")
"""Groups of metrics in which the originals' own figure says something.

Elsewhere they are compared with themselves: 80 dB or 1, so far from all codecs that these would lie in a strip.
"""


def _ceiling(results: Results, on: On, info: MetricInfo) -> tuple[float, str] | None:
    if info.group not in _ORIGINALS_TELL:
        return None
    for each in results.originals:
        if each.on is on and info.name in each.metrics:
            value = each.metrics[info.name].value
            return None if value is None else (value, "originals")
    return (1.0, "the original's") if info.better.sign == 0 else None
