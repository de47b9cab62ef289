"""The tables of a report that are not the paper's."""

import math
from collections.abc import Iterator, Sequence

from magc_model.evaluate.bootstrap import Estimate
from magc_model.evaluate.curves import LEAST_OVERLAP
from magc_model.evaluate.measurement import On
from magc_model.evaluate.report.table import Cell, Column, Row, Table, estimate_cell
from magc_model.evaluate.report.wording import (
    NONE,
    ON_WORDS,
    bits,
    bytes_a_tile,
    count,
    heading,
    interval,
    number,
    seconds,
)
from magc_model.evaluate.results import Fit, Original, Point, Results
from magc_model.evaluate.summarise import FURTHEST_RATES

_RATE = Column("Bits a pixel", "bytes of whole files times 8 over pixels")
_BYTES = Column("Bytes a tile", "the same rate on 256 x 256 px")


def common_rate_bpp(results: Results, on: On) -> float:
    """The measured rate that most codecs come near to, and these nearest."""
    rates = sorted({each.bpp.value for each in results.points if each.on is on and each.bpp.value is not None})
    curves = [curve for each in results.codecs if (curve := results.curve(each.name, on))]

    def distances(bpp: float) -> tuple[int, float]:
        apart = [min(abs(math.log((each.bpp.value or bpp) / bpp)) for each in curve) for curve in curves]
        near = [each for each in apart if each <= math.log(FURTHEST_RATES)]
        return -len(near), sum(near)

    return min(rates, key=distances)


def nearest_points(results: Results, on: On, bpp: float) -> list[Point]:
    """Of every codec the point nearest to a rate, on the logarithmic axis."""
    curves = [curve for each in results.codecs if (curve := results.curve(each.name, on))]
    return [min(curve, key=lambda each: abs(math.log((each.bpp.value or bpp) / bpp))) for curve in curves]


def headline_table(results: Results, on: On) -> Table:
    """Every codec at the rate that most of them come near to."""
    bpp = common_rate_bpp(results, on)
    points = nearest_points(results, on, bpp)
    ranges = {each.name: _range(results.curve(each.name, on)) for each in results.codecs}
    rows = [_point_row(results, point, Cell(ranges[point.codec]), _far(point, bpp)) for point in points]
    sample = points[0]
    items = count(sample.items, "tile" if on is On.TILES else "scene")
    cuts = f" in {sample.cuts} cuts of 256 px" if on is On.SCENES else ""
    return Table(
        f"headline-{on}",
        f"All codecs on {items}{cuts}, each at its measured rate nearest to {bits(bpp)} bits a pixel",
        (Column("Codec", numeric=False), Column("Measured range"), *_point_columns(results)),
        tuple(rows),
        notes=(_BELOW,),
        wide=True,
    )


_BELOW = (
    "Below each figure is its interval. Faint rates are more than a quarter away from the common one: figures at different "
    "rates are not to be compared, the differences below are."
)


def _far(point: Point, bpp: float) -> bool:
    return abs(math.log((point.bpp.value or bpp) / bpp)) > math.log(FURTHEST_RATES)


def _range(curve: Sequence[Point]) -> str:
    return f"{bits(curve[0].bpp.value)} to {bits(curve[-1].bpp.value)}" if curve else NONE


def all_points_table(results: Results, on: On) -> Table:
    """Everything that was measured."""
    rows = [
        _point_row(results, point, Cell(f"{point.rate:g}"))
        for each in results.codecs
        for point in results.curve(each.name, on)
    ]
    return Table(
        f"points-{on}",
        f"All codecs at all rates on {ON_WORDS[on]}",
        (Column("Codec", numeric=False), Column("Setting", "the codec's own scale"), *_point_columns(results)),
        tuple(rows),
        wide=True,
    )


def _point_columns(results: Results) -> tuple[Column, ...]:
    return (_RATE, _BYTES, *(Column(heading(info), info.about) for info in results.metrics))


def _point_row(results: Results, point: Point, second: Cell, far: bool = False) -> Row:
    numbers = {each.name: place for place, each in enumerate(results.codecs)}
    codec = results.codec(point.codec)
    rate = Cell(bits(point.bpp.value), interval(point.bpp, 4 if (point.bpp.value or 0) < 0.1 else 3), faint=far)
    return Row(
        (
            Cell(codec.label, hint=f"{codec.name}, {codec.version}"),
            second,
            rate,
            Cell(bytes_a_tile(point.bpp.value), faint=far),
            *(estimate_cell(point.metrics.get(info.name), info.decimals) for info in results.metrics),
        ),
        numbers[point.codec],
    )


