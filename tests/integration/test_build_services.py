"""The default build, from World Imagery and Overpass, against local servers that behave and misbehave like them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import tiny_world
from fake_arcgis import COPYRIGHT, Fault, place_of, running_arcgis
from fake_overpass import FakeOverpass, elements_of_file
from tiny_world import run

from magc_data.cli import main
from magc_data.config import BuildConfig
from magc_data.errors import DatasetError, MagcDataError
from magc_data.grid import parse_key, tile_bounds_lonlat
from magc_data.shards import index
from magc_data.shards.reader import read_index, read_members
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fake_arcgis import FakeArcgis

BBOX = tuple(tiny_world.BBOX[i] + (0.0015, 0.0007, -0.0015, -0.0007)[i] for i in range(4))

ONE_BLOCK = (tiny_world.CORNER_LON, tiny_world.CORNER_LAT, tiny_world.BBOX[2], tiny_world.BBOX[3])


@pytest.fixture
def arcgis(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArcgis]:
    with running_arcgis() as service:
        monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", service.url)
        yield service


@pytest.fixture
def overpass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOverpass]:
    with FakeOverpass.of_file(tiny_world.write_osm(tmp_path / "world.osm.opl")) as service:
        monkeypatch.setenv("MAGC_OVERPASS_URL", service.api)
        yield service


def config(out: Path, **changes: object) -> BuildConfig:
    return BuildConfig(**({"bbox": BBOX, "out": out, "workers": 1, "rate": 500.0} | changes))


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code


def test_the_default_build(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--bbox", ",".join(map(str, BBOX)), "--workers", "1", "--rate", "500", "--quiet"]
    assert exit_code(*arguments, "--out", str(tmp_path / "d")) == 0
    printed = capfd.readouterr()
    assert "tiles kept (rejected: none)" in printed.out
    assert COPYRIGHT in printed.err  # attribution and terms, on first use
    assert "OpenStreetMap contributors" in printed.err

    rows = read_index(tmp_path / "d").to_pylist()
    assert len(rows) >= 12
    for row in rows:
        assert place_of(read_members(tmp_path / "d", row).image) == parse_key(
            row["key"]
        )  # row before column, served right
        assert row["osm_timestamp"] == "2024-05-01T00:00:00Z"
    assert arcgis.without_blank_tile_false == 0
    assert arcgis.requests["tilemap"] == 4  # one for each block of 32 x 32
    assert set(arcgis.tiles.values()) == {1}
    assert all(agent.startswith("magc/") for agent in arcgis.user_agents | overpass.user_agents)
    assert verify(tmp_path / "d").findings == ()
    attribution = (tmp_path / "d" / "ATTRIBUTION.md").read_text()
    (imagery,) = (part for part in attribution.split("\n## ") if part.startswith("Imagery: "))
    assert "May it be redistributed: **no" in imagery
    assert COPYRIGHT in imagery
    (vectors,) = (part for part in attribution.split("\n## ") if part.startswith("Vectors: "))
    assert "May it be redistributed: yes" in vectors

    arcgis.forget()
    queries = len(overpass.queries)
    assert exit_code(*arguments, "--out", str(tmp_path / "again")) == 0
    assert not arcgis.tiles, "tiles in the cache were asked for again"
    assert len(overpass.queries) == queries
    assert COPYRIGHT not in capfd.readouterr().err  # shown once
    assert tiny_world.tree_digests(tmp_path / "again") == tiny_world.tree_digests(tmp_path / "d")

    assert exit_code(*arguments, "--out", str(tmp_path / "d")) == 0
    assert "nothing to do" in capfd.readouterr().out


@pytest.mark.slow
def test_a_poisoned_tile_is_named_and_a_transient_one_comes_later(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(tmp_path / "clean"))
    keys = read_index(tmp_path / "clean")["key"].to_pylist()
    places = [tuple(parse_key(key)) for key in keys]
    permanent = {
        places[0]: ("etag", "placeholder"),
        places[1]: ("blank-tile", "placeholder"),
        places[2]: ("white", "blank"),
        places[3]: ("wrong-size", "wrong-size"),
    }
    transient = {
        places[4]: ("503", "fetch-failed"),
        places[5]: ("truncated", "undecodable"),
        places[6]: ("html", "undecodable"),
    }
    healed = {places[7]: Fault("500", 1), places[8]: Fault("cut", 1), places[9]: Fault("429", 1)}
    arcgis.absent = {places[10]}
    arcgis.faults = {place: kind for place, (kind, _) in (permanent | transient).items()} | healed
    arcgis.forget()
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    manifest = run(config(tmp_path / "d"))
    rejected = {
        row["key"]: (row["reason"], row["transient"])
        for row in index.read_table(tmp_path / "d" / "rejected.parquet").to_pylist()
    }
    expected = {key: (reason, False) for (_, reason), key in zip(permanent.values(), keys[:4], strict=True)}
    expected |= {key: (reason, True) for (_, reason), key in zip(transient.values(), keys[4:7], strict=True)}
    expected[keys[10]] = ("not-available", False)
    assert rejected == expected
    assert manifest["counts"]["transient"] == 3
    assert verify(tmp_path / "d").findings == ()

    # Well again: the transient ones are asked for, the permanent ones are remembered.
    arcgis.faults = {}
    arcgis.absent = set()
    arcgis.forget()
    manifest = run(config(tmp_path / "d"))
    assert set(arcgis.tiles) == set(transient)
    assert manifest["counts"]["transient"] == 0
    assert manifest["counts"]["kept"] == len(keys) - 5
    assert verify(tmp_path / "d").findings == ()
    run(config(tmp_path / "fresh-folder-same-cache"))
    assert tiny_world.tree_digests(tmp_path / "fresh-folder-same-cache") == tiny_world.tree_digests(tmp_path / "d")


def test_identical_answers_at_several_places_are_rejected(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's unknown 'no data' picture, unmarked, with HTTP 200: nothing but its repetition gives it away."""
    run(config(tmp_path / "clean"))
    keys = read_index(tmp_path / "clean")["key"].to_pylist()
    arcgis.faults = {tuple(parse_key(key)): "placeholder" for key in (keys[0], keys[-1])}
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    run(config(tmp_path / "d"))
    rejected = {row["key"]: row["reason"] for row in index.read_table(tmp_path / "d" / "rejected.parquet").to_pylist()}
    assert rejected.keys() == {keys[0], keys[-1]}
    assert set(rejected.values()) <= {"repeated", "blank"}


