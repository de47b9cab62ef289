"""Where maps of the world end, and what is small, scattered or empty: each is built right, or refused in one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
import tiny_world
from fake_arcgis import running_arcgis
from fake_overpass import FakeOverpass
from test_bad_input import command
from tiny_world import Opl

from magc_data import grid
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_data.errors import UsageError
from magc_data.grid import MAX_LATITUDE
from magc_data.plan import plan
from magc_data.preview import contact_sheet
from magc_data.shards.manifest import read_manifest
from magc_data.shards.reader import read_index
from magc_data.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

Bbox = tuple[float, float, float, float]
FOREST, WATER, ROAD, BACKGROUND = 3, 8, 10, 0


def maps(out: Path, osm: Path | str, **options: object) -> MagcDataset:
    """Build maps alone, see that nothing is wrong with them, and read them."""
    tiny_world.run(BuildConfig(**{"imagery": "none", "osm": str(osm), "workers": 1, "out": out} | options))
    assert verify(out).findings == ()
    return MagcDataset(out)


def pixels(dataset: MagcDataset, class_id: int) -> dict[tuple[int, int], int]:
    """Pixels of a class by tile column and row, where there are any."""
    counts = {key: int((dataset.read_map(number) == class_id).sum()) for number, key in enumerate(dataset.keys)}
    return {(tile.x, tile.y): count for key, count in counts.items() if count for tile in [grid.parse_key(key)]}


def square(lon: float, lat: float, side: float) -> list[tuple[float, float]]:
    return [(lon, lat), (lon + side, lat), (lon + side, lat + side), (lon, lat + side), (lon, lat)]


def tile_at(lon: float, lat: float, zoom: int = 17) -> grid.Tile:
    (tile,) = (
        each
        for block in grid.blocks_of_range(grid.tile_range(grid.BoundsLonLat(lon, lat, lon, lat), zoom), zoom)
        for each in block.tiles
    )
    return tile


# --- the antimeridian ------------------------------------------------------------------------------------------------

FIJI = (179.99, -17.0, -179.99, -16.98)


def write_fiji(path: Path) -> Path:
    """A road and a wood that cross 180 degrees at their numbers, and a shore that does so with the sea in the south."""
    opl = Opl()
    opl.way([(179.995, -16.985), (-179.995, -16.985)], "highway=primary")
    opl.way(
        [(179.998, -16.983), (-179.998, -16.983), (-179.998, -16.981), (179.998, -16.981), (179.998, -16.983)],
        "landuse=forest",
    )
    opl.way([(179.9, -16.99), (-179.9, -16.99)], "natural=coastline")
    return opl.write(path)


def test_over_the_antimeridian_both_sides_are_built_and_nothing_runs_around_the_world(tmp_path: Path) -> None:
    dataset = maps(tmp_path / "d", write_fiji(tmp_path / "fiji.osm.opl"), bbox=FIJI)
    last = 2**17 - 1
    assert {grid.parse_key(key).x for key in dataset.keys} == {0, 1, 2, 3, last - 3, last - 2, last - 1, last}
    for class_id, columns in ((ROAD, {0, 1, last - 1, last}), (FOREST, {0, last})):
        found = pixels(dataset, class_id)
        assert {x for x, _ in found} == columns
        # The same on either side, as it was drawn.
        assert {(last - x, y): count for (x, y), count in found.items()} == pytest.approx(found, abs=256)
    sea = pixels(dataset, WATER)
    south = max(y for _, y in sea)
    assert all(sea[x, south] == 65536 for x in (0, 1, 2, 3, last - 3, last))
    assert min(y for _, y in sea) > min(grid.parse_key(key).y for key in dataset.keys)
    assert "sea-unknown" not in read_manifest(tmp_path / "d")["counts"]["rejected"]


def test_what_reads_datasets_reads_one_over_the_antimeridian(tmp_path: Path) -> None:
    osm = write_fiji(tmp_path / "fiji.osm.opl")
    maps(tmp_path / "d", osm, bbox=FIJI)
    assert contact_sheet(tmp_path / "d", tmp_path / "p.png") == 8
    for name in (("stats",), ("info",), ("preview", "--coverage", "--out", tmp_path / "c.png")):
        assert command(name[0], tmp_path / "d", *name[1:]).code == 0
    assert command("split", tmp_path / "d", "--block-m", 500).code == 0
    assert verify(tmp_path / "d").findings == ()
    assert plan(BuildConfig(bbox=FIJI, imagery="none", osm=str(osm), out=tmp_path / "e")).tiles == 72


def test_polygons_over_the_antimeridian_are_asked_to_be_split(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(json.dumps(shapely.box(179.9, -17, 180.1, -16).__geo_interface__))
    with pytest.raises(UsageError, match=r"aoi\.geojson reaches 179\.9,-17,180\.1,-16, .*split polygons that cross"):
        maps(tmp_path / "d", write_fiji(tmp_path / "f.osm.opl"), aoi=path)
    both = shapely.MultiPolygon([shapely.box(179.999, -17, 180, -16.999), shapely.box(-180, -17, -179.999, -16.999)])
    path.write_text(json.dumps(both.__geo_interface__))
    dataset = maps(tmp_path / "d", tmp_path / "f.osm.opl", aoi=path)
    assert {grid.parse_key(key).x for key in dataset.keys} == {0, 2**17 - 1}


# --- the polar caps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_the_last_row_of_the_map_is_built_on_both_caps(tmp_path: Path, sign: int) -> None:
    south, north = sorted((sign * 85.0505, sign * MAX_LATITUDE))
    opl = Opl()
    opl.way([(10.0, sign * 85.0510), (10.02, sign * 85.0510)], "highway=residential,width=20")
    dataset = maps(tmp_path / "d", opl.write(tmp_path / "p.osm.opl"), bbox=(10.0, south, 10.01, north))
    row = 0 if sign > 0 else 2**17 - 1
    assert row in {grid.parse_key(key).y for key in dataset.keys}
    found = pixels(dataset, 11)
    assert {y for _, y in found} == {row}
    # 20 m at 0.103 m/px.
    x_last = max(x for x, _ in found)
    width_px = found[x_last - 1, row] / 256
    assert width_px == pytest.approx(20 / grid.gsd_m(85.0510, 17), rel=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_beyond_the_map_a_place_is_refused_in_one_sentence(tmp_path: Path, sign: int) -> None:
    south, north = sorted((sign * 85.0, sign * 86.0))
    opl = Opl().write(tmp_path / "p.osm.opl")
    with pytest.raises(UsageError, match=r"reaches beyond 85\.0511 degrees of latitude, where web-mercator tiles end"):
        maps(tmp_path / "d", opl, bbox=(10.0, south, 10.01, north))
    (tmp_path / "p.csv").write_text(f"lon,lat\n10,{sign * 85.06}\n")
    with pytest.raises(
        UsageError, match=r"point 1 is at 10,-?85\.06: expected lon,lat within 180 and 85\.0511 degrees"
    ):
        maps(tmp_path / "d", opl, points=tmp_path / "p.csv")
    (tmp_path / "a.geojson").write_text(json.dumps(shapely.box(10, south, 10.01, north).__geo_interface__))
    with pytest.raises(UsageError, match=r"a\.geojson reaches .*, outside the web-mercator world: keep to"):
        maps(tmp_path / "d", opl, aoi=tmp_path / "a.geojson")
    assert not (tmp_path / "d").exists()


# --- small -----------------------------------------------------------------------------------------------------------


def test_islands_of_a_few_pixels_are_land_in_the_sea(tmp_path: Path) -> None:
    """Nothing but their own shores says that there is sea around them."""
    opl = Opl()
    sizes_degrees = [2e-6, 2e-5, 1e-4, 5e-4]  # 0.2, 2, 9 and 47 pixels at zoom 17
    for number, side in enumerate(sizes_degrees):
        opl.way(square(-14.4 + 0.003 * number, -7.95, side), "natural=coastline")
    bbox = (-14.401, -7.951, -14.390, -7.949)
    dataset = maps(tmp_path / "d", opl.write(tmp_path / "p.osm.opl"), bbox=bbox)
    land = sum(pixels(dataset, BACKGROUND).values())
    scale = 256 * 2**17 / 360
    expected = sum((side * scale) ** 2 for side in sizes_degrees)
    assert land == pytest.approx(expected, rel=0.06)
    assert land + sum(pixels(dataset, WATER).values()) == len(dataset) * 65536


def test_a_box_inside_one_tile_is_that_tile(tmp_path: Path) -> None:
    opl = Opl()
    opl.way(square(20.0001, 40.0001, 0.0001), "landuse=forest")
    osm = opl.write(tmp_path / "p.osm.opl")
    dataset = maps(tmp_path / "d", osm, bbox=(20.00012, 40.00012, 20.00013, 40.00013))
    assert dataset.keys == [tile_at(20.00012, 40.00012).key]
    wide = maps(tmp_path / "wide", osm, bbox=(19.99, 39.99, 20.01, 40.01))
    assert np.array_equal(dataset.read_map(0), wide.read_map(wide.keys.index(dataset.keys[0])))


# --- scattered, with holes, empty ------------------------------------------------------------------------------------


def scattered(count: int) -> list[tuple[float, float]]:
    """Points all over the map, evenly on the ground."""
    rng = np.random.default_rng(8)
    lat = np.degrees(np.arcsin(rng.uniform(-0.99, 0.99, count)))
    return [(float(x), float(y)) for x, y in zip(rng.uniform(-180, 180, count).round(6), lat.round(6), strict=True)]


def write_points(path: Path, points: list[tuple[float, float]]) -> Path:
    path.write_text("lon,lat\n" + "".join(f"{lon},{lat}\n" for lon, lat in points))
    return path


def build_points(folder: Path, points: list[tuple[float, float]]) -> MagcDataset:
    """A house around every other point."""
    opl = Opl()
    for lon, lat in points[::2]:
        opl.way(square(lon - 0.0001, lat - 0.0001, 0.0002), "building=yes")
    return maps(folder / "d", opl.write(folder / "p.osm.opl"), points=write_points(folder / "p.csv", points))


def check_points(dataset: MagcDataset, points: list[tuple[float, float]]) -> None:
    tiles = {tile_at(*point).key: number for number, point in reversed(list(enumerate(points)))}
    assert sorted(dataset.keys) == sorted(tiles)
    for number, key in enumerate(dataset.keys[:200]):
        has_house = bool((dataset.read_map(number) == 9).any())
        assert has_house == (tiles[key] % 2 == 0)


def test_scattered_points_are_a_tile_each(tmp_path: Path) -> None:
    points = scattered(60)
    check_points(build_points(tmp_path, points), points)


@pytest.mark.slow
def test_ten_thousand_scattered_points_are_built(tmp_path: Path) -> None:
    points = scattered(10_000)
    figures = plan(
        BuildConfig(
            points=write_points(tmp_path / "q.csv", points),
            imagery="none",
            osm=str(Opl().write(tmp_path / "e.osm.opl")),
        )
    )
    assert figures.tiles > 9990
    assert figures.blocks > 9900
    check_points(build_points(tmp_path, points), points)


def test_what_scattered_points_ask_of_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilemap, a tile and a query each, and a query for coastlines where there is nothing else: far apart, nothing can be shared."""
    points = scattered(6)
    opl = Opl()
    for lon, lat in points[::2]:
        opl.way([(lon - 0.001, lat), (lon + 0.001, lat)], "highway=residential")
    with running_arcgis() as arcgis, FakeOverpass.of_file(opl.write(tmp_path / "p.osm.opl")) as overpass:
        monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", arcgis.url)
        monkeypatch.setenv("MAGC_OVERPASS_URL", overpass.api)
        config = BuildConfig(points=write_points(tmp_path / "p.csv", points), rate=500, workers=1, out=tmp_path / "d")
        tiny_world.run(config)
        coastlines = [query for query in overpass.queries if '"^(coastline)$"' in query]
        assert (arcgis.requests["tilemap"], arcgis.requests["tile"]) == (6, 6)
        assert (len(overpass.queries) - len(coastlines), len(coastlines)) == (6, 3)
    assert verify(tmp_path / "d").findings == ()


