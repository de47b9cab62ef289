"""The sea in whole builds: made-up coasts (the real ones are in test_sea_real.py), every kind of vector source."""

from __future__ import annotations

import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pytest
import shapely
import tiny_world
from fake_overpass import FakeOverpass
from test_bad_input import command
from tiny_world import CORNER_LAT, CORNER_LON, Opl, World, fail_imagery, tree_digests
from water_files import write_water_polygons

from magc_data import cli
from magc_data.config import BuildConfig, HealConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import DatasetError, FetchError, SourceError, UsageError
from magc_data.export.job import export
from magc_data.heal import heal
from magc_data.plan import plan
from magc_data.shards.describe import write_metadata
from magc_data.shards.index import read_table
from magc_data.shards.manifest import read_manifest, to_json
from magc_data.shards.reader import read_index
from magc_data.sources.http import DOWNLOAD_POLICY
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Bbox = tuple[float, float, float, float]
Line = list[tuple[float, float]]

WATER, BACKGROUND = 8, 0
# Around the corner of four blocks; 0.01 degrees are four tiles.
BBOX = (CORNER_LON - 0.008, CORNER_LAT - 0.004, CORNER_LON + 0.008, CORNER_LAT + 0.004)
ONE_TILE = (CORNER_LON + 0.0002, CORNER_LAT + 0.0002, CORNER_LON + 0.0004, CORNER_LAT + 0.0004)


def rounded(points: Iterable[tuple[float, float]]) -> Line:
    """Places as OpenStreetMap can have them."""
    return [(round(float(x), 7), round(float(y), 7)) for x, y in points]


def coast_at(lon: float, lat: float = CORNER_LAT, length: float = 0.5) -> Line:
    """A wavy coast from north to south: the sea in the west."""
    t = np.linspace(length / 2, -length / 2, 400)
    return rounded(zip(lon + 0.0007 * np.sin(t * 900), lat + t, strict=True))


def reversed_line(line: Line) -> Line:
    return line[::-1]


def square(lon: float, lat: float, side: float) -> Line:
    return rounded([(lon, lat), (lon + side, lat), (lon + side, lat + side), (lon, lat + side), (lon, lat)])


def write_coast(path: Path, *lines: Line, streets: bool = True) -> Path:
    """An OPL file with coastlines and, unless said otherwise, a street and a house on either side of the corner."""
    opl = Opl()
    for line in lines:
        opl.way(line, "natural=coastline")
    if streets:
        opl.way(
            [(CORNER_LON - 0.02, CORNER_LAT + 0.001), (CORNER_LON + 0.02, CORNER_LAT + 0.001)], "highway=residential"
        )
        opl.way(square(CORNER_LON - 0.003, CORNER_LAT + 0.0015, 0.0005), "building=yes")
    return opl.write(path)


def maps(out: Path, osm: Path | str, bbox: Bbox = BBOX, **options: object) -> MagcDataset:
    """Build maps alone, see that nothing is wrong with them, and read them."""
    chosen = {"bbox": bbox, "imagery": "none", "osm": str(osm), "workers": 1, "out": out} | options
    tiny_world.run(BuildConfig(**chosen))
    assert verify(out).findings == ()
    return MagcDataset(out)


def shares(dataset: MagcDataset) -> dict[str, float]:
    """Share of water of each map, by key."""
    return {key: float((dataset.read_map(number) == WATER).mean()) for number, key in enumerate(dataset.keys)}


def whole_map(dataset: MagcDataset) -> np.ndarray:
    """All maps side by side."""
    places = np.array([[int(part) for part in key.split("_")[1:]] for key in dataset.keys])
    places -= places.min(axis=0)
    result = np.full((places[:, 1].max() * 256 + 256, places[:, 0].max() * 256 + 256), 255, np.uint8)
    for number, (x, y) in enumerate(places):
        result[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256] = dataset.read_map(number)
    return result


# --- coastlines ------------------------------------------------------------------------------------------------------


