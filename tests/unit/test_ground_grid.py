"""The grid of constant ground resolution, measured on the ellipsoid with pyproj and compared with rasterio."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from magc_data import area as areas
from magc_data import grid as mercator
from magc_data.errors import UsageError
from magc_data.grid import Tile
from magc_data.ground_grid import (
    MAX_GROUND_LATITUDE,
    GroundGrid,
    GroundTile,
    latitude_of_arc,
    meridian_arc_m,
    metres_per_degree,
    parse_key,
    plane_columns,
)
from magc_data.shards.index_check import index_findings
from magc_data.sources.ground_imagery import REDUCTION_TO_AVERAGE, right_zoom, tile_pixel_m

GEOD = Geod(ellps="WGS84")
WITHIN = 0.005
"""What is promised of a pixel's size between 75 S and 75 N."""
GSDS_M = st.sampled_from([0.02, 0.1, 0.3, 0.5, 1.0, 1.07, 2.0, 4.77, 10.0, 20.0, 35.0])
LONGITUDES = st.floats(-180, 180, exclude_max=True)
LATITUDES = st.floats(-75, 75)
ANYWHERE = st.floats(-MAX_GROUND_LATITUDE, MAX_GROUND_LATITUDE)


def tile_at(lon: float, lat: float, gsd_m: float) -> GroundTile:
    grid = GroundGrid.of(gsd_m)
    row = grid.row_of(lat)
    return GroundTile(grid.gsd_mm, grid.column_of(lon, grid.band(row)), row)


def metres(lon0: float, lat0: float, lon1: float, lat1: float) -> float:
    return float(GEOD.inv(lon0, lat0, lon1, lat1)[2])


@given(LONGITUDES, LATITUDES, GSDS_M, st.floats(0, 1), st.floats(0, 1))
def test_a_pixel_is_as_wide_and_as_high_as_asked_for(
    lon: float, lat: float, gsd_m: float, across: float, down: float
) -> None:
    """Anywhere in a sample, both ways, on the ellipsoid: a run of a sixteenth of the sample about that point."""
    west, south, east, north = tile_at(lon, lat, gsd_m).bounds_lonlat
    step_x, step_y = (east - west) / 16, (north - south) / 16
    x, y = west + across * (east - west - step_x), south + down * (north - south - step_y)
    wide = metres(x, y, x + step_x, y) / (16 * gsd_m)
    high = metres(x, y, x, y + step_y) / (16 * gsd_m)
    assert wide == pytest.approx(1, abs=WITHIN)
    assert high == pytest.approx(1, abs=WITHIN)


def test_the_greatest_error_over_the_globe_at_1_07_m() -> None:
    """Every band's edges, where a parallel is longest and shortest: what docs/decisions/0017 states."""
    grid = GroundGrid.of(1.07)
    wide, high = [], []
    for row in range(grid.row_of(75.0), grid.row_of(-75.0), grid.band_rows):
        band = grid.band(row)
        degrees_x, degrees_y = band.degrees_per_px
        for lat in (band.south, band.north):
            if abs(lat) <= 75:
                wide.append(metres(0, lat, 256 * degrees_x, lat) / 256 / 1.07 - 1)
                high.append(metres(0, lat - 128 * degrees_y, 0, lat + 128 * degrees_y) / 256 / 1.07 - 1)
    assert 0.0020 < max(map(abs, wide)) < 0.0027
    assert max(map(abs, high)) < 0.00001


@given(LONGITUDES, ANYWHERE, GSDS_M)
def test_every_place_is_in_exactly_one_tile_and_neighbours_share_their_edges(
    lon: float, lat: float, gsd_m: float
) -> None:
    tile = tile_at(lon, lat, gsd_m)
    west, south, east, north = tile.bounds_lonlat
    assert west - 1e-9 <= lon <= east + 1e-9
    assert south - 1e-9 <= lat <= north + 1e-9
    columns = tile.band.columns
    assert tile._replace(x=0).bounds_lonlat.west == -180
    assert tile._replace(x=columns - 1).bounds_lonlat.east == pytest.approx(180, abs=1e-12)
    rows = GroundGrid(tile.gsd_mm).row_range
    if tile.x + 1 < columns:
        assert tile._replace(x=tile.x + 1).bounds_lonlat.west == east
    if tile.y + 1 in rows:
        # In the next band the columns are others; the parallel between the two is the same.
        assert tile._replace(x=0, y=tile.y + 1).bounds_lonlat.north == pytest.approx(south, abs=1e-12)


