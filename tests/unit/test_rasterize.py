"""The rasteriser against GDAL (through rasterio), pixel for pixel, and against itself under any tiling."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magc_data.grid import Tile
from magc_data.rasterize import GeometryError, PixelWindow, burn, burn_soft, burn_tiles, burn_window, ring_table

HEIGHT, WIDTH = 24, 31


def gdal(polygons, values, height=HEIGHT, width=WIDTH):
    pairs = [(polygon, int(value)) for polygon, value in zip(polygons, values, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.ShapeSkipWarning)
        return rasterio.features.rasterize(pairs, out_shape=(height, width), fill=0, dtype="uint8")


def assert_same(polygons, height=HEIGHT, width=WIDTH):
    values = np.arange(1, len(polygons) + 1)
    np.testing.assert_array_equal(
        burn(polygons, values, height, width),
        gdal(polygons, values, height, width),
        err_msg=str(list(map(str, polygons))),
    )


def beside(value):
    """The value and its neighbours among the float64 numbers."""
    return st.sampled_from([value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf), value + 1e-6])


GRID = st.integers(-12, 80).map(lambda k: k / 2)  # pixel edges and pixel centres
NEAR_GRID = GRID.flatmap(beside)
ANYWHERE = st.floats(-20, 50)
FAR = st.sampled_from([-2e9, -1e6, -300.25, 300.5, 1e6, 2e9])
COORDINATE = st.one_of(GRID, GRID, NEAR_GRID, ANYWHERE, ANYWHERE, FAR)


def rings(coordinate=COORDINATE, max_size=9):
    return st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=max_size)


def any_polygons(coordinate=COORDINATE):
    """Rings of any shape: crossing themselves, without area, with repeated points, holes outside."""
    return st.builds(shapely.Polygon, rings(coordinate), st.lists(rings(coordinate, 5), max_size=2))


def any_shapes(coordinate=COORDINATE):
    polygons = any_polygons(coordinate)
    return st.one_of(polygons, polygons, st.lists(polygons, min_size=1, max_size=3).map(shapely.MultiPolygon))


@st.composite
def proper_polygons(draw):
    """Star-shaped polygons with a hole, of either direction, as real ones are."""
    x, y = draw(st.floats(-5, 40)), draw(st.floats(-5, 30))
    radii = draw(st.lists(st.floats(0.3, 18), min_size=3, max_size=24))
    turns = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    unit = np.column_stack([np.cos(turns), np.sin(turns)])
    shell = unit * np.array(radii)[:, None] + [x, y]
    hole = unit * min(radii) / 2 + [x, y]
    step = draw(st.sampled_from([1, -1]))
    return shapely.Polygon(shell[::step], [hole[:: draw(st.sampled_from([1, -1]))]] if draw(st.booleans()) else [])


@settings(max_examples=250, deadline=None)
@given(st.lists(any_shapes(), min_size=1, max_size=4))
@example([shapely.box(1.5, 1.5, 5.5, 5.5)])
@example([shapely.Polygon([(1.5, 1.5), (1.5, 5.5), (5.5, 5.5), (5.5, 1.5)])])
@example([shapely.Polygon([(0, 0), (10, 10), (0, 10), (10, 0)])])
@example([shapely.MultiPolygon([shapely.box(0, 0, 6, 6), shapely.box(3, 3, 9, 9)])])
def test_burns_what_gdal_burns_whatever_the_rings(shapes):
    assert_same(shapes)


@settings(max_examples=100, deadline=None)
@given(st.lists(any_shapes(GRID), min_size=1, max_size=4))
def test_burns_what_gdal_burns_on_pixel_edges_and_centres(shapes):
    assert_same(shapes)


@settings(max_examples=150, deadline=None)
@given(st.lists(proper_polygons(), min_size=1, max_size=6))
def test_burns_what_gdal_burns_for_proper_polygons(shapes):
    assert_same(shapes)


@pytest.mark.parametrize("near", [(5 + 8e-6, 0.2 + 2e-6), (5 - 8e-6, 0.2 + 2e-6), (5.0, 0.2), (5 + 2e-5, 0.2 + 5e-6)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_orientation_of_rings_that_double_back_at_their_lowest_vertex(near, mirrored):
    """The turn there says one thing, the area another: which one OGR believes decides on the edge at y = 2.5."""
    ring = np.array([(5.0, 0.2), (9.0, 2.5), (1.0, 2.5), near])
    ring = ring * [-1, 1] + [10, 0] if mirrored else ring
    for first in range(4):
        assert_same([shapely.Polygon(np.roll(ring, first, axis=0))])
        assert_same([shapely.Polygon(np.roll(ring, first, axis=0)[::-1])])


def test_rows_with_very_many_crossings():
    """More than there is first room for, and more than insertion sort is used for."""
    generator = np.random.default_rng(5)
    zigzag = np.column_stack([generator.uniform(0, 90, 3000), generator.uniform(-3, 28, 3000)])
    comb = [(x, y) for k in range(60) for x, y in ((k, 1), (k + 0.5, 20))]
    assert_same([shapely.Polygon(zigzag), shapely.Polygon([*comb, (60, 25), (0, 25)])], 26, 88)


def test_a_window_inside_a_huge_polygon_is_filled_and_one_in_its_hole_is_not():
    ring = shapely.box(-1e9, -1e9, 1e9, 1e9).difference(shapely.box(10, 10, 20, 20))
    assert_same([ring])
    beyond_gdal = shapely.box(-1e12, -1e12, 1e12, 1e12)  # where GDAL's 32-bit columns overflow, sense goes on
    assert burn([beyond_gdal], [7], 3, 4).tolist() == [[7] * 4] * 3


def test_later_shapes_win_and_zero_erases():
    big, small = shapely.box(0, 0, 9, 9), shapely.box(2, 2, 4, 4)
    assert burn([big, small], [200, 0], 9, 9)[3, 3] == 0
    assert burn([small, big], [0, 200], 9, 9)[3, 3] == 200
    assert_same([big, small])


def test_none_and_empty_shapes_are_skipped():
    shapes = [None, shapely.Polygon(), shapely.box(0, 0, 2, 2), shapely.MultiPolygon(), None, shapely.box(1, 1, 3, 3)]
    part_empty = shapely.from_wkt("MULTIPOLYGON (((0 0, 0 1, 1 1, 0 0)), EMPTY, ((4 4, 4 6, 6 6, 6 4, 4 4)))")
    assert burn([*shapes, part_empty], [1, 2, 3, 4, 5, 6, 7], 6, 6).tolist() == [
        [7, 3, 0, 0, 0, 0],
        [3, 6, 6, 0, 0, 0],
        [0, 6, 6, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 7, 7],
        [0, 0, 0, 0, 7, 7],
    ]
    assert burn([], [], 2, 3).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert burn([None], [1], 0, 3).shape == (0, 3)


def test_a_third_dimension_is_ignored():
    flat = shapely.box(1, 1, 5, 4)
    np.testing.assert_array_equal(burn([shapely.force_3d(flat, 9.0)], [3], 6, 6), burn([flat], [3], 6, 6))


def test_arrays_and_lists_are_taken_alike():
    shapes = [shapely.box(0, 0, 3, 3), shapely.box(1, 1, 5, 5)]
    as_array = burn(np.array(shapes, dtype=object), np.array([1, 2], dtype=np.uint8), 6, 6)
    np.testing.assert_array_equal(as_array, burn(shapes, [1, 2], 6, 6))


@pytest.mark.parametrize(
    ("shapes", "values", "said"),
    [
        ([shapely.box(0, 0, 1, 1), shapely.LineString([(0, 0), (1, 1)])], [1, 1], "shape 1 is a linestring"),
        ([shapely.GeometryCollection([shapely.box(0, 0, 1, 1)])], [1], "shape 0 is a geometrycollection"),
        ([None, shapely.Polygon([(0, 0), (5, math.nan), (5, 5)])], [1, 1], r"shape 1 has a vertex at \(5.0, nan\)"),
        ([shapely.Polygon([(0, 0), (math.inf, 1), (5, 5)])], [1], r"shape 0 has a vertex at \(inf, 1.0\)"),
        ([shapely.Polygon([(0, 0), (2.0**51, 1), (5, 5)])], [1], "below 2\\^51"),
        ([shapely.box(0, 0, 1, 1)], [256], "from 256 to 256"),
        ([shapely.box(0, 0, 1, 1)], [-1], "from -1 to -1"),
        ([shapely.box(0, 0, 1, 1)], [0.5], "from 0.5 to 0.5"),
        ([shapely.box(0, 0, 1, 1)], [1, 2], "1 shapes came with 2 values"),
    ],
)
def test_what_cannot_be_burnt_is_named(shapes, values, said):
    with pytest.raises(GeometryError, match=said):
        burn(shapes, values, 4, 4)


ORIGINS = st.sampled_from([(0, 0), (-40, 7), (2**24 + 256 * 3, 2**25 - 256), (2**31 - 512, 2**31 - 300)])


@settings(max_examples=120, deadline=None)
@given(
    st.lists(any_shapes(st.one_of(GRID, NEAR_GRID, ANYWHERE)), min_size=1, max_size=4),
    ORIGINS,
    st.lists(st.tuples(st.integers(-9, 40), st.integers(-9, 40), st.integers(1, 33), st.integers(1, 33)), max_size=4),
)
def test_any_window_shows_the_same_pixels(shapes, origin, windows):
    x0, y0 = origin
    table = ring_table(shapely.transform(np.array(shapes, dtype=object), lambda coords: coords + np.array(origin)))
    values = np.arange(1, len(shapes) + 1)
    whole = burn_window(table, values, PixelWindow(x0 - 10, y0 - 10, 90, 90))
    for x, y, width, height in windows:
        part = burn_window(table, values, PixelWindow(x0 + x, y0 + y, width, height))
        np.testing.assert_array_equal(part, whole[y + 10 : y + 10 + height, x + 10 : x + 10 + width])


@settings(max_examples=100, deadline=None)
@given(st.lists(any_shapes(GRID), min_size=1, max_size=4), ORIGINS)
def test_the_global_frame_shows_what_gdal_shows_in_the_tile_frame(shapes, origin):
    """On the pixels' edges and centres nothing is rounded, so both frames must agree exactly."""
    moved = shapely.transform(np.array(shapes, dtype=object), lambda coords: coords + np.array(origin))
    values = np.arange(1, len(shapes) + 1)
    ours = burn_window(ring_table(moved), values, PixelWindow(*origin, WIDTH, HEIGHT))
    np.testing.assert_array_equal(ours, gdal(shapes, values))


