"""`magc.lock`: how to make a dataset again without handing on a pixel of it.

    line 1        a JSON object: sources and releases, scheme, OpenStreetMap's time, number and digest of the tiles
    other lines   one tile each, a JSON array: key, image digest (null: maps alone), map digest, its split if any

Digests are sha256 in unpadded base64url, 43 characters: 45,000 tiles take about 5 MB, and git shows what changed. A
lock comes from strangers: everything in it is checked, and no path in it is ever opened.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.errors import DatasetError, UsageError
from magc_data.ground_grid import AnyTile, GroundGrid, grid_text, is_grid, parse_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LOCK_NAME = "magc.lock"
LOCK_VERSION = 1
MAX_LINE_CHARACTERS = 1 << 20
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class LockedSource(NamedTuple):
    """A source as it was when the dataset was made."""

    name: str
    address: str
    version: str | None
    licence: str
    attribution: str
    redistributable: bool
    is_file: bool
    """It was a file of the maker's: whoever makes the dataset again must say where theirs is."""


class LockedSea(NamedTuple):
    """Where the sea came from, if an option said so."""

    kind: str
    """`none` or `water-polygons`."""
    name: str | None
    version: str | None
    is_file: bool
    """It was a file of the maker's; else those that `auto` downloads."""


class LockHeader(NamedTuple):
    """What holds for all tiles."""

    magc_version: str
    zoom: int | None
    """None: constant ground resolution."""
    imagery: LockedSource | None
    """None: maps alone."""
    vectors: LockedSource
    osm_first: str | None
    osm_last: str | None
    """Oldest and newest time of the OpenStreetMap data."""
    scheme_name: str
    scheme_sha256: str
    selection: tuple[str, ...]
    """How the tiles were chosen from the dataset that they were part of."""
    sea: LockedSea | None = None
    """None: the coastlines of the vectors."""
    gsd: float | None = None
    """Metres a pixel, where they are the same everywhere."""
    imagery_zoom: int | None = None
    """With `gsd`, the zoom that was asked for; None: the right one of each band."""
    match_osm_date: bool = False
    """Each map is of the time of its image. Written only where it is so: older locks do not have it."""

    @property
    def grid(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {"zoom": self.zoom} if self.gsd is None else {"gsd": self.gsd}


class LockedTile(NamedTuple):
    """A tile and what it held; digests in hexadecimal."""

    tile: AnyTile
    image_sha256: str | None
    map_sha256: str
    split: str | None


class Lock(NamedTuple):
    """A whole lock."""

    header: LockHeader
    tiles: tuple[LockedTile, ...]
    sha256: str
    """Of the tiles' lines: what identifies the lock."""


def lock_bytes(header: LockHeader, tiles: Iterable[LockedTile]) -> bytes:
    """The file's content."""
    lines = [_tile_line(each) for each in tiles]
    body = "".join(f"{line}\n" for line in lines).encode()
    first = {
        "magc_lock": LOCK_VERSION,
        **{
            name: each
            for name, each in header._asdict().items()
            if name not in _LEFT_OUT or each is not _LEFT_OUT[name]
        },
        "imagery": header.imagery and header.imagery._asdict(),
        "vectors": header.vectors._asdict(),
        "sea": header.sea and header.sea._asdict(),
        "tiles": len(lines),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    if header.sea is None:
        del first["sea"]
    return json.dumps(first, ensure_ascii=False).encode() + b"\n" + body


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        UsageError: there is no such file.
        DatasetError: it is no lock, of another version, or damaged.
    """
    try:
        with path.open("rb") as stream:
            first = stream.readline(MAX_LINE_CHARACTERS)
            body = stream.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"{path} is no file: give --lock the {LOCK_NAME} of an exported recipe") from None
    try:
        document = json.loads(first)
        version = document["magc_lock"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DatasetError(f"{path} is no {LOCK_NAME}: its first line is not JSON with 'magc_lock'") from None
    if version != LOCK_VERSION:
        raise DatasetError(
            f"{path} is lock format {version!r}, this build of magc reads {LOCK_VERSION}: use the magc that made it"
        )
    if hashlib.sha256(body).hexdigest() != document.get("sha256"):
        raise DatasetError(f"{path} was changed or cut off after it was made (its digest differs): get it again")
    header = _header(document, path)
    tiles = tuple(_tile(line, number, path) for number, line in enumerate(body.splitlines(), 2))
    if len(tiles) != document.get("tiles") or not tiles:
        raise DatasetError(f"{path} has {len(tiles)} tiles, expected {document.get('tiles')!r} and at least one")
    start = f"{header.zoom}_" if header.gsd is None else f"g{GroundGrid.of(header.gsd).gsd_mm}_"
    if strange := next((each.tile for each in tiles if not each.tile.key.startswith(start)), None):
        expected = grid_text(header.grid)
        raise DatasetError(f"{path} holds the tile {strange.key}: expected {expected} as its first line says")
    if len({each.tile for each in tiles}) != len(tiles):
        raise DatasetError(f"{path} names a tile twice: get it again")
    return Lock(header, tiles, document["sha256"])


def _tile_line(tile: LockedTile) -> str:
    fields = [tile.tile.key, tile.image_sha256 and _short(tile.image_sha256), _short(tile.map_sha256)]
    return json.dumps([*fields, *([tile.split] if tile.split else [])], separators=(",", ":"))


def _short(digest: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()


def _long(digest: str) -> str:
    raw = base64.b64decode(f"{digest}=", altchars=b"-_", validate=True)
    if len(raw) != hashlib.sha256().digest_size:
        raise ValueError
    return raw.hex()


def _tile(line: bytes, number: int, path: Path) -> LockedTile:
    try:
        key, image, semantic_map, split = (*json.loads(line), None)[:4]
        tile = LockedTile(parse_key(key), None if image is None else _long(image), _long(semantic_map), split)
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error, UsageError):
        raise DatasetError(
            f"{path}, line {number} is no tile: expected [key, image digest, map digest] and perhaps a split"
        ) from None
    if split is not None and not (isinstance(split, str) and _SPLIT.fullmatch(split)):
        raise DatasetError(f"{path}, line {number} names the split {split!r}: expected letters, digits, - and _")
    return tile


_TEXT = (str,)
_OPTIONAL_TEXT = (str, type(None))
_SOURCE_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "address", "licence", "attribution"), _TEXT),
    "version": _OPTIONAL_TEXT,
    "redistributable": (bool,),
    "is_file": (bool,),
}
_SEA_KINDS: dict[str, tuple[type, ...]] = {
    "kind": _TEXT,
    "name": _OPTIONAL_TEXT,
    "version": _OPTIONAL_TEXT,
    "is_file": (bool,),
}
_GROUND = ("gsd", "imagery_zoom")
"""Fields of the first line that locks of web-mercator tiles do not have."""
_LEFT_OUT = {**dict.fromkeys(_GROUND, None), "match_osm_date": False}
"""Fields that are not written where they have this value: older locks do not have them."""
_HEADER_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("magc_version", "scheme_name", "scheme_sha256"), _TEXT),
    **dict.fromkeys(("osm_first", "osm_last"), _OPTIONAL_TEXT),
    "zoom": (int, type(None)),
    "imagery": (dict, type(None)),
    "vectors": (dict,),
    "selection": (list,),
    "match_osm_date": (bool,),
}


def _header(document: dict[str, Any], path: Path) -> LockHeader:
    def checked(fields: dict[str, Any], kinds: dict[str, tuple[type, ...]]) -> dict[str, Any]:
        for name, kind in kinds.items():
            if name not in fields or not isinstance(fields[name], kind):
                raise DatasetError(f"{path} is damaged ('{name}' is missing or of another kind): get it again")
        return {name: fields[name] for name in kinds}

    def source(fields: dict[str, Any] | None) -> LockedSource | None:
        return None if fields is None else LockedSource(**checked(fields, _SOURCE_KINDS))

    fields = checked({"match_osm_date": False} | document, _HEADER_KINDS)
    vectors = LockedSource(**checked(fields["vectors"], _SOURCE_KINDS))
    sea = LockedSea(**checked(document["sea"], _SEA_KINDS)) if isinstance(document.get("sea"), dict) else None
    selection = tuple(str(each) for each in fields["selection"])
    ground = {name: document[name] for name in _GROUND if name in document}
    asked = ground.get("imagery_zoom")
    fields |= {"imagery": source(fields["imagery"]), "vectors": vectors, "selection": selection}
    header = LockHeader(**fields | ground, sea=sea)
    # What zooms there are is for the build to say; here, that there is one of the two.
    wrong_zoom = header.gsd is None and (type(header.zoom) is not int or bool(ground))
    if wrong_zoom or (header.gsd is not None and (header.zoom is not None or not is_grid(header.grid))):
        raise DatasetError(f"{path} is damaged ('zoom' is missing or of another kind): get it again")
    if asked is not None and type(asked) is not int:
        raise DatasetError(f"{path} is damaged ('imagery_zoom' is missing or of another kind): get it again")
    return header
