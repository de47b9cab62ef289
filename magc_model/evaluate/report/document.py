"""The page as one HTML file: nothing in it is fetched from anywhere, and the browser enforces that.

Its content security policy names the digests of its one style and one script and allows pictures inside the page alone.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from magc_model.evaluate.report.pictures import Embedded
from magc_model.evaluate.report.plots import COLORS, plot_svg
from magc_model.evaluate.report.sections import Folded, Part, Pictures, Plots, Section
from magc_model.evaluate.report.summary import summary
from magc_model.evaluate.report.table import Table, table_html, text_html
from magc_model.evaluate.results import Results


def page_html(results: Results, parts: Sequence[Section], embedded: Embedded) -> bytes:
    """The whole page."""
    parts = [each for each in parts if each.name != "pictures" or embedded.examples]
    style, script = _asset("style.css") + _palette(), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    body = "".join(_section(each, results, embedded) for each in parts)
    data = {
        "codecs": [{"label": each.label, "name": each.name} for each in results.codecs],
        "examples": embedded.examples,
    }
    replacements = {
        "{{policy}}": html.escape(policy),
        "{{title}}": html.escape(results.title),
        "{{style}}": style,
        "{{about}}": html.escape(" · ".join(each.value for each in (*results.data[:2], *_dated(results)))),
        "{{nav}}": "".join(f'<a href="#{each.name}">{html.escape(each.short)}</a>' for each in parts),
        "{{summary}}": "".join(f"<p>{html.escape(each)}</p>" for each in summary(results)),
        "{{body}}": body,
        "{{data}}": _embedded_json(data),
        "{{script}}": script,
    }
    pieces = _asset("page.html").split("{{")
    page = pieces[0]
    for piece in pieces[1:]:
        # One pass: what is put in is never looked at again, whatever it holds.
        mark, rest = piece.split("}}", 1)
        page += replacements["{{" + mark + "}}"] + rest
    return page.encode()


def _dated(results: Results) -> list[Any]:
    return [each for each in results.run.facts if each.name.lower() == "date"]


def _asset(name: str) -> str:
    return resources.files("magc_model.evaluate.report").joinpath("page", name).read_text("utf-8")


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _embedded_json(document: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: no `<` in it, so no text can end the element."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _palette() -> str:
    """Rules of the codecs' colours: strokes, fills, names and swatches; lighter where the window is dark."""
    rules = []
    for number, color in enumerate(COLORS):
        rules.append(f".s{number}{{stroke:var(--c{number})}}.f{number},.plot .t{number}{{fill:var(--c{number})}}")
        rules.append(f".swatch.s{number}{{background:var(--c{number})}}")
        rules.append(f":root{{--c{number}:{color}}}")
    dark = "".join(f"--c{number}:color-mix(in oklab,{color} 62%,#fff);" for number, color in enumerate(COLORS))
    rules.append(f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}")
    rules.append(f"@media screen{{:root[data-theme=dark]{{{dark}}}}}")
    return "\n".join(rules)


def _section(section: Section, results: Results, embedded: Embedded) -> str:
    inner = "".join(_part(each, section, results, embedded) for each in section.parts)
    return f'<section id="{section.name}"><h2>{html.escape(section.heading)}</h2>\n{inner}</section>\n'


def _part(part: Part, section: Section, results: Results, embedded: Embedded) -> str:
    if isinstance(part, str):
        return f'<p class="note">{text_html(part)}</p>\n'
    if isinstance(part, Table):
        return table_html(part)
    if isinstance(part, Folded):
        return f"<details><summary>{text_html(part.table.caption)}</summary>{table_html(part.table)}</details>\n"
    if isinstance(part, Pictures):
        more = f" {embedded.left_out} more did not fit into the page." if embedded.left_out else ""
        return _asset("pictures.html").replace("<!-- more -->", html.escape(more))
    first = section.parts.index(part) == 0 or section.name == "classes"
    legend = _legend(results, part) if first else ""
    plots = "".join(
        f'<figure class="plot{" with-paper" if each.with_paper else ""}" id="{each.name}">'
        f"<figcaption>{html.escape(each.plot.title)}</figcaption>{plot_svg(each.plot)}</figure>"
        for each in part.plots
    )
    return f'{legend}<h3>{html.escape(part.heading)}</h3><div class="plots">{plots}</div>\n'


def _legend(results: Results, plots: Plots) -> str:
    chips = "".join(
        f'<button class="chip" data-toggle="{number}" aria-pressed="true">'
        f'<i class="swatch s{number % len(COLORS)}"></i>{html.escape(each.label)}</button>'
        for number, each in enumerate(results.codecs)
    )
    if any(each.with_paper for each in plots.plots):
        chips += (
            '<button class="chip" data-toggle="paper" aria-pressed="true"><i class="swatch dashed"></i>'
            "the paper's curves</button>"
        )
    return f'<div class="chips" role="group" aria-label="Curves to show">{chips}</div>'