@given(LONGITUDES, ANYWHERE, GSDS_M)
def test_the_centre_of_a_tile_is_in_that_tile(lon: float, lat: float, gsd_m: float) -> None:
    tile = tile_at(lon, lat, gsd_m)
    assert tile_at(*tile.centre_lonlat, gsd_m) == tile


@given(st.floats(-90, 90))
def test_the_meridian_arc_is_the_geodesic(lat: float) -> None:
    assert abs(meridian_arc_m(lat)) == pytest.approx(metres(0, 0, 0, lat), abs=1e-5)
    assert latitude_of_arc(meridian_arc_m(lat)) == pytest.approx(lat, abs=1e-10)


@given(LATITUDES)
def test_metres_per_degree_are_those_of_the_ellipsoid(lat: float) -> None:
    east_m, north_m = metres_per_degree(lat)
    assert metres(0, lat, 1e-3, lat) * 1000 == pytest.approx(east_m, rel=1e-6)
    assert metres(0, lat - 5e-4, 0, lat + 5e-4) * 1000 == pytest.approx(north_m, rel=1e-6)


@given(LONGITUDES, ANYWHERE, GSDS_M)
def test_pixels_and_transform_agree_with_the_bounds(lon: float, lat: float, gsd_m: float) -> None:
    tile = tile_at(lon, lat, gsd_m)
    west, south, east, north = tile.bounds_lonlat
    x_px, y_px = tile.band.lonlat_to_px(np.array([west, east]), np.array([north, south]))
    assert x_px - 256 * tile.x == pytest.approx([0, 256], abs=1e-4)
    assert y_px - 256 * tile.y == pytest.approx([0, 256], abs=1e-4)
    corner = rasterio.transform.xy(
        rasterio.Affine(*tile.band.transform_at(256 * tile.x, 256 * tile.y)), 256, 256, offset="ul"
    )
    assert corner == pytest.approx((east, south), abs=1e-9)


@given(LONGITUDES, ANYWHERE, GSDS_M)
def test_a_key_reads_back_and_ends_no_webdataset_key_early(lon: float, lat: float, gsd_m: float) -> None:
    tile = tile_at(lon, lat, gsd_m)
    assert parse_key(tile.key) == tile
    assert "." not in tile.key
    assert tile.z is None


def test_a_web_mercator_key_reads_back_too() -> None:
    assert parse_key("17_64069_40915") == Tile(17, 64069, 40915)


@pytest.mark.parametrize(
    "key",
    ["g1070_1", "g1070_1_2_3", "g1070_-1_30000", "g1070_01_30000", "g1070_1_4000000", "g1070_99999999_30000",
     "g10_1_30000", "g99999_1_1", "gx_1_2", "g1070_1_30000.5", "g1070_1_4106"],
)  # fmt: skip
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="tile key"):
        parse_key(key)