def bjontegaard_table(results: Results, on: On) -> Table:
    """All differences to the anchor, by all methods, with what they are averaged over, and all refusals."""
    infos = {each.name: each for each in results.metrics}
    rows = []
    for each in results.bjontegaard:
        if each.on is not on:
            continue
        info = infos[each.metric]
        overlap = each.metric_deltas[0].overlap
        rows.append(
            Row(
                (
                    Cell(results.codec(each.codec).label, hint=each.codec),
                    Cell(info.label),
                    *(_fit_cell(fit, info.decimals + 1) for fit in each.metric_deltas),
                    Cell(
                        f"{bits(overlap.low)} to {bits(overlap.high)}"
                        if overlap and overlap.low < overlap.high
                        else NONE
                    ),
                    Cell(f"{overlap.anchor_share:.0%}, {overlap.test_share:.0%}" if overlap else NONE),
                    *(_fit_cell(fit, 1) for fit in each.rate_deltas[:2]),
                    Cell(_refusals(each.metric_deltas, each.rate_deltas), faint=True),
                )
            )
        )
    anchor = results.codec(results.anchor).label if results.anchor else "no anchor"
    return Table(
        f"bjontegaard-{on}",
        f"All Bjontegaard differences to {anchor} on {ON_WORDS[on]}",
        (
            Column("Codec", numeric=False),
            Column("Metric", numeric=False),
            Column("Cubic"),
            Column("PCHIP"),
            Column("Akima"),
            Column("Common rates"),
            Column("Share", "of the anchor's range of rates, and of the codec's own, both logarithmic"),
            Column("Cubic"),
            Column("PCHIP"),
            Column("Refused", numeric=False),
        ),
        tuple(rows),
        (("", 2), ("BD-metric", 3), ("Bits a pixel", 2), ("BD-rate, %", 2), ("", 1)),
        (f"A difference is refused below {LEAST_OVERLAP:.0%} overlap of either range, and where points are too few.",),
        wide=True,
    )


def _fit_cell(fit: Fit, decimals: int) -> Cell:
    if fit.delta is None:
        return Cell(NONE, hint=fit.refused or "", faint=True)
    return estimate_cell(fit.delta, decimals, signed=True)


def _refusals(metric_deltas: Sequence[Fit], rate_deltas: Sequence[Fit]) -> str:
    metric = list(dict.fromkeys(each.refused for each in metric_deltas if each.refused))
    rate = list(dict.fromkeys(each.refused for each in rate_deltas if each.refused and each.refused not in metric))
    return "; ".join([*metric, *(f"BD-rate: {each}" for each in rate)])


def comparison_table(results: Results, on: On) -> Table:
    """Differences of all pairs where their rates are nearest."""
    rows = []
    for each in results.comparisons:
        if each.on is not on:
            continue
        pair = f"{results.codec(each.codec).label} − {results.codec(each.other).label}"
        if each.refused:
            cells = (Cell(each.refused, faint=True), *[Cell("")] * (len(results.metrics) - 1))
        else:
            cells = tuple(
                _difference_cell(each.differences.get(info.name), info.decimals, info.better.sign)
                for info in results.metrics
            )
        rows.append(Row((Cell(pair), Cell(f"{bits(each.bpp)}, {bits(each.other_bpp)}"), *cells)))
    return Table(
        f"differences-{on}",
        f"Differences of all pairs of codecs where their rates are nearest, on {ON_WORDS[on]}",
        (
            Column("Codecs", numeric=False),
            Column("Bits a pixel"),
            *(Column(heading(info), info.about) for info in results.metrics),
        ),
        tuple(rows),
        notes=(
            "Strong: better, and the interval does not hold 0. A codec with more bits a pixel has that advantage too.",
        ),
        wide=True,
    )


def _difference_cell(estimate: Estimate | None, decimals: int, sign: int) -> Cell:
    cell = estimate_cell(estimate, decimals, signed=True)
    if estimate is None or estimate.low is None or estimate.high is None or not sign:
        return cell
    return cell._replace(strong=min(sign * estimate.low, sign * estimate.high) > 0)


def class_table(results: Results, on: On, score: str) -> Table:
    """Each class at the common rate, beside the originals as the ceiling."""
    info = next(each for each in results.metrics if each.name == score)
    bpp = common_rate_bpp(results, on)
    originals = [each for each in results.originals if each.on is on and score in each.classes]
    rows = [_class_row("Originals: the ceiling", None, each, score, None, info.decimals) for each in originals]
    numbers = {each.name: place for place, each in enumerate(results.codecs)}
    for point in nearest_points(results, on, bpp):
        if score in point.classes:
            label = results.codec(point.codec).label
            rows.append(_class_row(label, bits(point.bpp.value), point, score, numbers[point.codec], info.decimals))
    return Table(
        f"classes-{score}-{on}".replace(":", "-"),
        f"{info.label} by class on {ON_WORDS[on]}: intersection over union, at the rates nearest to {bits(bpp)} bits",
        (
            Column("Codec", numeric=False),
            Column("Bits a pixel"),
            Column("Mean"),
            *(Column(each.name, color=each.color) for each in results.classes[score]),
        ),
        tuple(rows),
    )


