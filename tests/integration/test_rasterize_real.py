"""Every area and every way of real OpenStreetMap extracts, burnt here and by GDAL: no pixel may differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import osmium
import pytest
import rasterio.features
import shapely

from magc_data.grid import Tile, lonlat_to_px
from magc_data.rasterize import burn, burn_tiles, ring_table

if TYPE_CHECKING:
    from pathlib import Path

ZOOM = 17
METATILE = 8
"""GDAL burns 8 x 8 tiles at once, which is much faster and, by the rule, the same."""

EXTRACTS = (
    "osm2pgsql_liechtenstein-2013-08-03.osm.pbf",
    "osmnx_West-Oakland.osm.bz2",
    "osmnx_planet_10.068,48.135_10.071,48.137.osm",
    "valhalla_baltimore.osm.pbf",
    "valhalla_bayfront_singapore.osm.pbf",
    "valhalla_liechtenstein-latest.osm.pbf",
    "valhalla_melborne.osm.pbf",
    "valhalla_nyc.osm.pbf",
)


class Scene(NamedTuple):
    """Shapes on the global pixel grid, as they come, with an arbitrary value each."""

    shapes: np.ndarray
    values: np.ndarray


def read_scene(path: Path) -> Scene:
    factory = osmium.geom.WKBFactory()
    areas, lines = [], []
    for entity in osmium.FileProcessor(str(path)).with_locations().with_areas():
        try:
            if entity.is_area():
                areas.append(factory.create_multipolygon(entity))
            elif entity.is_way() and not entity.is_closed():
                lines.append(factory.create_linestring(entity))
        except (RuntimeError, osmium.InvalidLocationError):  # members or nodes outside the extract
            continue

    def to_px(lonlat):
        return np.column_stack(lonlat_to_px(lonlat[:, 0], lonlat[:, 1], ZOOM))

    areas, lines = (
        shapely.transform(shapely.from_wkb(np.array([bytes.fromhex(wkb) for wkb in wkbs], dtype=object)), to_px)
        for wkbs in (areas, lines)
    )
    buffered = shapely.buffer(lines, np.arange(len(lines)) % 7 + 0.8, quad_segs=4)
    shapes = np.concatenate([areas, buffered])
    return Scene(shapes, (np.arange(len(shapes)) % 255 + 1).astype(np.uint8))


def gdal(shapes, values, x_px, y_px, side_px):
    local = shapely.transform(shapes, lambda coords: coords - np.array([x_px, y_px]))
    pairs = zip(local, values.tolist(), strict=True)
    return rasterio.features.rasterize(pairs, out_shape=(side_px, side_px), fill=0, dtype="uint8")


def assert_no_pixel_differs(path: Path, *, fewest_tiles: int) -> None:
    scene = read_scene(path)
    table = ring_table(scene.shapes)
    tree = shapely.STRtree(scene.shapes)
    # Where anything is: the metatiles of all vertices, so that a far-off relation adds its own and not all between.
    corners = np.unique(shapely.get_coordinates(scene.shapes) // (256 * METATILE), axis=0).astype(int) * METATILE
    burnt_tiles = 0
    for x, y in corners.tolist():
        side_px = 256 * METATILE
        hits = np.sort(tree.query(shapely.box(x * 256, y * 256, x * 256 + side_px, y * 256 + side_px)))
        expected = gdal(scene.shapes[hits], scene.values[hits], x * 256, y * 256, side_px)
        tiles = [Tile(ZOOM, x + column, y + row) for row in range(METATILE) for column in range(METATILE)]
        for tile, classes in burn_tiles(table, scene.values, tiles):
            top, left = (tile.y - y) * 256, (tile.x - x) * 256
            different = int((classes != expected[top : top + 256, left : left + 256]).sum())
            assert different == 0, f"{different} pixels of tile {tile.key} differ"
            burnt_tiles += bool(classes.any())
    assert burnt_tiles >= fewest_tiles
    # And as a stranger would call it: one dense tile's shapes, in the tile's own frame.
    places, vertices = np.unique(shapely.get_coordinates(scene.shapes) // 256, axis=0, return_counts=True)
    x_px, y_px = (places[vertices.argmax()] * 256).tolist()
    hits = np.sort(tree.query(shapely.box(x_px, y_px, x_px + 256, y_px + 256)))
    local = shapely.transform(scene.shapes[hits], lambda coords: coords - np.array([x_px, y_px]))
    expected = gdal(scene.shapes[hits], scene.values[hits], x_px, y_px, 256)
    np.testing.assert_array_equal(burn(local, scene.values[hits], 256, 256), expected)


@pytest.mark.parametrize("name", EXTRACTS)
def test_real_extract(shared_data: Path, name: str):
    assert_no_pixel_differs(shared_data / "osm" / name, fewest_tiles=1)


def test_all_extracts_at_hand_are_tested(shared_data: Path):
    assert sorted(path.name for path in (shared_data / "osm").iterdir()) == sorted(EXTRACTS)


def test_helsinki(helsinki_pbf: Path):
    assert_no_pixel_differs(helsinki_pbf, fewest_tiles=50)
