"""Any XYZ, TMS or WMTS-REST service, given the template of its addresses."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from magc_data.errors import UsageError
from magc_data.grid import Tile
from magc_data.sources.cache import Cache, cache_path
from magc_data.sources.http import remove_secrets, service_name
from magc_data.sources.protocols import SourceInfo
from magc_data.sources.tile_service import TileService

if TYPE_CHECKING:
    from collections.abc import Callable

    from magc_data.sources.protocols import ImagerySource, SourceContext

_MIRRORS = ("a", "b", "c")
"""What `{s}` stands for, by custom."""


def _tms_row(tile: Tile) -> str:
    return str(2**tile.z - 1 - tile.y)


def quadkey(tile: Tile) -> str:
    """One digit a level, 0 to 3, from the north-west: `{q}`."""
    return "".join(str((tile.x >> bit & 1) + 2 * (tile.y >> bit & 1)) for bit in reversed(range(tile.z)))


def _zoom(tile: Tile) -> str:
    return str(tile.z)


def _column(tile: Tile) -> str:
    return str(tile.x)


def _row(tile: Tile) -> str:
    return str(tile.y)


# Names in lower case: services and their catalogues do not agree on capitals.
_PLACEHOLDERS: dict[str, Callable[[Tile], str]] = {
    "z": _zoom, "zoom": _zoom, "level": _zoom, "tilematrix": _zoom,
    "x": _column, "col": _column, "column": _column, "tilecol": _column,
    "y": _row, "row": _row, "tilerow": _row,
    "-y": _tms_row,
    "q": quadkey, "quadkey": quadkey,
}  # fmt: skip


class Template(NamedTuple):
    """An address cut at its placeholders: a literal, a value, a literal, a value, ... a literal."""

    literals: tuple[str, ...]
    values: tuple[Callable[[Tile], str], ...]


def open_xyz(template: str, context: SourceContext) -> ImagerySource:
    """A service from its template; nothing is asked yet.

    Keys in the template stay in this process: neither the source's description nor its cache file holds them.

    Raises:
        UsageError: the template is not an http(s) address with the placeholders for a tile.
    """
    parsed = parse_template(template)
    address = remove_secrets(template)
    service = service_name(template)
    info = SourceInfo(
        name=address,
        address=address,
        licence="not stated",
        attribution=f"not stated; ask the owner of {service}",
        terms=(
            f"The terms of {service} are not known to magc: make sure that they allow fetching, keeping and using its "
            "tiles like this, and add the attribution that they ask for."
        ),
        redistributable=False,
    )
    cache = Cache(cache_path(context.cache_dir, service, address))
    # All mirrors are one service: they share its pace.
    return TileService(info, cache, partial(fill_template, parsed), service)


def parse_template(template: str) -> Template:
    """Read the placeholders `{z} {x} {y} {-y} {q} {s} {switch:a,b,c}` and their WMTS spellings.

    Raises:
        UsageError: an unknown placeholder, one that is missing, or not an http(s) address.
    """
    shown = remove_secrets(template)
    if not re.match("(?i)https?://[^/]", template):
        raise UsageError(f"'{shown}' is not an address of tiles: expected http:// or https:// and a host")
    literals = re.split(r"\{[^{}]*\}", template)
    names = re.findall(r"\{([^{}]*)\}", template)
    values = [_value(name) for name in names]
    unknown = [f"{{{name}}}" for name, value in zip(names, values, strict=True) if value is None]
    if unknown:
        raise UsageError(
            f"the address '{shown}' holds {', '.join(unknown)}: known are {{z}} {{x}} {{y}} {{-y}} {{q}} {{s}} "
            "{switch:a,b,c} {TileMatrix} {TileCol} {TileRow} {zoom}; write other values out"
        )
    known = tuple(value for value in values if value is not None)
    complete = quadkey in known or (_zoom in known and _column in known and (_row in known or _tms_row in known))
    if not complete:
        raise UsageError(
            f"the address '{shown}' does not say which tile is meant: "
            "expected {z}, {x} and {y} (or {-y}), or the quadkey {q}"
        )
    return Template(tuple(literals), known)


def _value(name: str) -> Callable[[Tile], str] | None:
    if name.lower().startswith("switch:"):
        return partial(_mirror, tuple(part.strip() for part in name[len("switch:") :].split(",")))
    if name.lower() == "s":
        return partial(_mirror, _MIRRORS)
    return _PLACEHOLDERS.get(name.lower())


def _mirror(mirrors: tuple[str, ...], tile: Tile) -> str:
    """Always the same mirror for a tile, so that caches on the way can help."""
    return mirrors[(tile.x + tile.y) % len(mirrors)]


def fill_template(template: Template, tile: Tile) -> str:
    """The address of a tile."""
    filled = [literal + value(tile) for literal, value in zip(template.literals, template.values, strict=False)]
    return "".join(filled) + template.literals[-1]
