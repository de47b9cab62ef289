"""Maps of the time of their images: Overpass asked for the month of the capture, or the nearest of dated extracts."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import osmium
import pytest
import tiny_world
from fake_arcgis import FakeArcgis, Picture, running_arcgis
from fake_overpass import FakeOverpass, elements_of_file
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import run, tree_digests

from magc_data import grid
from magc_data.cli import join_extracts, main
from magc_data.config import BuildConfig, HealConfig
from magc_data.errors import DatasetError, SourceError, UsageError
from magc_data.grid import Tile
from magc_data.heal import heal
from magc_data.plan import plan
from magc_data.shards.reader import read_index
from magc_data.sources.dated_extracts import open_dated_extracts
from magc_data.sources.http import HttpClient
from magc_data.sources.overpass import open_overpass
from magc_data.sources.protocols import SourceContext
from magc_data.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

Z = tiny_world.ZOOM
BBOX = tiny_world.FOUR_TILES
TILES = tiny_world.tiles(BBOX)
SIDE_M = 2 * grid.HALF_CIRCUMFERENCE_M / 2**Z
WORLD = (-2e7, -2e7, 2e7, 2e7)


def west_of(tile: Tile) -> tuple[float, float, float, float]:
    """All that lies west of a tile's western edge."""
    return (-2e7, -2e7, tile.x * SIDE_M - grid.HALF_CIRCUMFERENCE_M, 2e7)


def east_of(tile: Tile) -> tuple[float, float, float, float]:
    """All that lies east of a tile's western edge."""
    return (tile.x * SIDE_M - grid.HALF_CIRCUMFERENCE_M, -2e7, 2e7, 2e7)


@pytest.fixture
def arcgis(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArcgis]:
    """The western block's first two tiles are of 2016, its third and the eastern block of 2021."""
    with running_arcgis() as service:
        service.pictures = [Picture(west_of(TILES[2]), "2016-05-14"), Picture(east_of(TILES[2]), "2021-09-05")]
        monkeypatch.setenv("MAGC_WORLD_IMAGERY_URL", service.url)
        monkeypatch.setenv("MAGC_WAYBACK_CONFIG_URL", service.wayback_config_url)
        yield service


@pytest.fixture
def overpass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOverpass]:
    """Nothing was mapped before 2020; the houses were lost again in 2024."""
    town = elements_of_file(tiny_world.write_osm(tmp_path / "world.osm.opl"))
    bare = [each for each in town if "building" not in each.get("tags", {})]
    with FakeOverpass(bare, history={"2012-09-12T06:55:00Z": [], "2020-01-01T00:00:00Z": town}) as service:
        monkeypatch.setenv("MAGC_OVERPASS_URL", service.api)
        yield service


def config(out: Path, **changes: object) -> BuildConfig:
    return BuildConfig(
        **({"bbox": BBOX, "out": out, "workers": 1, "rate": 500.0, "match_osm_date": True} | changes)  # type: ignore[arg-type]
    )


def rows_of(data: Path) -> list[dict]:
    by_x = {row["x"]: row for row in read_index(data).to_pylist()}
    return [by_x[tile.x] for tile in TILES]


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


def test_each_map_is_of_the_month_of_its_image(arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path) -> None:
    manifest = run(config(tmp_path / "d"))
    rows = rows_of(tmp_path / "d")
    assert [row["capture_date"] for row in rows] == ["2016-05-14"] * 2 + ["2021-09-05"] * 2
    assert [row["osm_timestamp"] for row in rows] == ["2016-05-01T00:00:00Z"] * 2 + ["2021-09-01T00:00:00Z"] * 2
    assert [row["osm_days"] for row in rows] == [-13, -13, -4, -4]
    assert [row["fraction_building"] > 0 for row in rows] == [False, False, True, True]
    assert manifest["config"]["match_osm_date"] is True
    of_coasts = [query for query in overpass.queries if "coastline)$" in query]
    of_features = [query for query in overpass.queries if query not in of_coasts]
    dates = sorted(re.findall(r'\[date:"([^"]+)"\]', "".join(of_features)))
    assert dates == ["2016-05-01T00:00:00Z", "2021-09-01T00:00:00Z", "2021-09-01T00:00:00Z"]
    assert len(of_features) == 3  # two states of the western block, one of the eastern
    # In 2016 nothing said whether it is land or sea: the coastlines of then are asked for, farther out.
    assert re.findall(r'\[date:"([^"]+)"\]', "".join(of_coasts)) == ["2016-05-01T00:00:00Z"]
    assert verify(tmp_path / "d").findings == ()