def _class_row(
    label: str, rate: str | None, figures: Point | Original, score: str, code: int | None, decimals: int
) -> Row:
    return Row(
        (
            Cell(label),
            Cell(rate or ""),
            estimate_cell(figures.metrics[score], decimals),
            *(estimate_cell(each, decimals) for each in figures.classes[score]),
        ),
        code,
    )


def cost_table(results: Results) -> Table:
    """Time and memory."""
    rows = []
    for place, codec in enumerate(results.codecs):
        for on in results.measured_on():
            costs = [each for each in results.run.costs if each.codec == codec.name and each.on is on]
            alone = next((each for each in results.run.footprints if each.codec == codec.name and each.on is on), None)
            if not costs:
                continue
            encode, decode = (
                (min(values), max(values))
                for values in zip(
                    *((one.encode_s_per_megapixel, one.decode_s_per_megapixel) for one in costs), strict=True
                )
            )
            rows.append(
                Row(
                    (
                        Cell(codec.label, hint=f"{codec.name}, {codec.version}"),
                        Cell(ON_WORDS[on]),
                        Cell(_span(encode)),
                        Cell(_span(decode)),
                        Cell(f"{alone.width_px} × {alone.height_px} px" if alone else NONE),
                        Cell(seconds(alone.encode_s) if alone else NONE),
                        Cell(seconds(alone.decode_s) if alone else NONE),
                        Cell(number(alone.peak_mb, 0) if alone else NONE),
                    ),
                    place,
                )
            )
    hardware = "; ".join(
        each.value for each in results.run.facts if each.name.lower() in ("hardware", "processor", "gpu")
    )
    return Table(
        "costs",
        "Time and memory",
        (
            Column("Codec", numeric=False),
            Column("On", numeric=False),
            Column("Encode", "median over items, least and greatest of the rates"),
            Column("Decode", "median over items, least and greatest of the rates"),
            Column("Picture"),
            Column("Encode"),
            Column("Decode"),
            Column("Memory (MB)", "largest resident memory of the process and its largest program"),
        ),
        tuple(rows),
        (("", 2), ("A megapixel, in the evaluation", 2), ("Alone, at the middle rate", 4)),
        (f"Hardware: {hardware}." if hardware else "The hardware was not stated.",
         "In the evaluation every codec has one thread beside other processes: good for comparing, not for records."),
    )  # fmt: skip


def _span(values: tuple[float, float]) -> str:
    least, greatest = (seconds(each) for each in values)
    return least if least == greatest else f"{least} to {greatest}"


def stream_tables(results: Results) -> Iterator[Table]:
    """Bytes of files beside those of the elementary streams in them."""
    for on in results.measured_on():
        rows = []
        for place, codec in enumerate(results.codecs):
            for point in results.curve(codec.name, on):
                stream = None if point.stream_bpp is None else point.stream_bpp.value
                around = None if stream is None or point.bpp.value is None else 1 - stream / point.bpp.value
                rows.append(
                    Row(
                        (
                            Cell(codec.label, hint=codec.name),
                            Cell(f"{point.rate:g}"),
                            Cell(f"{point.file_bytes / point.items:,.0f}"),
                            Cell(NONE if point.stream_bytes is None else f"{point.stream_bytes / point.items:,.0f}"),
                            Cell(bits(point.bpp.value)),
                            Cell(bits(stream)),
                            Cell(NONE if around is None else f"{around:.1%}"),
                        ),
                        place,
                    )
                )
        one = "tile" if on is On.TILES else "scene"
        yield Table(
            f"streams-{on}",
            f"Files and the elementary streams in them, on {ON_WORDS[on]}",
            (
                Column("Codec", numeric=False),
                Column("Setting"),
                Column("File"),
                Column("Stream"),
                Column("File"),
                Column("Stream"),
                Column("Format around it", "share of the file that is not the stream"),
            ),
            tuple(rows),
            (("", 2), (f"Bytes a {one}", 2), ("Bits a pixel", 2), ("", 1)),
            ("A dash: the codec does not say where its stream begins. All other tables and plots are of whole files.",),
        )