def test_the_sea_lies_below_everything_else(tmp_path: Path) -> None:
    dataset = maps(tmp_path / "d", write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON)))
    wet = whole_map(dataset)
    assert (wet[:, 0] != BACKGROUND).all()
    assert WATER not in wet[:, -1]
    dry = whole_map(maps(tmp_path / "dry", tmp_path / "a.osm.opl", water_polygons="none"))
    assert ((wet != dry) == ((wet == WATER) & (dry == BACKGROUND))).all()
    assert {8, 9, 11} <= set(np.unique(wet[:, : wet.shape[1] // 2]))
    assert read_manifest(tmp_path / "d")["sea"] == {"from": "coastlines", "reach_m": 25000.0}


def test_the_pixels_of_the_sea_do_not_depend_on_the_tiling(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON), square(CORNER_LON - 0.0061, CORNER_LAT, 0.0013))
    whole = maps(tmp_path / "whole", osm)
    single = maps(tmp_path / "one", osm, ONE_TILE)
    numbers = {key: number for number, key in enumerate(whole.keys)}
    assert len(single) == 1
    assert np.array_equal(single.read_map(0), whole.read_map(numbers[single.keys[0]]))
    for number, key in enumerate(whole.keys):
        west = (int(key.split("_")[1]) + 0.5) / 2**17 * 360 - 180
        lat = float(read_index(tmp_path / "whole")["lat"].to_pylist()[number])
        tiny = maps(tmp_path / key, osm, (west - 1e-5, lat - 1e-5, west + 1e-5, lat + 1e-5))
        assert np.array_equal(tiny.read_map(0), whole.read_map(number))


def test_workers_make_the_same_bytes(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON))
    maps(tmp_path / "one", osm)
    maps(tmp_path / "two", osm, workers=2)
    assert tree_digests(tmp_path / "one") == tree_digests(tmp_path / "two")


def test_without_coastline_and_option_nothing_is_recorded_and_nothing_changes(tmp_path: Path) -> None:
    maps(tmp_path / "d", write_coast(tmp_path / "a.osm.opl"))
    manifest = read_manifest(tmp_path / "d")
    assert "sea" not in manifest
    assert "water_polygons" not in manifest["config"]


@pytest.mark.parametrize(("lon", "share"), [(CORNER_LON + 0.15, 1.0), (CORNER_LON - 0.15, 0.0)])
def test_a_coast_beyond_the_block_tells_its_side(tmp_path: Path, lon: float, share: float) -> None:
    """Fifteen kilometres away: no coastline lies in the block, and all of it is sea or land."""
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(lon), streets=False)
    dataset = maps(tmp_path / "d", osm)
    assert set(shares(dataset).values()) == {share}
    assert read_manifest(tmp_path / "d")["sea"]["from"] == "coastlines"


def test_beyond_the_reach_of_any_coastline_nothing_is_guessed_and_the_bare_blocks_are_named(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON + 0.4), streets=False)
    where = ("--bbox", ",".join(map(str, BBOX)), "--imagery", "none", "--osm", osm)
    ended = command("build", *where, "--workers", 1, "--out", tmp_path / "d", "--quiet")
    assert ended.code == 0
    assert (
        "a.osm.opl has nothing in 4 of 4 blocks, and no coastline within 25 km: their maps are empty; if they lie in "
        "the open sea, --water-polygons auto paints it\n"
    ) in ended.complaint
    assert set(shares(MagcDataset(tmp_path / "d")).values()) == {0.0}
    assert "sea" not in read_manifest(tmp_path / "d")


def test_a_broken_coastline_costs_the_tiles_around_the_break_and_says_so(tmp_path: Path) -> None:
    coast = coast_at(CORNER_LON)
    middle = len(coast) // 2
    whole = maps(tmp_path / "whole", write_coast(tmp_path / "whole.osm.opl", coast))
    broken = write_coast(tmp_path / "broken.osm.opl", coast[:middle], coast[middle + 1 :])
    dataset = maps(tmp_path / "d", broken)
    rejected = read_table(tmp_path / "d" / "rejected.parquet").to_pylist()
    assert {row["reason"] for row in rejected} == {"sea-unknown"}
    assert all(row["detail"].startswith("a coastline ends in the midst at ") for row in rejected)
    assert 0 < len(rejected) < len(whole) / 2
    assert not any(row["transient"] for row in rejected)
    numbers = {key: number for number, key in enumerate(whole.keys)}
    for number, key in enumerate(dataset.keys):
        assert np.array_equal(dataset.read_map(number), whole.read_map(numbers[key]))


def test_coastlines_that_contradict_each_other_cost_all_of_the_block(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON + 0.002), coast_at(CORNER_LON + 0.005))
    block = (CORNER_LON + 0.0001, CORNER_LAT + 0.0001, CORNER_LON + 0.01, CORNER_LAT + 0.004)
    tiny_world.run(BuildConfig(bbox=block, imagery="none", osm=str(osm), workers=1, out=tmp_path / "d"))
    counts = read_manifest(tmp_path / "d")["counts"]
    assert (counts["kept"], set(counts["rejected"])) == (0, {"sea-unknown"})


