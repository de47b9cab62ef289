"""The sea of real harbours. Baltimore, New York and Singapore need ../shared/data; Helsinki's extract is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import osmium
import pytest
from fake_overpass import FakeOverpass, elements_of_file
from tiny_world import run
from water_files import sea_polygons, write_water_polygons

from magc_data import grid
from magc_data.config import BuildConfig
from magc_data.dataset import MagcDataset
from magc_data.grid import BoundsLonLat
from magc_data.shards.index import read_table
from magc_data.shards.manifest import read_manifest
from magc_data.sources.overpass import Answer, to_opl
from magc_data.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

BALTIMORE = (-76.6075, 39.2592, -76.5640, 39.2930)
INNER_HARBOR = (-76.6030, 39.2800)
NORTHWEST_BRANCH = (-76.5742, 39.2700)
FORT_MCHENRY, PATTERSON_PARK, FELLS_POINT = (-76.5797, 39.2632), (-76.5795, 39.2895), (-76.5930, 39.2830)


def class_at(dataset: Maps, lon: float, lat: float) -> str:
    """Name of the class that the maps have at a place."""
    zoom = dataset.manifest["zoom"]
    x_px, y_px = (int(each[0]) for each in grid.lonlat_to_px(np.array([lon]), np.array([lat]), zoom))
    number = dataset.keys.index(grid.Tile(zoom, x_px // 256, y_px // 256).key)
    pixel = dataset.read_map(number)[y_px % 256, x_px % 256]
    return next(each["name"] for each in dataset.manifest["classes"] if each["id"] == pixel)


def water_share(dataset: Maps) -> float:
    return float(np.mean([(dataset.read_map(number) == 8).mean() for number in range(len(dataset))]))


def coastlines(path: Path) -> list[np.ndarray]:
    ways = osmium.FileProcessor(str(path)).with_locations()
    return [
        np.array([(node.lon, node.lat) for node in way.nodes])
        for way in ways
        if way.is_way() and way.tags.get("natural") == "coastline"
    ]


@pytest.fixture(scope="module")
def baltimore(shared_data: Path) -> Path:
    return shared_data / "osm" / "valhalla_baltimore.osm.pbf"


class Maps(MagcDataset):
    """A dataset of maps alone, with its manifest."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.manifest = read_manifest(data)


def maps(out: Path, osm: str, bbox: tuple[float, float, float, float] = BALTIMORE, **options: object) -> Maps:
    run(BuildConfig(**{"bbox": bbox, "zoom": 16, "imagery": "none", "osm": osm, "workers": 1, "out": out} | options))
    assert verify(out).findings == ()
    return Maps(out)


def test_baltimore_lies_at_a_harbour(tmp_path: Path, baltimore: Path) -> None:
    dataset = maps(tmp_path / "d", str(baltimore))
    assert dataset.manifest["sea"] == {"from": "coastlines", "reach_m": 25000.0}
    assert dataset.manifest["counts"]["rejected"].keys() <= {"outside-vectors"}
    assert [class_at(dataset, *place) for place in (INNER_HARBOR, NORTHWEST_BRANCH)] == ["water", "water"]
    assert "water" not in [class_at(dataset, *place) for place in (FORT_MCHENRY, PATTERSON_PARK, FELLS_POINT)]
    dry = maps(tmp_path / "dry", str(baltimore), water_polygons="none")
    assert dry.manifest["sea"] == {"from": "none"}
    assert class_at(dry, *INNER_HARBOR) == "background"
    assert water_share(dry) < 0.005
    assert 0.15 < water_share(dataset) < 0.35


def test_what_stands_on_the_sea_stays_and_no_map_loses_anything_but_background(tmp_path: Path, baltimore: Path) -> None:
    wet, dry = maps(tmp_path / "wet", str(baltimore)), maps(tmp_path / "dry", str(baltimore), water_polygons="none")
    assert wet.keys == dry.keys
    for number in range(len(wet)):
        with_sea, without = wet.read_map(number), dry.read_map(number)
        changed = with_sea != without
        assert (without[changed] == 0).all()
        assert (with_sea[changed] == 8).all()


def test_water_polygons_of_the_same_coast_give_the_same_maps(tmp_path: Path, baltimore: Path) -> None:
    """Synthetic: polygons made of the extract's own coastline, split and packed as osmdata does."""
    water = sea_polygons(coastlines(baltimore), BoundsLonLat(-76.6081, 39.2586, -76.5288, 39.3065))
    by_lines = maps(tmp_path / "lines", str(baltimore))
    for epsg, most_px in ((4326, 0), (3857, 4)):
        path = write_water_polygons(tmp_path / f"water-polygons-split-{epsg}.zip", water, epsg=epsg)
        by_polygons = maps(tmp_path / str(epsg), str(baltimore), water_polygons=str(path))
        record = by_polygons.manifest["sea"]
        assert (record["from"], record["name"]) == ("water-polygons", path.name)
        assert record["version"].startswith("2024-05-01T03:04:06 sha256:")
        assert by_polygons.keys == by_lines.keys
        different = [
            int((by_polygons.read_map(number) != by_lines.read_map(number)).sum()) for number in range(len(by_lines))
        ]
        assert sum(different) <= most_px


