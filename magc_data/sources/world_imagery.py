"""Esri's World Imagery, or another ArcGIS tile service on the web-mercator grid."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from magc_data.errors import SourceError, UsageError
from magc_data.grid import BLOCK_TILES, HALF_CIRCUMFERENCE_M, Tile
from magc_data.schema.sample import TILE_SIZE_PX, Reason
from magc_data.sources.cache import Cache, cache_path
from magc_data.sources.capture_dates import CaptureDates, citations_layer
from magc_data.sources.http import (
    METADATA_POLICY,
    RequestFailedError,
    remove_secrets,
    service_name,
)
from magc_data.sources.protocols import BlockAvailability, SourceInfo
from magc_data.sources.tile_service import (
    MAX_DOCUMENT_BYTES,
    TileService,
    Verdict,
    live_document,
    parsed_json,
    remember_document,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from magc_data.grid import Block
    from magc_data.sources.http import HttpClient
    from magc_data.sources.protocols import SourceContext

ADDRESS_VARIABLE = "MAGC_WORLD_IMAGERY_URL"
DEFAULT_ADDRESS = "https://services.arcgisonline.com/arcgis/rest/services/World_Imagery/MapServer"

LICENCE = "Esri Master License Agreement"
TERMS = (
    "World Imagery belongs to Esri and its suppliers and is licensed under the Esri Master License Agreement; Esri "
    "says that the layer is not meant for exporting tiles for offline use. You are responsible for having the right to "
    "fetch these tiles; do not pass the images on: share the recipe and the digests in the index instead."
)

_MEAN_TILE_BYTES = 12_900
_MERCATOR_WKIDS = frozenset({3857, 102100, 102113, 900913})
_NO_TILEMAP_STATUSES = frozenset({404, 410, 422})
_MAX_TILEMAP_REQUESTS = 16
"""For one block: a service that answers piece by piece is asked no more often than this."""
_DESCRIPTION_KEY = "MapServer?f=json"


def open_world_imagery(argument: str | None, context: SourceContext) -> WorldImagery:
    """Ask the service what it is, and make sure that its tiles are those of the web-mercator grid at this zoom.

    Raises:
        UsageError: an argument was given, the override address is of the wrong form, or the zoom level is not there.
        FetchError: the service cannot be reached and was never seen from this machine.
        SourceError: the service is not one with 256 x 256 web-mercator tiles, or refuses.
    """
    if argument is not None:
        raise UsageError(f"world-imagery takes no argument, found '{argument}': write --imagery world-imagery")
    base = os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.path.rstrip("/").lower().endswith("/mapserver"):
        raise UsageError(
            f"{ADDRESS_VARIABLE} is '{remove_secrets(base)}': expected an http(s) address that ends in /MapServer"
        )
    address = remove_secrets(base)
    cache = Cache(cache_path(context.cache_dir, "world-imagery", address))
    description = live_document(_below(base, "", "f=json"), _DESCRIPTION_KEY, cache, context.http)
    service = _read_description(description, context.zoom, address)
    remember_document(_DESCRIPTION_KEY, 200, description, cache)
    info = SourceInfo(
        name="world-imagery",
        address=address,
        licence=LICENCE,
        attribution=service.attribution,
        terms=TERMS,
        redistributable=False,
        mean_tile_bytes=_MEAN_TILE_BYTES,
    )
    captures = None
    if service.layers is not None:
        layer = citations_layer(service.layers)
        url = None if layer is None else _below(base, str(layer), "")
        captures = CaptureDates(cache, url, context.zoom, is_moving=True)
    return WorldImagery(info, cache, base, has_tilemap=service.has_tilemap, captures=captures)


class WorldImagery(TileService):
    """Tiles row before column, `blankTile=false`, and a tilemap that tells which tiles exist before any is fetched."""

    def __init__(
        self, info: SourceInfo, cache: Cache, base: str, *, has_tilemap: bool, captures: CaptureDates | None = None
    ) -> None:
        def tile_url(tile: Tile) -> str:
            return _below(base, f"tile/{tile.z}/{tile.y}/{tile.x}", "blankTile=false")

        super().__init__(info, cache, tile_url, service_name(base), captures)
        self._base: str | None = base
        self._has_tilemap = has_tilemap

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_base": None}

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:
        """From the tilemap (at most a few small requests, remembered); None where the service has none."""
        known = self._tilemap(block, block.tiles, http)
        if len(known) < len(block.tiles):
            return None
        verdicts = {
            key: Verdict(**json.loads(verdict))
            for key, verdict in self.cache.settled([tile.key for tile in block.tiles]).items()
        }
        missing = {tile.key for tile in block.tiles if not known[tile]}
        missing |= {key for key, verdict in verdicts.items() if verdict.reason == Reason.NOT_AVAILABLE}
        return BlockAvailability(
            available=len(block.tiles) - len(missing), missing=len(missing), cached=len(verdicts.keys() - missing)
        )

    def absent_tiles(self, block: Block, wanted: Collection[Tile], http: HttpClient) -> frozenset[Tile]:
        """What the tilemap says is not there."""
        return frozenset(tile for tile, there in self._tilemap(block, wanted, http).items() if not there)

    def _tilemap(self, block: Block, wanted: Collection[Tile], http: HttpClient) -> dict[Tile, bool]:
        """Which of the wanted tiles exist, as far as the tilemap tells; all or part of them may be missing here."""
        known: dict[Tile, bool] = {}
        if not self._has_tilemap:
            return known
        # The whole block first, whatever is wanted of it, so that the answer serves every later run.
        window = _Window(block.column * BLOCK_TILES, block.row * BLOCK_TILES, BLOCK_TILES, BLOCK_TILES)
        for _ in range(_MAX_TILEMAP_REQUESTS):
            answer = self._tilemap_answer(block.z, window, http)
            before = len(known)
            if answer is not None:
                known |= {tile: answer.there(tile) for tile in wanted if answer.window.holds(tile)}
            if len(known) == before:
                break
            rest = min((tile for tile in wanted if tile not in known), key=_row_by_row, default=None)
            if rest is None:
                break
            world = 2**block.z
            window = _Window(rest.x, rest.y, min(BLOCK_TILES, world - rest.x), min(BLOCK_TILES, world - rest.y))
        return known

    def _tilemap_answer(self, zoom: int, window: _Window, http: HttpClient) -> _TilemapAnswer | None:
        path = f"tilemap/{zoom}/{window.top}/{window.left}/{window.width}/{window.height}"
        remembered = self.cache.read(path)
        if remembered is not None:
            return _read_tilemap(remembered.body)
        if self._base is None:
            return None
        url = _below(self._base, path, "f=json")
        try:
            response = http.request("GET", url, policy=METADATA_POLICY, max_body_bytes=MAX_DOCUMENT_BYTES)
        except RequestFailedError:
            return None  # each tile is asked for instead; the next run asks here again
        answer = _read_tilemap(response.body) if response.status == 200 else None
        if answer is not None or response.status in _NO_TILEMAP_STATUSES:
            # Error pages are not kept: they may repeat a token.
            remember_document(path, response.status, b"" if answer is None else response.body, self.cache)
        return answer


# --- the service's own description -----------------------------------------------------------------------------------


class _Service(NamedTuple):
    attribution: str
    has_tilemap: bool
    layers: list[Any] | None
    """As it lists them; None where it lists none."""


def _read_description(body: bytes, zoom: int, address: str) -> _Service:
    """Check that a service has 256-pixel tiles of the web-mercator grid at a zoom level.

    Raises:
        SourceError: it has not; every map would lie in the wrong place.
        UsageError: it has no such level.
    """
    service = parsed_json(body)
    if not isinstance(service, dict) or "error" in service:
        message = service.get("error") if isinstance(service, dict) else None
        said = message.get("message", "") if isinstance(message, dict) else ""
        raise SourceError(
            f"{address} did not describe itself but reported an error ('{remove_secrets(str(said))[:80]}'): "
            f"check the address (and its token, if it needs one)"
        )
    try:
        tiles = service["tileInfo"]
        size_px = (int(tiles["rows"]), int(tiles["cols"]))
        reference = tiles["spatialReference"]
        wkids = {reference.get("wkid"), reference.get("latestWkid")}
        origin_m = (float(tiles["origin"]["x"]), float(tiles["origin"]["y"]))
        metres_per_px = {int(level["level"]): float(level["resolution"]) for level in tiles["lods"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SourceError(f"{address} describes no tiles (tileInfo): expected a cached ArcGIS map service") from None
    if size_px != (TILE_SIZE_PX, TILE_SIZE_PX):
        raise SourceError(f"{address} has tiles of {size_px[1]} x {size_px[0]} pixels: expected 256 x 256")
    if not wkids & _MERCATOR_WKIDS:
        raise SourceError(f"{address} has tiles in EPSG {sorted(map(str, wkids))}: expected web mercator (3857)")
    if zoom not in metres_per_px:
        raise UsageError(
            f"zoom {zoom} is not offered by {address}: choose one from {min(metres_per_px, default='?')} "
            f"to {max(metres_per_px, default='?')}"
        )
    expected_m = 2 * HALF_CIRCUMFERENCE_M / (TILE_SIZE_PX * 2**zoom)
    at_corner = all(
        math.isclose(value, corner, abs_tol=1.0)
        for value, corner in zip(origin_m, (-HALF_CIRCUMFERENCE_M, HALF_CIRCUMFERENCE_M), strict=True)
    )
    if not at_corner or not math.isclose(metres_per_px[zoom], expected_m, rel_tol=1e-6):
        raise SourceError(
            f"{address} cuts its tiles on a grid of its own (level {zoom} has {metres_per_px[zoom]} m/px from "
            f"{origin_m}): expected the web-mercator grid with {expected_m} m/px"
        )
    attribution = service.get("copyrightText") or "not stated by the service"
    capabilities = str(service.get("capabilities", "")).lower().split(",")
    layers = service.get("layers")
    return _Service(
        attribution=str(attribution),
        has_tilemap="tilemap" in (word.strip() for word in capabilities),
        layers=layers if isinstance(layers, list) else None,
    )


# --- tilemap ---------------------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """A rectangle of tiles: first column, first row, extent."""

    left: int
    top: int
    width: int
    height: int

    def holds(self, tile: Tile) -> bool:
        return 0 <= tile.x - self.left < self.width and 0 <= tile.y - self.top < self.height


def _row_by_row(tile: Tile) -> tuple[int, int]:
    return tile.y, tile.x


class _TilemapAnswer(NamedTuple):
    window: _Window
    """Where the data lie: what the service chose, not what it was asked for."""
    data: list[int]
    """Row by row; a single value stands for all."""

    def there(self, tile: Tile) -> bool:
        index = (tile.y - self.window.top) * self.window.width + tile.x - self.window.left
        return bool(self.data[index if len(self.data) > 1 else 0])


def _read_tilemap(body: bytes) -> _TilemapAnswer | None:
    """None for an answer that tells nothing (`valid` false, an error, anything unexpected): ask for the tiles."""
    document = parsed_json(body)
    try:
        if not document.get("valid", True):
            return None
        location = document["location"]
        window = _Window(*(int(location[name]) for name in ("left", "top", "width", "height")))
        data = document["data"]
        known_length = len(data) in (1, window.width * window.height)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if not known_length or not all(value in (0, 1) for value in data) or window.width < 1 or window.height < 1:
        return None
    return _TilemapAnswer(window, data)


# --- addresses -------------------------------------------------------------------------------------------------------


def _below(base: str, path: str, query: str) -> str:
    """An address below the service, keeping a query (a token) that the service's own address has."""
    parts = urlsplit(base)
    return urlunsplit(
        parts._replace(
            path=f"{parts.path.rstrip('/')}/{path}".rstrip("/"),
            query="&".join(part for part in (query, parts.query) if part),
        )
    )
