"""The tables of a report that are not the paper's."""

import math
from collections.abc import Iterator, Sequence

from magc_model.evaluate.bootstrap import Estimate
from magc_model.evaluate.curves import LEAST_OVERLAP
from magc_model.evaluate.differences import FURTHEST_RATES
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
from magc_model.evaluate.results import Fit, MetricInfo, Original, Point, Results

MOST_METRICS = 12
"""Columns of metrics in a table: what a page of paper has room for."""

_RATE = Column("Bits a pixel", "bytes of whole files times 8 over pixels")
_BYTES = Column("Bytes a tile", "the same rate on 256 x 256 px")


def common_rate_bpp(results: Results, on: On) -> float | None:
    """The rate of the first codec that most others come near to, and these nearest; none where no sizes are known.

    The first one's, as the report is about it: a rate that it does not have would leave it out.
    """
    known = [each for each in results.points if each.on is on and each.bpp.value]
    first = [each for each in known if each.codec == results.codecs[0].name] or known
    rates = sorted({each.bpp.value for each in first if each.bpp.value})
    curves = [curve for each in results.codecs if (curve := results.curve(each.name, on))]

    def distances(bpp: float) -> tuple[int, float]:
        apart = [min(abs(math.log((each.bpp.value or bpp) / bpp)) for each in curve) for curve in curves]
        near = [each for each in apart if each <= math.log(FURTHEST_RATES)]
        return -len(near), sum(near)

    return min(rates, key=distances, default=None)


def nearest_points(results: Results, on: On, bpp: float | None) -> list[Point]:
    """Of every codec the point nearest to a rate, on the logarithmic axis."""
    curves = [curve for each in results.codecs if (curve := results.curve(each.name, on))]
    if bpp is None:
        return [curve[0] for curve in curves]
    return [min(curve, key=lambda each: abs(math.log((each.bpp.value or bpp) / bpp))) for curve in curves]


def headline_table(results: Results, on: On) -> Table:
    """Every codec, a column each, at the rate that most of them come near to."""
    bpp = common_rate_bpp(results, on)
    points = nearest_points(results, on, bpp)
    codecs = [results.codec(each.codec) for each in points]
    far = [_is_far(each, bpp) for each in points]
    ranges = [Cell(_range(results.curve(each.codec, on))) for each in points]
    rates = [_marked(_rate_cell(point), far=one) for point, one in zip(points, far, strict=True)]
    sizes = [Cell(bytes_a_tile(point.bpp.value), faint=one) for point, one in zip(points, far, strict=True)]
    rows = [
        Row((Cell("Measured range, bits a pixel"), *ranges)),
        Row((Cell("Bits a pixel here"), *rates)),
        Row((Cell("Bytes a tile"), *sizes)),
    ]
    rows += [
        Row(
            (
                Cell(heading(info), info.group, info.about),
                *(
                    estimate_cell(point.metrics.get(info.name), info.decimals)._replace(faint=one)
                    for point, one in zip(points, far, strict=True)
                ),
            )
        )
        for info in results.metrics
    ]
    sample = points[0]
    items = count(sample.items, "tile" if on is On.TILES else "scene")
    cuts = f" in {sample.cuts} cuts of 256 px" if on is On.SCENES else ""
    numbers = {each.name: place for place, each in enumerate(results.codecs)}
    return Table(
        f"headline-{on}",
        f"All codecs on {items}{cuts}"
        + (
            f", each at its measured rate nearest to {bits(bpp)} bits a pixel"
            if bpp
            else ", at rates that are not known"
        ),
        (
            Column("", numeric=False),
            *(Column(each.label, f"{each.name}, {each.version}", code=numbers[each.name]) for each in codecs),
        ),
        tuple(rows),
        notes=(_BELOW,),
        wide=True,
    )


_BELOW = (
    "With each figure is its interval. Far: that codec has no setting within a quarter of the common rate, so its "
    "figures, at another rate, are not to be compared with the others'."
)


def _marked(cell: Cell, *, far: bool) -> Cell:
    return cell._replace(text=f"{cell.text} (far)", faint=True) if far else cell


def _is_far(point: Point, bpp: float | None) -> bool:
    rate = point.bpp.value
    return bool(bpp and rate) and abs(math.log((rate or 1.0) / (bpp or 1.0))) > math.log(FURTHEST_RATES)


def _range(curve: Sequence[Point]) -> str:
    return f"{bits(curve[0].bpp.value)} to {bits(curve[-1].bpp.value)}" if curve else NONE


