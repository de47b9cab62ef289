"""Where to build: boxes, polygons, points; and what is wrong with a bad one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mercantile
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from magc_data import area as areas
from magc_data import grid
from magc_data.config import BuildConfig
from magc_data.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def keys(area: areas.Area, zoom: int) -> list[tuple[int, int]]:
    return [(tile.x, tile.y) for block in areas.blocks(area, zoom) for tile in block.tiles]


@pytest.mark.parametrize(
    ("bbox", "said"),
    [
        ((10, 50, 10, 51), "is empty"),
        ((10, 50, 11, 50), "is empty"),
        ((10, 51, 11, 50), "south .* above its north"),
        ((11, 50, 10, 51), "west .* east of its east"),
        ((85.52, 86.0, 85.54, 87.0), "beyond 85.0511"),
        ((-181, 0, 0, 1), "outside the world"),
        ((0, -91, 1, 1), "outside the world"),
        ((float("nan"), 0, 1, 1), "no number"),
    ],
)
def test_a_bad_bbox_is_named(bbox: tuple[float, float, float, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        areas.area_from_bbox(bbox)


def test_a_bbox_over_the_antimeridian_has_both_sides() -> None:
    area = areas.area_from_bbox((179.9, -17.0, -179.9, -16.9))
    found = keys(area, 12)
    expected = {(tile.x, tile.y) for tile in mercantile.tiles(179.9, -17.0, -179.9, -16.9, zooms=[12])}
    assert set(found) == expected
    assert len(found) == len(set(found)) == areas.count_tiles(area, 12)
    assert {x for x, _ in found} == {0, 1, 4094, 4095}


def test_polygons_take_the_tiles_that_share_ground() -> None:
    """Independent: mercantile's tiles of the box, kept where shapely finds a common area."""
    polygon = shapely.Polygon(
        [(9.47, 47.05), (9.63, 47.10), (9.55, 47.27)], [[(9.52, 47.1), (9.58, 47.11), (9.55, 47.18)]]
    )
    area = areas.area_from_polygons(polygon, {"aoi": "triangle"})
    expected = {
        (tile.x, tile.y)
        for tile in mercantile.tiles(*polygon.bounds, zooms=[15])
        if shapely.intersection(polygon, shapely.box(*mercantile.bounds(tile))).area > 0
    }
    found = keys(area, 15)
    assert set(found) == expected
    assert len(found) == len(expected) == areas.count_tiles(area, 15)
    whole_box = areas.count_tiles(areas.area_from_bbox(polygon.bounds), 15)
    assert len(found) < whole_box


def test_a_polygon_that_ends_on_a_tile_edge_does_not_take_the_neighbours() -> None:
    tile = mercantile.Tile(17000, 11000, 15)
    area = areas.area_from_polygons(shapely.box(*mercantile.bounds(tile)), {"aoi": "one tile"})
    assert keys(area, 15) == [(17000, 11000)]


columns_and_rows = st.integers(0, 2**12 - 1).flatmap(lambda tile: st.floats(0.001, 0.999).map(lambda part: tile + part))


@given(st.lists(st.tuples(columns_and_rows, columns_and_rows), min_size=1, max_size=30))
def test_points_take_the_tile_around_each(tile_places: list[tuple[float, float]]) -> None:
    """Points are drawn inside tiles: on an edge either neighbour is right."""
    columns, rows = np.array(tile_places).T * 256
    points = [(float(lon), float(lat)) for lon, lat in zip(*grid.px_to_lonlat(columns, rows, 12), strict=True)]
    found = keys(areas.area_from_points(points, {"points": "x"}), 12)
    expected = {(tile.x, tile.y) for tile in (mercantile.tile(lon, lat, 12) for lon, lat in points)}
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    "text", ["lon,lat\n85.5,27.6\n85.6,27.7\n", "id;Latitude;Longitude\n1;27.6;85.5\n2;27.7;85.6\n"]
)
def test_points_are_read_from_csv_in_any_spelling(tmp_path: Path, text: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    assert areas.read_points(path) == [(85.5, 27.6), (85.6, 27.7)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "columns a, b"),
        ("lon,lat\n1,x\n", "line 2"),
        ("lon,lat\n", "no point"),
        ("lon,lat\n1,89\n", "point 1"),
    ],
)
def test_bad_points_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        areas.area_of(BuildConfig(points=path), None)


