"""What an evaluation leaves in its folder: `results.json`, `report.html`, `report.md` and the plots as files."""

from collections.abc import Iterable
from pathlib import Path

from magc_data.atomic import write_atomically
from magc_model.evaluate.report.document import page_html
from magc_model.evaluate.report.pictures import LIMIT_BYTES, Example, embed
from magc_model.evaluate.report.plots import plot_svg
from magc_model.evaluate.report.sections import Plots, sections
from magc_model.evaluate.report.text import PLOTS_FOLDER, markdown
from magc_model.evaluate.results import Results, write_results

PAGE_NAME, TEXT_NAME = "report.html", "report.md"


def write_report(
    folder: Path, results: Results, pictures: Iterable[Example] = (), limit_bytes: int = LIMIT_BYTES
) -> None:
    """Write a report; files that are there already are replaced, each whole or not at all.

    Plots that the report no longer has are removed.

    Args:
        folder: made where there is none.
        results: of `summarise`, or of `read_results`.
        pictures: examples, the most telling first: one at a time is held, and they end where the page is full.
        limit_bytes: of the pictures in the page; the first example is always there.

    Raises:
        EvaluationError: an example does not fit the results.
    """
    parts = sections(results)
    write_results(folder, results)
    plots = [each for section in parts for part in section.parts if isinstance(part, Plots) for each in part.plots]
    for each in plots:
        write_atomically(folder / PLOTS_FOLDER / f"{each.name}.svg", plot_svg(each.plot).encode())
    write_atomically(folder / TEXT_NAME, markdown(results, parts).encode())
    write_atomically(folder / PAGE_NAME, page_html(results, parts, embed(pictures, results.codecs, limit_bytes)))
    wanted = {f"{each.name}.svg" for each in plots}
    for found in sorted((folder / PLOTS_FOLDER).glob("*.svg")):
        if found.name not in wanted:
            found.unlink()  # of metrics that this report no longer has
