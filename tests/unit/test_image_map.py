"""Maps of images in projections that do not keep angles, lengths or straight lines; what is refused, and how."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyproj
import pytest
import shapely

from magc_data import image_map
from magc_data.errors import UsageError
from magc_data.features import shapes_in_draw_order
from magc_data.grid import BoundsLonLat, px_to_lonlat
from magc_data.image_grid import ImageGrid
from magc_data.image_map import ImageMap
from magc_data.rasterize import PixelWindow, burn, burn_window, moved_rings, ring_table
from magc_data.schema.classes import load_scheme
from magc_data.sources.protocols import FeatureTable, SourceInfo

DEFAULT = load_scheme("default")
ID = {each.name: each.id for each in DEFAULT.classes}
INFO = SourceInfo("made up", "", "", "", "", redistributable=True)


class MadeUp:
    """A vector source of a few features, which counts what it is asked for."""

    info = INFO

    def __init__(self, *features: tuple[shapely.Geometry, dict[str, str]], extent: shapely.Geometry | None = None):
        self._features = features
        self._extent = extent
        self.boxes: list[BoundsLonLat] = []

    def extent(self) -> shapely.Geometry | None:
        return self._extent

    def fetch(self, bounds: BoundsLonLat, http: object) -> None:
        self.boxes.append(bounds)

    def read(self, bounds: BoundsLonLat) -> FeatureTable:
        self.boxes.append(bounds)
        rows = [n for n, (geometry, _) in enumerate(self._features) if geometry.intersects(shapely.box(*bounds))]
        geometry = np.empty(len(rows), dtype=object)
        geometry[:] = [self._features[row][0] for row in rows]
        return FeatureTable(
            geometry=geometry,
            tag_index=np.arange(len(rows), dtype=np.int32),
            tag_sets=tuple(self._features[row][1] for row in rows),
            osm_type=np.full(len(rows), "w", dtype="U1"),
            osm_id=np.array(rows, dtype=np.int64),
            timestamp=None,
        )


def whole(grid: ImageGrid) -> PixelWindow:
    return PixelWindow(0, 0, grid.width_px, grid.height_px)


class Frame(NamedTuple):
    """An image around a place, and metres on the ground per step in it."""

    grid: ImageGrid
    column_m: float
    row_m: float


def frame(crs: str, lon: float, lat: float, column_units: float, row_units: float, size_px: int) -> Frame:
    to_lonlat = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    x, y = to_lonlat.transform(lon, lat, direction="INVERSE")
    half = size_px / 2
    transform = (column_units, 0.0, x - half * column_units, 0.0, -row_units, y + half * row_units)
    lons, lats = to_lonlat.transform([x, x + column_units, x], [y, y, y - row_units])
    _, _, (column_m, row_m) = pyproj.Geod(ellps="WGS84").inv([lons[0]] * 2, [lats[0]] * 2, lons[1:], lats[1:])
    return Frame(ImageGrid(crs, transform, size_px, size_px), column_m, row_m)


@pytest.mark.parametrize(
    ("crs", "units"),
    [
        ("EPSG:4326", (2e-6, 2e-6)),  # at 60 N pixels are twice as high as wide
        ("EPSG:4326", (5e-6, 2e-6)),
        ("EPSG:4087", (0.3, 0.3)),  # the same in metres of the equator
        ("EPSG:6933", (0.3, 0.3)),  # equal area: wide and low
        ("EPSG:3067", (0.3, 0.3)),  # UTM, which keeps angles
    ],
)
@pytest.mark.parametrize("direction", ["east", "north"])
def test_a_road_is_20_m_wide_in_any_projection(crs: str, units: tuple[float, float], direction: str) -> None:
    lon, lat = 25.0, 60.0
    ends = [(lon - 0.01, lat), (lon + 0.01, lat)] if direction == "east" else [(lon, lat - 0.01), (lon, lat + 0.01)]
    source = MadeUp((shapely.LineString(ends), {"highway": "residential", "width": "20"}))
    grid, column_m, row_m = frame(crs, lon, lat, *units, 600)
    classes = ImageMap(grid, source, DEFAULT).read(whole(grid))
    road = classes == ID["road_minor"]
    across_m = road[:, 300].sum() * row_m if direction == "east" else road[300].sum() * column_m
    # Half a pixel on either side, and 0.3 %: widths are those of a sphere.
    assert across_m == pytest.approx(20.0, abs=0.06 + (row_m if direction == "east" else column_m))


def test_a_road_turned_by_45_degrees_is_as_wide() -> None:
    """In degrees at 60 N, the hard case for a buffer that is made in the image's CRS."""
    lon, lat, step = 25.0, 60.0, 0.005
    ends = [(lon - 2 * step, lat - step), (lon + 2 * step, lat + step)]
    source = MadeUp((shapely.LineString(ends), {"highway": "residential", "width": "20"}))
    grid, column_m, row_m = frame("EPSG:4326", lon, lat, 2e-6, 2e-6, 1000)
    road = ImageMap(grid, source, DEFAULT).read(whole(grid)) == ID["road_minor"]
    area_m2 = road.sum() * column_m * row_m
    # It crosses the image from edge to edge: over all columns, rows in between.
    length_m = math.hypot(1000 * column_m, 500 * row_m)
    assert area_m2 / length_m == pytest.approx(20.0, rel=0.01)


