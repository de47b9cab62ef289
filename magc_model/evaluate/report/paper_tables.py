"""Tables 1-3 laid out as in the paper: its figures as printed, ours beside them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from magc_model.evaluate.curves import Method
from magc_model.evaluate.measurement import On
from magc_model.evaluate.paper import ReadOffDelta, paper_column, paper_results, read_off_table1
from magc_model.evaluate.paper import Table as PrintedTable
from magc_model.evaluate.report.paper_rows import (
    PAPER_RATE_BPP,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    PaperRow,
    codec_of_row,
)
from magc_model.evaluate.report.table import Cell, Column, Row, Table, estimate_cell, marked_best
from magc_model.evaluate.report.wording import NONE, ON_WORDS, bits, heading, number
from magc_model.evaluate.results import Bjontegaard, CodecInfo, Fit, MetricInfo, Point, Results

_ARROWS = {"PSNR": "↑", "SSIM": "↑", "mIoU": "↑", "MUSIQ": "↑"}
NOT_MEASURED = "not measured"


def paper_tables(results: Results) -> Iterator[Table]:
    """All of them: ours on each of tiles and scenes."""
    for on in results.measured_on():
        yield _delta_table(
            results, on, "table-1", "Table 1 of the paper, BD differences of codecs", TABLE_1, paper_results().table1
        )
    for on in results.measured_on():
        yield _table_2(results, on)
    for on in results.measured_on():
        yield _delta_table(
            results, on, "table-3", "Table 3 of the paper, what the map is worth", TABLE_3, paper_results().table3
        )


def _ours_first(results: Results, printed: PrintedTable) -> tuple[MetricInfo, ...]:
    """Metrics of the paper's columns in their order, then those that have a say where these are missing."""
    named = [(paper_column(info.name), info) for info in results.metrics if info.better.sign]
    papers = [info for column in printed.columns for name, info in named if name == column]
    others = [info for name, info in named if name is None and info.group in ("realism", "meaning")]
    return (*papers, *others)


class _Line(NamedTuple):
    """A row of a table with ours beside the paper's."""

    row: PaperRow | None
    """None for codecs that the paper has not."""
    codec: CodecInfo | None
    """None where nothing was measured."""


def _delta_table(
    results: Results, on: On, name: str, caption: str, rows: Sequence[PaperRow], printed: PrintedTable
) -> Table:
    metrics = _ours_first(results, printed)
    lines = [_Line(row, codec_of_row(row, results.codecs)) for row in rows]
    if name == "table-1":
        used = {each.codec.name for each in lines if each.codec}
        lines += [_Line(None, codec) for codec in results.codecs if codec.name not in used]
    ours = [_delta_column(results, on, info, lines) for info in metrics]
    table_rows = []
    for place, line in enumerate(lines):
        first, codec_cell = _names(line)
        printed_cells = _printed_cells(printed, line.row.name if line.row else None)
        table_rows.append(Row((first, *printed_cells, codec_cell, *(column[place] for column in ours))))
    return Table(
        f"{name}-{on}",
        f"{caption}: ours on {ON_WORDS[on]}",
        (
            Column("Method", numeric=False),
            *(Column(f"BD-{each} {_ARROWS.get(each, '↓')}") for each in printed.columns),
            Column("Codec", numeric=False),
            *(Column(f"BD-{heading(info)}", info.about) for info in metrics),
        ),
        tuple(table_rows),
        (("", 1), ("Paper", len(printed.columns)), (f"Measured here, {ON_WORDS[on]}", 1 + len(metrics))),
        (_anchor_note(results, on), _DASH, *_gaps(lines)),
        wide=True,
    )


def _names(line: _Line) -> tuple[Cell, Cell]:
    if line.row is None:
        label = line.codec.label if line.codec else ""
        return Cell(label, hint="not in the paper"), Cell(label, hint=line.codec.name if line.codec else "")
    if line.codec is None:
        return Cell(line.row.name), Cell(NOT_MEASURED, hint=line.row.way_out, faint=True)
    return Cell(line.row.name), Cell(line.codec.label, hint=line.codec.name)


def _delta_column(results: Results, on: On, info: MetricInfo, lines: Sequence[_Line]) -> list[Cell]:
    found = {each.codec: each for each in results.bjontegaard if (each.on, each.metric) == (on, info.name)}
    cells: list[Cell] = []
    values: list[float | None] = []
    for line in lines:
        name = line.codec.name if line.codec else ""
        fit = _cubic(found[name]) if name in found else None
        if name and name == results.anchor:
            cells.append(Cell(number(0.0, info.decimals + 1), hint="the anchor"))
            values.append(0.0)
        elif fit is None or fit.delta is None:
            cells.append(Cell(NONE, hint=(fit.refused or "") if fit else "", faint=True))
            values.append(None)
        else:
            cells.append(estimate_cell(fit.delta, info.decimals + 1, signed=True))
            values.append(fit.delta.value)
    return marked_best(cells, values, info.better.sign)


