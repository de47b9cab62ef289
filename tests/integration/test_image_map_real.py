"""Maps of georeferenced images from real OpenStreetMap extracts: equal to the tiles' maps, and to other people's tools."""

from __future__ import annotations

import hashlib
import math
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
from fake_overpass import Database, FakeOverpass, elements_of_file
from hypothesis import given, settings
from hypothesis import strategies as st

from magc_data import image_map
from magc_data.errors import SourceError, UsageError
from magc_data.features import shapes_in_draw_order
from magc_data.grid import Block, BoundsLonLat, Tile, block_bounds_lonlat, gsd_m, lonlat_to_px, tile_bounds_3857
from magc_data.image_grid import ImageGrid
from magc_data.image_map import ImageMap
from magc_data.rasterize import PixelWindow, burn_tiles, burn_window, ring_table
from magc_data.schema.classes import load_scheme, parse_scheme
from magc_data.sources import overpass
from magc_data.sources.http import HttpClient
from magc_data.sources.osm_file import open_osm_file
from magc_data.sources.overpass import Overpass
from magc_data.sources.protocols import SourceContext

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from magc_data.sources.osm_file import OsmFile

DEFAULT = load_scheme("default")
BUILDINGS = parse_scheme(
    """
name: buildings
classes: [{id: 0, name: nothing, color: [0, 0, 0]}, {id: 1, name: building, color: [255, 0, 0]}]
rules: [{class: building, draw_order: 10, areas: {building: "*"}}]
""",
    "buildings",
)
LIECHTENSTEIN, BALTIMORE, NYC = (
    "valhalla_liechtenstein-latest.osm.pbf",
    "valhalla_baltimore.osm.pbf",
    "valhalla_nyc.osm.pbf",
)
HELSINKI = "Helsinki"
VADUZ, HARBOUR, CHELSEA, KAMPPI = (9.5215, 47.1400), (-76.58, 39.28), (-74.0067, 40.7364), (24.9443, 60.1716)
"""Dense places, well inside the extracts."""


class Place(NamedTuple):
    path: Path
    source: OsmFile


def open_extract(path: Path, cache: Path) -> OsmFile:
    keys = DEFAULT.tag_keys | BUILDINGS.tag_keys
    source = open_osm_file(str(path), SourceContext(cache, HttpClient(), 17, keys))
    source.fetch(BoundsLonLat(-180, -90, 180, 90), HttpClient())
    return source


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vector-cache")


@pytest.fixture(scope="module")
def extract(cache: Path, request: pytest.FixtureRequest) -> Callable[[str], Place]:
    def get(name: str) -> Place:
        path = (
            request.getfixturevalue("helsinki_pbf")
            if name == HELSINKI
            else request.getfixturevalue("shared_data") / "osm" / name
        )
        return Place(path, open_extract(path, cache))

    return get


def read_whole(grid: ImageGrid, source: OsmFile, scheme=DEFAULT) -> np.ndarray:
    return ImageMap(grid, source, scheme).read(PixelWindow(0, 0, grid.width_px, grid.height_px))


def grid_around(
    lonlat: tuple[float, float], crs: str, pixel: tuple[float, float], size: tuple[int, int], *, degrees: float = 0.0
) -> ImageGrid:
    """Pixels of a size in the CRS's units (y downwards if positive), the middle at a place, turned by some degrees."""
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(*lonlat)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b, d, e = pixel[0] * cos, pixel[1] * sin, pixel[0] * sin, -pixel[1] * cos
    width, height = size
    return ImageGrid(
        crs, (a, b, x - (a * width + b * height) / 2, d, e, y - (d * width + e * height) / 2), width, height
    )


