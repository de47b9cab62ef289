"""Tables as data, and the same table as HTML and as Markdown."""

import html
import re
from typing import NamedTuple

from magc_model.evaluate.bootstrap import Estimate
from magc_model.evaluate.report.plots import COLORS
from magc_model.evaluate.report.wording import NONE, interval, number

ROWS_OF_A_PAGE = 16
"""Tables of no more are printed on one."""


class Cell(NamedTuple):
    """What stands in a cell."""

    text: str
    under: str = ""
    """Small, below: an interval."""
    hint: str = ""
    """In full, where the cell says less; Markdown leaves it out."""
    strong: bool = False
    faint: bool = False


class Column(NamedTuple):
    """Heading of a column."""

    text: str
    hint: str = ""
    numeric: bool = True
    long: bool = False
    """Of sentences."""
    color: str = ""
    """Of a class, shown before its name."""
    code: int | None = None
    """Number of the codec, whose colour marks the column."""


class Row(NamedTuple):
    """A row, whose first cell names it."""

    cells: tuple[Cell, ...]
    code: int | None = None
    """Number of the codec, whose colour marks the row."""


class Table(NamedTuple):
    """A whole table."""

    name: str
    """For links to it."""
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    groups: tuple[tuple[str, int], ...] = ()
    """Headings above several columns, and how many each is above."""
    notes: tuple[str, ...] = ()
    wide: bool = False
    """Printed across a page."""


def estimate_cell(estimate: Estimate | None, decimals: int, signed: bool = False, hint: str = "") -> Cell:
    """A figure with its interval below."""
    if estimate is None or estimate.value is None:
        undefined = f"not defined for {estimate.undefined_cuts} cuts" if estimate and estimate.undefined_cuts else ""
        return Cell(NONE, hint=hint or undefined, faint=True)
    if estimate.undefined_cuts:
        hint = f"{hint + '; ' if hint else ''}without {estimate.undefined_cuts} cuts for which it is not defined"
    return Cell(number(estimate.value, decimals, signed), interval(estimate, decimals, signed), hint)


def marked_best(column: list[Cell], values: list[float | None], sign: int) -> list[Cell]:
    """The same cells with the best of them strong; none where no direction is better."""
    known = [each for each in values if each is not None]
    if not sign or len(known) < 2:
        return column
    best = max(known, key=lambda each: sign * each)
    return [cell._replace(strong=value == best) for cell, value in zip(column, values, strict=True)]


def table_html(table: Table) -> str:
    """A figure holding the table, which scrolls inside it."""
    head = ""
    if table.groups:
        cells = "".join(
            f'<th scope="colgroup" colspan="{span}"{_class("group", bool(text))}>{text_html(text)}</th>'
            for text, span in table.groups
        )
        head = f"<tr>{cells}</tr>"
    starts = _group_starts(table)
    head += "<tr>{}</tr>".format(
        "".join(
            f'<th scope="col"{_classes(each.numeric, number_ in starts)}{_title(each.hint)}>'
            f"{_dot(each.color)}{_swatch(each.code)}{text_html(each.text)}</th>"
            for number_, each in enumerate(table.columns)
        )
    )
    body = "".join(f"<tr>{_row_html(row, table, starts)}</tr>\n" for row in table.rows)
    notes = "".join(f"<p>{text_html(note)}</p>" for note in table.notes)
    kinds = (" wide" if table.wide else "") + (" short" if len(table.rows) <= ROWS_OF_A_PAGE else "")
    return (
        f'<figure class="table{kinds}" id="{html.escape(table.name)}">'
        f"<figcaption>{text_html(table.caption)}</figcaption>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(_plain(table.caption))}">'
        f"<table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>"
        f"{f'<div class=notes>{notes}</div>' if notes else ''}</figure>\n"
    )


def _row_html(row: Row, table: Table, starts: set[int]) -> str:
    cells = []
    for place, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True)):
        inner = text_html(cell.text)
        if cell.strong:
            inner = f"<strong>{inner}</strong>"
        if cell.under:
            inner += f"<small>{text_html(cell.under)}</small>"
        mark = "" if place else _swatch(row.code)
        kind = ' scope="row"' if not place else ""
        tag = "th" if not place else "td"
        classes = _classes(column.numeric and bool(place), place in starts, cell.faint, column.long)
        cells.append(f"<{tag}{kind}{classes}{_title(cell.hint)}>{mark}{inner}</{tag}>")
    return "".join(cells)


def _swatch(code: int | None) -> str:
    return "" if code is None else f'<i class="swatch s{code % len(COLORS)}"></i>'


def _dot(color: str) -> str:
    if not color:
        return ""
    square = f'<rect width="10" height="10" rx="3" fill="{html.escape(color)}"/>'
    return f'<svg class="dot" viewBox="0 0 10 10" aria-hidden="true">{square}</svg>'


def _group_starts(table: Table) -> set[int]:
    starts, place = set(), 0
    for _, span in table.groups:
        starts.add(place)
        place += span
    return starts - {0}


def _classes(numeric: bool, start: bool, faint: bool = False, long: bool = False) -> str:
    kinds = (("n", numeric), ("start", start), ("faint", faint), ("long", long))
    names = [name for name, wanted in kinds if wanted]
    return f' class="{" ".join(names)}"' if names else ""


def _class(name: str, wanted: bool) -> str:
    return f' class="{name}"' if wanted else ""


def _title(hint: str) -> str:
    return f' title="{html.escape(hint)}"' if hint else ""


def text_html(text: str) -> str:
    """Text with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _plain(text: str) -> str:
    return text.replace("`", "")


def table_markdown(table: Table) -> str:
    """A pipe table, its notes below."""
    headings = [each.text for each in table.columns]
    if table.groups:
        # Markdown has one row of headings: the group's name goes before its columns'.
        names = [text for text, span in table.groups for _ in range(span)]
        headings = [f"{name}: {each}" if name else each for name, each in zip(names, headings, strict=True)]
    lines = [f"**{table.caption}**", "", _line(headings)]
    lines.append(_line(["---:" if each.numeric and place else "---" for place, each in enumerate(table.columns)]))
    lines += [_line([_cell_markdown(cell) for cell in row.cells]) for row in table.rows]
    for note in table.notes:
        lines += ["", note]
    return "\n".join([*lines, ""])


def _cell_markdown(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.strong else cell.text
    return f"{text} ({cell.under})" if cell.under else text


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(each.replace("|", "\\|").replace("\n", " ") or " " for each in cells) + " |"