def test_a_scheme_without_a_class_of_that_name_has_no_sea(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON))
    scheme = tmp_path / "houses.yaml"
    scheme.write_text(
        "name: houses\nclasses: [{id: 0, name: ground, color: [0, 0, 0]}, {id: 1, name: house, color: [9, 9, 9]}]\n"
        "rules: [{class: house, draw_order: 1, areas: {building: '*'}}]\n"
    )
    dataset = maps(tmp_path / "d", osm, scheme=str(scheme))
    assert set(np.unique(whole_map(dataset))) == {0, 1}
    assert "sea" not in read_manifest(tmp_path / "d")
    with pytest.raises(
        UsageError, match=r"the class scheme houses has no class 'water': add one, or leave the option out"
    ):
        maps(tmp_path / "e", osm, scheme=str(scheme), water_polygons=str(osm))


@pytest.mark.parametrize("scheme", ["basic", "sgdm"])
def test_the_other_built_in_schemes_have_their_own_water(tmp_path: Path, scheme: str) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON), streets=False)
    dataset = maps(tmp_path / "d", osm, scheme=scheme)
    names = {each["id"]: each["name"] for each in read_manifest(tmp_path / "d")["classes"]}
    assert {names[value] for value in np.unique(whole_map(dataset))} == {names[0], "water"}


# --- other vector sources --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "parquet"])
def test_files_of_gis_have_coastlines_too(tmp_path: Path, suffix: str) -> None:
    island = square(CORNER_LON - 0.0061, CORNER_LAT, 0.0013)
    coast = coast_at(CORNER_LON)
    expected = maps(tmp_path / "opl", write_coast(tmp_path / "a.osm.opl", coast, island, streets=False))
    # Programs that write polygons turn their rings as they please: an island stays one.
    geometry = [shapely.LineString(coast), shapely.Polygon(reversed_line(island))]
    frame = geopandas.GeoDataFrame({"natural": ["coastline"] * 2}, geometry=geometry, crs=4326)
    path = tmp_path / f"coast.{suffix}"
    frame.to_parquet(path) if suffix == "parquet" else frame.to_file(path)
    dataset = maps(tmp_path / "d", path)
    assert np.array_equal(whole_map(dataset), whole_map(expected))
    far = write_far_coast(tmp_path / f"far.{suffix}")
    assert set(shares(maps(tmp_path / "far", far)).values()) == {1.0}


def write_far_coast(path: Path) -> Path:
    line = shapely.LineString(coast_at(CORNER_LON + 0.15))
    frame = geopandas.GeoDataFrame({"natural": ["coastline"]}, geometry=[line], crs=4326)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path)
    return path


def test_overpass_is_asked_for_coastlines_farther_away_only_where_a_block_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = write_coast(tmp_path / "far.osm.opl", coast_at(CORNER_LON + 0.15), streets=False)
    with FakeOverpass.of_file(far) as server:
        monkeypatch.setenv("MAGC_OVERPASS_URL", server.api)
        dataset = maps(tmp_path / "far", "overpass")
        asked = [query for query in server.queries if '"^(coastline)$"' in query]
        # Four blocks, and one cell of the coastline grid around all of them.
        assert (len(server.queries), len(asked)) == (5, 1)
        assert set(shares(dataset).values()) == {1.0}
        maps(tmp_path / "again", "overpass")
        assert len(server.queries) == 5
    near = write_coast(tmp_path / "near.osm.opl", coast_at(CORNER_LON))
    with FakeOverpass.of_file(near) as server:
        monkeypatch.setenv("MAGC_OVERPASS_URL", server.api)
        dataset = maps(tmp_path / "near", "overpass")
        assert len(server.queries) == 4
    assert np.array_equal(whole_map(dataset), whole_map(maps(tmp_path / "file", near)))


# --- water polygons --------------------------------------------------------------------------------------------------


def water_zip(folder: Path, epsg: int = 4326, *, name: str = "") -> Path:
    """Water west of the corner, for some kilometres."""
    water = shapely.box(CORNER_LON - 0.5, CORNER_LAT - 0.5, CORNER_LON + 0.001, CORNER_LAT + 0.5)
    return write_water_polygons(folder / (name or f"water-polygons-split-{epsg}.zip"), water, epsg=epsg)