@pytest.mark.parametrize(
    ("gsd_m", "said"), [(0.0, "expected 0.02 to 35"), (40, "expected 0.02 to 35"), (1.0705, "whole millimetres")]
)
def test_a_resolution_that_has_no_grid_is_refused(gsd_m: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        GroundGrid.of(gsd_m)


# --- areas -----------------------------------------------------------------------------------------------------------

WIDTHS = st.floats(1e-4, 0.02)


@settings(deadline=None, max_examples=40)
@given(st.floats(-179, 179), st.floats(-75, 75), WIDTHS, WIDTHS, st.sampled_from([0.5, 1.07, 8.0]))
def test_a_box_gets_the_tiles_that_share_ground_with_it_each_once(
    west: float, south: float, width: float, height: float, gsd_m: float
) -> None:
    grid = GroundGrid.of(gsd_m)
    box = areas.area_from_bbox((west, south, west + width, south + height))
    blocks = list(areas.blocks(box, grid))
    tiles = [tile for block in blocks for tile in block.tiles]
    assert len(set(tiles)) == len(tiles) == areas.count_tiles(box, grid)
    assert len({block.name for block in blocks}) == len(blocks) == areas.count_blocks(box, grid)
    covered = shapely.union_all([shapely.box(*tile.bounds_lonlat) for tile in tiles]).buffer(1e-9)
    assert covered.covers(shapely.box(*box.boxes[0]))
    for tile in tiles:
        overlap = shapely.box(*tile.bounds_lonlat).intersection(shapely.box(*box.boxes[0]))
        assert overlap.area > 0
    for block in blocks:
        assert {tile.block_name for tile in block.tiles} == {block.name}
        assert {tile.band for tile in block.tiles} == {block.pixels}
        assert list(block.tiles) == sorted(block.tiles, key=lambda tile: (tile.y, tile.x))


@settings(deadline=None, max_examples=40)
@given(st.floats(-179, 179), st.floats(-75, 75), WIDTHS, WIDTHS)
def test_a_polygon_gets_the_tiles_of_its_box_that_it_meets(
    west: float, south: float, width: float, height: float
) -> None:
    grid = GroundGrid.of(1.07)
    triangle = shapely.Polygon([(west, south), (west + width, south), (west, south + height)])
    found = {
        tile for block in areas.blocks(areas.area_from_polygons(triangle, {"aoi": "t"}), grid) for tile in block.tiles
    }
    box = areas.area_from_bbox(triangle.bounds)
    for block in areas.blocks(box, grid):
        for tile in block.tiles:
            overlap = shapely.box(*tile.bounds_lonlat).intersection(triangle).area
            # A crumb of rounding may be counted or not.
            if overlap > 1e-13 or tile not in found:
                assert (overlap > 1e-13) == (tile in found)


def test_points_get_the_tile_around_each() -> None:
    grid = GroundGrid.of(1.07)
    points = [(85.52, 27.63), (85.5201, 27.63), (-180.0, 0.0), (179.9999999, -0.0001), (20.0, 75.0)]
    area = areas.area_from_points(points, {"points": "p"})
    tiles = [tile for block in areas.blocks(area, grid) for tile in block.tiles]
    assert sorted(tiles) == sorted({tile_at(*point, 1.07) for point in points})


def test_a_box_over_the_antimeridian_has_the_last_and_the_first_column() -> None:
    grid = GroundGrid.of(1.07)
    tiles = [
        tile
        for block in areas.blocks(areas.area_from_bbox((179.999, -17.0, -179.999, -16.999)), grid)
        for tile in block.tiles
    ]
    columns = tiles[0].band.columns
    assert {tile.x for tile in tiles} == {0, columns - 1}


def test_an_area_too_near_to_a_pole_is_refused() -> None:
    for area in (
        areas.area_from_bbox((0, 79, 1, 80.5)),
        areas.area_from_points([(0.0, -81.0)], {"points": "p"}),
        areas.area_from_polygons(shapely.box(0, 79, 1, 81), {"aoi": "t"}),
    ):
        with pytest.raises(UsageError, match="--gsd goes up to 80"):
            list(areas.blocks(area, GroundGrid.of(1.07)))


def test_a_picture_of_where_tiles_are_has_no_two_of_a_row_in_one_place() -> None:
    grid = GroundGrid.of(1.07)
    area = areas.area_from_bbox((10.0, 59.9, 10.05, 60.1))
    tiles = [tile for block in areas.blocks(area, grid) for tile in block.tiles]
    x, y = (np.array([getattr(tile, name) for tile in tiles]) for name in "xy")
    assert len({tile.band for tile in tiles}) > 2
    plane = plane_columns(grid, x, y)
    assert len(set(zip(plane.tolist(), y.tolist(), strict=True))) == len(tiles)
    # Raw columns of neighbouring bands are hundreds apart; on the plane the area is as wide as its rows are.
    assert np.ptp(x) > 200
    assert np.ptp(plane) <= max(len(list(row)) for _, row in itertools.groupby(np.sort(y).tolist())) + 1


# --- zooms -----------------------------------------------------------------------------------------------------------


@given(LATITUDES, st.floats(0.2, 30))
def test_the_right_zoom_is_the_first_that_is_finer_by_the_square_root_of_two(lat: float, gsd_m: float) -> None:
    zoom = right_zoom(lat, gsd_m)
    assert gsd_m / tile_pixel_m(lat, zoom) >= REDUCTION_TO_AVERAGE * (1 - 1e-6)
    if zoom > mercator.MIN_ZOOM:
        assert gsd_m / tile_pixel_m(lat, zoom - 1) < REDUCTION_TO_AVERAGE * (1 + 1e-6)


def test_the_paper_s_resolution_reads_zoom_18_in_banepa() -> None:
    assert right_zoom(27.63, 1.07) == 18
    assert tile_pixel_m(0.0, 17) == pytest.approx(1.1943, abs=1e-4)


def test_an_index_may_hold_either_kind_of_key() -> None:
    import pyarrow as pa

    rows = pa.table({"key": ["g1070_95687_25379", "g1070_95688_25379"], "z": pa.nulls(2, pa.uint8())})
    assert list(index_findings(rows)) == []
    mixed = pa.table({"key": ["17_1_2", "g1070_95688_25379"], "z": pa.array([17, None], pa.uint8())})
    assert any("without 'z'" in finding for finding in index_findings(mixed))