def test_tiles_are_cut_from_rows_in_the_order_given():
    generator = np.random.default_rng(1)
    centres = generator.uniform(0, 4 * 256, (300, 2)) + np.array([256 * 5000, 256 * 9000])
    shapes = shapely.buffer(shapely.points(centres), generator.uniform(0.2, 90, 300))
    values = generator.integers(1, 256, 300)
    table = ring_table(shapes)
    tiles = [Tile(15, 5000 + x, 9000 + y) for y in (0, 1, 3) for x in (0, 1, 3)]
    burnt = dict(burn_tiles(table, values, tiles))
    assert list(burnt) == tiles
    for tile, classes in burnt.items():
        assert classes.shape == (256, 256)
        np.testing.assert_array_equal(
            classes, burn_window(table, values, PixelWindow(tile.x * 256, tile.y * 256, 256, 256))
        )
        in_tile = shapely.transform(shapes, lambda coords, tile=tile: coords - [tile.x * 256, tile.y * 256])
        np.testing.assert_array_equal(classes, gdal(in_tile, values, 256, 256))


def exact_shares(shapes, values, height, width, n_classes):
    """Area shares by exact intersections, later shapes hiding earlier ones."""
    visible = [shapely.Polygon() for _ in range(n_classes)]
    for shape, value in zip(shapes, values, strict=True):
        visible = [shapely.difference(other, shape) for other in visible]
        visible[value] = shapely.union(visible[value], shape)
    pixels = shapely.box(
        *np.meshgrid(np.arange(width), np.arange(height)), *np.meshgrid(np.arange(width) + 1, np.arange(height) + 1)
    )
    shares = np.array([shapely.area(shapely.intersection(pixels, geometry)) for geometry in visible])
    shares[0] += 1 - shares.sum(axis=0)
    return shares