def test_an_aoi_in_another_projection_is_the_same_area(tmp_path: Path) -> None:
    import geopandas

    frame = geopandas.GeoDataFrame(geometry=[shapely.box(9.50, 47.10, 9.55, 47.14)], crs=4326)
    frame.to_file(tmp_path / "lonlat.geojson")
    frame.to_crs(2056).to_file(tmp_path / "lv95.gpkg")
    lonlat = areas.area_of(BuildConfig(aoi=tmp_path / "lonlat.geojson"), None)
    swiss = areas.area_of(BuildConfig(aoi=tmp_path / "lv95.gpkg"), None)
    # The box's straight edges bend by centimetres on the way through the other projection, so the areas agree, not the bytes.
    assert lonlat.polygons is not None
    assert swiss.polygons is not None
    assert lonlat.polygons.symmetric_difference(swiss.polygons).area < 1e-6
    assert set(keys(lonlat, 14)) == set(keys(swiss, 14))


def test_bad_areas_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.geojson").write_text("{")
    (tmp_path / "line.geojson").write_text('{"type":"LineString","coordinates":[[0,0],[1,1]]}')
    for config, said in [
        (BuildConfig(), "no area was given"),
        (BuildConfig(bbox=(0, 0, 1, 1), place="Oslo"), "--bbox and --place"),
        (BuildConfig(aoi=tmp_path / "absent.geojson"), "does not exist"),
        (BuildConfig(aoi=tmp_path / "broken.geojson"), "cannot be read"),
        (BuildConfig(aoi=tmp_path / "line.geojson"), "LineString"),
    ]:
        with pytest.raises(UsageError, match=said):
            areas.area_of(config, None)


def test_zooms_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="zoom 30"):
        next(areas.blocks(areas.area_from_bbox((0, 0, 1, 1)), 30))


def test_polygons_are_found_in_nested_collections_and_repaired() -> None:
    inner = shapely.GeometryCollection([shapely.box(10.2, 50, 10.3, 50.1)])
    nested = shapely.GeometryCollection([shapely.box(10, 50, 10.1, 50.1), shapely.GeometryCollection([inner])])
    plain = shapely.MultiPolygon([shapely.box(10, 50, 10.1, 50.1), shapely.box(10.2, 50, 10.3, 50.1)])
    assert keys(areas.area_from_polygons(nested, {"aoi": "x"}), 12) == keys(
        areas.area_from_polygons(plain, {"aoi": "x"}), 12
    )
    bow_tie = shapely.Polygon([(10, 50), (10.2, 50.2), (10.2, 50), (10, 50.2)])
    both = shapely.GeometryCollection([bow_tie, shapely.box(10.1, 50, 10.4, 50.1)])
    found = set(keys(areas.area_from_polygons(both, {"aoi": "x"}), 13))
    assert {(tile.x, tile.y) for tile in [mercantile.tile(10.02, 50.1, 13), mercantile.tile(10.35, 50.05, 13)]} <= found


def test_lines_beside_polygons_are_refused_rather_than_dropped() -> None:
    mixed = shapely.GeometryCollection([shapely.box(10, 50, 10.1, 50.1), shapely.LineString([(10, 50), (11, 51)])])
    with pytest.raises(UsageError, match="LineString"):
        areas.area_from_polygons(mixed, {"aoi": "x"})


@pytest.mark.parametrize(
    "bbox", [(9.4, 47.0, 9.7, 47.3), (179.5, -17.4, -179.7, -16.9), (10.0, 50.0, 10.00001, 50.00001)]
)
def test_counting_is_what_listing_gives(bbox: tuple[float, float, float, float]) -> None:
    area = areas.area_from_bbox(bbox)
    listed = list(areas.blocks(area, 13))
    assert areas.count_blocks(area, 13) == len(listed)
    assert areas.count_tiles(area, 13) == sum(len(block.tiles) for block in listed)


def test_the_whole_world_is_counted_at_once() -> None:
    """17 thousand million tiles: only arithmetic comes to an end."""
    world = areas.area_from_bbox((-180, -85, 180, 85))
    first, last = mercantile.tile(-180, 85, 17), mercantile.tile(179.999, -85, 17)
    assert areas.count_tiles(world, 17) == 131072 * (last.y - first.y + 1)
    assert areas.count_blocks(world, 17) == 4096 * (last.y // 32 - first.y // 32 + 1)


@pytest.mark.parametrize("bbox", [(9.4, 47.0, 9.7, 47.3), (179.5, -17.4, -179.7, -16.9)])
def test_spread_blocks_come_from_all_over_the_area(bbox: tuple[float, float, float, float]) -> None:
    area = areas.area_from_bbox(bbox)
    listed = list(areas.blocks(area, 15))
    assert areas.spread_blocks(area, 15, 10_000) == listed
    some = areas.spread_blocks(area, 15, 4)
    assert some == [listed[number * len(listed) // 4] for number in range(4)]
    polygons = areas.area_from_polygons(shapely.box(9.4, 47.0, 9.7, 47.3), {"aoi": "x"})
    listed = list(areas.blocks(polygons, 15))
    assert areas.spread_blocks(polygons, 15, 3) == [listed[number * len(listed) // 3] for number in range(3)]
