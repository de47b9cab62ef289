"""Tile mathematics against mercantile and pyproj, which know it independently."""

from __future__ import annotations

import math

import mercantile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from magc_data import grid
from magc_data.errors import UsageError
from magc_data.grid import BoundsLonLat, Tile

zooms = st.integers(grid.MIN_ZOOM, grid.MAX_ZOOM)


@st.composite
def tiles(draw: st.DrawFn) -> Tile:
    z = draw(zooms)
    return Tile(z, draw(st.integers(0, 2**z - 1)), draw(st.integers(0, 2**z - 1)))


@given(tiles())
def test_bounds_are_those_of_mercantile(tile: Tile) -> None:
    theirs = mercantile.Tile(tile.x, tile.y, tile.z)
    assert grid.tile_bounds_lonlat(tile) == pytest.approx(tuple(mercantile.bounds(theirs)), abs=1e-12)
    assert grid.tile_bounds_3857(tile) == pytest.approx(tuple(mercantile.xy_bounds(theirs)), abs=1e-6)


@given(
    st.floats(-180, 179.9),
    st.floats(-85, 84.9),
    st.floats(1e-9, 0.1),
    st.floats(1e-9, 0.1),
    st.integers(grid.MIN_ZOOM, 14),
)
def test_tiles_of_a_box_are_those_of_mercantile(
    west: float, south: float, width: float, height: float, zoom: int
) -> None:
    bounds = BoundsLonLat(west, south, min(west + width, 180.0), south + height)
    ours = {
        (tile.x, tile.y) for block in grid.blocks_of_range(grid.tile_range(bounds, zoom), zoom) for tile in block.tiles
    }
    theirs = {(tile.x, tile.y) for tile in mercantile.tiles(*bounds, zooms=[zoom])}
    assert ours == theirs


@given(tiles())
def test_a_tiles_own_box_gives_that_tile_alone(tile: Tile) -> None:
    found = grid.tile_range(grid.tile_bounds_lonlat(tile), tile.z)
    # At the deepest zooms a box's degrees cannot say its edge to better than a few nanometres, and neither can mercantile.
    if tile.z <= 18:
        assert (found.x_min, found.y_min, found.x_max, found.y_max) == (tile.x, tile.y, tile.x, tile.y)
    assert found.x_min <= tile.x <= found.x_max


@given(st.floats(-180, 180), st.floats(-85, 85), zooms)
def test_pixel_grid_is_web_mercator(lon: float, lat: float, zoom: int) -> None:
    """pyproj projects independently: the pixel grid must agree to a thousandth of a pixel and invert to a nanodegree."""
    x_px, y_px = grid.lonlat_to_px(np.array([lon]), np.array([lat]), zoom)
    x_m, y_m = Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    px_m = 2 * grid.HALF_CIRCUMFERENCE_M / (256 * 2**zoom)
    assert x_px[0] == pytest.approx((x_m + grid.HALF_CIRCUMFERENCE_M) / px_m, abs=1e-3)
    assert y_px[0] == pytest.approx((grid.HALF_CIRCUMFERENCE_M - y_m) / px_m, abs=1e-3)
    lon_back, lat_back = grid.px_to_lonlat(x_px, y_px, zoom)
    assert (lon_back[0], lat_back[0]) == pytest.approx((lon, lat), abs=1e-9)


@pytest.mark.parametrize(
    ("latitude", "expected_m"), [(0.0, 1.1943), (26.376, 1.0700), (40.0, 0.9149), (51.5, 0.7435), (60.0, 0.5972)]
)
def test_zoom_17_is_107_cm_at_one_latitude_only(latitude: float, expected_m: float) -> None:
    assert grid.gsd_m(latitude, 17) == pytest.approx(expected_m, abs=5e-5)


@given(st.floats(-70, 70))
def test_gsd_is_a_length_on_the_ground(latitude: float) -> None:
    """On the sphere that web-mercator assumes, a pixel's width measured by geodesics is the stated one."""
    sphere = Geod(a=grid.EARTH_RADIUS_M, b=grid.EARTH_RADIUS_M)
    pixel_lon = 360 / (256 * 2**17)
    _, _, width_m = sphere.inv(10.0, latitude, 10.0 + pixel_lon, latitude)
    assert width_m == pytest.approx(grid.gsd_m(latitude, 17), rel=1e-6)


def test_blocks_are_aligned_and_partition_the_range() -> None:
    wanted = grid.TileRange(30, 60, 70, 100)
    blocks = list(grid.blocks_of_range(wanted, 10))
    assert [block.name for block in blocks] == [f"10_{x}_{y}" for y in (32, 64, 96) for x in (0, 32, 64)]
    seen = [tile for block in blocks for tile in block.tiles]
    assert len(seen) == len(set(seen)) == wanted.tile_count == 41 * 41
    for block in blocks:
        assert all(tile.x // 32 == block.column and tile.y // 32 == block.row for tile in block.tiles)


@given(tiles())
def test_keys_read_back_and_hold_no_dot(tile: Tile) -> None:
    assert grid.parse_key(tile.key) == tile
    assert "." not in tile.key


@pytest.mark.parametrize("key", ["17_1", "a_b_c", "17_1_2_3", "17_-1_5", "17_131072_5", "99_1_1", ""])
def test_a_wrong_key_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="key"):
        grid.parse_key(key)


def test_the_margin_is_metres_on_the_ground() -> None:
    tile = Tile(17, 70000, 38000)
    block = grid.Block(17, tile.x // 32, tile.y // 32, (tile,))
    inner, outer = grid.block_bounds_lonlat(block), grid.block_bounds_lonlat(block, margin_m=100)
    geod = Geod(ellps="WGS84")
    for a, b in [
        ((inner.west, inner.south), (outer.west, inner.south)),
        ((inner.west, inner.north), (inner.west, outer.north)),
    ]:
        assert geod.inv(*a, *b)[2] == pytest.approx(100, rel=0.02)


def test_the_world_is_square() -> None:
    assert grid.tile_bounds_lonlat(Tile(6, 0, 0)).north == pytest.approx(grid.MAX_LATITUDE, abs=1e-9)
    assert math.isclose(grid.MAX_LATITUDE, 85.0511287798066, abs_tol=1e-10)
