"""World Imagery, Wayback and any XYZ service, against a local ArcGIS service that misbehaves on command."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import sqlite3
import time
from typing import TYPE_CHECKING

import mercantile
import pytest
from fake_arcgis import (
    COPYRIGHT,
    FakeArcgis,
    Fault,
    Window,
    description,
    no_data_picture,
    picture_of,
    place_of,
    running_arcgis,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from werkzeug import Response

from magc_data import image_check
from magc_data.errors import FetchError, MagcDataError, SourceError, UsageError
from magc_data.grid import BLOCK_TILES, Block, Tile
from magc_data.schema.sample import ImageFormat, Reason, Rejection, TileImage
from magc_data.sources import tile_service, wayback, xyz
from magc_data.sources.cache import Cache
from magc_data.sources.http import IMAGERY_POLICY, HttpClient, HttpResponse
from magc_data.sources.pace import BREAKER_FAILURES
from magc_data.sources.protocols import ImagerySource, SourceContext
from magc_data.sources.wayback import choose_release, open_wayback, read_releases
from magc_data.sources.world_imagery import WorldImagery, open_world_imagery
from magc_data.sources.xyz import fill_template, open_xyz, parse_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_httpserver import HTTPServer

Z, X0, Y0 = 17, 64064, 40896
"""A block in Scotland: x and y differ enough for a swap to be seen."""


def block_of(width: int = 3, height: int = 2, z: int = Z, x: int = X0, y: int = Y0) -> Block:
    tiles = tuple(Tile(z, x + column, y + row) for row in range(height) for column in range(width))
    return Block(z, x // BLOCK_TILES, y // BLOCK_TILES, tiles)


FULL = block_of(BLOCK_TILES, BLOCK_TILES)


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    """One for all tests: stopping one takes half a second."""
    with running_arcgis() as service:
        yield service.server


@pytest.fixture
def arcgis(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArcgis]:
    server.clear()
    service = FakeArcgis(server)
    monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", service.url)
    monkeypatch.setenv("MAGC_WAYBACK_CONFIG_URL", service.wayback_config_url)
    yield service
    service.stop()


@pytest.fixture
def http() -> Iterator[HttpClient]:
    """Impatient: any rate, no backoff."""
    with HttpClient(float("inf"), random=lambda: 0.0) as client:
        yield client


@pytest.fixture
def context(tmp_path: Path, http: HttpClient) -> SourceContext:
    return SourceContext(tmp_path / "cache", http, Z, frozenset())


def fetched(source: ImagerySource, http: HttpClient, block: Block | None = None) -> dict[Tile, TileImage | Rejection]:
    """Fetch a block and read it as a worker would: from a pickled copy."""
    block = block or block_of()
    settled = []
    source.fetch(block, http, lambda: settled.append(1))
    assert len(settled) == len(block.tiles)
    worker: ImagerySource = pickle.loads(pickle.dumps(source))
    return {tile: worker.read(tile) for tile in block.tiles}


def is_right(tile: Tile, image: TileImage | Rejection) -> bool:
    return isinstance(image, TileImage) and image.data == picture_of(tile) and place_of(image.data) == tile


# --- the ordinary way ------------------------------------------------------------------------------------------------


def test_each_tile_is_the_picture_of_its_place(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    source = open_world_imagery(None, context)
    assert isinstance(source, ImagerySource)
    assert source.read(block_of().tiles[0]) == Rejection(Reason.FETCH_FAILED, "not fetched yet", transient=True)
    images = fetched(source, http)
    assert len(images) == 6
    assert all(is_right(tile, image) for tile, image in images.items())
    assert {image.format for image in images.values()} == {ImageFormat.JPEG}
    assert arcgis.without_blank_tile_false == 0
    assert arcgis.requests == {"service": 1, "tilemap": 1, "tile": 6}
    assert all(agent.startswith("magc/") for agent in arcgis.user_agents)


def test_what_the_manifest_will_say(arcgis: FakeArcgis, context: SourceContext) -> None:
    info = open_world_imagery(None, context).info
    assert (info.name, info.address, info.attribution) == ("world-imagery", arcgis.url, COPYRIGHT)
    assert not info.redistributable
    assert "Esri Master License Agreement" in info.terms
    assert info.mean_tile_bytes == 12_900


def test_nothing_is_asked_twice(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    first = fetched(open_world_imagery(None, context), http)
    arcgis.forget()
    again = open_world_imagery(None, context)  # as another run would
    assert fetched(again, http) == first
    assert arcgis.requests == {"service": 1}


def test_reading_does_not_decode(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_world_imagery(None, context)
    source.fetch(block_of(), http, lambda: None)
    monkeypatch.setattr(tile_service, "check_tile_bytes", lambda *_, **__: pytest.fail("decoded again"))
    assert all(is_right(tile, source.read(tile)) for tile in block_of().tiles)


def test_an_interrupted_fetch_keeps_what_came(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    source = open_world_imagery(None, context)
    block = block_of(8, 8)
    settled = 0

    def interrupt() -> None:
        nonlocal settled
        settled += 1
        if settled == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.fetch(block, http, interrupt)
    time.sleep(0.3)  # what was in flight
    arcgis.forget()
    images = fetched(open_world_imagery(None, context), http, block)
    assert all(is_right(tile, image) for tile, image in images.items())
    assert arcgis.requests["tile"] <= 64 - 20
    assert arcgis.requests["tilemap"] == 0


def test_a_worker_cannot_fetch(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    worker: WorldImagery = pickle.loads(pickle.dumps(open_world_imagery(None, context)))
    with pytest.raises(SourceError, match="cannot fetch"):
        worker.fetch(block_of(), http, lambda: None)


def test_the_rate_and_the_concurrency_are_kept(arcgis: FakeArcgis, context: SourceContext) -> None:
    arcgis.delay_s = 0.15
    with HttpClient(60.0, random=lambda: 0.0) as polite:
        source = open_world_imagery(None, context._replace(http=polite))
        arcgis.forget()
        source.fetch(block_of(8, 8), polite, lambda: None)
    assert arcgis.total == 65
    assert arcgis.most_at_once <= IMAGERY_POLICY.concurrency
    assert arcgis.most_at_once > 4  # it does use what it may
    times = sorted(arcgis.times)
    for first in range(len(times)):
        for last in range(first + 20, len(times)):
            assert (last - first) / 60 <= times[last] - times[first] + 0.1


# --- faults ----------------------------------------------------------------------------------------------------------

FAULTY = Tile(Z, X0 + 1, Y0 + 1)
PERMANENT, TRANSIENT = False, True

# fault, reason, transient, requests in the first run, in the second run, words of the detail
OUTCOMES = [
    ("429", Reason.FETCH_FAILED, TRANSIENT, 5, 5, "HTTP 429"),
    ("500", Reason.FETCH_FAILED, TRANSIENT, 5, 5, "HTTP 500 (5 times)"),
    ("503", Reason.FETCH_FAILED, TRANSIENT, 5, 5, "HTTP 503 (5 times)"),
    ("400", Reason.FETCH_FAILED, TRANSIENT, 1, 1, "HTTP 400"),
    ("cut", Reason.FETCH_FAILED, TRANSIENT, 5, 5, "cut short"),
    ("hang", Reason.FETCH_FAILED, TRANSIENT, 5, 5, "silence for 0.2 s"),
    ("truncated", Reason.UNDECODABLE, TRANSIENT, 5, 5, "JPEG"),
    ("empty", Reason.UNDECODABLE, TRANSIENT, 5, 5, "empty"),
    ("html", Reason.UNDECODABLE, TRANSIENT, 5, 5, "an HTML page saying 'Sign in'"),
    ("404", Reason.NOT_AVAILABLE, PERMANENT, 1, 0, "HTTP 404"),
    ("204", Reason.NOT_AVAILABLE, PERMANENT, 1, 0, "HTTP 204"),
    ("410", Reason.NOT_AVAILABLE, PERMANENT, 1, 0, "HTTP 410"),
    ("422", Reason.NOT_AVAILABLE, PERMANENT, 1, 0, "HTTP 422"),
    ("etag", Reason.PLACEHOLDER, PERMANENT, 1, 0, "no data"),
    ("blank-tile", Reason.PLACEHOLDER, PERMANENT, 1, 0, "no data"),
    ("white", Reason.BLANK, PERMANENT, 1, 0, "single colour"),
    ("wrong-size", Reason.WRONG_SIZE, PERMANENT, 1, 0, "512 x 512"),
]


@pytest.mark.parametrize(("fault", "reason", "transient", "asked", "asked_again", "words"), OUTCOMES)
def test_a_fault_costs_its_tile_only(
    arcgis: FakeArcgis,
    context: SourceContext,
    http: HttpClient,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    reason: Reason,
    transient: bool,
    asked: int,
    asked_again: int,
    words: str,
) -> None:
    monkeypatch.setattr(tile_service, "IMAGERY_POLICY", IMAGERY_POLICY._replace(timeout_s=0.2))
    if fault == "429":
        monkeypatch.setattr("fake_arcgis.FAULTS", {})  # without Retry-After
    arcgis.faults[FAULTY] = fault
    images = fetched(open_world_imagery(None, context), http)
    rejection = images.pop(FAULTY)
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.transient) == (reason, transient)
    assert words in rejection.detail
    assert arcgis.tiles[FAULTY] == asked
    assert all(is_right(tile, image) for tile, image in images.items())
    assert sum(arcgis.tiles.values()) == asked + 5
    arcgis.forget()
    del arcgis.faults[FAULTY]
    healed = fetched(open_world_imagery(None, context), http)[FAULTY]
    assert is_right(FAULTY, healed) is transient
    assert arcgis.tiles == ({FAULTY: 1} if asked_again else {})


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "truncated", "empty", "html", "hang"])
def test_a_passing_fault_leaves_no_trace(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(tile_service, "IMAGERY_POLICY", IMAGERY_POLICY._replace(timeout_s=0.3))
    arcgis.faults[FAULTY] = Fault(fault, times=1)
    start = time.monotonic()
    assert all(is_right(tile, image) for tile, image in fetched(open_world_imagery(None, context), http).items())
    assert arcgis.tiles[FAULTY] == 2
    if fault == "429":
        assert time.monotonic() - start >= 1.0  # its Retry-After


def test_the_placeholder_with_http_200_is_known_by_its_digest(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = no_data_picture()
    monkeypatch.setattr(image_check, "PLACEHOLDERS", frozenset({(len(data), hashlib.md5(data).hexdigest())}))
    arcgis.faults[FAULTY] = "placeholder"
    rejection = fetched(open_world_imagery(None, context), http)[FAULTY]
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.transient) == (Reason.PLACEHOLDER, False)
    assert rejection.image_sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("fault", ["401", "403", "token"])
def test_a_refusal_ends_the_build_and_poisons_nothing(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, fault: str
) -> None:
    arcgis.faults[FAULTY] = fault
    source = open_world_imagery(None, context)
    with pytest.raises(SourceError, match=r"refuses to give tiles .* key or token .* terms") as caught:
        source.fetch(block_of(), http, lambda: None)
    assert not isinstance(caught.value, FetchError)  # asking later would not help
    assert source.cache.read(FAULTY.key) is None
    del arcgis.faults[FAULTY]
    assert all(is_right(tile, image) for tile, image in fetched(source, http).items())


@pytest.mark.parametrize("fault", ["503", "html", "cut"])
def test_a_service_that_is_down_is_not_a_thousand_rejections(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, fault: str
) -> None:
    source = open_world_imagery(None, context)
    arcgis.faults |= dict.fromkeys(FULL.tiles, fault)
    with pytest.raises(FetchError, match="is not working"):
        source.fetch(FULL, http, lambda: None)
    assert arcgis.requests["tile"] <= (BREAKER_FAILURES + IMAGERY_POLICY.concurrency) * IMAGERY_POLICY.attempts
    with pytest.raises(FetchError):
        source.fetch(FULL, http, lambda: None)
    arcgis.faults.clear()
    with HttpClient(float("inf")) as later:
        block = block_of(6, 6)
        assert all(is_right(tile, image) for tile, image in fetched(source, later, block).items())


def test_a_service_that_answers_nonsense_everywhere_is_not_a_thousand_rejections(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient
) -> None:
    block = block_of(8, 4)
    arcgis.faults |= dict.fromkeys(block.tiles, "400")
    with pytest.raises(FetchError, match=r"gave none of the 32 tiles asked for, .* HTTP 400"):
        open_world_imagery(None, context).fetch(block, http, lambda: None)


def test_no_service_at_all(arcgis: FakeArcgis, context: SourceContext, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FetchError, match="a refused connection; check the network connection"):
        open_xyz("http://127.0.0.1:1/{z}/{x}/{y}", context).fetch(FULL, context.http, lambda: None)
    source = open_world_imagery(None, context)
    images = fetched(source, context.http)
    arcgis.server.stop()
    with HttpClient(float("inf"), random=lambda: 0.0) as offline:
        there = context._replace(http=offline)
        again = open_world_imagery(None, there)  # made anew from the cache
        assert again.info == source.info
        assert "going on with what was fetched before" in caplog.text
        assert fetched(again, offline) == images
        with pytest.raises(FetchError, match="a refused connection"):
            open_world_imagery(None, there._replace(cache_dir=context.cache_dir / "another"))
    arcgis.server.start()


# --- tilemap ---------------------------------------------------------------------------------------------------------


def test_absent_tiles_are_not_asked_for(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    arcgis.absent = {FAULTY, Tile(Z, X0, Y0)}
    source = open_world_imagery(None, context)
    availability = source.availability(block_of(), http)
    assert availability == (4, 2, 0)
    images = fetched(source, http)
    for tile in arcgis.absent:
        assert images.pop(Tile(*tile)) == Rejection(Reason.NOT_AVAILABLE, "the service lists no tile here")
    assert all(is_right(tile, image) for tile, image in images.items())
    assert set(arcgis.tiles) == set(images)
    assert arcgis.requests["tilemap"] == 1
    assert source.availability(block_of(), http) == (4, 2, 4)
    assert arcgis.requests["tilemap"] == 1


def test_a_tile_that_the_tilemap_promised_in_vain(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    arcgis.hidden_from_tilemap = {FAULTY}
    source = open_world_imagery(None, context)
    assert source.availability(block_of(), http) == (6, 0, 0)
    assert fetched(source, http)[FAULTY] == Rejection(Reason.NOT_AVAILABLE, "HTTP 404")
    assert source.availability(block_of(), http) == (5, 1, 5)


WINDOWS: dict[str, tuple[Callable[[Window], Window], int]] = {
    "as asked": (lambda asked: asked, 1),
    "larger": (lambda w: (w[0] - 8, w[1] - 8, w[2] + 16, w[3] + 16), 1),
    "left half": (lambda w: (w[0], w[1], max(w[2] // 2, 1), w[3]), 2),
    "8 x 8 bundles": (lambda w: (w[0] // 8 * 8, w[1] // 8 * 8, 8, 8), 16),
    "shifted": (lambda w: (w[0] - 5, w[1] - 3, w[2], w[3]), 4),
}


@pytest.mark.parametrize(("window", "requests"), WINDOWS.values(), ids=WINDOWS.keys())
def test_the_tilemaps_own_location_counts(
    arcgis: FakeArcgis,
    context: SourceContext,
    http: HttpClient,
    window: Callable[[Window], Window],
    requests: int,
) -> None:
    arcgis.tilemap_window = window
    arcgis.absent = {(Z, x, y) for _, x, y in FULL.tiles if (x * 7 + y * 3) % 5 == 0}
    source = open_world_imagery(None, context)
    assert source.absent_tiles(FULL, FULL.tiles, http) == arcgis.absent
    assert arcgis.requests["tilemap"] == requests
    assert source.availability(FULL, http) == (1024 - len(arcgis.absent), len(arcgis.absent), 0)
    assert arcgis.requests["tilemap"] == requests  # remembered


USELESS = {
    "404": Response("", 404),
    "422": Response("", 422),
    "500": Response("", 500),
    "403": Response("", 403),
    "invalid": Response(
        json.dumps({"valid": False, "location": {"left": X0, "top": Y0, "width": 32, "height": 32}, "data": [0]})
    ),
    "error": Response(json.dumps({"error": {"code": 498, "message": "Invalid token"}})),
    "html": Response("<html>"),
    "too few data": Response(
        json.dumps({"valid": True, "location": {"left": X0, "top": Y0, "width": 32, "height": 32}, "data": [0, 0]})
    ),
    "elsewhere": Response(
        json.dumps({"valid": True, "location": {"left": 0, "top": 0, "width": 32, "height": 32}, "data": [0] * 1024})
    ),
    "not numbers": Response(json.dumps({"location": {"left": X0, "top": Y0, "width": 1, "height": 1}, "data": ["no"]})),
    "no window": Response(json.dumps({"location": {"left": X0, "top": Y0, "width": 0, "height": 0}, "data": []})),
    "a list": Response("[1]"),
}


@pytest.mark.parametrize("answer", USELESS.values(), ids=USELESS.keys())
def test_without_a_tilemap_each_tile_is_asked_for(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, answer: Response
) -> None:
    arcgis.tilemap_answer = answer
    arcgis.absent = {FAULTY}
    source = open_world_imagery(None, context)
    assert source.availability(block_of(), http) is None
    images = fetched(source, http)
    assert images.pop(FAULTY) == Rejection(Reason.NOT_AVAILABLE, "HTTP 404")
    assert all(is_right(tile, image) for tile, image in images.items())


def test_a_service_without_the_capability_is_not_asked_for_a_tilemap(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient
) -> None:
    arcgis.description = description(capabilities="Map,Query,Data")
    source = open_world_imagery(None, context)
    assert source.availability(block_of(), http) is None
    fetched(source, http)
    assert arcgis.requests == {"service": 1, "tile": 6}


@pytest.mark.parametrize("there", [0, 1])
def test_a_single_value_stands_for_all(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, there: int
) -> None:
    location = {"left": X0, "top": Y0, "width": 32, "height": 32}
    arcgis.tilemap_answer = Response(json.dumps({"valid": True, "location": location, "data": [there]}))
    availability = open_world_imagery(None, context).availability(FULL, http)
    assert availability == ((1024, 0, 0) if there else (0, 1024, 0))


class TilemapOnly:
    """Plays the HTTP client for the property below: answers a tilemap question as a strategy says."""

    def __init__(self, windows: list[Window]) -> None:
        self.windows = windows
        self.asked = 0

    def request(self, method: str, url: str, **_: object) -> HttpResponse:
        self.asked += 1
        shift = self.windows[self.asked % len(self.windows)]
        row, column, width, height = map(int, url.split("?")[0].split("/")[-4:])
        left, top = column + shift[0], row + shift[1]
        width, height = max(width + shift[2], 1), max(height + shift[3], 1)
        data = [(x * y) % 3 % 2 for y in range(top, top + height) for x in range(left, left + width)]
        location = {"left": left, "top": top, "width": width, "height": height}
        return HttpResponse(200, {}, json.dumps({"location": location, "data": data}).encode(), url)


SHIFT = st.integers(min_value=-33, max_value=33)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(SHIFT, SHIFT, SHIFT, SHIFT), min_size=1, max_size=4),
    st.sets(st.sampled_from(FULL.tiles), min_size=1, max_size=60),
)
def test_whatever_the_location_no_tile_is_misjudged(
    tmp_path_factory: pytest.TempPathFactory, windows: list[Window], wanted: set[Tile]
) -> None:
    cache = Cache(tmp_path_factory.mktemp("tilemap") / "x.sqlite")
    source = WorldImagery(None, cache, "http://host/MapServer", has_tilemap=True)  # type: ignore[arg-type] - not looked at
    http = TilemapOnly(windows)
    absent = source.absent_tiles(FULL, sorted(wanted), http)  # type: ignore[arg-type] - has what is used
    assert absent <= {tile for tile in wanted if not (tile.x * tile.y) % 3 % 2}
    assert http.asked <= 16


# --- the service's description ---------------------------------------------------------------------------------------


def changed(**changes: object) -> dict[str, object]:
    document = description()
    for name, value in changes.items():
        if name in document["tileInfo"]:
            document["tileInfo"][name] = value
        else:
            document[name] = value
    return document


LODS_512 = [{"level": level, "resolution": 156543.033928 / 2 ** (level + 1)} for level in range(20)]


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        (changed(rows=512, cols=512), SourceError, "tiles of 512 x 512 pixels: expected 256 x 256"),
        (changed(spatialReference={"wkid": 4326}), SourceError, "expected web mercator"),
        (changed(lods=LODS_512), SourceError, "a grid of its own"),
        (changed(origin={"x": 0.0, "y": 0.0}), SourceError, "a grid of its own"),
        (changed(tileInfo=None), SourceError, "describes no tiles"),
        (changed(lods=None), SourceError, "describes no tiles"),
        (description(max_zoom=16), UsageError, "zoom 17 is not offered by .*: choose one from 0 to 16"),
        ({"error": {"code": 499, "message": "Token Required"}}, SourceError, "'Token Required'.*token"),
        ([], FetchError, "something that is not JSON"),
    ],
)
def test_a_service_of_another_kind_is_refused(
    arcgis: FakeArcgis, context: SourceContext, document: dict[str, object], error: type[MagcDataError], words: str
) -> None:
    arcgis.description = document
    with pytest.raises(error, match=words):
        open_world_imagery(None, context)


def test_the_real_description_of_an_old_server_is_understood(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, shared_data: Path
) -> None:
    arcgis.description = json.loads((shared_data / "arcgis" / "world_imagery_mapserver_v10.01.json").read_bytes())
    source = open_world_imagery(None, context)
    assert source.info.attribution.startswith("Source: Esri, DigitalGlobe, GeoEye")
    assert source.availability(block_of(), http) is None  # it has no tilemap
    assert all(is_right(tile, image) for tile, image in fetched(source, http).items())


@pytest.mark.parametrize("url", ["ftp://host/MapServer", "https://host/MapServer/tile", "host/MapServer", ""])
def test_an_address_that_is_no_map_server(context: SourceContext, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", url)
    with pytest.raises(UsageError, match=r"expected an http.s. address that ends in /MapServer"):
        open_world_imagery(None, context)


def test_world_imagery_takes_no_argument(context: SourceContext) -> None:
    with pytest.raises(UsageError, match="takes no argument"):
        open_world_imagery("2020", context)


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "s3cr3tV4lue"


def test_keys_are_nowhere_but_in_the_requests(
    arcgis: FakeArcgis,
    context: SourceContext,
    http: HttpClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    host = arcgis.url.removeprefix("http://")
    echo = Response(f"<html><title>The key {SECRET} is over its quota at http://h/?token={SECRET}</title></html>")
    monkeypatch.setitem(__import__("fake_arcgis").FAULTS, "html", lambda _: echo)
    template = f"http://user:{SECRET}@{host}/tile/{{z}}/{{y}}/{{x}}?apikey={SECRET}&blankTile=false"
    monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", f"{arcgis.url}?token={SECRET}")
    said: list[str] = []
    for source in (open_xyz(template, context), open_world_imagery(None, context)):
        for fault in ("html", "503", "404", "403", "400"):
            arcgis.faults[FAULTY] = fault
            try:
                said += map(repr, fetched(source, http).values())
            except MagcDataError as error:
                said.append(repr(error))
        arcgis.faults.clear()
        arcgis.faults |= dict.fromkeys(FULL.tiles, "503")
        with pytest.raises(FetchError) as caught:
            source.fetch(FULL, http, lambda: None)
        said.append(repr(caught.value))
        arcgis.faults.clear()
        said.append(repr(source.info))
        assert SECRET.encode() not in pickle.dumps(source)
        with pytest.raises(MagcDataError):
            open_xyz(template.replace("{z}", "{zz}"), context)
        http = HttpClient(float("inf"), random=lambda: 0.0)
    assert any(SECRET in query for query in arcgis.queries)
    assert any("The key *** is over its quota" in line for line in said)
    assert [line for line in said if SECRET in line] == []
    # all loggers but that of the server, which runs in this process here
    logged = [record.getMessage() for record in caplog.records if record.name != "werkzeug"]
    assert any("GET /arcgis" in line for line in logged)
    assert [line for line in logged if SECRET in line] == []
    files = [path for path in context.cache_dir.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert [path for path in files if SECRET.encode() in path.read_bytes() or SECRET in path.name] == []


@pytest.mark.parametrize("open_source", [open_xyz, open_wayback, open_world_imagery])
def test_keys_are_in_no_usage_error(
    context: SourceContext, monkeypatch: pytest.MonkeyPatch, open_source: Callable[..., ImagerySource]
) -> None:
    for name in ("MAGC_WORLD_IMAGERY_URL", "MAGC_WAYBACK_CONFIG_URL"):
        monkeypatch.setenv(name, f"http://user:{SECRET}@127.0.0.1:1/x?token={SECRET}")
    argument = f"http://user:{SECRET}@h/?token={SECRET}" if open_source is open_xyz else None
    with pytest.raises(MagcDataError) as caught:
        open_source(argument, context)
    assert SECRET not in str(caught.value)
    assert "***" in str(caught.value)


# --- XYZ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("https://h/{z}/{x}/{y}.png", "https://h/17/64069/40915.png"),
        ("https://h/{Z}/{Y}/{X}", "https://h/17/40915/64069"),
        ("https://h/{zoom}/{x}/{-y}.jpg?a={z}", "https://h/17/64069/90156.jpg?a=17"),
        ("https://h/{q}.jpeg", "https://h/03113133121120133.jpeg"),
        ("https://h/t?quadkey={quadkey}", "https://h/t?quadkey=03113133121120133"),
        ("https://h/EPSG:3857:{TileMatrix}/{TileRow}/{TileCol}", "https://h/EPSG:3857:17/40915/64069"),
        ("https://{s}.h/{z}/{x}/{y}", "https://c.h/17/64069/40915"),
        ("https://{switch:t0,t1, t2,t3}.h/{z}/{x}/{y}", "https://t0.h/17/64069/40915"),
        ("https://h/{level}/{row}/{column}", "https://h/17/40915/64069"),
    ],
)
def test_templates_are_filled(template: str, expected: str) -> None:
    tile = Tile(17, 64069, 40915)
    filled = fill_template(parse_template(template), tile)
    assert filled == expected.replace("03113133121120133", mercantile.quadkey(64069, 40915, 17))


@given(st.integers(1, 23), st.integers(0, 2**23 - 1), st.integers(0, 2**23 - 1))
def test_quadkeys_agree_with_mercantile(z: int, x: int, y: int) -> None:
    tile = Tile(z, x % 2**z, y % 2**z)
    assert xyz.quadkey(tile) == mercantile.quadkey(tile.x, tile.y, tile.z)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("https://h/{z}/{x}/{yy}", "holds {yy}: known are"),
        ("https://h/{z}/{x}/{y}?key={apikey}&t={TileMatrixSet}", "{TileMatrixSet}"),
        ("https://h/{z}/{x}", "does not say which tile"),
        ("https://h/", "does not say which tile"),
        ("ftp://h/{z}/{x}/{y}", "expected http"),
        ("https:///{z}/{x}/{y}", "expected http"),
        ("/{z}/{x}/{y}", "expected http"),
    ],
)
def test_wrong_templates_are_explained(context: SourceContext, template: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_xyz(template, context)
    assert words in str(caught.value)


def test_any_xyz_service(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    template = f"{arcgis.url}/tile/{{z}}/{{y}}/{{x}}?blankTile=false&key=abc"
    arcgis.absent = {FAULTY}
    source = open_xyz(template, context)
    assert source.info.name == source.info.address == template.replace("abc", "***")
    assert (source.info.licence, source.info.redistributable) == ("not stated", False)
    assert source.availability(block_of(), http) is None
    assert source.extent() is None
    images = fetched(source, http)
    assert images.pop(FAULTY) == Rejection(Reason.NOT_AVAILABLE, "HTTP 404")
    assert all(is_right(tile, image) for tile, image in images.items())
    # another key, the same service: what is there stays there
    arcgis.forget()
    fetched(open_xyz(template.replace("abc", "def"), context), http)
    assert arcgis.total == 0


def test_mirrors_are_one_service_to_the_rate_limiter(arcgis: FakeArcgis, context: SourceContext) -> None:
    port = arcgis.server.port
    template = f"http://{{switch:127.0.0.1,localhost}}:{port}/arcgis/rest/services/World_Imagery/MapServer/tile/{{z}}/{{y}}/{{x}}"
    with HttpClient(20.0) as polite:
        images = fetched(open_xyz(template, context._replace(http=polite)), polite, block_of(4, 4))
    assert all(is_right(tile, image) for tile, image in images.items())
    assert max(arcgis.times) - min(arcgis.times) >= 15 / 20 * 0.95


def test_webp_is_kept_as_it_came_and_read_as_png(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture_of(FAULTY))).save(stream, "WEBP", lossless=True)
    webp = stream.getvalue()
    monkeypatch.setitem(__import__("fake_arcgis").FAULTS, "webp", lambda _: Response(webp))
    arcgis.faults[FAULTY] = "webp"
    source = open_xyz(f"{arcgis.url}/tile/{{z}}/{{y}}/{{x}}?blankTile=false", context)
    image = fetched(source, http)[FAULTY]
    assert isinstance(image, TileImage)
    assert image.format is ImageFormat.PNG
    assert image.data.startswith(b"\x89PNG")
    assert place_of(image.data) == FAULTY
    with sqlite3.connect(next(context.cache_dir.rglob("*.sqlite"))) as connection:
        rows = connection.execute("SELECT body FROM answers WHERE key = ?", (FAULTY.key,)).fetchall()
    assert rows == [(webp,)]


# --- Wayback ---------------------------------------------------------------------------------------------------------

RELEASES = {10: "2014-02-20", 31144: "2014-06-11", 645: "2019-06-26", 5359: "2021-03-17"}


def test_a_release_is_fetched_from_its_own_address(
    arcgis: FakeArcgis, context: SourceContext, http: HttpClient
) -> None:
    arcgis.releases = RELEASES
    assert open_wayback("2019-06-25", context).info.version == "31144"
    source = open_wayback("2019-06-26", context)
    assert (source.info.name, source.info.version) == ("wayback:645", "645")
    assert "645 (2019-06-26)" in source.info.terms
    assert "--imagery wayback:645" in source.info.terms
    assert not source.info.redistributable
    for tile, image in fetched(source, http).items():
        assert isinstance(image, TileImage)
        assert image.data == picture_of(tile, 645)
    other = open_wayback("10", context)
    assert "--imagery" not in other.info.terms  # it is pinned already
    image = fetched(other, http)[FAULTY]
    assert isinstance(image, TileImage)
    assert image.data == picture_of(FAULTY, 10)  # releases do not share a cache


def test_plain_wayback_is_the_newest_and_says_how_to_pin_it(arcgis: FakeArcgis, context: SourceContext) -> None:
    arcgis.releases = RELEASES
    info = open_wayback(None, context).info
    assert (info.name, info.version) == ("wayback:5359", "5359")
    assert "Pin it with --imagery wayback:5359" in info.terms


def test_wayback_opens_from_its_cache(arcgis: FakeArcgis, context: SourceContext, http: HttpClient) -> None:
    arcgis.releases = RELEASES
    source = open_wayback("645", context)
    images = fetched(source, http)
    arcgis.server.stop()
    with HttpClient(random=lambda: 0.0) as offline:
        again = open_wayback("645", context._replace(http=offline))
        assert again.info == source.info
        assert fetched(again, offline) == images
    arcgis.server.start()


@pytest.mark.parametrize("name", ["waybackconfig.json", "waybackdevconfig.json"])
def test_both_real_configurations_are_understood(shared_data: Path, name: str) -> None:
    document = (shared_data / "arcgis" / name).read_bytes()
    releases = read_releases(document, name)
    assert len(releases) == len(json.loads(document))
    by_number = {release.number: release for release in releases}
    assert str(by_number[32337].published) == "2018-05-16"
    assert choose_release(releases, "32337") == by_number[32337]
    assert choose_release(releases, "2018-05-16") == by_number[32337]
    assert str(choose_release(releases, "2018-06-05").published) == "2018-05-16"  # the next one is of 2018-06-06
    assert str(choose_release(releases, "2014-02-20").published) == "2014-02-20"
    assert choose_release(releases, None) == max(releases, key=lambda release: release.published)
    assert choose_release(releases, "2199-01-01") == choose_release(releases, None)
    filled = fill_template(parse_template(by_number[32337].template), Tile(17, 64069, 40915))
    assert filled.endswith("/MapServer/tile/32337/17/40915/64069")


def test_the_newest_release_of_each_real_configuration(shared_data: Path) -> None:
    newest = {
        name: choose_release(read_releases((shared_data / "arcgis" / name).read_bytes(), name), None).number
        for name in ("waybackconfig.json", "waybackdevconfig.json")
    }
    assert newest == {"waybackconfig.json": 11351, "waybackdevconfig.json": 5359}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("646", r"no release 646: the nearest numbers are 645 \(2019-06-26\), 10 \(2014-02-20\), 5359"),
        ("2014-02-19", r"no release as early as 2014-02-19: the first ones are 10 \(2014-02-20\)"),
        ("2014-02-30", "is no Wayback release: expected a number as in wayback:5359"),
        ("newest", "is no Wayback release"),
        ("", "is no Wayback release"),
        ("20190626T00", "is no Wayback release"),
    ],
)
def test_an_unknown_release_names_the_nearest(
    arcgis: FakeArcgis, context: SourceContext, argument: str, words: str
) -> None:
    arcgis.releases = RELEASES
    with pytest.raises(UsageError, match=words):
        open_wayback(argument, context)


@pytest.mark.parametrize("document", [b"{}", b"[]", b'{"1": 2}', b'{"x": {"itemURL": "u", "itemTitle": "2014-01-01"}}'])
def test_a_configuration_without_releases(document: bytes) -> None:
    with pytest.raises(SourceError, match="lists no release"):
        read_releases(document, "address")


def test_a_release_on_a_geographic_grid_is_refused(
    arcgis: FakeArcgis, context: SourceContext, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (shared_data / "arcgis" / "waybackconfig.json").read_bytes()
    monkeypatch.setattr(wayback, "live_document", lambda *_: document)
    with pytest.raises(SourceError, match="has its tiles on a geographic grid"):
        open_wayback("11351", context)