@pytest.mark.parametrize("epsg", [4326, 3857])
def test_water_polygons_say_what_is_sea_also_where_there_is_no_coastline(tmp_path: Path, epsg: int) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", streets=False)
    dataset = maps(tmp_path / "d", osm, water_polygons=str(water_zip(tmp_path, epsg)))
    wet = whole_map(dataset) == WATER
    edge_px = int(wet[0].sum())
    assert wet[:, :edge_px].all()
    assert not wet[:, edge_px:].any()
    record = read_manifest(tmp_path / "d")["sea"]
    assert record["from"] == "water-polygons"
    assert record["licence"] == "ODbL-1.0"
    assert record["version"].startswith("2024-05-01T03:04:06 sha256:")
    assert read_manifest(tmp_path / "d")["config"]["water_polygons"]["version"] == record["version"]


def test_water_polygons_overrule_coastlines(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON - 0.004)[:200])  # broken
    dataset = maps(tmp_path / "d", osm, water_polygons=str(water_zip(tmp_path)))
    assert read_manifest(tmp_path / "d")["counts"]["rejected"] == {}
    assert (whole_map(dataset)[:, 0] != BACKGROUND).all()


def test_any_file_of_polygons_will_do(tmp_path: Path) -> None:
    path = tmp_path / "sea.gpkg"
    geopandas.GeoDataFrame(
        geometry=[shapely.box(CORNER_LON - 1, CORNER_LAT - 1, CORNER_LON, CORNER_LAT + 1)], crs=4326
    ).to_file(path)
    dataset = maps(tmp_path / "d", write_coast(tmp_path / "a.osm.opl", streets=False), water_polygons=str(path))
    assert 0 < np.mean(whole_map(dataset) == WATER) < 1
    assert read_manifest(tmp_path / "d")["sea"]["version"].startswith("sha256:")


def test_a_dataset_goes_on_with_the_sea_that_it_was_begun_with(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "a.osm.opl", coast_at(CORNER_LON))
    maps(tmp_path / "d", osm)
    with pytest.raises(
        DatasetError, match=r"was begun with other options \(water_polygons was null and is now \{from: "
    ):
        maps(tmp_path / "d", osm, water_polygons=str(water_zip(tmp_path)))
    with pytest.raises(DatasetError, match=r'water_polygons was null and is now \{from: "none"\}'):
        maps(tmp_path / "d", osm, water_polygons="none")


def test_polygons_of_another_region_are_refused(tmp_path: Path) -> None:
    path = write_water_polygons(tmp_path / "w.zip", shapely.box(1, 2, 3, 4))
    with pytest.raises(
        UsageError, match=r"w\.zip reach 1,2,3,4 \(W,S,E,N\), far from .*: give a file that covers the area"
    ):
        maps(tmp_path / "d", write_coast(tmp_path / "a.osm.opl"), water_polygons=str(path))


def points_file(folder: Path) -> Path:
    geopandas.GeoDataFrame(geometry=[shapely.Point(1, 2)], crs=4326).to_file(folder / "points.gpkg")
    return folder / "points.gpkg"


def no_crs(folder: Path) -> Path:
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]).to_file(folder / "x.shp")
    return folder / "x.shp"


def wrong_crs(folder: Path) -> Path:
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1000, 1000)], crs=4326).to_file(folder / "x.gpkg")
    return folder / "x.gpkg"


def empty_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "e.zip", "w") as archive:
        archive.writestr("README", "nothing")
    return folder / "e.zip"