def test_without_the_option_all_maps_are_of_one_time(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    run(config(tmp_path / "d", match_osm_date=False))
    rows = rows_of(tmp_path / "d")
    assert {row["osm_timestamp"] for row in rows} == {"2024-05-01T00:00:00Z"}
    assert [row["osm_days"] for row in rows] == [2909, 2909, 969, 969]
    assert len(overpass.queries) == 2
    with pytest.raises(DatasetError, match="match_osm_date was null and is now true"):
        run(config(tmp_path / "d"))


@pytest.mark.slow
def test_the_same_bytes_with_other_workers_and_after_an_interruption(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(tmp_path / "one"))
    queries = len(overpass.queries)
    run(config(tmp_path / "two", workers=2))
    assert len(overpass.queries) == queries  # nothing is asked twice
    overpass.faults.extend(["400"] * 10)
    monkeypatch.setenv("MAGC_CACHE_DIR", str(tmp_path / "new-cache"))
    with pytest.raises(SourceError, match="refused the query"):
        run(config(tmp_path / "three"))
    overpass.faults.clear()
    run(config(tmp_path / "three"))
    digests = tree_digests(tmp_path / "one")
    assert tree_digests(tmp_path / "two") == digests
    assert tree_digests(tmp_path / "three") == digests


def test_an_image_of_unknown_date_has_the_map_of_today_or_of_the_date_given(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    arcgis.pictures = [Picture(west_of(TILES[2]), "2021-09-05")]
    run(config(tmp_path / "d"))
    rows = rows_of(tmp_path / "d")
    assert [row["osm_timestamp"] for row in rows] == ["2021-09-01T00:00:00Z"] * 2 + ["2024-05-01T00:00:00Z"] * 2
    assert [row["osm_days"] for row in rows] == [-4, -4, None, None]
    run(config(tmp_path / "pinned", osm_date="2020-06-01"))
    assert [row["osm_timestamp"] for row in rows_of(tmp_path / "pinned")[2:]] == ["2020-06-01T00:00:00Z"] * 2


def test_tiles_without_an_image_cost_no_query(arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path) -> None:
    arcgis.absent = {tuple(tile) for tile in TILES[:2]}
    run(config(tmp_path / "d"))
    assert re.findall(r'\[date:"([^"]+)"\]', "".join(overpass.queries)) == ["2021-09-01T00:00:00Z"] * 2


def test_images_whose_date_is_in_doubt_have_the_map_of_today(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magc_data.sources.tile_service.now_utc", lambda: "2024-01-01T00:00:00Z")
    run(config(tmp_path / "d"))
    assert {row["osm_timestamp"] for row in rows_of(tmp_path / "d")} == {"2024-05-01T00:00:00Z"}
    assert {row["capture_unknown"] for row in rows_of(tmp_path / "d")} == {"other-time"}


def test_damaged_maps_come_back_as_of_the_time_of_their_image(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path
) -> None:
    run(config(tmp_path / "d"))
    before = tree_digests(tmp_path / "d")
    row = rows_of(tmp_path / "d")[2]
    shard = tmp_path / "d" / row["shard"]
    content = bytearray(shard.read_bytes())
    content[row["map_offset"] : row["map_offset"] + row["map_size"]] = bytes(row["map_size"])
    shard.write_bytes(content)
    assert heal(HealConfig(data=tmp_path / "d")).verification.findings == ()
    assert tree_digests(tmp_path / "d") == before


def test_a_recipe_matches_again(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(config(tmp_path / "d"))
    assert exit_code("export", str(tmp_path / "d"), "--format", "recipe", "--out", str(tmp_path / "recipe")) == 0
    lock = tmp_path / "recipe" / "magc.lock"
    assert b'"match_osm_date": true' in lock.read_bytes().splitlines()[0]
    arguments = ("--lock", str(lock), "--out", str(tmp_path / "again"), "--workers", "1", "--rate", "500", "--quiet")
    assert exit_code("build", *arguments) == 0, capfd.readouterr()
    assert [row["map_sha256"] for row in rows_of(tmp_path / "again")] == [
        row["map_sha256"] for row in rows_of(tmp_path / "d")
    ]


def test_stats_show_how_far_maps_are_from_their_images(
    arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    finer = Picture(west_of(TILES[2]), "2016-05-14", resolution_m=0.2)
    arcgis.pictures = [finer, Picture(west_of(TILES[3]), "2021-09-05")]
    run(config(tmp_path / "d", match_osm_date=False))
    assert exit_code("stats", str(tmp_path / "d")) == 0
    printed = capfd.readouterr().out
    assert "captured   2016-05-14 to 2021-09-05" in printed
    assert "1 of 4 without a date" in printed
    assert re.search(r"map later than image, days: least 969, half 2909, most 2909", printed)
    assert re.search(r"2 to 5 years later +1\n", printed)
    assert re.search(r"more than 5 years later +2\n", printed)


def test_the_plan_says_what_matching_costs(arcgis: FakeArcgis, overpass: FakeOverpass, tmp_path: Path) -> None:
    assert plan(config(tmp_path / "d")).requests_beside_tiles == {"capture dates": 2, "OpenStreetMap": 3}
    assert plan(config(tmp_path / "d", match_osm_date=False)).requests_beside_tiles["OpenStreetMap"] == 2
    assert not overpass.queries
    assert arcgis.requests["captures"] == 0


@settings(deadline=None)
@given(st.dates(min_value=date(1980, 1, 2), max_value=date(2100, 1, 1)))
def test_the_state_is_never_younger_than_the_image_and_a_month_older_at_most(day: date) -> None:
    source = open_overpass("https://overpass.example/api", SourceContext(Path(), None, Z, frozenset({"building"})))  # type: ignore[arg-type]
    state = date.fromisoformat(source.state_of(day.isoformat())[:10])
    if day < date(2012, 10, 1):
        assert state == date(2012, 10, 1)
    else:
        assert 0 <= (day - state).days <= 30


# --- dated extracts --------------------------------------------------------------------------------------------------


def write_pbf(path: Path, opl: Path, timestamp: str | None, *, without: str = "") -> Path:
    """A PBF whose header states its time and box."""
    header = osmium.io.Header()
    if timestamp is not None:
        header.set("osmosis_replication_timestamp", timestamp)
    west, south, east, north = tiny_world.BBOX
    header.add_box(osmium.osm.Box(west - 0.01, south - 0.01, east + 0.01, north + 0.01))
    with osmium.SimpleWriter(str(path), header=header, overwrite=True) as writer:
        for item in osmium.FileProcessor(str(opl)):
            if not without or without not in item.tags:
                writer.add(item)
    return path


@pytest.fixture
def extracts(tmp_path: Path) -> dict[str, Path]:
    """Names that lie: the file named 2024 is of 2015."""
    opl = tiny_world.write_osm(tmp_path / "world.osm.opl")
    folder = tmp_path / "extracts"
    folder.mkdir()
    return {
        "2015": write_pbf(folder / "town-2024.osm.pbf", opl, "2015-01-01T00:00:00Z", without="building"),
        "2021": write_pbf(folder / "town-a.osm.pbf", opl, "2021-01-01T00:00:00Z"),
    }


def test_each_map_is_of_the_nearest_extract_by_its_header(
    arcgis: FakeArcgis, extracts: dict[str, Path], tmp_path: Path
) -> None:
    run(config(tmp_path / "d", osm=str(tmp_path / "extracts")))
    rows = rows_of(tmp_path / "d")
    assert [row["osm_timestamp"] for row in rows] == ["2015-01-01T00:00:00Z"] * 2 + ["2021-01-01T00:00:00Z"] * 2
    assert [row["osm_days"] for row in rows] == [-499, -499, -247, -247]
    assert [row["fraction_building"] > 0 for row in rows] == [False, False, True, True]
    assert verify(tmp_path / "d").findings == ()
    run(config(tmp_path / "workers", osm=str(tmp_path / "extracts"), workers=2))
    assert tree_digests(tmp_path / "workers") == tree_digests(tmp_path / "d")


def test_extracts_given_one_by_one_are_as_good_as_their_folder(
    arcgis: FakeArcgis, extracts: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["build", "--bbox", ",".join(map(str, BBOX)), "--workers", "1", "--rate", "500", "--quiet"]
    several = [part for path in extracts.values() for part in ("--osm", str(path))]
    assert exit_code(*arguments, *several, "--match-osm-date", "--out", str(tmp_path / "d")) == 0
    run(config(tmp_path / "folder", osm=str(tmp_path / "extracts")))
    assert tree_digests(tmp_path / "d") == tree_digests(tmp_path / "folder")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["build", "--osm", "a", "--osm=b", "--out", "d"], ["build", "--osm", "a,b", "--out", "d"]),
        (["build", "--osm", "a"], ["build", "--osm", "a"]),
        (["build", "--osm=a"], ["build", "--osm", "a"]),
        (["build", "--osm"], ["build", "--osm"]),
        (["build", "--osm-date", "x"], ["build", "--osm-date", "x"]),
    ],
)
def test_osm_may_be_given_several_times(arguments: list[str], expected: list[str]) -> None:
    assert join_extracts(arguments) == expected


def context_of(tmp_path: Path, http: HttpClient | None = None) -> SourceContext:
    return SourceContext(tmp_path / "cache", http, Z, frozenset({"building"}))  # type: ignore[arg-type]


def test_the_nearest_extract_by_days_and_the_younger_of_two(extracts: dict[str, Path], tmp_path: Path) -> None:
    source = open_dated_extracts(",".join(map(str, extracts.values())), context_of(tmp_path))
    assert source.state_of("1999-01-01") == "2015-01-01T00:00:00Z"
    assert source.state_of("2017-12-31") == "2015-01-01T00:00:00Z"
    assert source.state_of("2018-01-01") == "2021-01-01T00:00:00Z"  # 1,096 days after the one, 1,096 before the other
    assert source.state_of("2030-01-01") == "2021-01-01T00:00:00Z"
    assert source.state_of(None) == "2021-01-01T00:00:00Z"


def test_what_cannot_be_matched_is_refused_with_a_way_out(
    arcgis: FakeArcgis, overpass: FakeOverpass, extracts: dict[str, Path], tmp_path: Path
) -> None:
    opl = tmp_path / "world.osm.opl"
    pictures = tiny_world.write_pictures(tmp_path / "tiles", TILES)
    untimed = write_pbf(tmp_path / "untimed.osm.pbf", opl, None)
    same = write_pbf(tmp_path / "same.osm.pbf", opl, "2021-01-01T00:00:00Z")
    (tmp_path / "empty").mkdir()
    cases = [
        ({"osm": str(extracts["2021"])}, UsageError, "which is of one time: use overpass, or several dated extracts"),
        ({"imagery": str(pictures)}, UsageError, "tells no capture dates: use world-imagery or wayback"),
        ({"imagery": "none"}, UsageError, "--imagery none, which tells no capture dates"),
        ({"osm": str(tmp_path / "extracts"), "match_osm_date": False}, UsageError, "add --match-osm-date"),
        ({"osm": f"{extracts['2021']},{untimed}"}, SourceError, "states no time in its header"),
        ({"osm": f"{extracts['2021']},{same}"}, UsageError, "are both of 2021-01-01T00:00:00Z"),
        ({"osm": str(tmp_path / "empty")}, UsageError, "holds no OpenStreetMap extract"),
        ({"osm": f"{extracts['2021']},nowhere.osm.pbf"}, SourceError, "nowhere.osm.pbf does not exist"),
    ]
    for changes, kind, words in cases:
        with pytest.raises(kind, match=re.escape(words)):
            run(config(tmp_path / "d", **changes))
        assert not (tmp_path / "d").exists()