def _anchor_note(results: Results, on: On) -> str:
    if results.anchor is None:
        return "No anchor was chosen, so there are no Bjontegaard differences."
    label = results.codec(results.anchor).label
    note = f"Ours against {label} on {ON_WORDS[on]}, by cubics as in the paper."
    if not results.anchor.startswith("vtm"):
        note += f" The paper's anchor is VTM-23.3, for which {label} stands in; its test set is another one."
    return note


_DASH = "A dash is a refused or missing figure; refusals stand with their reasons in the table of all BD differences."


def _gaps(lines: Sequence[_Line]) -> tuple[str, ...]:
    wanted = [f"{each.row.name} by {each.row.way_out}" for each in lines if each.row and each.codec is None]
    return ("To fill the gaps, measure: " + "; ".join(wanted) + ".",) if wanted else ()


def _printed_cells(printed: PrintedTable, row: str | None) -> list[Cell]:
    if row is None or row not in printed.rows:
        return [Cell("", faint=True) for _ in printed.columns]
    signs = [1 if column in _ARROWS else -1 for column in printed.columns]
    cells = []
    for place, (column, value) in enumerate(zip(printed.columns, printed.rows[row], strict=True)):
        best = max((values[place] for values in printed.rows.values()), key=lambda each: signs[place] * each)
        cells.append(Cell(_as_printed(column, value), strong=value == best))
    return cells


def _as_printed(column: str, value: float) -> str:
    """Five digits of a Frechet distance and of table 2's decibels, four decimals of the rest."""
    digits_of_five = max(0, 5 - len(str(int(abs(value)))))
    five = column == "FID" or (column == "PSNR" and value > 10)
    return number(value, digits_of_five if five and value else 4)


def _cubic(delta: Bjontegaard) -> Fit:
    return next(each for each in delta.metric_deltas if each.method is Method.CUBIC)


def _table_2(results: Results, on: On) -> Table:
    printed = paper_results().table2
    metrics = _ours_first(results, printed)
    lines = [_Line(row, codec_of_row(row, results.codecs)) for row in TABLE_2]
    rows = []
    for row, codec in lines:
        assert row is not None  # noqa: S101 - they are all the paper's
        paper_cells = [
            Cell(_as_printed(column, value))
            for column, value in zip(printed.columns, printed.rows[row.name], strict=True)
        ]
        point = _nearest(results.curve(codec.name, on), PAPER_RATE_BPP) if codec else None
        figures = [
            Cell(NONE if point is None else bits(point.bpp.value), faint=point is None),
            *(estimate_cell(point.metrics.get(info.name) if point else None, info.decimals) for info in metrics),
        ]
        rows.append(Row((Cell(row.name), *paper_cells, _names(_Line(row, codec))[1], *figures)))
    return Table(
        f"table-2-{on}",
        f"Table 2 of the paper, what the pre-trained model is worth: ours on {ON_WORDS[on]}",
        (
            Column("Method", numeric=False),
            *(Column(f"{each} {_ARROWS.get(each, '↓')}") for each in printed.columns),
            Column("Codec", numeric=False),
            Column("Bits a pixel"),
            *(Column(heading(info), info.about) for info in metrics),
        ),
        tuple(rows),
        (("", 1), ("Paper", len(printed.columns)), (f"Measured here, {ON_WORDS[on]}", 2 + len(metrics))),
        (f"Ours at the measured rate nearest to {PAPER_RATE_BPP} bits a pixel, on {ON_WORDS[on]}.", *_gaps(lines)),
        wide=True,
    )


def _nearest(points: Sequence[Point], bpp: float) -> Point | None:
    return min(points, key=lambda each: abs((each.bpp.value or 0.0) - bpp), default=None)


def digitisation_table() -> Table:
    """Table 1 from the curves that were read off: what their digitisation is worth."""
    rows = [
        Row(
            (
                Cell(f"BD-{each.metric}"),
                Cell(each.codec),
                Cell(_as_printed(each.metric, each.printed)),
                Cell(number(each.read_off, _decimals(each.metric)), faint=each.refused is not None),
                Cell(number(_apart(each), _decimals(each.metric), signed=True), faint=each.refused is not None),
                Cell(each.refused or "", faint=True),
            )
        )
        for each in read_off_table1()
    ]
    note = (
        "Against VTM-23.3 by cubics. Faint figures are of curves that overlap too little, or of too few points: the "
        "dashed curves of FID are good to the eye, not to take differences of."
    )
    return Table(
        "digitisation",
        "Table 1 of the paper from its curves as they were read off its plots",
        (
            Column("Metric", numeric=False),
            Column("Codec", numeric=False),
            Column("Printed"),
            Column("From the curves"),
            Column("Apart"),
            Column("Why ours would be refused", numeric=False, long=True),
        ),
        tuple(rows),
        notes=(note,),
    )


def _apart(delta: ReadOffDelta) -> float | None:
    return None if delta.read_off is None else delta.read_off - delta.printed


def _decimals(metric: str) -> int:
    return 2 if metric == "FID" else 4
