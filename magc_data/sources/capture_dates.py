"""When the tiles of Esri's imagery were photographed: the polygons that its services keep beside the pictures.

    block ──► one query: the polygons around it ──► kept as it came, beside the tiles
                 │ "exceededTransferLimit": the four quarters, each a query
                 └ anything else: no dates this time, said once; the build goes on and the next run asks again

Facts: World Imagery's layer "Citations" (id 4) has a row a picture and range of zoom levels (`MinMapLevel`,
`MaxMapLevel`); each Wayback release has a service of its own with a layer a zoom level, of id 23 - zoom. The fields are
those that openstreetmap/iD (`background_source.js`) and vannizhang/wayback-core (`metadata/index.ts`) read.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from magc_data.errors import FetchError
from magc_data.grid import BLOCK_TILES
from magc_data.schema.sample import TILE_SIZE_PX, Capture, CaptureUnknown
from magc_data.sources.cache import Answer, now_utc
from magc_data.sources.capture_polygons import BlockCaptures, Window, unknown_capture
from magc_data.sources.http import METADATA_POLICY, service_name
from magc_data.sources.tile_service import MAX_DOCUMENT_BYTES, parsed_json

if TYPE_CHECKING:
    from magc_data.grid import Block, Tile
    from magc_data.sources.cache import Cache
    from magc_data.sources.http import HttpClient

CAPTURE_POLICY = METADATA_POLICY._replace(attempts=2)
"""Dates are worth less than tiles: a layer that hangs must not cost a build hours."""
MAX_FAILED_IN_A_ROW = 3
"""After so many blocks without an answer, the layer is not asked again in this run."""
MAX_SPLITS = 5
"""A block of 32 x 32 tiles, quartered so often, is down to single tiles."""

CITATIONS_LAYER = ("citations", 4)
"""Name and usual id of the layer of World Imagery that tells of each picture."""
FINEST_WAYBACK_ZOOM, COARSEST_WAYBACK_LAYER = 23, 13

_LIMIT = "limit"
"""Verdict of an answer that the service cut off: its quarters hold the whole."""


class CaptureDates:
    """One layer of capture polygons at one zoom level. Pickles without its address, which may hold a key.

    Args:
        cache: of the tiles whose captures these are.
        layer: address of the layer (without `/query`); None: the service has none.
        zoom: level of the tiles.
        is_moving: the service is World Imagery of today: its rows are of a range of zoom levels each, and hold for
            tiles alone that were fetched at about the same time.
    """

    def __init__(self, cache: Cache, layer: str | None, zoom: int, *, is_moving: bool) -> None:
        self._cache = cache
        self._layer = layer
        self._has_layer = layer is not None
        self._zoom = zoom
        self._is_moving = is_moving
        # A key that is there once per layer and free of secrets.
        self._key = f"captures/{urlsplit(layer).path.strip('/')}" if layer is not None else ""
        self._failed_in_a_row = 0
        self._read: tuple[Window, BlockCaptures | None] | None = None
        """The block that was read last."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_layer": None, "_read": None}

    def fetch(self, block: Block, http: HttpClient) -> None:
        """Bring the polygons of a whole block into the cache, if they are not there; a failure leaves them out.

        Raises:
            SourceError: the cache cannot be used.
        """
        window = _window_of(block.z, block.column, block.row)
        if self._layer is None or self._failed_in_a_row >= MAX_FAILED_IN_A_ROW or self.is_fetched(block):
            return
        problem = self._fetch(window, 0, http)
        self._cache.flush()
        self._read = None
        self._failed_in_a_row = 0 if problem is None else self._failed_in_a_row + 1
        if problem is not None:
            logging.getLogger(__name__).warning(
                "%s told no capture dates for the block %s (%s): its tiles go without, the next run asks again%s",
                service_name(self._layer),
                block.name,
                problem,
                "" if self._failed_in_a_row < MAX_FAILED_IN_A_ROW else "; nothing more is asked of it in this run",
            )

    def is_fetched(self, block: Block) -> bool:
        """Whether the block's polygons are all in the cache."""
        return not self._has_layer or self._answers(_window_of(block.z, block.column, block.row)) is not None

    def at(self, tile: Tile, fetched_at: str | None = None) -> Capture:
        """What is known of a tile's picture, from the cache; no network.

        Args:
            tile: the place.
            fetched_at: when its picture was fetched, ISO 8601; None: not looked at.

        Raises:
            SourceError: the cache cannot be used.
        """
        if not self._has_layer:
            return unknown_capture(CaptureUnknown.NO_LAYER)
        window = _window_of(tile.z, tile.x // BLOCK_TILES, tile.y // BLOCK_TILES)
        if self._read is None or self._read[0] != window:
            answers = self._answers(window)
            level = tile.z if self._is_moving else None
            self._read = window, None if answers is None else BlockCaptures.of_answers(answers, level)
        captures = self._read[1]
        if captures is None:
            return unknown_capture(CaptureUnknown.NOT_ANSWERED)
        if self._is_moving and fetched_at is not None and captures.is_far_from(datetime.fromisoformat(fetched_at)):
            return unknown_capture(CaptureUnknown.OTHER_TIME)
        return captures.at(tile)

    def _key_of(self, window: Window) -> str:
        return f"{self._key}/{window.z}/{window.left}/{window.top}/{window.side}"

    def _answers(self, window: Window) -> list[Answer] | None:
        """The answers that cover a window together; None where one of them is not there."""
        answer = self._cache.read(self._key_of(window))
        if answer is None:
            return None
        if json.loads(answer.verdict) != _LIMIT:
            return [answer]
        parts = [self._answers(quarter) for quarter in window.quarters()]
        return None if any(part is None for part in parts) else [each for part in parts if part for each in part]

    def _fetch(self, window: Window, splits: int, http: HttpClient) -> str | None:
        """None, or what came instead of an answer."""
        key = self._key_of(window)
        known = self._cache.read(key)
        if known is None:
            answer = self._ask(window, http)
            if isinstance(answer, str):
                return answer
            cut_off = parsed_json(answer).get("exceededTransferLimit") is True
            if cut_off and splits == MAX_SPLITS:
                return "more pictures in one tile than it gives at once"
            body, verdict = (b"", _LIMIT) if cut_off else (answer, None)
            known = Answer(key, 200, {}, body, json.dumps(verdict), False, now_utc())
            self._cache.put(known)
            self._cache.flush()
        if json.loads(known.verdict) != _LIMIT:
            return None
        problems = (self._fetch(quarter, splits + 1, http) for quarter in window.quarters())
        return next((problem for problem in problems if problem is not None), None)

    def _ask(self, window: Window, http: HttpClient) -> bytes | str:
        parts = urlsplit(self._layer or "")
        query = "&".join(part for part in (_query(window), parts.query) if part)
        url = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/query", query=query))
        try:
            # A circuit breaker of its own: a layer that fails must not stop the tiles of the same host.
            response = http.request(
                "GET",
                url,
                policy=CAPTURE_POLICY,
                bucket=f"{service_name(url)} (capture dates)",
                max_body_bytes=MAX_DOCUMENT_BYTES,
            )
        except FetchError as error:
            return getattr(error, "seen", "") or "it is not working"
        if response.status != 200:
            return f"HTTP {response.status}"
        document = parsed_json(response.body)
        fields: dict[str, Any] = document if isinstance(document, dict) else {}
        if isinstance(fields.get("features"), list):
            return response.body
        told: Any = fields.get("error")
        return f"the error {told.get('code')}" if isinstance(told, dict) else "no list of features"


def citations_layer(layers: Any) -> int | None:
    """Which of the layers that an ArcGIS service lists tells of the pictures; None where none does."""
    name, usual = CITATIONS_LAYER
    listed = [each for each in layers if isinstance(each, dict)] if isinstance(layers, list) else []
    named = [each.get("id") for each in listed if str(each.get("name", "")).strip().lower() == name]
    found = [*named, *(each.get("id") for each in listed if each.get("id") == usual)]
    return next((each for each in found if isinstance(each, int)), None)


def wayback_layer(zoom: int) -> int:
    """The layer of a Wayback release's metadata service that tells of the tiles of a zoom level."""
    return min(max(FINEST_WAYBACK_ZOOM - zoom, 0), COARSEST_WAYBACK_LAYER)


def _window_of(z: int, column: int, row: int) -> Window:
    return Window(z, column * BLOCK_TILES, row * BLOCK_TILES, BLOCK_TILES)


def _query(window: Window) -> str:
    left, bottom, right, top = window.bounds_3857()
    pixel_m = (right - left) / (window.side * TILE_SIZE_PX)
    fields = {
        "f": "json",
        "where": "1=1",
        # All fields: one that a service does not have would be an error, and their names have changed before.
        "outFields": "*",
        "geometry": f"{left:.3f},{bottom:.3f},{right:.3f},{top:.3f}",
        "geometryType": "esriGeometryEnvelope",
        "inSR": "102100",
        "spatialRel": "esriSpatialRelIntersects",
        "returnGeometry": "true",
        "outSR": "102100",
        # Outlines to a pixel: those of whole countries have a million corners.
        "maxAllowableOffset": f"{pixel_m:.3f}",
        "geometryPrecision": "1",
    }
    return urlencode(fields)