def test_a_hole_in_the_area_is_not_built(tmp_path: Path) -> None:
    outer, inner = grid.tile_bounds_lonlat(tile_at(20, 40)), grid.tile_bounds_lonlat(tile_at(20.02, 40.015))
    hole = shapely.box(inner.west - 0.0055, inner.south - 0.0042, inner.east + 0.0055, inner.north + 0.0042)
    area = shapely.difference(shapely.box(outer.west, outer.south, outer.west + 0.045, outer.south + 0.032), hole)
    (tmp_path / "a.geojson").write_text(json.dumps(area.__geo_interface__))
    dataset = maps(tmp_path / "d", Opl().write(tmp_path / "p.osm.opl"), aoi=tmp_path / "a.geojson")
    found = {grid.parse_key(key) for key in dataset.keys}
    whole = grid.tile_range(grid.BoundsLonLat(*area.bounds), 17)
    everything = {
        grid.Tile(17, x, y) for x in range(whole.x_min, whole.x_max + 1) for y in range(whole.y_min, whole.y_max + 1)
    }
    boxes = {tile: shapely.box(*grid.tile_bounds_lonlat(tile)) for tile in everything}
    assert found == {tile for tile, box in boxes.items() if shapely.area(shapely.intersection(area, box)) > 1e-15}
    assert len(everything) - len(found) == 15


def test_an_area_without_any_osm_data_has_empty_maps_and_a_word_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeOverpass([]) as overpass:
        monkeypatch.setenv("MAGC_OVERPASS_URL", overpass.api)
        ended = command(
            "build",
            "--bbox",
            "-30.01,10,-30,10.01",
            "--imagery",
            "none",
            "--workers",
            1,
            "--out",
            tmp_path / "d",
            "--quiet",
        )
        # The block, and the coastlines around it.
        assert len(overpass.queries) == 2
    assert (ended.code, ended.printed) == (0, f"{tmp_path / 'd'}: 25 of 25 tiles kept (rejected: none)\n")
    assert "overpass has nothing in 1 of 1 blocks, and no coastline within 25 km" in ended.complaint
    assert "--water-polygons auto" in ended.complaint
    assert verify(tmp_path / "d").findings == ()
    assert set(read_index(tmp_path / "d")["fraction_background"].to_pylist()) == {1.0}
    assert "sea" not in read_manifest(tmp_path / "d")