def test_long_edges_stay_where_they_are_straight_in_web_mercator() -> None:
    """A 40 km edge at 60 N lies up to 54 m beside the straight line of UTM that joins its ends."""
    crs, west, east, lat = "EPSG:32635", 26.64, 27.36, 60.0
    edge = [(west, lat), (east, lat)]
    forest = shapely.Polygon([*edge, (east, lat - 0.1), (west, lat - 0.1)])
    grid = frame(crs, 27.0, lat, 1.0, 1.0, 200).grid
    classes = ImageMap(grid, MadeUp((forest, {"landuse": "forest"})), DEFAULT).read(whole(grid))
    to_crs = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    _, (y_west, y_middle, y_east) = to_crs.transform([west, 27.0, east], [lat] * 3)
    expected_row = (y_middle - grid.transform[5]) / grid.transform[4]
    first_rows = (classes == ID["forest"]).argmax(axis=0)
    assert np.abs(first_rows - expected_row).max() <= 1
    assert abs((y_west + y_east) / 2 - y_middle) > 50  # where the straight line lies


def test_short_edges_get_no_vertices() -> None:
    house = shapely.box(25.0, 60.0, 25.0004, 60.0002)
    grid = frame("EPSG:3067", 25.0002, 60.0001, 0.5, 0.5, 100).grid
    semantic_map = ImageMap(grid, MadeUp((house, {"building": "yes"})), DEFAULT)
    semantic_map.read(whole(grid))
    (content,) = semantic_map._held.values()
    assert len(content.rings.coords) == 5


def test_features_that_reach_where_the_crs_has_no_place() -> None:
    """A geostationary satellite sees a forest that goes around the world, over a town that it sees whole."""
    crs = "+proj=geos +h=35785831 +lon_0=0 +datum=WGS84 +units=m"
    # With vertices on its way: an edge of more than half the earth runs over the antimeridian.
    forest = shapely.segmentize(
        shapely.Polygon(
            [(-170, -10), (170, -10), (170, 60), (-170, 60)], [shapely.box(20, 20, 21, 21).exterior.coords]
        ),
        100,
    )
    # Crosses itself far away: made valid before it is cut.
    lake = shapely.Polygon([(20, 19), (20.5, 19), (20.5, 19.9), (20, 19.9), (20, 19), (170, 60), (170, 61)])
    town = shapely.box(20.1, 20.1, 20.2, 20.2)
    source = MadeUp((forest, {"landuse": "forest"}), (town, {"building": "yes"}), (lake, {"natural": "water"}))
    grid = frame(crs, 20.5, 20.0, 1000.0, 1000.0, 300).grid
    classes = ImageMap(grid, source, DEFAULT).read(whole(grid))
    columns, rows = np.meshgrid(np.arange(300) + 0.5, np.arange(300) + 0.5)
    a, _, c, _, e, f = grid.transform
    to_lonlat = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    lon, lat = to_lonlat.transform(a * columns + c, e * rows + f)
    hole = (lon > 20) & (lon < 21) & (lat > 20) & (lat < 21)
    house = (lon > 20.1) & (lon < 20.2) & (lat > 20.1) & (lat < 20.2)
    water = (lon > 20) & (lon < 20.5) & (lat > 19) & (lat < 19.9)
    assert (classes[house] == ID["building"]).all()
    assert (classes[hole & ~house] == 0).all()
    assert (classes[water] == ID["water"]).mean() > 0.99
    beside = ~hole & ~water & (lon < 20) & (lat > 10)
    assert (classes[beside] == ID["forest"]).mean() > 0.999