@settings(max_examples=25, deadline=None)
@given(st.lists(proper_polygons(), min_size=1, max_size=3), st.data())
def test_soft_shares_are_close_to_the_exact_areas(shapes, data):
    values = data.draw(st.lists(st.integers(0, 3), min_size=len(shapes), max_size=len(shapes)))
    soft = burn_soft(shapes, values, HEIGHT, WIDTH, 4)
    assert soft.dtype == np.float32
    assert soft.shape == (4, HEIGHT, WIDTH)
    np.testing.assert_array_equal(soft.sum(axis=0), 1)
    error = np.abs(soft - exact_shares(shapes, values, HEIGHT, WIDTH, 4))
    assert error.max() < 0.3  # several edges, thin hulls and slivers in one pixel
    mixed = (soft.max(axis=0) < 1) & (error.max(axis=0) > 0)
    if mixed.sum() > 30:
        assert error.max(axis=0)[mixed].mean() < 0.02


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_soft_share_of_one_edge_is_within_its_stated_bound(dx, dy, x, y):
    length = math.hypot(dx, dy)
    if length < 1e-3:
        return
    dx, dy = dx / length * 50, dy / length * 50
    half_plane = shapely.Polygon(
        [(x - dx, y - dy), (x + dx, y + dy), (x + dx - dy, y + dy + dx), (x - dx - dy, y - dy + dx)]
    )
    share = shapely.area(shapely.intersection(half_plane, shapely.box(0, 0, 1, 1)))
    assert abs(burn_soft([half_plane], [1], 1, 1, 2)[1, 0, 0] - share) <= 1 / 16 + 1e-6


def test_soft_of_odd_sampling_and_of_more_rows_than_a_strip():
    shapes = [shapely.box(0, 0.5, 3, 150), shapely.box(1, 10.2, 2, 140)]
    soft = burn_soft(shapes, [1, 2], 160, 4, 3, supersampling=5)
    np.testing.assert_allclose(soft.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(soft[:, 100, :3], [[0, 0, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(soft[1, 0, 0], 0.6)  # rows at 0.5, 0.7 and 0.9 of 0.1 to 0.9
    with pytest.raises(GeometryError, match="has the class 2, but there are 2 classes"):
        burn_soft(shapes, [1, 2], 4, 4, 2)
