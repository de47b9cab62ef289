"""What a report holds, in its order: the same for the page and for the text."""

from collections.abc import Iterator
from typing import NamedTuple

from magc_model.evaluate.report import tables
from magc_model.evaluate.report.curves import NamedPlot, class_plots, metric_plots
from magc_model.evaluate.report.paper_tables import digitisation_table, paper_tables
from magc_model.evaluate.report.table import Cell, Column, Row, Table
from magc_model.evaluate.report.wording import ON_WORDS
from magc_model.evaluate.results import Fact, Results


class Plots(NamedTuple):
    """Plots that stand together."""

    heading: str
    plots: tuple[NamedPlot, ...]


class Folded(NamedTuple):
    """A table that is opened when it is wanted."""

    table: Table


class Pictures(NamedTuple):
    """Where the examples stand."""


Part = str | Table | Plots | Folded | Pictures


class Section(NamedTuple):
    """One heading and what is under it."""

    name: str
    short: str
    """In the page's bar."""
    heading: str
    parts: tuple[Part, ...]


def sections(results: Results) -> tuple[Section, ...]:
    """All that have something to say."""
    made = (
        Section("overview", "Overview", "All codecs at one rate", tuple(_overview(results))),
        Section("curves", "Curves", "Rate and quality", tuple(_curves(results))),
        Section("pictures", "Pictures", "Pictures", (Pictures(),)),
        Section("paper", "The paper's tables", "The paper's tables, ours beside", tuple(_paper(results))),
        Section("differences", "Differences", "Every difference, with its interval", tuple(_differences(results))),
        Section("classes", "Classes", "What is where the map says", tuple(_classes(results))),
        Section("costs", "Costs", "Time, memory and file formats", tuple(_costs(results))),
        Section("missing", "Missing", "What is missing", tuple(_missing(results))),
        Section("provenance", "Provenance", "Where the figures come from", tuple(_provenance(results))),
    )
    return tuple(each for each in made if each.parts)


def _overview(results: Results) -> Iterator[Part]:
    for on in results.measured_on():
        yield tables.headline_table(results, on)
    for on in results.measured_on():
        yield from map(Folded, tables.all_points_tables(results, on))


def _curves(results: Results) -> Iterator[Part]:
    with_paper = False
    for on in results.measured_on():
        plots = tuple(metric_plots(results, on))
        with_paper = with_paper or any(each.with_paper for each in plots)
        yield Plots(f"On {ON_WORDS[on]}", plots)
    yield (
        "Bands are the intervals. Rates are of whole files, on a logarithmic axis: below in bits a pixel, above in "
        "bytes of a tile of 256 px."
    )
    if with_paper:
        yield _DASHED


_DASHED = (
    "Dashed: the curves of the paper, read off its plots; they are of its own test set (4,500 tiles of 1.07 m a pixel) "
    "and show where such codecs lie, not how they would do here."
)


def _paper(results: Results) -> Iterator[Part]:
    yield from paper_tables(results)
    yield Folded(digitisation_table())


def _differences(results: Results) -> Iterator[Part]:
    for on in results.measured_on():
        if any(each.on is on for each in results.bjontegaard):
            yield Folded(tables.bjontegaard_table(results, on))
    for on in results.measured_on():
        if any(each.on is on for each in results.comparisons):
            yield from map(Folded, tables.comparison_tables(results, on))


def _classes(results: Results) -> Iterator[Part]:
    for on in results.measured_on():
        for score in results.classes:
            if any(score in each.classes and each.on is on for each in results.points):
                yield tables.class_table(results, on, score)
    for on in results.measured_on():
        if plots := tuple(class_plots(results, on)):
            yield Plots(f"By class, on {ON_WORDS[on]}", plots)


def _costs(results: Results) -> Iterator[Part]:
    if results.run.costs:
        yield tables.cost_table(results)
    for table in tables.stream_tables(results):
        yield Folded(table)


def _missing(results: Results) -> Iterator[Part]:
    if results.missing:
        yield Table(
            "missing-metrics",
            "Metrics that could not be had",
            (Column("Metric", numeric=False), Column("Why", numeric=False), Column("Way out", numeric=False)),
            tuple(
                Row((Cell(each.label, hint=each.name), Cell(each.reason), Cell(each.way_out)))
                for each in results.missing
            ),
        )


def _provenance(results: Results) -> Iterator[Part]:
    yield from results.notes
    for name, caption, facts in (
        ("data", "Data", results.data),
        ("settings", "Settings", results.settings),
        ("run", "This run", results.run.facts),
        ("versions", "Codecs", tuple(Fact(each.label, f"{each.name}, {each.version}") for each in results.codecs)),
        ("metrics", "Metrics", tuple(Fact(each.label, each.about) for each in results.metrics)),
    ):
        if facts:
            yield Table(
                f"facts-{name}",
                caption,
                (Column("", numeric=False), Column("", numeric=False)),
                tuple(Row((Cell(each.name), Cell(each.value))) for each in facts),
            )