@pytest.mark.slow
def test_overpass_gives_the_same_harbour_as_the_file(
    tmp_path: Path, baltimore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_file = maps(tmp_path / "file", str(baltimore))
    with FakeOverpass.of_file(baltimore) as server:
        monkeypatch.setenv("MAGC_OVERPASS_URL", server.api)
        asked = maps(tmp_path / "overpass", "overpass")
        # Every block has a street or a coastline: nobody had to be asked for coastlines farther away.
        assert not [query for query in server.queries if '"^(coastline)$"' in query]
    assert [class_at(asked, *place) for place in (INNER_HARBOR, NORTHWEST_BRANCH)] == ["water", "water"]
    numbers = {key: number for number, key in enumerate(asked.keys)}
    for number, key in enumerate(of_file.keys):
        assert np.array_equal(of_file.read_map(number) == 8, asked.read_map(numbers[key]) == 8)


def test_the_hudson_is_water_and_its_piers_are_not(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "osm" / "valhalla_nyc.osm.pbf"
    dataset = maps(tmp_path / "d", str(path), (-74.0136, 40.7332, -73.9998, 40.7396), zoom=18)
    assert class_at(dataset, -74.0120, 40.7370) == "water"
    assert class_at(dataset, -74.0030, 40.7370) != "water"
    assert 0.15 < water_share(dataset) < 0.25


def test_singapores_bay_is_water_where_its_relation_is_whole(tmp_path: Path, shared_data: Path) -> None:
    """Marina Bay is no sea but a reservoir, and the extract lacks 10 of the 17 ways of its outline.

    The two ways that close it here, wholly outside the extract, are synthetic; its shores within are the real ones.
    """
    path = shared_data / "osm" / "valhalla_bayfront_singapore.osm.pbf"
    bbox = (103.8569, 1.2783, 103.8611, 1.2908)
    bay, sands = (103.8580, 1.2875), (103.8590, 1.2830)
    cut = maps(tmp_path / "cut", str(path), bbox, zoom=18)
    assert class_at(cut, *bay) == "background"
    assert "sea" not in cut.manifest  # there is no coastline in it
    elements = elements_of_file(path)
    relation = next(each for each in elements if (each["type"], each["id"]) == ("relation", 95))
    there = {each["id"] for each in elements if each["type"] == "way"}
    relation["members"] = [each for each in relation["members"] if each["ref"] in there]
    for number, (first, last) in enumerate([(2281, 2282), (2048, 1952)], 9849):
        elements.append({"type": "way", "id": number, "nodes": [first, last]})
        relation["members"].append({"type": "way", "ref": number, "role": "outer"})
    whole = tmp_path / "whole.osm.opl"
    whole.write_bytes(to_opl([Answer(elements, "2024-05-01T00:00:00Z")]))
    dataset = maps(tmp_path / "whole", str(whole), bbox, zoom=18)
    assert class_at(dataset, *bay) == "water"
    assert class_at(dataset, *sands) != "water"


def test_a_coastline_that_an_extract_cuts_off_costs_the_tiles_around_the_cut(
    tmp_path: Path, helsinki_pbf: Path
) -> None:
    wet = maps(tmp_path / "wet", str(helsinki_pbf), (24.9352, 60.1642, 24.9534, 60.1791), zoom=17)
    dry = maps(
        tmp_path / "dry", str(helsinki_pbf), (24.9352, 60.1642, 24.9534, 60.1791), zoom=17, water_polygons="none"
    )
    rejected = read_table(tmp_path / "wet" / "rejected.parquet").to_pylist()
    unknown = [row for row in rejected if row["reason"] == "sea-unknown"]
    assert {row["key"] for row in unknown} == set(dry.keys) - set(wet.keys)
    assert 0 < len(unknown) < 4
    assert {row["detail"] for row in unknown} == {"a coastline ends in the midst at 24.94477,60.17859"}
    assert class_at(wet, 24.9491, 60.1763) == "water"  # the bay of Eläintarha
    assert class_at(dry, 24.9491, 60.1763) == "background"
    assert class_at(wet, 24.9448, 60.1747) != "water"  # the botanical garden