def test_cells_are_read_once_in_row_major_reading_and_hold_little() -> None:
    house = shapely.box(9.0, 47.0, 9.0002, 47.0001)
    source = MadeUp((house, {"building": "yes"}))
    grid = frame("EPSG:32632", 9.0, 47.0, 0.25, 0.25, 20_000).grid
    semantic_map = ImageMap(grid, source, DEFAULT)
    assert semantic_map.cell_count == 9
    for y in range(0, 20_000, 2_500):
        semantic_map.read(PixelWindow(0, y, 20_000, 1))
    assert len(source.boxes) == 9
    # 2 km of ground, and around it what the widest line needs.
    _, south, _, north = source.boxes[0]
    margin_m = DEFAULT.margin_m + image_map.MARGIN_EXTRA_M
    assert (north - south) * 111_200 == pytest.approx(8192 * 0.25 + 2 * margin_m, rel=0.02)


def test_coarse_images_have_small_cells_and_pixels_do_not_depend_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    features = []
    for x, y in rng.uniform([8.9, 46.9], [9.1, 47.1], (300, 2)):
        features.append((shapely.box(x, y, x + 0.003, y + 0.002), {"landuse": "forest"}))
        features.append((shapely.LineString([(x, y), (x + 0.02, y - 0.01)]), {"highway": "motorway", "layer": "1"}))
    source = MadeUp(*features)
    grid = frame("EPSG:32632", 9.0, 47.0, 10.0, 10.0, 1200).grid
    coarse = ImageMap(grid, source, DEFAULT)
    assert coarse.cell_count == 9  # of 512 pixels, 5 km
    first = coarse.read(whole(grid))
    monkeypatch.setattr(image_map, "MIN_CELL_PX", 1)
    monkeypatch.setattr(image_map, "MAX_CELL_PX", 64)
    fine = ImageMap(grid, source, DEFAULT)
    assert fine.cell_count == 361
    np.testing.assert_array_equal(fine.read(whole(grid)), first)


def test_cells_outside_the_extent_are_neither_fetched_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_map, "MAX_CELL_PX", 64)
    forest = shapely.box(8.0, 46.0, 10.0, 48.0)
    grid = frame("EPSG:32632", 9.0, 47.0, 1.0, 1.0, 256).grid
    # The western half, less a little: the third of four columns of cells is only touched.
    source = MadeUp((forest, {"landuse": "forest"}), extent=shapely.box(8.0, 46.0, 9.0001, 48.0))
    semantic_map = ImageMap(grid, source, DEFAULT)
    assert semantic_map.cell_count == 12
    semantic_map.fetch(None, lambda: None)
    assert len(source.boxes) == 12
    classes = semantic_map.read(whole(grid))
    inside_px = (classes == ID["forest"]).sum(axis=1)
    assert np.ptp(inside_px) <= 1  # UTM's meridian of 9 E runs north
    assert inside_px[0] == pytest.approx(128 + 7.6, abs=1)
    assert not classes[:, 140:].any()
    assert 1 - semantic_map.share_outside == pytest.approx(inside_px.mean() / 256, abs=0.003)


