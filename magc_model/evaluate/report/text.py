"""The report as Markdown: the same sections, with plots as files beside it."""

from collections.abc import Sequence

from magc_model.evaluate.report.sections import Folded, Part, Pictures, Plots, Section
from magc_model.evaluate.report.summary import summary
from magc_model.evaluate.report.table import Table, table_markdown
from magc_model.evaluate.results import Results

PLOTS_FOLDER = "plots"


def markdown(results: Results, parts: Sequence[Section]) -> str:
    """The whole text."""
    lines = [f"# {results.title}", "", "\n\n".join(summary(results)), ""]
    for section in parts:
        if body := [text for part in section.parts if (text := _part(part))]:
            lines += [f"## {section.heading}", "", *body]
    return "\n".join(lines).rstrip() + "\n"


def _part(part: Part) -> str:
    if isinstance(part, str):
        return part + "\n"
    if isinstance(part, Table):
        return table_markdown(part)
    if isinstance(part, Folded):
        return table_markdown(part.table)
    if isinstance(part, Plots):
        images = [f"![{each.plot.title}]({PLOTS_FOLDER}/{each.name}.svg)" for each in part.plots]
        return "\n".join([f"### {part.heading}", "", *images, ""])
    assert isinstance(part, Pictures)  # noqa: S101 - nothing else is left
    return "The pictures, with a swipe, are in `report.html`.\n"