def tiles_around(lonlat: tuple[float, float], zoom: int, columns: int, rows: int) -> list[Tile]:
    x_px, y_px = (float(each[0]) for each in lonlat_to_px(np.array([lonlat[0]]), np.array([lonlat[1]]), zoom))
    left, top = int(x_px // 256) - columns // 2, int(y_px // 256) - rows // 2
    return [Tile(zoom, left + column, top + row) for row in range(rows) for column in range(columns)]


def grid_of_tiles(tiles: list[Tile], offset_px: tuple[float, float] = (0.0, 0.0)) -> ImageGrid:
    """An image in EPSG:3857 of these tiles, moved to the right and down."""
    pixel_m = gsd_m(0.0, tiles[0].z)
    first, last = tile_bounds_3857(tiles[0]), tile_bounds_3857(tiles[-1])
    width, height = round((last.right_m - first.left_m) / pixel_m), round((first.top_m - last.bottom_m) / pixel_m)
    left, top = first.left_m + offset_px[0] * pixel_m, first.top_m - offset_px[1] * pixel_m
    return ImageGrid("EPSG:3857", (pixel_m, 0.0, left, 0.0, -pixel_m, top), width, height)


def shapes_of_tiles(source: OsmFile, tiles: list[Tile]):
    bounds = block_bounds_lonlat(Block(tiles[0].z, 0, 0, tuple(tiles)), DEFAULT.margin_m)
    return shapes_in_draw_order(source.read(bounds), DEFAULT, tiles[0].z)


def map_of_tiles(source: OsmFile, tiles: list[Tile]) -> np.ndarray:
    """As the build makes them, side by side."""
    shapes = shapes_of_tiles(source, tiles)
    rings = ring_table(shapes.polygons)
    left, top = tiles[0].x, tiles[0].y
    whole = np.zeros(((tiles[-1].y - top + 1) * 256, (tiles[-1].x - left + 1) * 256), np.uint8)
    for tile, classes in burn_tiles(rings, shapes.class_ids, tiles):
        row, column = (tile.y - top) * 256, (tile.x - left) * 256
        whole[row : row + 256, column : column + 256] = classes
    return whole


WEB_MERCATOR_CASES = [
    (LIECHTENSTEIN, VADUZ, 17, 16, 10),
    (LIECHTENSTEIN, VADUZ, 15, 6, 16),
    (BALTIMORE, HARBOUR, 18, 16, 16),
    (NYC, CHELSEA, 19, 10, 10),
    (HELSINKI, KAMPPI, 17, 4, 8),
]


@pytest.mark.parametrize(("name", "lonlat", "zoom", "columns", "rows"), WEB_MERCATOR_CASES)
def test_on_the_web_mercator_grid_the_map_is_the_tiles_map(extract, name, lonlat, zoom, columns, rows) -> None:
    source = extract(name).source
    tiles = tiles_around(lonlat, zoom, columns, rows)
    expected = map_of_tiles(source, tiles)
    assert len(np.unique(expected)) > 5
    grid = grid_of_tiles(tiles)
    esri = rasterio.crs.CRS.from_epsg(3857).to_wkt(version="WKT1_ESRI")
    # As a file tells it: with rounded numbers, and in words of its own.
    rounded = grid._replace(crs=esri, transform=tuple(float(f"{each:.11g}") for each in grid.transform))
    for each in (grid, rounded):
        found = read_whole(each, source)
        assert ImageMap(each, source, DEFAULT).share_outside == 0
        np.testing.assert_array_equal(found, expected)


def test_off_the_web_mercator_grid_the_map_is_that_of_moved_shapes(extract) -> None:
    """Neither the way over lon/lat nor that over metres moves a pixel."""
    source = extract(LIECHTENSTEIN).source
    tiles = tiles_around(VADUZ, 17, 16, 10)
    shapes = shapes_of_tiles(source, tiles)
    offset = np.array([0.3, 0.6])
    moved = shapely.transform(
        shapes.polygons, lambda coords: coords - offset - np.array([tiles[0].x * 256, tiles[0].y * 256])
    )
    expected = burn_window(ring_table(moved), shapes.class_ids, PixelWindow(0, 0, 16 * 256, 10 * 256))
    np.testing.assert_array_equal(read_whole(grid_of_tiles(tiles, tuple(offset)), source), expected)


def buildings_by_others(place: Place, grid: ImageGrid) -> np.ndarray:
    """Another way: geopandas projects the buildings, rasterio burns them."""
    if place.path.name == LIECHTENSTEIN:
        areas = geopandas.read_file(place.path, layer="multipolygons")
        buildings = areas[areas.building.notna() & (areas.building != "no")]
    else:
        # GDAL reads these extracts too, but leaves out relations that the extract's edge has cut.
        table = place.source.read(BoundsLonLat(-180, -90, 180, 90))
        is_building = np.array([tags.get("building", "no") != "no" for tags in table.tag_sets])[table.tag_index]
        is_area = shapely.get_dimensions(table.geometry) == 2
        buildings = geopandas.GeoDataFrame(geometry=table.geometry[is_building & is_area], crs="EPSG:4326")
    return rasterio.features.rasterize(
        buildings.to_crs(grid.crs).geometry,
        (grid.height_px, grid.width_px),
        transform=rasterio.Affine(*grid.transform),
        dtype="uint8",
    )


PROJECTED_CASES = {
    "UTM": (LIECHTENSTEIN, VADUZ, "EPSG:32632", (0.5, 0.5), 0),
    "Swiss national grid": (LIECHTENSTEIN, VADUZ, "EPSG:2056", (0.5, 0.5), 0),
    "old Swiss national grid, another datum": (LIECHTENSTEIN, VADUZ, "EPSG:21781", (0.5, 0.5), 0),
    "Finnish national grid": (HELSINKI, KAMPPI, "EPSG:3879", (0.25, 0.25), 0),
    "Maryland, in feet": (BALTIMORE, HARBOUR, "EPSG:2248", (2.0, 2.0), 0),
    "world mercator of the ellipsoid": (NYC, CHELSEA, "EPSG:3395", (0.4, 0.4), 0),
    "degrees, pixels twice as high as wide": (HELSINKI, KAMPPI, "EPSG:4326", (4e-6, 4e-6), 0),
    "degrees, pixels of their own shape": (LIECHTENSTEIN, VADUZ, "EPSG:4326", (1e-5, 4e-6), 0),
    "UTM, turned": (LIECHTENSTEIN, VADUZ, "EPSG:32632", (0.5, 0.5), 33),
    "UTM, turned, pixels no squares": (BALTIMORE, HARBOUR, "EPSG:32618", (0.7, 0.4), -120),
    "UTM, south up": (LIECHTENSTEIN, VADUZ, "EPSG:32632", (0.5, -0.5), 0),
    "web-mercator, turned": (NYC, CHELSEA, "EPSG:3857", (0.5, 0.5), 12),
}


@pytest.mark.parametrize("case", PROJECTED_CASES)
def test_buildings_lie_where_gdal_and_geopandas_put_them(extract, case: str) -> None:
    name, lonlat, crs, pixel, degrees = PROJECTED_CASES[case]
    place = extract(name)
    grid = grid_around(lonlat, crs, pixel, (1500, 1100), degrees=degrees)
    expected = buildings_by_others(place, grid)
    semantic_map = ImageMap(grid, place.source, BUILDINGS)
    assert semantic_map.share_outside == 0
    found = semantic_map.read(PixelWindow(0, 0, grid.width_px, grid.height_px))
    different, buildings = int((found != expected).sum()), int(expected.sum())
    assert buildings > 30_000
    # None when this was written; another PROJ or GDAL may round another way.
    assert different <= 1e-5 * buildings


TURNED = grid_around(VADUZ, "EPSG:32632", (0.8, 0.8), (700, 500), degrees=20)


@pytest.fixture(scope="module")
def turned_map(extract) -> tuple[OsmFile, np.ndarray]:
    """An extract, and TURNED's map in one cell."""
    source = extract(LIECHTENSTEIN).source
    whole = read_whole(TURNED, source)
    assert len(np.unique(whole)) > 5
    return source, whole


@st.composite
def windows(draw: st.DrawFn) -> PixelWindow:
    x, y = draw(st.integers(0, TURNED.width_px - 1)), draw(st.integers(0, TURNED.height_px - 1))
    width = draw(st.integers(1, TURNED.width_px - x))
    return PixelWindow(x, y, width, draw(st.integers(1, TURNED.height_px - y)))


@pytest.mark.parametrize("held_vertices", [0, 4_000_000])
@settings(max_examples=25, deadline=None)
@given(st.lists(windows(), min_size=1, max_size=3))
def test_a_window_is_a_cut_of_the_whole_whatever_was_read_before(turned_map, held_vertices, some) -> None:
    source, whole = turned_map
    with pytest.MonkeyPatch.context() as patch:
        # Twenty-four cells, where `whole` came from one.
        patch.setattr(image_map, "MAX_CELL_PX", 128)
        patch.setattr(image_map, "MAX_HELD_VERTICES", held_vertices)
        semantic_map = ImageMap(TURNED, source, DEFAULT)
        assert semantic_map.cell_count == 24
        for x, y, width, height in some:
            found = semantic_map.read(PixelWindow(x, y, width, height))
            np.testing.assert_array_equal(found, whole[y : y + height, x : x + width])


READ_ELSEWHERE = """
import hashlib, pickle, sys
import numpy as np
from magc_data.rasterize import PixelWindow
semantic_map, width, height = pickle.load(sys.stdin.buffer)
rows = [semantic_map.read(PixelWindow(0, y, width, 50)) for y in reversed(range(0, height, 50))]
print(hashlib.sha256(np.concatenate(rows[::-1]).tobytes()).hexdigest())
"""


def test_another_process_reads_the_same_bytes(turned_map) -> None:
    source, whole = turned_map
    job = pickle.dumps((ImageMap(TURNED, source, DEFAULT), TURNED.width_px, TURNED.height_px))
    found = {
        subprocess.run([sys.executable, "-c", READ_ELSEWHERE], input=job, capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert {each.decode().strip() for each in found} == {hashlib.sha256(whole.tobytes()).hexdigest()}


def test_maps_come_from_overpass_cell_by_cell(extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overpass, "QUERY_POLICY", overpass.QUERY_POLICY._replace(requests_per_s=1e6))
    monkeypatch.setattr(image_map, "MAX_CELL_PX", 256)
    place = extract(NYC)
    grid = grid_around(CHELSEA, "EPSG:32618", (0.8, 0.8), (400, 300))
    with FakeOverpass(Database(elements_of_file(place.path))) as server, HttpClient() as http:
        context = SourceContext(tmp_path, http, 17, DEFAULT.tag_keys)
        semantic_map = ImageMap(grid, Overpass(server.api, context), DEFAULT)
        with pytest.raises(SourceError, match="run the same command again"):
            semantic_map.read(PixelWindow(0, 0, 1, 1))
        settled: list[None] = []
        semantic_map.fetch(http, lambda: settled.append(None))
        assert len(settled) == semantic_map.cell_count == len(server.queries) == 4
        semantic_map.fetch(http, lambda: None)
        assert len(server.queries) == 4
    assert semantic_map.share_outside == 0
    found = semantic_map.read(PixelWindow(0, 0, 400, 300))
    assert len(np.unique(found)) > 3
    np.testing.assert_array_equal(found, read_whole(grid, place.source))


def test_an_image_over_the_edge_of_the_extract_has_class_0_outside(extract) -> None:
    place = extract(NYC)
    west, south, east, north = place.source.extent().bounds
    # The extract's corner in the middle: a quarter of the image is inside.
    grid = grid_around((west, south), "EPSG:32618", (0.8, 0.8), (400, 300))
    semantic_map = ImageMap(grid, place.source, DEFAULT)
    assert semantic_map.share_outside == pytest.approx(0.75, abs=0.02)
    found = semantic_map.read(PixelWindow(0, 0, 400, 300))
    columns, rows = np.meshgrid(np.arange(400) + 0.5, np.arange(300) + 0.5)
    a, b, c, d, e, f = grid.transform
    lon, lat = pyproj.Transformer.from_crs(grid.crs, "OGC:CRS84", always_xy=True).transform(
        a * columns + b * rows + c, d * columns + e * rows + f
    )
    inside = (lon > west) & (lon < east) & (lat > south) & (lat < north)
    assert not found[~inside].any()
    assert (found[inside] != 0).mean() > 0.2
    assert semantic_map.share_outside == pytest.approx(1 - inside.mean(), abs=1e-3)
    with pytest.raises(UsageError, match=r"outside what valhalla_nyc.osm.pbf covers \(-74.01369,40.73302,"):
        ImageMap(grid_around((west - 0.1, south), "EPSG:32618", (0.8, 0.8), (400, 300)), place.source, DEFAULT)