def test_an_extent_that_is_the_image_is_all_of_it() -> None:
    grid = ImageGrid("EPSG:4326", (1e-5, 0.0, 9.0, 0.0, -1e-5, 47.0), 100, 100)
    extent = shapely.box(9.0, 46.999, 9.001, 47.0)
    assert ImageMap(grid, MadeUp(extent=extent), DEFAULT).share_outside == 0
    assert ImageMap(grid, MadeUp(extent=shapely.box(-180, -90, 180, 90)), DEFAULT).share_outside == 0
    with pytest.raises(
        UsageError, match=r"the image lies at 9.00000,46.99900,9.00100,47.00000 \(W,S,E,N\), outside what"
    ):
        ImageMap(grid, MadeUp(extent=shapely.box(9.002, 46.999, 9.1, 47.0)), DEFAULT)


@pytest.mark.parametrize("window", [(-1, 0, 10, 10), (0, 0, 101, 1), (95, 0, 10, 1), (0, 100, 1, 1), (0, 0, 0, 5)])
def test_windows_must_lie_inside(window: tuple[int, int, int, int]) -> None:
    grid = ImageGrid("EPSG:4326", (1e-5, 0.0, 9.0, 0.0, -1e-5, 47.0), 100, 100)
    with pytest.raises(UsageError, match="is not inside the image: expected one within 100 x 100"):
        ImageMap(grid, MadeUp(), DEFAULT).read(PixelWindow(*window))


def test_nothing_mapped_gives_class_0() -> None:
    grid = ImageGrid("EPSG:4326", (1e-5, 0.0, 9.0, 0.0, -1e-5, 47.0), 100, 100)
    classes = ImageMap(grid, MadeUp(), DEFAULT).read(PixelWindow(3, 4, 20, 10))
    assert classes.shape == (10, 20)
    assert classes.dtype == np.uint8
    assert not classes.any()


def test_moving_rings_is_transforming_polygons() -> None:
    ring = shapely.Polygon(shapely.box(0, 0, 30, 20).exterior.coords, [shapely.box(5, 5, 10, 10).exterior.coords])
    shapes = [
        None,
        ring,
        shapely.Polygon(),
        shapely.MultiPolygon([shapely.box(40, 1, 45, 9), shapely.box(3, 22, 9, 28)]),
    ]

    def turn(coords: np.ndarray) -> np.ndarray:
        return np.column_stack([50 - coords[:, 0] * 0.7, coords[:, 1] * 1.3 + coords[:, 0] * 0.2])

    expected = ring_table(shapely.transform(np.array(shapes, dtype=object), turn))
    for found, wanted in zip(moved_rings(ring_table(shapes), turn), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    cut = moved_rings(ring_table(shapes), turn, 4.0)
    np.testing.assert_array_equal(cut.ring_bounds, expected.ring_bounds)
    assert np.diff(cut.ring_offsets).tolist() == [2 * (8 + 5) + 1, 4 * 2 + 1, 0, 2 * (2 + 2) + 1, 2 * (2 + 2) + 1]
    for empty in ([], [None], [shapely.Polygon()]):
        table = moved_rings(ring_table(empty), turn, 4.0)
        assert len(table.coords) == 0


def test_cut_edges_burn_the_same_pixels() -> None:
    rng = np.random.default_rng(3)
    stars = [shapely.Polygon(rng.uniform(0, 200, (7, 2))) for _ in range(20)]
    rings = ring_table(stars)
    values = np.arange(20, dtype=np.uint8) + 1
    cut = moved_rings(rings, lambda coords: coords, 1.7)
    assert len(cut.coords) > 20 * len(rings.coords)
    found = burn_window(cut, values, PixelWindow(0, 0, 200, 200))
    np.testing.assert_array_equal(found, burn(stars, values, 200, 200))


def test_the_zoom_on_whose_grid_shapes_are_made_means_nothing() -> None:
    features = [(shapely.LineString([(25.0, 60.0), (25.002, 60.001), (25.003, 60.0)]), {"highway": "primary"})]
    table = MadeUp(*features).read(BoundsLonLat(24, 59, 26, 61))
    outlines = []
    for zoom in (14, 17, 21):
        coords = shapely.get_coordinates(shapes_in_draw_order(table, DEFAULT, zoom).polygons)
        outlines.append(np.column_stack(px_to_lonlat(coords[:, 0], coords[:, 1], zoom)))
    np.testing.assert_allclose(outlines[0], outlines[1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(outlines[2], outlines[1], rtol=0, atol=1e-12)