def cut_zip(folder: Path) -> Path:
    whole = water_zip(folder)
    (folder / "cut.zip").write_bytes(whole.read_bytes()[:-300])
    return folder / "cut.zip"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.zip", r"absent\.zip does not exist: expected the path of a file"),
        (points_file, r"points\.gpkg holds 0 layers of polygons: expected one, of water"),
        (no_crs, r"x\.shp does not state its coordinate reference system"),
        (wrong_crs, r"holds coordinates that are not longitude and latitude"),
        (empty_zip, r"e\.zip holds 0 shapefiles: expected one, as in water-polygons-split-4326\.zip"),
        (cut_zip, r"cut\.zip cannot be read \(.*\): expected water-polygons-split-4326\.zip or -3857\.zip"),
    ],
)
def test_what_are_no_water_polygons_is_told_in_one_sentence(tmp_path: Path, make: object, message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        maps(tmp_path / "d", write_coast(tmp_path / "a.osm.opl"), water_polygons=str(path))
    assert "\n" not in str(caught.value)


# --- the download ----------------------------------------------------------------------------------------------------


class Server:
    """Serves a folder's files in pieces; counts requests, and can fail or lack the ability."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str | None] = []
        self.fail_after: int | None = None
        self.knows_ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.requests.append(wanted)
                path = folder / self.path.strip("/")
                if outer.fail_after is not None and len(outer.requests) > outer.fail_after:
                    self.answer(403, b"")
                elif not path.is_file():
                    self.answer(404, b"")
                else:
                    self.send(path.read_bytes(), wanted)

            def send(self, content: bytes, wanted: str | None) -> None:
                stamp = {"Last-Modified": "Wed, 01 May 2024 03:04:06 GMT", "ETag": f'"{hash(content)}"'}
                if wanted is None or not outer.knows_ranges:
                    self.answer(200, content, stamp)
                    return
                start, end = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
                if start >= len(content):
                    self.answer(416, b"")
                    return
                piece = content[start : end + 1]
                place = f"bytes {start}-{start + len(piece) - 1}/{len(content)}"
                self.answer(206, piece, stamp | {"Content-Range": place})

            def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    path = water_zip(tmp_path, name="water.zip")
    path.rename(folder / "water.zip")
    running = Server(folder)
    monkeypatch.setenv("MAGC_WATER_POLYGONS_URL", running.url("water.zip"))
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("magc_data.sources.download.PIECE_BYTES", 300)
    quick = DOWNLOAD_POLICY._replace(requests_per_s=1000.0)
    monkeypatch.setattr("magc_data.sources.download.DOWNLOAD_POLICY", quick)
    yield running
    running.close()


@pytest.fixture
def osm(tmp_path: Path) -> Path:
    return write_coast(tmp_path / "a.osm.opl", streets=False)


def test_auto_downloads_once_in_pieces_and_records_what_came(tmp_path: Path, server: Server, osm: Path) -> None:
    first = maps(tmp_path / "d", osm, water_polygons="auto")
    pieces = len(server.requests)
    size = (tmp_path / "served" / "water.zip").stat().st_size
    assert pieces == -(-size // 300)
    maps(tmp_path / "again", osm, water_polygons="auto")
    assert len(server.requests) == pieces
    assert tree_digests(tmp_path / "d") == tree_digests(tmp_path / "again")
    assert 0 < np.mean(whole_map(first) == WATER) < 1
    record = read_manifest(tmp_path / "d")["sea"]
    kept = json.loads((tmp_path / "cache" / "water-polygons" / "water.zip.json").read_bytes())
    assert record["address"] == kept["url"] == server.url("water.zip")
    assert record["version"] == f"2024-05-01T03:04:06 sha256:{kept['sha256']}"
    assert kept["size"] == size
    assert kept["last_modified"]


def test_a_download_that_is_interrupted_goes_on_where_it_was(tmp_path: Path, server: Server, osm: Path) -> None:
    server.fail_after = 3
    with pytest.raises(SourceError, match=r"has no such file \(.*water\.zip gave HTTP 403\)"):
        maps(tmp_path / "d", osm, water_polygons="auto")
    assert not (tmp_path / "d").exists()
    server.fail_after = None
    maps(tmp_path / "d", osm, water_polygons="auto")
    assert server.requests[4] == "bytes=900-1199"


def test_a_file_that_changes_meanwhile_is_begun_anew(tmp_path: Path, server: Server, osm: Path) -> None:
    server.fail_after = 3
    with pytest.raises(SourceError):
        maps(tmp_path / "d", osm, water_polygons="auto")
    server.fail_after = None
    served = tmp_path / "served" / "water.zip"
    with zipfile.ZipFile(served, "a") as archive:
        archive.writestr("README", "a new day")
    maps(tmp_path / "d", osm, water_polygons="auto")
    assert (tmp_path / "cache" / "water-polygons" / "water.zip").read_bytes() == served.read_bytes()


def test_a_server_that_cannot_give_pieces_gives_the_whole(tmp_path: Path, server: Server, osm: Path) -> None:
    server.knows_ranges = False
    maps(tmp_path / "d", osm, water_polygons="auto")
    assert len(server.requests) == 1


def test_what_is_not_there_and_what_is_no_address_are_said(
    tmp_path: Path, server: Server, osm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGC_WATER_POLYGONS_URL", server.url("absent.zip"))
    with pytest.raises(SourceError, match=r"has no such file \(.*absent\.zip gave HTTP 404\): check the address"):
        maps(tmp_path / "d", osm, water_polygons="auto")
    monkeypatch.setenv("MAGC_WATER_POLYGONS_URL", "osmdata")
    with pytest.raises(UsageError, match=r"MAGC_WATER_POLYGONS_URL is 'osmdata': expected the address of a file"):
        maps(tmp_path / "d", osm, water_polygons="auto")
    monkeypatch.setenv("MAGC_WATER_POLYGONS_URL", "http://127.0.0.1:9/water.zip")
    monkeypatch.setattr("magc_data.sources.http.BACKOFF_S", 0.0)
    with pytest.raises(FetchError, match=r"no proper answer from 127\.0\.0\.1:9"):
        maps(tmp_path / "d", osm, water_polygons="auto")


def test_a_plan_downloads_nothing(tmp_path: Path, server: Server, osm: Path) -> None:
    plan(BuildConfig(bbox=BBOX, imagery="none", osm=str(osm), water_polygons="auto", out=tmp_path / "d"))
    assert server.requests == []


# --- what else a dataset is asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize("with_polygons", [False, True])
def test_maps_with_sea_are_healed_and_made_again_from_their_recipe(
    tmp_path: Path, server: Server, with_polygons: bool
) -> None:
    osm = write_coast(tmp_path / "c.osm.opl", coast_at(CORNER_LON))
    options = {"water_polygons": "auto"} if with_polygons else {}
    maps(tmp_path / "d", osm, **options)
    before = tree_digests(tmp_path / "d")
    shard = next((tmp_path / "d" / "shards").iterdir())
    shard.unlink()
    result = heal(HealConfig(data=tmp_path / "d"))
    assert (result.not_healed, result.verification.findings) == ((), ())
    assert tree_digests(tmp_path / "d") == before
    export(tmp_path / "d", "recipe", tmp_path / "recipe", quiet=True)
    again = ("build", "--lock", tmp_path / "recipe" / "magc.lock", "--osm", osm, "--out", tmp_path / "again", "--quiet")
    assert command(*again, "--workers", 1).code == 0
    assert read_manifest(tmp_path / "again").get("sea") == read_manifest(tmp_path / "d").get("sea")
    first = json.loads((tmp_path / "recipe" / "magc.lock").read_bytes().splitlines()[0])
    assert ("sea" in first) == with_polygons


def test_a_dataset_of_a_version_without_sea_is_healed_as_it_was(tmp_path: Path) -> None:
    osm = write_coast(tmp_path / "c.osm.opl", coast_at(CORNER_LON))
    maps(tmp_path / "d", osm, water_polygons="none")
    path = tmp_path / "d" / "dataset.json"
    manifest = json.loads(path.read_bytes())
    del manifest["sea"], manifest["config"]["water_polygons"]
    path.write_bytes(to_json(manifest))
    write_metadata(tmp_path / "d", manifest)
    assert verify(tmp_path / "d").findings == ()
    before = tree_digests(tmp_path / "d")
    next((tmp_path / "d" / "shards").iterdir()).unlink()
    assert heal(HealConfig(data=tmp_path / "d")).not_healed == ()
    assert tree_digests(tmp_path / "d") == before


def test_a_recipe_with_a_file_of_water_polygons_asks_for_it(tmp_path: Path) -> None:
    osm, water = write_coast(tmp_path / "c.osm.opl", coast_at(CORNER_LON)), water_zip(tmp_path)
    maps(tmp_path / "d", osm, water_polygons=str(water))
    export(tmp_path / "d", "recipe", tmp_path / "recipe", quiet=True)
    config = BuildConfig(lock=tmp_path / "recipe" / "magc.lock", osm=str(osm), out=tmp_path / "again")
    with pytest.raises(
        UsageError, match=r"the lock's water polygons came from the file 'water-polygons-split-4326\.zip'"
    ):
        tiny_world.run(config)


def test_a_dataset_that_is_opened_again_keeps_its_record_of_the_sea(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    write_coast(world.osm, coast_at(CORNER_LON))
    tile = tiny_world.tiles()[0]
    with monkeypatch.context() as patch:
        fail_imagery(patch, tile)
        assert tiny_world.run(world.config(tmp_path / "d"))["counts"]["transient"] == 1
    first = read_manifest(tmp_path / "d")["sea"]
    manifest = tiny_world.run(world.config(tmp_path / "d"))
    assert manifest["counts"]["transient"] == 0
    assert manifest["sea"] == first
    tiny_world.run(world.config(tmp_path / "straight"))
    assert tree_digests(tmp_path / "d") == tree_digests(tmp_path / "straight")


def test_the_option_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["build", "--help"])
    assert "--water-polygons" in capsys.readouterr().out
