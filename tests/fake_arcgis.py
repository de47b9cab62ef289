"""A local ArcGIS tile service for tests: World Imagery and Wayback, with faults that can be switched on for each tile.

with running_arcgis() as arcgis:
    monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", arcgis.url)
    arcgis.faults[17, 64069, 40915] = "503"             # always
    arcgis.faults[17, 64070, 40915] = Fault("cut", 1)   # the first time only
    ...
    assert arcgis.tiles[17, 64069, 40915] == 5          # how often it was asked for
    assert place_of(image.data) == (17, 64069, 40915)   # a picture tells where it is from
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Place = tuple[int, int, int]
"""z, x, y."""
Window = tuple[int, int, int, int]
"""left, top, width, height."""

_BITS = (8, 24, 24)  # of z, x and y: 56 of the 64 squares of a picture
_SQUARE_PX = 32
COPYRIGHT = "Esri, Vantor, Earthstar Geographics, and the GIS User Community"


@functools.cache
def picture_of(place: Place, release: int = 0) -> bytes:
    """A JPEG that is different for each place; `place_of` reads it back. The release changes the colour alone."""
    bits = [value >> bit & 1 for value, count in zip(place, _BITS, strict=True) for bit in range(count)]
    squares = np.zeros(64, np.uint8)
    squares[: len(bits)] = np.where(bits, 220, 60)
    pixels = np.kron(squares.reshape(8, 8), np.ones((_SQUARE_PX, _SQUARE_PX), np.uint8))
    rng = np.random.default_rng([*place, release])
    texture = rng.integers(0, 30, (256, 256, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, None] + texture).save(stream, format="JPEG", quality=80)
    return stream.getvalue()


def place_of(picture: bytes) -> Place:
    """The place that `picture_of` drew."""
    grey = np.asarray(Image.open(io.BytesIO(picture)).convert("L"), np.float32)
    bright = grey.reshape(8, _SQUARE_PX, 8, _SQUARE_PX).mean(axis=(1, 3)).ravel() > 150
    values, start = [], 0
    for count in _BITS:
        values.append(sum(1 << bit for bit in range(count) if bright[start + bit]))
        start += count
    return values[0], values[1], values[2]


@functools.cache
def no_data_picture() -> bytes:
    """What such a service shows where it has nothing: the same picture everywhere."""
    pixels = np.full((256, 256, 3), 204, np.uint8)
    pixels[120:136:2, 40:216] = 120
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG")
    return stream.getvalue()


def description(max_zoom: int = 19, capabilities: str = "Map,Tilemap,Query,Data") -> dict[str, Any]:
    """`MapServer?f=json` with the fields that matter, in the shape of the real one."""
    return {
        "currentVersion": 11.3,
        "mapName": "World_Imagery",
        "copyrightText": COPYRIGHT,
        "singleFusedMapCache": True,
        "tileInfo": {
            "rows": 256,
            "cols": 256,
            "dpi": 96,
            "format": "JPEG",
            "origin": {"x": -20037508.342787, "y": 20037508.342787},
            "spatialReference": {"wkid": 102100, "latestWkid": 3857},
            "lods": [
                {"level": level, "resolution": 156543.03392800014 / 2**level, "scale": 591657527.591555 / 2**level}
                for level in range(max_zoom + 1)
            ],
        },
        "exportTilesAllowed": False,
        "capabilities": capabilities,
    }


CITATIONS_LAYER = 4
WAYBACK, WMTS = "/wayback/arcgis/rest/services/World_Imagery", "/WMTS/1.0.0/default028mm"


@dataclass(frozen=True)
class Picture:
    """A scene of the mosaic, as the layers of capture dates list it."""

    box_3857: tuple[float, float, float, float]
    """Left, bottom, right, top."""
    date: str | None
    """ISO; None: the service does not know, and says 1 January 1980."""
    min_level: int = 13
    max_level: int = 23
    source: str = "WV03"
    resolution_m: float = 0.3
    releases: tuple[int, ...] | None = None
    """Wayback releases that show it; None: all."""
    hole_3857: tuple[float, float, float, float] | None = None

    def feature(self, number: int) -> dict[str, Any]:
        """As `query?f=json` gives it: instants in milliseconds, outer rings clockwise."""
        instant = f"{self.date or '1980-01-01'}T00:00:00+00:00"
        rings = [_ring(self.box_3857)] + ([_ring(self.hole_3857)[::-1]] if self.hole_3857 else [])
        attributes = {
            "OBJECTID": number,
            "SRC_DATE": int((self.date or "1980-01-01").replace("-", "")),
            "SRC_DATE2": int(datetime.fromisoformat(instant).timestamp() * 1000),
            "NICE_NAME": "Vivid",
            "NICE_DESC": "Vantor",
            "SRC_DESC": self.source,
            "SRC_RES": self.resolution_m,
            "SAMP_RES": 0.5,
            "SRC_ACC": 5.0,
            "MinMapLevel": self.min_level,
            "MaxMapLevel": self.max_level,
        }
        return {"attributes": attributes, "geometry": {"rings": rings}}


def _ring(box: tuple[float, float, float, float]) -> list[list[float]]:
    left, bottom, right, top = box
    return [[left, bottom], [left, top], [right, top], [right, bottom], [left, bottom]]


@dataclass
class Fault:
    """What goes wrong when a tile is asked for, and how often before it is well again."""

    kind: str
    """Key of `FAULTS`, or an HTTP status."""
    times: float = float("inf")


def _cut(picture: bytes) -> Response:
    response = Response(picture[: len(picture) // 2], content_type="image/jpeg")
    response.headers["Content-Length"] = str(len(picture))
    return response


FAULTS: dict[str, Callable[[bytes], Response]] = {
    "429": lambda _: Response("slow down", 429, headers={"Retry-After": "1"}),
    "cut": _cut,
    "truncated": lambda picture: Response(picture[: len(picture) // 2], content_type="image/jpeg"),
    "empty": lambda _: Response(b"", content_type="image/jpeg"),
    "html": lambda _: Response("<html><head><title>Sign in</title></head></html>", content_type="text/html"),
    "token": lambda _: Response('{"error":{"code":498,"message":"Invalid token."}}', content_type="application/json"),
    "placeholder": lambda _: Response(no_data_picture(), content_type="image/jpeg"),
    "etag": lambda _: Response(no_data_picture(), content_type="image/jpeg", headers={"ETag": '"10i954m13i2"'}),
    "blank-tile": lambda _: Response(no_data_picture(), content_type="image/jpeg", headers={"blank-tile": "true"}),
    "wrong-size": lambda picture: Response(_resized(picture), content_type="image/jpeg"),
    "white": lambda _: Response(_flat(), content_type="image/jpeg"),
}
"""Given the right picture, the wrong answer. `hang` is played by the service itself."""


@functools.cache
def _flat() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (256, 256), (255, 255, 255)).save(stream, format="JPEG")
    return stream.getvalue()


def _resized(picture: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((512, 512)).save(stream, format="JPEG")
    return stream.getvalue()


@dataclass
class FakeArcgis:
    """The service. The server should be threaded, or nothing is ever in flight beside something else."""

    server: HTTPServer
    faults: dict[Place, Fault | str] = field(default_factory=dict)
    absent: set[Place] = field(default_factory=set)
    """Not there: 404 with blankTile=false, the 'no data' picture without it, 0 in the tilemap."""
    hidden_from_tilemap: set[Place] = field(default_factory=set)
    """Absent although the tilemap says 1."""
    description: dict[str, Any] = field(default_factory=description)
    tilemap_window: Callable[[Window], Window] = lambda asked: asked
    """Which part of a question the tilemap answers, or beside it."""
    tilemap_answer: Response | None = None
    """In place of any tilemap."""
    releases: dict[int, str] = field(default_factory=dict)
    """Wayback: number -> date of release."""
    versions: dict[Place, tuple[int, ...]] | None = None
    """Wayback: releases that brought a tile a new picture (of others: the oldest release did); None: all releases did,
    to every tile."""
    tilemap_faults: dict[Place, Fault] = field(default_factory=dict)
    """Wayback's, by tile."""
    release_tiles: Counter[tuple[int, Place]] = field(default_factory=Counter)
    """Requests for each tile of Wayback, by release."""
    owner_requests: Counter[tuple[int, Place]] = field(default_factory=Counter)
    """Requests to Wayback's tilemap."""
    pictures: list[Picture] | None = None
    """What the layers of capture dates list; None: there are no such layers."""
    capture_answer: Response | None = None
    """In place of any list of pictures."""
    max_pictures: int = 1000
    """So many in one answer, at most (`maxRecordCount`)."""
    capture_queries: list[dict[str, str]] = field(default_factory=list)
    delay_s: float = 0.0
    """Before every tile."""
    hang_s: float = 30.0
    requests: Counter[str] = field(default_factory=Counter)
    """By kind: service, tilemap, tile, wayback-config, other."""
    tiles: Counter[Place] = field(default_factory=Counter)
    """Requests for each tile."""
    without_blank_tile_false: int = 0
    times: list[float] = field(default_factory=list)
    """When each request came (monotonic seconds)."""
    user_agents: set[str] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = 0
        self._stopped = threading.Event()
        self.server.expect_request(re.compile("/.*")).respond_with_handler(self._answer)

    @property
    def url(self) -> str:
        """For MAGC_WORLD_IMAGERY_URL."""
        return self.server.url_for("/arcgis/rest/services/World_Imagery/MapServer")

    @property
    def wayback_config_url(self) -> str:
        """For MAGC_WAYBACK_CONFIG_URL."""
        return self.server.url_for("/waybackconfig.json")

    @property
    def total(self) -> int:
        """Requests of every kind."""
        return sum(self.requests.values())

    def forget(self) -> None:
        """Set all counters back."""
        with self._lock:
            self.requests.clear()
            self.tiles.clear()
            self.release_tiles.clear()
            self.owner_requests.clear()
            self.times.clear()
            self.most_at_once = 0

    def stop(self) -> None:
        """End the hanging answers."""
        self._stopped.set()

    def _answer(self, request: Request) -> Response:
        with self._lock:
            self.times.append(time.monotonic())
            self.user_agents.add(request.headers.get("User-Agent", ""))
            self.queries.add(request.query_string.decode())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self._route(request)
        finally:
            with self._lock:
                self._at_once -= 1

    def _route(self, request: Request) -> Response:
        routes: tuple[tuple[str, str, Callable[..., Response]], ...] = (
            ("service", r"/arcgis/rest/services/World_Imagery/MapServer", self._describe),
            ("tile", r"/arcgis/rest/services/World_Imagery/MapServer/tile/(\d+)/(\d+)/(\d+)", self._tile),
            ("tilemap", r"/arcgis/.*/MapServer/tilemap/(\d+)/(\d+)/(\d+)/(\d+)/(\d+)", self._tilemap),
            ("tile", rf"{WAYBACK}{WMTS}/MapServer/tile/(\d+)/(\d+)/(\d+)/(\d+)", self._wayback_tile),
            ("owner", rf"{WAYBACK}/MapServer/tilemap/(\d+)/(\d+)/(\d+)/(\d+)", self._wayback_tilemap),
            ("wayback-config", r"/waybackconfig.json", self._wayback_config),
            ("captures", r"/arcgis/rest/services/World_Imagery/MapServer/(\d+)/query", self._citations),
            ("captures", r"/arcgis/rest/services/World_Imagery_Metadata_(\d+)/MapServer/(\d+)/query", self._metadata),
        )
        for kind, pattern, handler in routes:
            if found := re.fullmatch(pattern, request.path):
                with self._lock:
                    self.requests[kind] += 1
                return handler(request, *map(int, found.groups()))
        with self._lock:
            self.requests["other"] += 1
        return Response("no such resource", 404)

    def _describe(self, request: Request) -> Response:
        if request.args.get("f") != "json":
            return Response("<html><body>ArcGIS REST Services Directory</body></html>", content_type="text/html")
        layers = [] if self.pictures is None else [{"id": 0, "name": "World Imagery"}, {"id": 4, "name": "Citations"}]
        return _json(self.description | {"layers": layers} if layers else self.description)

    def _tile(self, request: Request, z: int, row: int, column: int) -> Response:
        return self._picture((z, column, row), 0, blank=request.args.get("blankTile") != "false")

    def _wayback_tile(self, request: Request, release: int, z: int, row: int, column: int) -> Response:
        if release not in self.releases:
            return Response("no such release", 404)
        with self._lock:
            self.release_tiles[release, (z, column, row)] += 1
        owner = self.owner(release, (z, column, row))
        return Response("", 404) if owner is None else self._picture((z, column, row), owner, blank=True)

    def owner(self, release: int, place: Place) -> int | None:
        """The release whose picture of a tile a release shows; None where it has none."""
        if self.versions is None:
            return release
        oldest = min(self.releases, key=lambda each: self.releases[each])
        shown = [each for each in self.versions.get(place, (oldest,)) if self.releases[each] <= self.releases[release]]
        return max(shown, key=lambda each: self.releases[each], default=None)

    def _wayback_tilemap(self, request: Request, release: int, z: int, row: int, column: int) -> Response:
        """One tile: `data`, and `select` where another release owns the picture."""
        place = (z, column, row)
        with self._lock:
            self.owner_requests[release, place] += 1
            fault = self.tilemap_faults.get(place)
            if fault is not None:
                fault.times -= 1
                if fault.times >= 0:
                    return Response("", int(fault.kind))
        owner = self.owner(release, place)
        location = {"left": column, "top": row, "width": 1, "height": 1}
        answer: dict[str, Any] = {"valid": True, "location": location, "data": [int(owner is not None)]}
        return _json(answer | ({"select": [owner]} if owner not in (None, release) else {}))

    def _picture(self, place: Place, release: int, *, blank: bool) -> Response:
        with self._lock:
            self.tiles[place] += 1
            self.without_blank_tile_false += blank
            fault = self.faults.get(place)
            fault = Fault(fault) if isinstance(fault, str) else fault
            if fault is not None:
                fault.times -= 1
        self._stopped.wait(self.delay_s) if self.delay_s else None
        z, x, y = place
        if not (x < 2**z and y < 2**z) or place in self.absent | self.hidden_from_tilemap:
            return FAULTS["blank-tile"](b"") if blank else Response("", 404)
        picture = picture_of(place, release)
        if fault is None or fault.times < 0:
            return Response(picture, content_type="image/jpeg", headers={"ETag": f'"{z}-{x}-{y}"'})
        if fault.kind == "hang":
            self._stopped.wait(self.hang_s)
            return Response("too late", 503)
        if fault.kind in FAULTS:
            return FAULTS[fault.kind](picture)
        return Response(f"HTTP {fault.kind}", int(fault.kind))

    def _tilemap(self, request: Request, z: int, row: int, column: int, width: int, height: int) -> Response:
        if self.tilemap_answer is not None:
            return self.tilemap_answer
        left, top, width, height = self.tilemap_window((column, row, width, height))
        data = [int((z, x, y) not in self.absent) for y in range(top, top + height) for x in range(left, left + width)]
        adjusted = (left, top, width, height) != (column, row, width, height)
        location = {"left": left, "top": top, "width": width, "height": height}
        return _json({"adjusted": adjusted, "location": location, "valid": True, "data": data})

    def _citations(self, request: Request, layer: int) -> Response:
        return self._pictures(request, self.pictures or []) if layer == CITATIONS_LAYER else _no_layer()

    def _metadata(self, request: Request, release: int, layer: int) -> Response:
        """One layer a zoom level, from 23 down; the rows of a layer are of its level."""
        shown = [
            each
            for each in self.pictures or []
            if each.min_level <= 23 - layer <= each.max_level and (each.releases is None or release in each.releases)
        ]
        return self._pictures(request, shown) if layer <= 13 else _no_layer()

    def _pictures(self, request: Request, pictures: list[Picture]) -> Response:
        with self._lock:
            self.capture_queries.append(dict(request.args))
        if self.capture_answer is not None:
            return self.capture_answer
        wanted = {"geometryType": "esriGeometryEnvelope", "inSR": "102100", "outSR": "102100", "f": "json"}
        if any(request.args.get(name) != value for name, value in wanted.items()):
            return _json({"error": {"code": 400, "message": "Unable to complete operation."}})
        left, bottom, right, top = map(float, request.args["geometry"].split(","))
        found = [
            each.feature(number)
            for number, each in enumerate(pictures)
            if each.box_3857[0] <= right
            and each.box_3857[2] >= left
            and each.box_3857[1] <= top
            and each.box_3857[3] >= bottom
        ]
        answer = {"geometryType": "esriGeometryPolygon", "features": found[: self.max_pictures]}
        return _json(answer | ({"exceededTransferLimit": True} if len(found) > self.max_pictures else {}))

    def _wayback_config(self, request: Request) -> Response:
        template = self.server.url_for(f"{WAYBACK}{WMTS}/MapServer/tile/")
        return _json(
            {
                str(number): {
                    "itemID": f"{number:032x}",
                    "itemTitle": f"World Imagery (Wayback {released})",
                    "itemURL": f"{template}{number}/{{level}}/{{row}}/{{col}}",
                    **({} if self.pictures is None else {"metadataLayerUrl": self._metadata_url(number)}),
                }
                for number, released in self.releases.items()
            }
        )

    def _metadata_url(self, release: int) -> str:
        return self.server.url_for(f"/arcgis/rest/services/World_Imagery_Metadata_{release}/MapServer")


def _no_layer() -> Response:
    return _json({"error": {"code": 500, "message": "Invalid or missing input parameters."}})


def _json(document: object) -> Response:
    return Response(json.dumps(document), content_type="application/json")


@contextlib.contextmanager
def running_arcgis() -> Iterator[FakeArcgis]:
    """A service on a free port of this machine, with threads, until the block ends."""
    server = HTTPServer(host="127.0.0.1", port=0, threaded=True)
    server.start()
    arcgis = FakeArcgis(server)
    try:
        yield arcgis
    finally:
        arcgis.stop()
        server.stop()