def all_points_tables(results: Results, on: On) -> Iterator[Table]:
    """Everything that was measured; so many metrics a table as a page has room for."""
    numbers = {each.name: place for place, each in enumerate(results.codecs)}
    for part, metrics in _parts(results):
        rows = [
            Row(
                (
                    Cell(codec.label, hint=f"{codec.name}, {codec.version}"),
                    Cell(f"{point.rate:g}"),
                    _rate_cell(point),
                    Cell(bytes_a_tile(point.bpp.value)),
                    *(estimate_cell(point.metrics.get(info.name), info.decimals) for info in metrics),
                ),
                numbers[codec.name],
            )
            for codec in results.codecs
            for point in results.curve(codec.name, on)
        ]
        yield Table(
            f"points-{on}{part}",
            f"All codecs at all rates on {ON_WORDS[on]}: {_named(metrics)}",
            (
                Column("Codec", numeric=False),
                Column("Setting", "the codec's own scale"),
                _RATE,
                _BYTES,
                *(Column(heading(info), info.about) for info in metrics),
            ),
            tuple(rows),
            wide=True,
        )


def _parts(results: Results) -> Iterator[tuple[str, tuple[MetricInfo, ...]]]:
    parts = -(-len(results.metrics) // MOST_METRICS)
    size = -(-len(results.metrics) // parts)
    for part in range(parts):
        yield "" if part == 0 else f"-{part + 1}", results.metrics[part * size : (part + 1) * size]


def _named(metrics: Sequence[MetricInfo]) -> str:
    return f"{metrics[0].label} to {metrics[-1].label}" if len(metrics) > 1 else metrics[0].label


def _rate_cell(point: Point) -> Cell:
    return Cell(bits(point.bpp.value), interval(point.bpp, 4 if (point.bpp.value or 0) < 0.1 else 3))


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
            Column("Refused", numeric=False, long=True),
        ),
        tuple(rows),
        (("", 2), ("BD-metric", 3), ("Bits a pixel", 2), ("BD-rate, %", 2), ("", 1)),
        (f"A difference is refused below {LEAST_OVERLAP:.0%} overlap of each range, and where points are too few.",),
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


def comparison_tables(results: Results, on: On) -> Iterator[Table]:
    """Differences of all pairs where their rates are nearest."""
    for part, metrics in _parts(results):
        rows = []
        for each in results.comparisons:
            if each.on is not on:
                continue
            pair = f"{results.codec(each.codec).label} − {results.codec(each.other).label}"
            cells = [
                _difference_cell(each.differences.get(info.name), info.decimals, info.better.sign, each.refused or "")
                for info in metrics
            ]
            known = each.bpp is not None and each.other_bpp is not None
            apart = ("too far apart" if known else "unknown") if each.refused else ""
            rate = Cell(f"{bits(each.bpp)}, {bits(each.other_bpp)}", apart, each.refused or "", faint=bool(apart))
            rows.append(Row((Cell(pair), rate, *cells)))
        yield Table(
            f"differences-{on}{part}",
            f"Differences of all pairs of codecs where their rates are nearest, on {ON_WORDS[on]}: {_named(metrics)}",
            (
                Column("Codecs", numeric=False),
                Column("Bits a pixel", "of the two, in their order"),
                *(Column(heading(info), info.about) for info in metrics),
            ),
            tuple(rows),
            notes=(_STRONG,),
            wide=True,
        )


_STRONG = "Strong: better, and the interval does not hold 0. A codec with more bits a pixel has that advantage too."


def _difference_cell(estimate: Estimate | None, decimals: int, sign: int, hint: str) -> Cell:
    cell = estimate_cell(estimate, decimals, signed=True, hint=hint)
    if estimate is None or estimate.low is None or estimate.high is None or not sign:
        return cell
    return cell._replace(strong=min(sign * estimate.low, sign * estimate.high) > 0)


def class_table(results: Results, on: On, score: str) -> Table:
    """Each class at the common rate, beside what is seen in the originals."""
    info = next(each for each in results.metrics if each.name == score)
    bpp = common_rate_bpp(results, on)
    originals = [each for each in results.originals if each.on is on and score in each.classes]
    rows = [_class_row("Originals", None, each, score, None, info.decimals) for each in originals]
    numbers = {each.name: place for place, each in enumerate(results.codecs)}
    for point in nearest_points(results, on, bpp):
        if score in point.classes:
            label = results.codec(point.codec).label
            rate = bits(point.bpp.value) + (" (far)" if _is_far(point, bpp) else "")
            rows.append(_class_row(label, rate, point, score, numbers[point.codec], info.decimals))
    return Table(
        f"classes-{score}-{on}".replace(":", "-"),
        f"{info.label} by class on {ON_WORDS[on]}: intersection over union, near {bits(bpp)} bits a pixel",
        (
            Column("Codec", numeric=False),
            Column("Bits a pixel"),
            Column("Mean"),
            *(Column(each.name, color=each.color) for each in results.classes[score]),
        ),
        tuple(rows),
        notes=(_ORIGINALS,),
    )


_ORIGINALS = (
    "The originals' figure says how well the segmenter itself does. For codecs without the map it is the most to be "
    "had; one that draws from the map can be above it, with things plainer than they were."
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
        each.value for each in results.run.facts if each.name.lower() in ("hardware", "machine", "processor", "gpu")
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
                            Cell(NONE if point.file_bytes is None else f"{point.file_bytes / point.items:,.0f}"),
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
