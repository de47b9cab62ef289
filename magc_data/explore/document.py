"""The page as one HTML file: nothing in it is fetched from anywhere, and nothing that a dataset says is run.

The browser enforces both: the content security policy names the digests of the page's one script and one style, allows
pictures that are inside the page (or from the server that sent it) and forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from magc_data.explore.pictures import MIME_TYPES, PicturePlan, planned_pictures
from magc_data.explore.table import ExploreTable, packed, page_facts

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPTS = ("data.js", "coloring.js", "coverage.js", "grid.js", "filters.js", "tile.js", "main.js")
"""Run in this order, as one script."""

_CHUNK_CHARACTERS = 4_000_000  # a browser turns one chunk at a time into a string, when a picture of it is wanted


class Layout(NamedTuple):
    """Where the page is shown."""

    name: str
    """`page`: a window of its own; `cell`: below a notebook's cell; `tile`: one tile alone, below a cell."""


PAGE, CELL, TILE = Layout("page"), Layout("cell"), Layout("tile")


def _asset(name: str) -> str:
    return resources.files("magc_data.explore").joinpath("page", name).read_text("utf-8")


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def embedded_json(document: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: no `<` in it, so no text can end the element."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


class Shell(NamedTuple):
    """The page around its data."""

    head: bytes
    foot: bytes
    policy: str
    """Its content security policy."""


def page_shell(title: str, pictures: str) -> Shell:
    """The page's beginning and end; `pictures` is where they may come from: `data:` (inside the page), `'self'` too."""
    style, script = _asset("style.css"), "\n".join(["(() => {", '"use strict";', *map(_asset, SCRIPTS), "})();"])
    policy = (
        f"default-src 'none'; img-src {pictures}; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head, foot = _asset("page.html").split("<!-- data -->\n")
    replacements = {"{{title}}": html.escape(title), "{{policy}}": html.escape(policy), "{{style}}": style}
    for mark, text in replacements.items():
        head = head.replace(mark, text)
    return Shell(head.encode(), foot.replace("{{script}}", script).encode(), policy)


def served_page(table: ExploreTable) -> tuple[bytes, str]:
    """The page whose pictures come from its own server, and its content security policy."""
    shell = page_shell(table.title, "'self' data:")
    facts = page_facts(table) | {"layout": PAGE.name, "pictures": {"mode": "server"}}
    return shell.head + _data_element(facts) + shell.foot, shell.policy


def _data_element(facts: dict[str, Any]) -> bytes:
    return f'<script type="application/json" id="data">{embedded_json(facts)}</script>\n'.encode()


def write_page(
    stream: IO[bytes],
    table: ExploreTable,
    plan: PicturePlan,
    layout: Layout = PAGE,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Write the page with its pictures inside, holding no more than one chunk of them in memory.

    Args:
        stream: a binary stream.
        table: what is shown.
        plan: which pictures the page holds.
        layout: where it is shown.
        advance: told of every picture written.

    Raises:
        DatasetError: a tile cannot be read.
    """
    shell = page_shell(table.title, "data:")
    stream.write(shell.head)
    # Of every row: the chunk its pictures are in, where they begin, and how many characters each has; none: 0.
    chunks, starts, image_lengths, map_lengths = np.zeros((4, len(table.rows)), np.int32)
    image_formats = np.zeros(len(table.rows), np.uint8)
    formats = list(MIME_TYPES)
    map_format = "png"
    chunk, characters = 0, 0
    for row, pictures in zip(plan.rows, planned_pictures(table, plan), strict=True):
        image, semantic_map = base64.b64encode(pictures.image), base64.b64encode(pictures.semantic_map)
        if not characters:
            stream.write(f'<script type="text/plain" id="pictures-{chunk}">'.encode())
        stream.write(image + semantic_map)
        chunks[row], starts[row] = chunk, characters
        image_lengths[row], map_lengths[row] = len(image), len(semantic_map)
        image_formats[row], map_format = formats.index(pictures.image_format), pictures.map_format
        characters += len(image) + len(semantic_map)
        if characters >= _CHUNK_CHARACTERS:
            stream.write(b"</script>\n")
            chunk, characters = chunk + 1, 0
        advance()
    if characters:
        stream.write(b"</script>\n")
    held = {
        "mode": "page",
        "size_px": plan.size_px,
        "held": len(plan.rows),
        "mime_types": [MIME_TYPES[name] for name in formats],
        "map_mime_type": MIME_TYPES[map_format],
        "image_formats": packed(image_formats, np.uint8),
        "chunks": packed(chunks, np.int32),
        "starts": packed(starts, np.int32),
        "image_lengths": packed(image_lengths, np.int32),
        "map_lengths": packed(map_lengths, np.int32),
    }
    stream.write(_data_element(page_facts(table) | {"layout": layout.name, "pictures": held}))
    stream.write(shell.foot)