@pytest.mark.parametrize("fault", ["remark", "504", "html", "cut-json", "429"])
def test_a_failing_overpass_never_makes_a_smaller_map(
    fault: str, arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(tmp_path / "clean", bbox=ONE_BLOCK))
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    overpass.faults.append(fault)
    run(config(tmp_path / "d", bbox=ONE_BLOCK))
    assert not overpass.faults, "the fault was not met"
    assert tiny_world.tree_digests(tmp_path / "d") == tiny_world.tree_digests(tmp_path / "clean")


def test_a_dead_overpass_stops_the_build_and_names_the_cell(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    overpass.faults.extend(["400"] * 100)
    with pytest.raises(MagcDataError, match=r"the cell 11\.2"):
        run(config(tmp_path / "d", bbox=ONE_BLOCK))
    assert not (tmp_path / "d" / "dataset.json").exists()
    overpass.faults.clear()
    run(config(tmp_path / "d", bbox=ONE_BLOCK))
    assert verify(tmp_path / "d").findings == ()


def test_without_a_network_there_is_one_plain_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", "http://127.0.0.1:9/arcgis/rest/services/World_Imagery/MapServer")
    assert exit_code("build", "--bbox", "10,50,10.001,50.001", "--out", str(tmp_path / "d"), "--quiet") == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "127.0.0.1:9" in lines[0]
    assert "Traceback" not in lines[0]
    assert not (tmp_path / "d").exists()


def test_the_date_of_the_map_is_pinned_and_recorded(
    arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of then knew the town, the server of now has lost it: the pinned build has the town."""
    town = elements_of_file(tiny_world.write_osm(tmp_path / "world.osm.opl"))
    with FakeOverpass([], history={"2019-01-01T00:00:00Z": town}) as service:
        monkeypatch.setenv("MAGC_OVERPASS_URL", service.api)
        run(config(tmp_path / "then", bbox=ONE_BLOCK, osm_date="2020-01-01"))
        run(config(tmp_path / "now", bbox=ONE_BLOCK))
        assert '[date:"2020-01-01T00:00:00Z"]' in service.queries[0]
        assert "[date:" not in service.queries[-1]
    assert all(row["fraction_building"] > 0 for row in read_index(tmp_path / "then").to_pylist())
    assert all(row["fraction_background"] == 1 for row in read_index(tmp_path / "now").to_pylist())
    with pytest.raises(DatasetError, match="vectors was"):
        run(config(tmp_path / "then", bbox=ONE_BLOCK, osm_date="2020-01-02"))


def test_tiles_without_labels_are_not_asked_for(
    arcgis: FakeArcgis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extract covers a few tiles of one block: no request for the others, nor for what is in the other blocks."""
    import osmium

    tiles = tiny_world.tiles(BBOX)
    # The north-western of the four blocks, less half a tile in the east: the extract's box cuts through tiles.
    north_western = [tile for tile in tiles if (tile.x // 32, tile.y // 32) == (tiles[0].x // 32, tiles[0].y // 32)]
    west, _, _, north = tile_bounds_lonlat(north_western[0])
    _, south, east, _ = tile_bounds_lonlat(north_western[-1])
    half_tile = (tile_bounds_lonlat(tiles[0]).east - west) / 2
    covered = (west - 1e-5, south - 1e-5, east - half_tile, north + 1e-5)
    header = osmium.io.Header()
    header.add_box(osmium.osm.Box(*covered))
    writer = osmium.SimpleWriter(str(tmp_path / "part.osm.pbf"), header=header)
    for item in osmium.FileProcessor(str(tiny_world.write_osm(tmp_path / "world.osm.opl"))):
        writer.add(item)
    writer.close()

    vectors = tiny_world.fail_vectors(monkeypatch)
    run(config(tmp_path / "d", osm=str(tmp_path / "part.osm.pbf")))
    assert len(vectors[0].fetched) == 1
    inside = {tile for tile in north_western if tile.x < north_western[-1].x}
    assert 0 < len(inside) < len(north_western) < len(tiles)
    assert set(arcgis.tiles) == {tuple(tile) for tile in inside}
    assert arcgis.requests["tilemap"] == 1
    assert set(read_index(tmp_path / "d")["key"].to_pylist()) == {tile.key for tile in inside}
    assert verify(tmp_path / "d").findings == ()
